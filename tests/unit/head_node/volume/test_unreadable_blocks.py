"""Blocks that no k shards give: they hold nothing up, are shown, and may be declared lost by an operator."""

import asyncio
import errno
import random

import numpy as np
import pytest
from kit.volume import GEOMETRY, Bench, check, fill, pattern, run, until
from kit.volume_columns import MemoryColumn
from kit.volume_pair import Pair

from head_node.volume import destage
from head_node.volume.blockmap import LOST
from head_node.volume.errors import VolumeStopped
from head_node.volume.interface import BLOCK_BYTES, EXTENT_DATA
from head_node.volume.lost import LossReport, declare_lost
from head_node.volume.records import LOST_BLOCK, LostBlocks

FULL = GEOMETRY.stripe_blocks
EIO = (errno.EIO, b"")


def rot(bench: Bench, lba: int) -> None:
    """Take one block from its shard, and its row from both parity shards: no k shards give it any more."""
    place = bench.engine.state.map.find(lba)
    assert place is not None
    shard, row = divmod(place.at, GEOMETRY.rows)
    for at in (shard, 4, 5):
        store = bench.stores[GEOMETRY.column_of(place.slot, at)]
        store.data[place.slot * GEOMETRY.shard_blocks + 1 + row] = pattern(99)


async def striped(bench: Bench, blocks: int) -> dict[int, bytes]:
    await bench.create()
    await bench.lead(1)
    content = await fill(bench, 0, blocks, seed=1)
    await until(lambda: not len(bench.engine.state.overlay))
    return content


@pytest.mark.parametrize("bad", [1, 70])
def test_unreadable_blocks_do_not_end_compaction(bad: int) -> None:
    """More slots than compaction looks at in one go are held by a block that cannot be read."""

    async def scenario() -> None:
        bench = Bench(size_blocks=FULL * 80, slots=184)
        content = await striped(bench, FULL * 80)
        for lba in range(0, FULL * bad, FULL):
            rot(bench, lba)
            del content[lba]
        chance = random.Random(3)
        for number in range(400):
            lbas = chance.sample(sorted(content), FULL)
            datas = [pattern(number * FULL + at) for at in range(FULL)]
            assert not any(await asyncio.gather(*map(bench.write, lbas, datas)))
            content |= dict(zip(lbas, datas, strict=True))
            await until(lambda: len(bench.engine.state.overlay) < 4 * FULL)
        status = bench.engine.status()
        assert status["blocks_moved"] > 0
        assert status["slots_held"] <= status["blocks_unreadable"] <= bad
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_a_held_slot_is_tried_again_when_a_sled_comes_and_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        content = await striped(bench, FULL)
        await bench.trim(0, FULL - 1)
        destager = bench.engine._destager
        assert destager is not None
        for index in range(3):
            bench.engine.set_column(GEOMETRY.column_of(0, (3 + index) % 6), None)
        before = bench.engine.state.map.find(FULL - 1)
        assert before is not None
        for index in range(2):
            bench.engine.set_column(GEOMETRY.column_of(0, (4 + index) % 6), MemoryColumn(bench.stores[4 + index]))
        bench.columns[GEOMETRY.column_of(0, 0)].error = lambda: OSError("gone")
        bench.columns[GEOMETRY.column_of(0, 1)].error = lambda: OSError("gone")
        await destager._compact()
        assert destager.held_slots == 1
        assert bench.engine.state.map.find(FULL - 1) == before
        bench.columns[GEOMETRY.column_of(0, 0)].error = None
        bench.columns[GEOMETRY.column_of(0, 1)].error = None
        monkeypatch.setattr(destage, "RETRY_SECONDS", 0)
        await destager._compact()
        assert bench.engine.state.map.find(FULL - 1) == before, "it is left alone for a while"
        bench.engine.set_column(3, MemoryColumn(bench.stores[3]))
        assert destager.held_slots == 0
        destager._hold_slot(before.slot)
        monkeypatch.setattr(destage, "HELD_SECONDS", 0)
        destager._hold_slot(before.slot)
        await destager._compact()
        await until(lambda: bench.engine.state.map.find(FULL - 1) != before)
        await check(bench, {FULL - 1: content[FULL - 1]})
        await bench.engine.close()

    run(scenario())


def test_writes_wait_instead_of_failing_while_unreadable_blocks_hold_what_compaction_could_win() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=FULL * 5, slots=8)
        await striped(bench, FULL * 5)
        destager = bench.engine._destager
        assert destager is not None
        for lba in range(0, FULL * 5, FULL):
            rot(bench, lba)
        for lba in range(1, FULL * 5, FULL):
            await bench.trim(lba, 1)
        await until(lambda: destager.held_slots == 5)
        assert not bench.engine.no_space()
        await bench.engine.close()

    run(scenario())


