"""What a deleted volume leaves behind is an intention in the store, retried until each sled and head has confirmed."""

import asyncio
from uuid import UUID

import pytest
from kit.authority import Head, Kit, ManualClock, RecordingFencer, columns_of, rack, run
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled

from head_node.authority.cleanups import LOOK_S, RETRY_NS
from head_node.authority.fencing import SledFencer
from head_node.authority.ledger import Ledger, Rack, tombstone_key
from head_node.authority.placement import place_columns
from head_node.store.memory import MemoryStore
from head_node.store.records import Cleanup, SledRecord, VolumeRecord, VolumeState, column_blocks
from head_node.volume.geometry import Geometry
from sled_controller.credential import ALL_RIGHTS
from sled_controller.environment import Environment
from sled_controller.errors import FencedOff

RETRY_MS = RETRY_NS // 1_000_000


async def listed(kit: Kit) -> list[dict[str, object]]:
    reply = await kit.operator.get("/v1/cleanups")
    assert reply.status_code == 200
    found: list[dict[str, object]] = reply.json()["cleanups"]
    return found


async def deleted(kit: Kit, strays: int) -> tuple[Head, Head, VolumeRecord, list[UUID]]:
    """A volume whose primary could not reach so many of its sleds when it was deleted."""
    primary, secondary, record = await kit.ready()
    await kit.operator.delete("/v1/volumes/v")
    away = list(record.sleds[:strays])
    await primary.client.confirm_deleted(record.volume, epoch=1, strays=away)
    for head in (primary, secondary):
        assert (await head.client.view()).deleted == {record.volume}
        await head.client.confirm_log_removed(record.volume)
        assert not (await head.client.view()).deleted
    return primary, secondary, record, away


def test_a_sled_that_was_away_is_cleaned_when_it_is_back_however_long_that_takes() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        primary, _, record, away = await deleted(kit, 2)
        fencer.away = set(away)
        for _ in range(5):
            await kit.authority.cleanups.look()
            kit.clock.advance(RETRY_MS)
        (left,) = await listed(kit)
        assert (left["volume"], left["name"], left["sleds"]) == (str(record.volume), "v", [str(sled) for sled in away])
        fencer.away = {away[0]}
        await kit.authority.cleanups.look()
        assert [(volume, sled) for volume, sled, _ in fencer.cleaned] == [(record.volume, away[1])]
        # The other one is not asked again at once, unless a head says that it is there.
        fencer.away = set()
        await kit.authority.cleanups.look()
        assert len(fencer.cleaned) == 1
        await primary.client.report({"sleds": {str(away[0]): {"reachable": True}}})
        await kit.authority.cleanups.look()
        assert await listed(kit) == []
        epochs = [epoch for _, _, epoch in fencer.cleaned]
        assert epochs == [2, 3], "each visit has an epoch of its own, above all that a head held"
        assert [event.kind for event in kit.authority.reports.events(0)].count("volume-cleaned") == 2

    run(scenario, fencer=fencer)


def test_a_cleanup_outlives_a_restart_of_the_authority() -> None:
    store = MemoryStore()

    async def main() -> None:
        async with rack(store=store) as kit:
            _, _, _, away = await deleted(kit, 1)
        fencer = RecordingFencer()
        async with rack(store=store, seed=2, fencer=fencer) as again:
            await again.authority.cleanups.look()
            assert [sled for _, sled, _ in fencer.cleaned] == away
            assert await listed(again) == []

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_volume_whose_last_member_is_gone_leaves_nothing_on_its_sleds() -> None:
    for delete_first in (True, False):
        fencer = RecordingFencer()

        async def scenario(kit: Kit, fencer: RecordingFencer = fencer, delete_first: bool = delete_first) -> None:
            head = await kit.enrolled("head-1")
            await kit.sleds()
            made = await kit.volume()
            record, _ = await head.client.takeover(made.volume, expected_version=made.version, log_id=head.log)
            await head.client.set_columns(
                record.volume, epoch=1, expected_version=record.version, columns=columns_of(record)
            )
            if delete_first:
                await kit.operator.delete("/v1/volumes/v")
                assert (await kit.record(record.volume)).state is VolumeState.DELETING
                await kit.authority.nodes.revoke_head(head.id)
            else:
                await kit.authority.nodes.revoke_head(head.id)
                assert (await kit.operator.delete("/v1/volumes/v")).json()["gone"]
            assert (await kit.operator.get("/v1/volumes/v")).status_code == 404
            await kit.authority.cleanups.look()
            assert {sled for _, sled, _ in fencer.cleaned} == set(record.sleds)
            await kit.authority.cleanups.look()
            assert await listed(kit) == [], "a head that is revoked is waited for"

        run(scenario, fencer=fencer)


