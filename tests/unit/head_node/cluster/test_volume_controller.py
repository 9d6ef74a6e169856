"""A volume on two heads: creation, takeover, return, hand-over, and the fences that a stale primary meets."""

import asyncio

import pytest
from kit.cluster import (
    BLOCK,
    TERMS,
    VOLUME,
    KitHead,
    Rack,
    credential_of,
    until,
    with_rack,
)

from head_node.cluster.errors import NotServing
from head_node.cluster.states import VolumeState

ONE, TWO, THREE = (bytes([value]) * BLOCK for value in (1, 2, 3))


def test_a_new_volume_is_served_by_its_preferred_head_and_followed_by_the_other() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await until(lambda: second.engine.durable >= first.engine.committed)
        assert rack.record.epoch == 1
        assert [column.sled for column in rack.record.columns] == list(rack.sleds)
        assert second.state is VolumeState.FOLLOWING
        assert not first.controller.status()["exposed"]

    with_rack(scenario)


def test_a_write_is_answered_only_when_the_member_has_it_durably() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        answer = first.write(0, ONE)
        await until(lambda: bool(held))
        await until(lambda: first.engine.durable == first.engine.tail.opnum)
        assert not answer.done()
        second.disk.gate = None
        for finish in held:
            finish()
        assert await answer == 0

    with_rack(scenario)


def test_the_secondary_takes_over_when_the_primary_dies_and_has_every_acknowledged_write() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        for lba in range(20):
            assert await first.write(lba, bytes([lba + 1]) * BLOCK) == 0
        await first.crash()
        await until(lambda: second.serving)
        assert rack.record.primary == second.id
        assert rack.record.epoch == 2
        assert not rack.is_member(first)
        await until(lambda: bool(second.controller.status()["exposed"]))
        for lba in range(20):
            assert await second.read(lba) == bytes([lba + 1]) * BLOCK

    with_rack(scenario)


def break_links(first: KitHead) -> None:
    """The first head's links end and it takes no new ones."""
    first.head._stopping = True
    role = first.controller._role
    assert role is not None
    role.links.close("the network breaks")


def test_f5_seal_before_ask() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        gate = second.api.gates["takeover"] = asyncio.Event()
        first.api.cut_off = True
        break_links(first)
        await until(lambda: second.state is VolumeState.SEALED)
        tail = second.engine.tail
        follower = second.controller._follower
        assert follower is not None
        assert follower.session is None
        assert follower.promise.sealed
        assert second.engine.durable == tail.opnum
        first.head._stopping = False
        late = first.write(0, ONE)
        await until(lambda: first.engine.durable == first.engine.tail.opnum)
        assert second.engine.tail == tail
        assert not late.done()
        gate.set()
        await until(lambda: second.serving)
        assert not late.done()
        first.api.cut_off = False

    with_rack(scenario)


def both_ask(rack: Rack, first: KitHead, second: KitHead) -> tuple[asyncio.Event, asyncio.Event]:
    """The primary's removal of the member, and the member's takeover, both on their way to the authority."""
    removal = first.api.gates["change_members"] = asyncio.Event()
    takeover = second.api.gates["takeover"] = asyncio.Event()
    break_links(first)
    return removal, takeover


def test_f5_record_race_primary_wins() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        removal, takeover = both_ask(rack, first, second)
        await until(lambda: second.state is VolumeState.SEALED)
        removal.set()
        await until(lambda: not rack.is_member(second))
        takeover.set()
        first.head._stopping = False
        await until(lambda: rack.is_member(second))
        assert rack.record.epoch == 1
        assert first.serving
        assert await first.write(1, TWO) == 0

    with_rack(scenario)


def test_f5_record_race_secondary_wins() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        removal, takeover = both_ask(rack, first, second)
        late = first.write(0, ONE)
        await until(lambda: second.state is VolumeState.SEALED)
        takeover.set()
        await until(lambda: second.serving)
        removal.set()
        await until(lambda: first.state is VolumeState.FOLLOWING)
        assert not late.done()
        first.head._stopping = False
        assert rack.record.epoch == 2

    with_rack(scenario)