def test_unreadable_blocks_are_counted_and_shown_until_they_are_written_or_trimmed() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96)
        content = await striped(bench, 2 * FULL)
        for lba in (3, 4, 5, 9):
            rot(bench, lba)
        for lba in content:
            assert await bench.reading(lba) == (EIO if lba in (3, 4, 5, 9) else (0, content[lba]))
        status = bench.engine.status()
        assert status["blocks_unreadable"] == 4
        assert status["blocks_unreadable_ranges"] == [(3, 3), (9, 1)]
        await bench.trim(4, 1)
        assert await bench.write(9, pattern(9)) == 0
        assert bench.engine.status()["blocks_unreadable_ranges"] == [(3, 1), (5, 1)]
        await bench.engine.close()

    run(scenario())


def test_a_run_with_one_unreadable_block_names_that_block_and_each_other_one_is_read() -> None:
    """Rows that rotted on different sleds leave each row k good shards: no block of the run is beyond repair."""

    async def scenario() -> None:
        bench = Bench(size_blocks=96)
        content = await striped(bench, FULL)
        stores = [bench.stores[GEOMETRY.column_of(0, shard)] for shard in range(6)]
        for row, shards in enumerate(((0, 1), (0, 2), (0, 4))):
            for shard in shards:
                stores[shard].data[1 + row] = pattern(99)
        assert await bench.read(0, FULL) == b"".join(content.values())
        rot(bench, 2)
        assert await bench.reading(0, FULL) == EIO
        assert bench.engine.status()["blocks_unreadable_ranges"] == [(2, 1)]
        await bench.engine.close()

    run(scenario())


def test_a_block_declared_lost_is_an_error_until_it_is_written_and_holds_no_slot() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        content = await striped(bench, FULL)
        await bench.trim(1, FULL - 2)
        for lba in (0, FULL - 1):
            rot(bench, lba)
            assert await bench.reading(lba) == EIO
        engine = bench.engine
        assert await declare_lost(engine, 0, 96, sleds_away=False) == LossReport(lost=2)
        assert content
        assert engine.state.stripes.get(0) is None, "nothing of the slot lives"
        assert [await bench.reading(lba) for lba in (0, FULL - 1)] == [EIO, EIO]
        status = engine.status()
        assert (status["blocks_lost"], status["blocks_unreadable"]) == (2, 0)
        extents: list[tuple[int, int]] = []
        engine.served.extents(0, 2 * BLOCK_BYTES, lambda error, found: extents.extend(found))
        assert extents[0] == (BLOCK_BYTES, EXTENT_DATA)
        await engine.close()
        await bench.open()
        await bench.lead(2)
        assert [await bench.reading(lba) for lba in (0, FULL - 1)] == [EIO, EIO]
        assert await bench.write(0, pattern(5)) == 0
        assert await bench.trim(FULL - 1, 1) == 0
        assert await bench.read(0) == pattern(5)
        assert await bench.read(FULL - 1) == bytes(BLOCK_BYTES)
        assert await bench.engine._destager.drain()  # type: ignore[union-attr]
        assert await bench.read(0) == pattern(5)
        assert bench.engine.status()["blocks_lost"] == 0
        await bench.engine.close()

    run(scenario())


def test_only_what_cannot_be_read_is_declared_lost_and_what_is_away_only_when_that_is_said() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96)
        content = await striped(bench, 2 * FULL)
        content |= await fill(bench, 30, 1, seed=2)
        rot(bench, 3)
        for index in range(3):
            bench.engine.set_column(index, None)
        found = await declare_lost(bench.engine, 0, 96, sleds_away=False)
        assert found.lost == 0
        assert found.readable + found.away == 2 * FULL
        for index in range(3):
            bench.engine.set_column(index, MemoryColumn(bench.stores[index]))
        assert await declare_lost(bench.engine, 0, 96, sleds_away=True) == LossReport(lost=1, readable=2 * FULL - 1)
        del content[3]
        await check(bench, content)
        for index in range(3):
            bench.engine.set_column(index, None)
        found = await declare_lost(bench.engine, FULL, FULL, sleds_away=True)
        assert found.lost > 0
        assert (found.lost + found.readable, found.away) == (FULL, 0)
        for index in range(3):
            bench.engine.set_column(index, MemoryColumn(bench.stores[index]))
        assert [await bench.reading(lba) for lba in content].count(EIO) == found.lost
        await bench.engine.close()

    run(scenario())