def test_an_operator_may_say_that_a_sled_is_gone_for_good() -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record, away = await deleted(kit, 1)
        path = f"/v1/cleanups/{record.volume}/sleds/"
        assert (await kit.operator.delete(path + str(record.sleds[-1]))).status_code == 404
        assert (await kit.operator.delete(path + str(away[0]))).status_code == 204
        assert await listed(kit) == []

    run(scenario)


def test_a_sled_is_cleaned_before_it_is_asked_to_forget_however_late_it_is_back() -> None:
    """The other way round the tombstone may go first, and no credential to delete with could be signed any more."""
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        _, _, record, away = await deleted(kit, 1)
        await kit.authority.stop()  # nothing comes in between
        kit.clock.advance(2 * 86_400_000)
        await kit.authority.retirements.advance()
        assert {sled for sled, _ in fencer.retired} == set(record.sleds) - set(away)
        assert await kit.authority.ledger.json(tombstone_key(record.volume)) is not None
        await kit.authority.volumes.sign_for(record.volume, 2, bytes(32), ALL_RIGHTS, [])
        kit.clock.advance(86_400_000)
        await kit.authority.cleanups.look()
        assert await listed(kit) == []
        await kit.authority.retirements.advance()
        assert (away[0], record.volume) in fencer.retired
        assert await kit.authority.ledger.json(tombstone_key(record.volume)) is None

    run(scenario, fencer=fencer)


def test_nothing_is_kept_of_a_sled_that_an_operator_has_given_up() -> None:
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        _, _, record, (gone,) = await deleted(kit, 1)
        fencer.away = {gone}
        path = f"/v1/cleanups/{record.volume}/sleds/"
        kit.clock.advance(86_400_000)
        await kit.authority.retirements.advance()
        assert (await kit.operator.delete(path + str(gone))).status_code == 204
        assert await kit.authority.ledger.json(tombstone_key(record.volume)) is None
        assert (await kit.operator.delete(path + str(gone))).status_code == 404

    run(scenario, fencer=fencer)