def test_no_dirty_read_across_takeover() -> None:
    """A write that only the old primary's secondary got is visible after the takeover or never, not first and then
    gone; and the old primary shows nobody what was not committed."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        gate = second.api.gates["change_members"] = asyncio.Event()
        await first.crash()
        await until(lambda: second.state is VolumeState.LEADING)
        with pytest.raises(NotServing):
            second.controller.served()
        role = second.controller._role
        assert role is not None
        assert not role._may_serve()
        gate.set()
        await until(lambda: second.serving)
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_uncommitted_writes_are_not_readable_at_the_old_primary() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        held = second.hold_commits()
        answer = first.write(0, TWO)
        await until(lambda: first.engine.durable == first.engine.tail.opnum)
        assert await first.read(0) == ONE
        assert not answer.done()
        second.disk.gate = None
        await until(lambda: bool(held))
        for finish in held:
            finish()
        assert await answer == 0
        assert await first.read(0) == TWO

    with_rack(scenario)


def test_a_returning_primary_drops_what_diverges_and_joins_as_secondary() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        common = first.engine.tail.opnum
        first.api.cut_off = True
        break_links(first)
        lost = first.write(0, TWO)
        await until(lambda: first.engine.durable == common + 1)
        await first.crash()
        assert not lost.done()
        await until(lambda: second.serving)
        assert await second.write(1, THREE) == 0
        await first.start()
        await until(lambda: rack.is_member(first))
        assert first.state is VolumeState.FOLLOWING
        assert first.engine.epoch_history() == second.engine.epoch_history() == [(1, 1), (2, common + 1)]
        assert await second.read(0) == ONE
        assert await second.write(2, THREE) == 0
        await second.crash()
        await until(lambda: first.serving)
        assert [await first.read(lba) for lba in range(3)] == [ONE, THREE, THREE]

    with_rack(scenario)


def test_restart_takes_new_epoch() -> None:
    async def scenario(rack: Rack) -> None:
        first = rack.heads[0]
        rack.create_volume()
        await first.start()
        await until(lambda: first.serving)
        assert await first.write(0, ONE) == 0
        await first.crash()
        await first.start()
        await until(lambda: first.serving)
        assert rack.record.epoch == 2
        assert all(sled.fences[VOLUME][0] == 2 for sled in rack.sleds.values())
        assert await first.read(0) == ONE

    with_rack(scenario, heads=1)


def test_f5_wiped_log_not_eligible() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await second.crash()
        second.disk.files.clear()
        gate = first.api.gates["change_members"] = asyncio.Event()
        await second.start()
        await until(lambda: second.state is VolumeState.FOLLOWING)
        await first.crash()
        await asyncio.sleep(TERMS.ttl_ms * 1.5 / 1000)  # as long as a takeover would take
        assert rack.record.epoch == 1
        assert second.state is VolumeState.FOLLOWING
        assert ("takeover", second.id, 2) not in rack.authority.journal
        gate.set()

    with_rack(scenario)


def test_a_wiped_member_is_removed_and_joins_as_a_newcomer() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        old = rack.record.member(second.id)
        await second.crash()
        second.disk.files.clear()
        await second.start()
        await until(lambda: rack.record.member(second.id) not in (None, old))
        assert await first.write(1, TWO) == 0
        assert second.engine.durable >= first.engine.committed

    with_rack(scenario)


async def suspend(rack: Rack, first: KitHead, second: KitHead) -> None:
    """What SIGSTOP does to the first head, as others see it: silence, until the second has taken over."""
    role = first.controller._role
    assert role is not None
    assert role._timer is not None
    role._timer.cancel()
    first.api.cut_off = True
    first.head._stopping = True
    await until(lambda: second.serving)


def test_an_awakened_primary_answers_nobody_meets_the_fence_and_steps_down() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await suspend(rack, first, second)
        assert await second.write(0, TWO) == 0
        stale = first.controller._role
        assert stale is not None
        assert not stale._may_serve()
        late = first.write(0, THREE)
        first.head._stopping = False
        stale._tick()
        await until(lambda: first.state is VolumeState.FOLLOWING)
        outcome = first.controller._last_outcome
        assert outcome is not None
        assert outcome.end.value == "fenced off"
        assert not late.done()
        fences = first.head.status()["fences"]
        assert {(fence["stale_epoch"], fence["current_epoch"]) for fence in fences} == {(1, 2)}
        first.api.cut_off = False
        await until(lambda: rack.is_member(first))
        assert await second.read(0) == TWO

    with_rack(scenario)


def test_the_lease_ends_by_the_clock_that_counts_suspend() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        role = first.controller._role
        assert role is not None
        assert role._may_serve()
        first.clock.jump(TERMS.ttl_ms)
        assert not role._may_serve()
        answer = first.write(0, ONE)
        assert not answer.done()
        assert await answer == 0  # the secondary still promises, so the next heartbeat renews the lease
        assert role._may_serve()

    with_rack(scenario)


def test_a_forged_fenced_off_credential_stops_nothing_and_is_reported() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        liar = next(iter(rack.sleds.values()))
        liar.lie = credential_of(9, key=Ed25519PrivateKey.from_private_bytes(b"x" * 32))
        role = first.controller._role
        assert role is not None
        role.attachments.probe()
        await until(lambda: liar.id in role.attachments.quarantined)
        assert first.serving
        assert await first.write(0, ONE) == 0
        assert rack.record.epoch == 1
        await until(lambda: any(e["kind"] == "sled-faulty" for report in first.api.reports for e in report["events"]))

    with_rack(scenario)


def test_a_sled_that_lied_is_used_again_once_it_has_started_anew_and_not_before() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        liar = next(iter(rack.sleds.values()))
        liar.lie = credential_of(1)
        role = first.controller._role
        assert role is not None
        role.attachments.probe()
        await until(lambda: liar.id in role.attachments.quarantined)
        liar.lie = None
        for client in list(liar.clients):
            client.cut()
        await until(lambda: first.head.sleds.client(liar.id) is not None)
        assert liar.id in role.attachments.quarantined, "a new connection proves nothing"
        liar.restart()
        await until(lambda: role.attachments.receipts == len(rack.sleds))
        assert not role.attachments.quarantined
        assert rack.record.epoch == 1

    with_rack(scenario)


def test_a_fence_of_an_older_epoch_is_no_reason_to_step_down() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        liar = next(iter(rack.sleds.values()))
        liar.lie = credential_of(1)
        role = first.controller._role
        assert role is not None
        role.attachments.probe()
        await until(lambda: liar.id in role.attachments.quarantined)
        assert first.serving

    with_rack(scenario)


def test_one_way_silence_costs_the_member_its_place_before_the_lease_ends() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        follower = second.controller._follower
        assert follower is not None
        assert follower.session is not None
        connection = follower.session._connection
        connection.send = lambda kind, *buffers: None  # type: ignore[method-assign]
        role = first.controller._role
        assert role is not None
        lapses = []
        while rack.is_member(second):
            if not role._may_serve():
                lapses.append(role.lease.end_ns)
            await asyncio.sleep(0)
        assert lapses == []
        assert rack.record.epoch == 1
        assert await first.write(0, ONE) == 0

    with_rack(scenario)


def test_a_member_counts_until_its_removal_has_succeeded() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        gate = first.api.gates["change_members"] = asyncio.Event()
        await second.crash()
        answer = first.write(0, ONE)
        await until(lambda: rack.authority.journal[-1][0] == "asked")
        await until(lambda: first.engine.durable == first.engine.tail.opnum)
        assert not answer.done()
        role = first.controller._role
        assert role is not None
        assert second.id in role.membership.required
        gate.set()
        assert await answer == 0
        assert not rack.is_member(second)

    with_rack(scenario)


def test_an_addition_whose_answer_is_lost_is_asked_until_it_is_certain() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        first.api.lose_replies.add("change_members")
        await second.start()
        await until(lambda: first.serving and rack.is_member(second))
        role = first.controller._role
        assert role is not None
        await until(lambda: role.membership.adding is None)
        assert role.membership.required == {second.id}
        assert await first.write(0, ONE) == 0

    with_rack(scenario)
