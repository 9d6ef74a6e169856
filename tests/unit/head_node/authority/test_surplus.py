"""What a revoked head has taken beyond what its volumes need comes back, from sleds that were away too."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from kit.authority import Kit, ManualClock, RecordingFencer, rack
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled, rack_with_fencer

from head_node.authority.surplus import SETTLE_MS, surplus_of
from head_node.store.memory import MemoryStore
from head_node.store.records import Column, VolumeRecord, VolumeState, column_blocks
from sled_controller.errors import CredentialRefused
from sled_controller.fabric.vendor import NamespaceEntry

SLEDS = tuple(UUID(int=number) for number in range(1, 7))
RECORD = VolumeRecord(UUID(int=50), "v", 1 << 20, sleds=SLEDS, epoch=3, state=VolumeState.ACTIVE)
NEED = column_blocks(RECORD.size_bytes, RECORD.geometry)


def entry(nsid: int, column: int, blocks: int = NEED, volume: UUID = RECORD.volume) -> NamespaceEntry:
    return NamespaceEntry(nsid, column, blocks, volume)


@pytest.mark.parametrize(
    ("entries", "surplus"),
    [
        ([], []),
        ([entry(9, 0)], []),
        ([entry(9, 0), entry(10, 7)], [10]),
        ([entry(8, 0, NEED * 2), entry(9, 0)], [8]),
        ([entry(8, 1)], [8]),
        ([entry(8, 0, NEED - 1)], [8]),
        ([entry(8, 0), entry(9, 0)], [9]),
        ([entry(8, 5, volume=UUID(int=51))], []),
    ],
)
def test_of_a_column_that_is_not_named_yet_one_namespace_of_the_right_size_is_needed(
    entries: Sequence[NamespaceEntry], surplus: list[int]
) -> None:
    assert surplus_of(RECORD, SLEDS[0], entries) == surplus


def test_a_namespace_that_the_record_names_is_never_surplus() -> None:
    named = replace(RECORD, columns=(Column(0, SLEDS[0], 9, NEED),))
    assert surplus_of(named, SLEDS[0], [entry(8, 0), entry(9, 0), entry(10, 1)]) == [8, 10]
    assert surplus_of(named, SLEDS[1], [entry(9, 1)]) == []


async def stolen(kit: Kit, fencer: RecordingFencer) -> tuple[VolumeRecord, UUID]:
    """A head with a volume has one namespace too many on two sleds, of which one is away, and is revoked."""
    thief, _, record = await kit.ready()
    for sled in record.sleds:
        blocks = column_blocks(record.size_bytes, record.geometry)
        fencer.tables[sled] = [NamespaceEntry(1, record.sleds.index(sled), blocks, record.volume)]
    for sled in record.sleds[:2]:
        fencer.tables[sled].append(NamespaceEntry(2, 100, 8, record.volume))
    fencer.away = {record.sleds[1]}
    assert (await kit.operator.post(f"/v1/heads/{thief.id}/revoke")).status_code == 200
    await kit.authority.surplus.look()
    return record, thief.id


def term_ms(kit: Kit) -> int:
    return kit.authority.policy.credential_term_ms + SETTLE_MS


def test_a_revoked_heads_surplus_is_given_back_in_an_epoch_that_no_head_has() -> None:
    async def main() -> None:
        fencer = RecordingFencer()
        async with rack(fencer=fencer) as kit:
            before, _ = await stolen(kit, fencer)
            record = await kit.record(before.volume)
            ((given, sled, nsids),) = fencer.given_back
            assert (sled, nsids, given.epoch) == (before.sleds[0], (2,), record.epoch)
            assert record.epoch == before.epoch + 2, "one epoch for the revocation, one for the return"
            assert record.columns == before.columns
            with pytest.raises(Exception, match="not given to this process"):
                await kit.authority.ledger.check_claim(record.volume, record.epoch, "0" * 32)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_sled_that_was_away_is_looked_at_when_it_is_back_also_by_an_authority_that_restarted() -> None:
    async def main() -> None:
        store, fencer = MemoryStore(), RecordingFencer()
        async with rack(store=store, fencer=fencer) as kit:
            before, _ = await stolen(kit, fencer)
            kit.clock.advance(term_ms(kit))
            assert not await kit.authority.surplus.look()
            assert await kit.authority.surplus.due() == {before.sleds[1]}
            now_ms = kit.clock.now_ms
        again = RecordingFencer()
        again.tables = fencer.tables
        async with rack(store=store, fencer=again, clock=ManualClock(now_ms)) as kit:
            await kit.authority.surplus.look()
            assert [(sled, nsids) for _, sled, nsids in again.given_back] == [(before.sleds[1], (2,))]
            assert await kit.authority.surplus.due() == frozenset()
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_sled_is_looked_at_again_when_the_last_credential_of_the_head_is_over() -> None:
    async def main() -> None:
        fencer = RecordingFencer()
        async with rack(fencer=fencer) as kit:
            before, _ = await stolen(kit, fencer)
            fencer.away = set()
            assert not await kit.authority.surplus.look()
            assert before.sleds[0] in await kit.authority.surplus.due()
            fencer.tables[before.sleds[0]].append(NamespaceEntry(3, 101, 8, before.volume))
            kit.clock.advance(term_ms(kit))
            assert await kit.authority.surplus.look()
            assert (before.sleds[0], (3,)) in [(sled, nsids) for _, sled, nsids in fencer.given_back]

    asyncio.run(asyncio.wait_for(main(), 20))


def test_f4_a_frozen_volume_takes_no_epoch_for_it_and_is_looked_at_later() -> None:
    async def main() -> None:
        fencer = RecordingFencer()
        async with rack(fencer=fencer) as kit:
            thief, _, record = await kit.ready()
            fencer.tables[record.sleds[0]] = [NamespaceEntry(2, 100, 8, record.volume)]
            await kit.operator.post("/v1/volumes/v/freeze")
            await kit.operator.post(f"/v1/heads/{thief.id}/revoke")
            epoch = (await kit.record(record.volume)).epoch
            kit.clock.advance(term_ms(kit))
            assert not await kit.authority.surplus.look()
            assert (fencer.given_back, (await kit.record(record.volume)).epoch) == ([], epoch)
            assert await kit.authority.surplus.due() == {record.sleds[0]}

    asyncio.run(asyncio.wait_for(main(), 20))


def test_what_belongs_to_no_known_volume_is_not_touched_but_left_to_a_cleanup_if_it_is_deleted() -> None:
    async def main() -> None:
        fencer = RecordingFencer()
        async with rack(fencer=fencer) as kit:
            thief, _, record = await kit.ready()
            stranger = UUID(int=99)
            fencer.tables[record.sleds[0]] = [NamespaceEntry(2, 0, 8, stranger)]
            fencer.tables[record.sleds[1]] = [NamespaceEntry(2, 0, 8, record.volume)]
            fencer.away = set(record.sleds)
            await kit.operator.delete("/v1/volumes/v")
            await thief.client.confirm_deleted(record.volume, epoch=1, strays=[])
            await kit.operator.post(f"/v1/heads/{thief.id}/revoke")
            fencer.away = {record.sleds[1]}
            await kit.authority.surplus.look()
            fencer.away = set()
            await kit.authority.surplus.look()
            assert fencer.given_back == []
            cleanups = (await kit.authority.ledger.rack("cleanup/")).cleanups
            assert {volume: entry.value.sleds for volume, entry in cleanups.items()} == {
                record.volume: (record.sleds[1],)
            }

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_real_sled_has_its_room_back_and_the_head_that_took_it_is_fenced_off() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, _):
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                need = column_blocks(record.size_bytes, record.geometry)
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    with pytest.raises(CredentialRefused, match="so much of the sled"):
                        await attachment.create_namespace(100, need + 1)
                    await attachment.create_namespace(100, need)
                    await kit.authority.nodes.revoke_head(head.id)
                    await kit.authority.surplus.look()
                    assert await client.read_namespaces() == []

    asyncio.run(asyncio.wait_for(main(), 20))
