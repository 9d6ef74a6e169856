"""Reads in great number: the loop and the queues to the sleds are not swamped, and an end leaves nothing behind."""

import asyncio
import errno
import gc
import logging
from uuid import UUID

import pytest
from kit.volume import GEOMETRY, VOLUME, Bench, fill, pattern, run, until
from kit.volume_columns import MemoryColumn

from head_node.volume import reader
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.shard import encode_shard_header, parity_entries
from sled_controller.errors import FencedOff


async def scattered(bench: Bench, count: int) -> dict[int, bytes]:
    """Blocks in stripes, none beside its neighbour: each is a run of its own."""
    await bench.create()
    await bench.lead(1)
    content: dict[int, bytes] = {}
    for first in range(0, count, 2):
        content |= await fill(bench, first, 1, seed=1)
        content |= await fill(bench, count + first, 1, seed=1)
    await until(lambda: not len(bench.engine.state.overlay))
    return content


def test_runs_beyond_the_bound_wait_and_every_block_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "RUNS_IN_FLIGHT_MAX", 4)

    async def scenario() -> None:
        bench = Bench()
        content = await scattered(bench, 24)
        for lba in content:
            assert await bench.read(lba) == content[lba]
        held: list = []  # type: ignore[type-arg]
        before = sum(column.read_count for column in bench.columns)
        for column in bench.columns:
            column.held = held
        reads = {lba: bench.reading(lba) for lba in content}
        assert sum(column.read_count for column in bench.columns) == before + 4
        while not all(read.done() for read in reads.values()):
            waiting, held[:] = list(held), []
            assert len(waiting) <= 4
            for answer in waiting:
                answer()
            await asyncio.sleep(0)
        assert {lba: read.result() for lba, read in reads.items()} == {lba: (0, data) for lba, data in content.items()}
        for column in bench.columns:
            column.held = None
        await bench.engine.close()

    run(scenario())


def test_reads_that_fail_after_stepping_down_are_silent_and_hold_no_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "RUNS_IN_FLIGHT_MAX", 8)

    async def scenario() -> None:
        bench = Bench()
        content = await scattered(bench, 24)
        known = list(content)[::2]
        for lba in known:
            await bench.read(lba)
        bench.engine.reader._headers.clear()
        await bench.read(known[0])
        held: list = []  # type: ignore[type-arg]
        columns = list(bench.columns)
        for column in columns:
            column.held = held
            column.error = lambda: OSError(errno.EIO, "fenced off")
        reads = [bench.reading(lba) for lba in content]
        await asyncio.sleep(0)
        caplog.clear()
        await bench.engine.step_down()
        for answer in held:
            answer()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        assert not any(read.done() for read in reads), "F6: requests are dropped unanswered"
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert not bench.engine.state.stripes._readers
        await bench.lead(2)
        for lba in content:
            assert await bench.read(lba) == content[lba]
        await bench.engine.close()

    run(scenario())


def test_f6_a_read_refused_by_a_newer_epoch_is_reported_and_never_answered() -> None:
    """The lease may still hold: an operator who revokes this head has the sleds fenced at once."""

    async def scenario() -> None:
        bench = Bench()
        await scattered(bench, 24)
        seen: list[tuple[int, BaseException]] = []

        def fenced(column: int, error: BaseException) -> None:
            seen.append((column, error))
            bench.engine.hold()

        bench.engine.on_fenced = fenced
        for column in bench.columns:
            column.error = lambda: FencedOff(2)
        read = bench.reading(0)
        await until(lambda: {index for index, _ in seen} == set(range(6)))
        assert all(isinstance(error, FencedOff) for _, error in seen)
        await until(lambda: not bench.engine.reader._tasks)
        await bench.engine.step_down()
        await asyncio.sleep(0)
        assert not read.done()
        await bench.engine.close()

    run(scenario())