def test_a_write_a_trim_or_a_move_that_was_committed_meanwhile_wins_over_lost() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        content = await striped(bench, FULL)
        engine = bench.engine
        for lba in (2, 3, 4):
            rot(bench, lba)
        for column in bench.columns:
            column.held = []
        declaring = asyncio.ensure_future(declare_lost(engine, 2, 3, sleds_away=False))
        await until(lambda: any(column.held for column in bench.columns))
        content |= await fill(bench, 2, 1, seed=7)
        await bench.trim(3, 1)
        while not declaring.done():
            for column in bench.columns:
                held, column.held = column.held or [], []
                for finish in held:
                    finish()
            await asyncio.sleep(0)
        for column in bench.columns:
            column.held = None
        assert (await declaring).lost == 1
        assert await bench.read(2) == content[2]
        assert await bench.read(3) == bytes(BLOCK_BYTES)
        assert await bench.reading(4) == EIO
        await engine.close()

    run(scenario())


def test_lost_names_a_version_in_a_stripe_and_does_nothing_to_any_other() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        content = await striped(bench, FULL)
        state = bench.engine.state
        place, stripe = state.map.find(5), state.stripes.get(0)
        assert place is not None
        assert stripe is not None
        right = {"lba": 5, "opnum": place.opnum, "epoch": stripe.epoch, "sequence": stripe.sequence, "slot": 0}
        for field in ("opnum", "epoch", "sequence", "slot"):
            state.lost(bench.engine.tail.opnum + 1, lost_blocks({**right, field: right[field] + 1}))
            assert state.map.find(5) == place, field
        state.lost(bench.engine.tail.opnum + 1, lost_blocks({**right, "slot": 1 << 20}))
        assert state.map.find(5) == place
        state.lost(bench.engine.tail.opnum + 1, lost_blocks(right))
        found = state.map.find(5)
        assert found is not None
        assert found.slot == LOST
        assert state.stripes.get(0).live == FULL - 1  # type: ignore[union-attr]
        await check(bench, {lba: data for lba, data in content.items() if lba != 5})
        await bench.engine.close()

    run(scenario())


def lost_blocks(fields: dict[str, int]) -> LostBlocks:
    blocks = np.zeros(1, LOST_BLOCK)
    for name, value in fields.items():
        blocks[name] = value
    return blocks


def test_every_member_marks_the_same_blocks_lost() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        primary, follower = pair.primary, pair.follower
        await fill(primary, 0, FULL, seed=1)
        await until(lambda: not len(primary.engine.state.overlay))
        rot(primary, 3)
        assert (await declare_lost(primary.engine, 0, FULL, sleds_away=False)).lost == 1
        await until(lambda: follower.engine.committed == primary.engine.tail.opnum)
        for bench in (primary, follower):
            found = bench.engine.state.map.find(3)
            assert found is not None
            assert found.slot == LOST
            assert bench.engine.state.stripes.get(0).live == FULL - 1  # type: ignore[union-attr]
        await pair.close()
        follower.stores = primary.stores
        await follower.open()
        await follower.lead(2)
        assert await follower.reading(3) == EIO
        assert follower.engine.status()["blocks_lost"] == 1
        await follower.engine.close()

    run(scenario())


def test_a_full_resync_brings_the_lost_marks() -> None:
    async def scenario() -> None:
        bench, other = Bench(size_blocks=96), Bench(size_blocks=96)
        await striped(bench, FULL)
        rot(bench, 3)
        await declare_lost(bench.engine, 3, 1, sleds_away=False)
        exported = b"".join(await bench.engine.export_checkpoint())
        await other.create()
        await other.engine.install_checkpoint(exported)
        found = other.engine.state.map.find(3)
        assert found is not None
        assert found.slot == LOST
        assert other.engine.status()["blocks_lost"] == 1
        await other.engine.close()
        await bench.engine.close()

    run(scenario())


def test_nothing_is_declared_lost_by_a_head_that_is_not_serving() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96)
        await striped(bench, FULL)
        rot(bench, 3)
        with pytest.raises(ValueError, match="not in a volume"):
            await declare_lost(bench.engine, 90, 10, sleds_away=False)
        bench.engine.hold()
        tail = bench.engine.tail
        with pytest.raises(VolumeStopped):
            await declare_lost(bench.engine, 3, 1, sleds_away=False)
        assert bench.engine.tail == tail
        await bench.engine.close()

    run(scenario())
