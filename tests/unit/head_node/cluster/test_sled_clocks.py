"""Sleds whose time is ahead of the authority's: the primary asks for a credential of their time, at once."""

from kit.cluster import BLOCK, Rack, until, with_rack

DAY_MS = 86_400_000
ONE = bytes([1]) * BLOCK


def test_a_takeover_at_sleds_that_are_a_day_ahead_serves() -> None:
    async def scenario(rack: Rack) -> None:
        for sled in rack.sleds.values():
            sled.ahead_ms = DAY_MS
        first, _ = await rack.start_serving()
        assert first.api.said_expired == 1
        assert await first.write(0, ONE) == 0
        assert rack.record.epoch == 1, "an epoch was given up for want of a credential of their time"

    with_rack(scenario)


def test_sleds_that_jump_ahead_while_the_volume_is_served_get_a_credential_of_their_time() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        for sled in rack.sleds.values():
            sled.ahead_ms = DAY_MS  # another volume's credential was of an authority that is a day ahead
        role = first.controller._role
        assert role is not None
        role.attachments.probe()
        await until(lambda: first.api.said_expired == 1)
        await until(lambda: all(sled.ahead_ms == rack.authority.ahead_ms for sled in rack.sleds.values()))
        await second.crash()
        await until(lambda: not rack.is_member(second))
        await role.attachments.wait_receipts(3, 1)
        before = first.api.said_expired
        role.attachments.probe()
        assert await first.write(1, ONE) == 0
        assert first.serving
        assert first.api.said_expired == before

    with_rack(scenario)