def test_a_sled_that_refuses_is_asked_more_and_more_rarely_until_it_was_away() -> None:
    """Each try takes an epoch and a credential, which keeps the fences of the volume on the other sleds."""
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        primary, _, _, away = await deleted(kit, 1)
        fencer.away = set(away)

        async def look(reachable: bool) -> None:
            await primary.client.report({"sleds": {str(away[0]): {"reachable": reachable}}})
            await kit.authority.cleanups.look()
            kit.clock.advance(int(LOOK_S * 1000))

        for _ in range(3600 // int(LOOK_S)):
            await look(True)
        assert 5 <= fencer.refused <= 12
        fencer.away = set()
        await look(False)
        await look(True)
        assert await listed(kit) == [], "a sled that was away may have what it lacked before"

    run(scenario, fencer=fencer)


def test_a_look_at_what_is_left_reads_no_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes every five seconds, and four thousand records cost the authority's loop a third of a second."""
    fencer = RecordingFencer()

    async def scenario(kit: Kit) -> None:
        await deleted(kit, 1)
        await kit.volume("other")
        await kit.authority.stop()  # only what the test asks for is counted
        read, reading = 0, Ledger.rack

        async def counted(self: Ledger, kind: str = "") -> Rack:
            nonlocal read
            found = await reading(self, kind)
            read += len(found.volumes)
            return found

        monkeypatch.setattr(Ledger, "rack", counted)
        kit.clock.advance(86_400_000)
        await kit.authority.cleanups.look()
        await kit.authority.retirements.advance()
        await kit.authority.nodes.finish_revocations()
        assert len(fencer.cleaned) == 1
        assert read == 0

    run(scenario, fencer=fencer)


def test_a_new_volume_goes_where_nothing_is_left() -> None:
    geometry = Geometry()
    blocks = column_blocks(1 << 20, geometry)
    sleds = [SledRecord(UUID(int=n), f"sled-{n}", bytes(32), "nqn", ("::1", 1), blocks * 3 // 2) for n in range(7)]
    left = Cleanup(UUID(int=99), "old", 1, blocks, (UUID(int=3),))
    placed = place_columns(sleds, [], lambda sled: True, 1 << 20, geometry, [left])
    assert UUID(int=3) not in placed
    assert UUID(int=3) in place_columns(sleds[:6], [], lambda sled: True, 1 << 20, geometry, [left])
    reachable = lambda sled: sled.int != 0  # noqa: E731
    assert UUID(int=0) in place_columns(sleds, [], reachable, 1 << 20, geometry, [left]), "it may be back first"


def test_a_new_volume_that_lacks_a_column_says_which_and_what_is_in_its_way() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record, (stray,) = await deleted(kit, 1)
        second = await kit.volume("second")
        assert stray in second.sleds
        record, _ = await primary.client.takeover(second.volume, expected_version=second.version, log_id=primary.log)
        columns = [column for column in columns_of(record) if column.sled != stray]
        record = await primary.client.set_columns(
            second.volume, epoch=1, expected_version=record.version, columns=columns
        )
        health = (await kit.operator.get("/v1/volumes/second")).json()["health"]
        assert health["degraded"].startswith("5 of 6 columns exist; none on sled-")
        assert health["degraded"].endswith("(still holds deleted volumes: v)")
        await primary.client.set_columns(
            second.volume, epoch=1, expected_version=record.version, columns=columns_of(record)
        )
        assert (await kit.operator.get("/v1/volumes/second")).json()["health"]["degraded"] == ""

    run(scenario)


def test_what_is_left_on_a_real_sled_is_deleted_and_its_former_holder_fenced_off() -> None:
    async def main() -> None:
        clock, fencer = ManualClock(), SledFencer(Environment(ManualClock()))
        async with rack(clock=clock, fencer=fencer) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    await attachment.create_namespace(0, 4096)
                    await kit.operator.delete("/v1/volumes/v")
                    await head.client.confirm_deleted(record.volume, epoch=1, strays=record.sleds)
                    assert len(await client.read_namespaces()) == 1
                    await kit.authority.cleanups.look()
                    assert await client.read_namespaces() == []
                    with pytest.raises(FencedOff):
                        await attachment.create_namespace(0, 4096)
                (left,) = await listed(kit)
                assert str(SLED) not in str(left["sleds"])
                assert len(left["sleds"]) == 5, "those that are down stay named"  # type: ignore[arg-type]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_cleanup_goes_above_an_epoch_that_the_store_does_not_know() -> None:
    async def main() -> None:
        clock, fencer = ManualClock(), SledFencer(Environment(ManualClock()))
        async with rack(clock=clock, fencer=fencer) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                volumes = kit.authority.volumes
                newer = await volumes.sign_for(record.volume, 40, head.public, ALL_RIGHTS)
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    await attachment.create_namespace(0, 4096)
                    await client.attach(newer, 1)
                    await kit.operator.delete("/v1/volumes/v")
                    await head.client.confirm_deleted(record.volume, epoch=1, strays=[SLED])
                    await kit.authority.cleanups.look()
                    assert await client.read_namespaces() == []
                (left,) = await listed(kit)
                assert (left["sleds"], left["epoch"]) == ([], 41)

    asyncio.run(asyncio.wait_for(main(), 20))
