"""A column that answers late or not at all, while its association lives: only that column is away."""

import asyncio
from collections.abc import Callable

import pytest
from kit.virtual_time import run_virtual
from kit.volume import SMALL, Bench, check, fill, pattern
from kit.volume_columns import MemoryColumn

from head_node.volume.interface import BLOCK_BYTES
from sled_controller.errors import FencedOff, SledUnavailable

HANGS_S = SMALL.column_seconds_max
HUNG = 0


class SlowColumn(MemoryColumn):
    """Answers each command after a while."""

    def __init__(self, column: MemoryColumn, seconds: float) -> None:
        super().__init__(column.store)
        self._seconds = seconds

    def read(self, lba: int, blocks: int) -> "asyncio.Future[bytes]":  # type: ignore[override]
        self.read_count += 1
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        found = b"".join(self.store.data.get(at, bytes(BLOCK_BYTES)) for at in range(lba, lba + blocks))
        asyncio.get_running_loop().call_later(self._seconds, lambda: future.done() or future.set_result(found))
        return future


async def filled(blocks: int = 240) -> tuple[Bench, dict[int, bytes]]:
    """A primary whose blocks are all in stripes."""
    bench = Bench(size_blocks=1200)
    await bench.create()
    await bench.lead(1)
    content = await fill(bench, 0, blocks, 1)
    await bench.settle()
    return bench, content


def hang(bench: Bench, index: int = HUNG) -> list[Callable[[], None]]:
    """The column keeps what it is asked from now on; what is returned lets it go."""
    held = bench.columns[index].held = []
    return held


def answer(bench: Bench, held: list[Callable[[], None]], index: int = HUNG) -> None:
    bench.columns[index].held = None
    for finish in held:
        finish()


async def settled(bench: Bench) -> None:
    """Virtual time until nothing is being destaged."""
    while bench.engine.state.overlay.leaving or bench.engine.durable != bench.engine.tail.opnum:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_reads_of_a_column_that_hangs_are_answered_from_the_others() -> None:
    async def scenario() -> None:
        bench, content = await filled()
        hang(bench)
        reads = {lba: bench.reading(lba) for lba in content}
        await asyncio.sleep(HANGS_S + 0.5)
        assert all(read.done() for read in reads.values())
        assert all(reads[lba].result() == (0, data) for lba, data in content.items())
        status = bench.engine.status()
        assert status["columns_hanging"] == [HUNG]
        assert status["columns_missing"] == 1
        assert status["blocks_reconstructed"] > len(content) // 8
        begun = bench.columns[HUNG].read_count
        await check(bench, content)
        assert bench.columns[HUNG].read_count == begun, "it was asked although it hangs"

    run_virtual(scenario())


def test_a_few_reads_of_a_slow_column_do_not_wait_for_it() -> None:
    async def scenario() -> None:
        bench, content = await filled()
        await check(bench, content)
        bench.engine.set_column(HUNG, SlowColumn(bench.columns[HUNG], 0.9 * HANGS_S))
        loop, slowest_s = asyncio.get_running_loop(), 0.0
        for lba, data in list(content.items())[:40]:
            begun_s = loop.time()
            assert await bench.read(lba) == data
            slowest_s = max(slowest_s, loop.time() - begun_s)
        assert bench.engine.status()["reads_hedged"] > 0
        assert slowest_s < 0.2

    run_virtual(scenario())


def test_second_reads_are_few_when_every_column_is_slow() -> None:
    async def scenario() -> None:
        bench, content = await filled()
        await check(bench, content)
        slow = [SlowColumn(column, 0.5) for column in bench.columns]
        for index, column in enumerate(slow):
            bench.engine.set_column(index, column)
        for first in range(0, 240, 40):
            reads = [bench.reading(lba) for lba in range(first, first + 40)]
            for lba, read in enumerate(reads, first):
                assert await read == (0, content[lba])
        asked = sum(column.read_count for column in slow)
        headers = 2 * bench.engine.status()["reads_hedged"]  # of parity shards, read once
        assert asked <= 240 * 1.05 + 60 + headers, f"{asked} shards were read for 240 blocks"

    run_virtual(scenario())


def test_the_first_good_answer_counts_and_a_rotten_shard_does_not() -> None:
    async def scenario() -> None:
        bench, content = await filled(12)
        await check(bench, content)
        for index, store in enumerate(bench.stores):
            if index in (0, 1):
                store.data = {lba: pattern(lba) for lba in store.data}
        for index in (0, 2):
            bench.engine.set_column(index, SlowColumn(bench.columns[index], 0.1))
        await check(bench, content)
        assert bench.engine.status()["blocks_reconstructed"] > 0

    run_virtual(scenario())


