"""The authority's store, and its backups, after a power cut at any step of SQLite's."""

import asyncio
from random import Random

from kit.power_cuts import Claims, cuts, kills
from kit.power_fuse import Shelf
from kit.power_model import Kept
from kit.volume import run

from head_node.store.sqlite import SqliteStore
from sled_controller.durable import make_directory

KEYS = [f"volume/{number}" for number in range(4)]


async def values(store: SqliteStore) -> dict[str, bytes]:
    return {entry.key: entry.value for entry in (await store.list("")).entries}


def test_what_the_store_committed_survives_a_cut_at_any_step(power: Shelf) -> None:
    async def scenario() -> None:
        disk, chance = power.disk(), Random(1)
        claims, revisions = Claims(disk), Claims(disk)
        make_directory(disk.path / "state")
        for _ in range(2):  # the second one starts over the log of the first
            store = await SqliteStore.open(disk.path / "state" / "rack.db")
            for _ in range(12):
                both = chance.sample(KEYS, 2)
                put = {both[0]: chance.randbytes(chance.choice([10, 3000, 9000]))}
                changes = [claims.begin(both[0], put[both[0]]), claims.begin(both[1], None)]
                revision = revisions.begin("revision", (await store.list("")).revision + 1)
                assert await store.commit(put=put, delete=[both[1]]) == revision.value
                for change in (*changes, revision):
                    change.acknowledge()
            await store.close()
        for cut in cuts(power, disk, 140):
            make_directory(cut.found.path / "state")
            found = await SqliteStore.open(cut.found.path / "state" / "rack.db")
            there, revision_found = await values(found), (await found.list("")).revision
            assert revision_found in revisions.allowed("revision", cut.at, 0), str(cut)
            for key in KEYS:
                assert there.get(key) in claims.allowed(key, cut.at), f"{cut}: {key}"
            await found.close()

    run(scenario())


def test_what_a_restarted_store_answers_is_durable(power: Shelf) -> None:
    async def scenario() -> None:
        disk, chance = power.disk(), Random(2)
        make_directory(disk.path / "state")
        store = await SqliteStore.open(disk.path / "state" / "rack.db")
        for key in KEYS * 2:
            await store.commit(put={key: chance.randbytes(3000)})
        await store.close()
        for at, killed in kills(power, disk, 100):
            make_directory(killed.path / "state")
            store = await SqliteStore.open(killed.path / "state" / "rack.db")
            there = await values(store)
            cut = power.disk(killed.recorded.medium.after_cut(Kept.NOTHING, chance))
            await store.close()
            again = await SqliteStore.open(cut.path / "state" / "rack.db")
            assert await values(again) == there, f"killed at step {at}, then cut"
            await again.close()

    run(scenario())


def test_a_backup_that_was_reported_is_whole_after_a_cut_at_any_step(power: Shelf) -> None:
    async def scenario() -> None:
        disk = power.disk()
        claims = Claims(disk)
        make_directory(disk.path / "state")
        store = await SqliteStore.open(disk.path / "state" / "rack.db")
        begun = disk.steps
        for turn in (b"one", b"two"):
            await store.commit(put=dict.fromkeys(KEYS, turn * 500))
            change = claims.begin("backup", turn * 500)
            await store.backup(disk.path / "backup.db")
            change.acknowledge()
        await store.close()
        for cut in cuts(power, disk, 120, only=set(range(begun, disk.steps + 1))):
            path = cut.found.path / "backup.db"
            found: bytes | None = None
            if await asyncio.to_thread(path.exists):
                restored = await SqliteStore.open(path)
                assert await restored.restored()
                held = await values(restored)
                assert len(set(held.values())) == 1, str(cut)
                assert len(held) == len(KEYS), str(cut)
                found = held[KEYS[0]]
                await restored.close()
            assert found in claims.allowed("backup", cut.at), str(cut)

    run(scenario())