def test_f6_a_read_refused_by_sleds_that_lied_is_answered_once_the_volume_goes_on() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await scattered(bench, 24)
        bench.engine.on_fenced = lambda column, error: bench.engine.hold()
        for column in bench.columns:
            column.error = lambda: FencedOff(2)
        read = bench.reading(0)
        await until(lambda: not bench.engine.serving and not bench.engine.reader._tasks)
        for index, store in enumerate(bench.stores):
            bench.engine.set_column(index, MemoryColumn(store))
        assert not read.done()
        bench.engine.resume()
        assert await read == (0, content[0])
        await bench.engine.close()

    run(scenario())


def test_a_read_refused_through_a_former_attach_is_not_reported_against_the_new_one() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await scattered(bench, 24)
        seen: list[int] = []
        bench.engine.on_fenced = lambda column, error: seen.append(column)
        held: list = []  # type: ignore[type-arg]
        former = list(bench.columns)
        for column in former:
            column.held = held
        read = bench.reading(0)
        for index, store in enumerate(bench.stores):
            bench.engine.set_column(index, MemoryColumn(store))
        for column in former:
            column.error = lambda: FencedOff(2)
        for answer in held:
            answer()
        assert await read == (0, content[0])
        assert seen == []
        await bench.engine.close()

    run(scenario())


async def striped(bench: Bench) -> dict[int, bytes]:
    """One stripe of blocks 0 to 11, in slot 0."""
    await bench.create()
    await bench.lead(1)
    content = await fill(bench, 0, GEOMETRY.stripe_blocks, seed=1)
    await until(lambda: not len(bench.engine.state.overlay))
    return content


def test_d2_a_block_that_rotted_on_its_sled_is_never_returned() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        place = bench.engine.state.map.find(5)
        assert place is not None
        shard, row = divmod(place.at, GEOMETRY.rows)
        at = place.slot * GEOMETRY.shard_blocks + 1 + row
        bench.stores[GEOMETRY.column_of(place.slot, shard)].data[at] = pattern(99)
        for _ in range(2):  # the second time the shard's header is known already
            assert await bench.read(5) == content[5]
        assert bench.engine.reader.reconstructed_count == 2
        for store in bench.stores[:3]:
            store.data[at] = pattern(98)
        assert await bench.reading(5) == (errno.EIO, b"")
        await bench.engine.close()

    run(scenario())


def test_d2_a_block_is_not_reconstructed_from_one_that_rotted() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        bench.columns[GEOMETRY.column_of(0, 0)].available = False
        for row in range(GEOMETRY.rows):
            bench.stores[GEOMETRY.column_of(0, 1)].data[1 + row] = pattern(99)
        assert await bench.read(0, GEOMETRY.stripe_blocks) == b"".join(content.values())
        await bench.engine.close()

    run(scenario())


@pytest.mark.parametrize("other", ["volume", "epoch", "sequence", "index"])
def test_d2_a_shard_counts_only_if_its_header_names_what_the_map_names(other: str) -> None:
    """Consistent in itself, but of another stripe or place: as good as missing when a block is reconstructed."""

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        stripe = bench.engine.state.stripes.get(0)
        assert stripe is not None
        named = {"volume": VOLUME, "epoch": stripe.epoch, "sequence": stripe.sequence, "index": 1}
        named[other] = UUID(int=8) if other == "volume" else int(named[other]) + 1  # type: ignore[call-overload]
        body = pattern(77, GEOMETRY.rows)
        header = encode_shard_header(*named.values(), parity_entries(body))  # type: ignore[arg-type]
        store = bench.stores[GEOMETRY.column_of(0, 1)]
        for index in range(GEOMETRY.shard_blocks):
            store.data[index] = (header + body)[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        bench.columns[GEOMETRY.column_of(0, 0)].available = False
        assert await bench.read(0, GEOMETRY.stripe_blocks) == b"".join(content.values())
        await bench.engine.close()

    run(scenario())