def test_destage_goes_on_without_a_column_that_hangs() -> None:
    async def scenario() -> None:
        bench, content = await filled(12)
        before = bench.engine.status()["stripes_written"]
        held = hang(bench)
        content |= await fill(bench, 100, 600, 2)
        await asyncio.sleep(HANGS_S + 0.5)
        status = bench.engine.status()
        assert status["stripes_written"] - before == 50
        assert status["stripes_exposed"] == 50
        assert status["overlay_blocks"] == 0
        assert len(held) <= 3, "more was sent to a column that answers nothing"
        answer(bench, held)
        await asyncio.sleep(0.1)
        assert bench.engine.status()["columns_hanging"] == []
        content |= await fill(bench, 800, 120, 3)
        await settled(bench)
        assert bench.engine.status()["stripes_exposed"] == 50
        await check(bench, content)

    run_virtual(scenario())


@pytest.mark.parametrize("late", ["answered", "attached again", "association lost"])
def test_f3_a_slot_whose_shard_was_given_up_is_not_used_again_before_that_is_answered(late: str) -> None:
    async def scenario() -> None:
        bench, _ = await filled(12)
        stripes = bench.engine.state.stripes
        held = hang(bench)
        await fill(bench, 0, 12, 2)
        await asyncio.sleep(HANGS_S + 0.5)
        used = stripes.used_count
        await fill(bench, 0, 12, 3)
        await settled(bench)
        assert stripes.used_count == used
        free = stripes.free_count
        assert stripes.slot_count - stripes.used_count - free == 1, "the dead slot is free already"
        if late == "answered":
            answer(bench, held)
        elif late == "attached again":
            bench.engine.set_column(HUNG, MemoryColumn(bench.stores[HUNG]))
        else:
            bench.columns[HUNG].error = lambda: SledUnavailable("gone")
            answer(bench, held)
        await asyncio.sleep(0.1)
        assert stripes.free_count - free == (late != "association lost")

    run_virtual(scenario())


def test_f6_a_refusal_that_comes_late_is_reported() -> None:
    async def scenario() -> None:
        bench, _ = await filled(12)
        told: list[tuple[int, BaseException]] = []
        bench.engine.on_fenced = lambda column, error: told.append((column, error))
        held = hang(bench)
        await fill(bench, 0, 12, 2)
        await asyncio.sleep(HANGS_S + 0.5)
        assert told == []
        bench.columns[HUNG].error = lambda: FencedOff(9, None)
        answer(bench, held)
        await asyncio.sleep(0.1)
        assert [column for column, _ in told] == [HUNG]

    run_virtual(scenario())


@pytest.mark.parametrize("error", [None, SledUnavailable("gone")])
def test_f3_a_late_answer_counts_also_while_other_shards_of_its_stripe_are_unanswered(error: Exception | None) -> None:
    async def scenario() -> None:
        bench, _ = await filled(12)
        stripes = bench.engine.state.stripes
        held = hang(bench)
        reading = bench.engine.reader.columns[HUNG]
        assert reading is not None
        reading.read(0, 1)  # this command is what is overdue, so that the stripe's shard is given up at once
        await asyncio.sleep(HANGS_S - 0.2)
        slow = hang(bench, 1)
        await fill(bench, 0, 12, 2)
        await asyncio.sleep(0.5)
        assert bench.engine.status()["columns_hanging"] == [HUNG]
        if error is not None:
            bench.columns[HUNG].error = lambda: error
        answer(bench, held)
        await asyncio.sleep(0.1)
        bench.columns[HUNG].error = None
        answer(bench, slow, 1)
        await settled(bench)
        free = stripes.free_count
        await fill(bench, 0, 12, 3)
        await settled(bench)
        assert stripes.free_count - free == (0 if error is None else -1), "the former slot"

    run_virtual(scenario())


def test_reads_that_wait_for_columns_that_hang_are_asked_again_when_those_answer() -> None:
    async def scenario() -> None:
        bench, content = await filled(12)
        held = {index: hang(bench, index) for index in range(3)}
        first = [bench.reading(lba) for lba in content]
        await asyncio.sleep(HANGS_S + 0.5)
        assert bench.engine.status()["columns_hanging"] == [0, 1, 2]
        reads = {lba: bench.reading(lba) for lba in content}
        await asyncio.sleep(10)
        assert bench.engine.status()["sled_waits"]["reads"] > 0
        for index, kept in held.items():
            answer(bench, kept, index)
        await asyncio.sleep(0.5)
        assert all(read.done() for read in [*first, *reads.values()])
        assert all(reads[lba].result() == (0, data) for lba, data in content.items())

    run_virtual(scenario())
