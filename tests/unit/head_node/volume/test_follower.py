"""A follower keeps what its primary sends, refuses what it must not keep, and can take over."""

import asyncio
import errno
import random
from collections.abc import Callable
from typing import Any

import pytest
from kit.volume import GEOMETRY, Bench, check, fill, pattern, run, until
from kit.volume_pair import FOLLOWER, Pair
from rackctl.simulation.log_disk import MemoryDirectory

from head_node.volume.engine import Role
from head_node.volume.errors import BatchMalformed, LogDiverged, LogFailed, LogMissing, StaleEpoch, WrongRole
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from head_node.volume.records import epoch_record, write_header


def everything(bench: Bench, from_opnum: int = 1) -> bytes:
    records = bench.engine.read_log(from_opnum, 1 << 30)
    assert records is not None
    return b"".join(records)


def test_a_follower_takes_over_with_everything() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        content = await fill(pair.primary, 0, 30, seed=1)
        await until(lambda: pair.primary.engine.status()["stripes_written"] == 2)
        await until(lambda: pair.follower.engine.committed == pair.primary.engine.tail.opnum)
        ours, theirs = pair.primary.engine.state, pair.follower.engine.state
        assert [ours.map.find(lba) for lba in range(30)] == [theirs.map.find(lba) for lba in range(30)]
        assert sorted(ours.overlay.fresh) == sorted(theirs.overlay.fresh)
        await pair.primary.engine.close()
        pair.follower.stores = pair.primary.stores
        await pair.follower.lead(2)
        await check(pair.follower, content)
        content |= await fill(pair.follower, 20, 30, seed=2)
        await check(pair.follower, content)
        await pair.follower.engine.close(destage=True)

    run(scenario())


def test_a_follower_keeps_blocks_and_not_the_batches_that_they_came_in() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await fill(pair.primary, 0, 8, seed=1)
        assert await pair.primary.write(8, pattern(1, 3)) == 0
        entries = pair.follower.engine.state.overlay.fresh.values()
        await until(lambda: len(entries) == 11)
        assert all(type(data) is bytes and len(data) == BLOCK_BYTES for _, _, data in entries)
        await pair.close()

    run(scenario())


def test_a_follower_refuses_lower_epochs_across_a_restart() -> None:
    async def scenario() -> None:
        source, bench = Bench(), Bench()
        await source.create()
        await source.lead(1)
        await bench.create()
        await bench.engine.see_epoch(3)
        with pytest.raises(StaleEpoch):
            bench.engine.follow_append(everything(source), epoch=1)
        bench.disk.power_cut(random.Random(0))
        await bench.open()
        with pytest.raises(StaleEpoch) as caught:
            await bench.engine.see_epoch(2)
        assert (caught.value.epoch, caught.value.highest_epoch) == (2, 3)
        with pytest.raises(WrongRole):
            bench.engine.follow_append(everything(source), epoch=4)
        bench.engine.follow_append(everything(source), epoch=3)
        assert bench.engine.tail.opnum == 1

    run(scenario())


def test_f5_records_whose_epochs_fall_or_rise_above_what_was_seen_are_refused() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.engine.see_epoch(2)
        first, chain = epoch_record(1, 2, 0)
        bench.engine.follow_append(first)
        older, _, _ = write_header(2, 1, 0, pattern(1), chain)
        newer, _ = epoch_record(2, 3, chain)
        unannounced, _, _ = write_header(2, 3, 0, pattern(1), chain)
        for batch in (older + pattern(1), newer, unannounced + pattern(1)):
            with pytest.raises(BatchMalformed):
                bench.engine.follow_append(batch)
        assert bench.engine.tail.opnum == 1
        same, _, _ = write_header(2, 2, 0, pattern(1), chain)
        bench.engine.follow_append(same + pattern(1))
        assert bench.engine.tail.opnum == 2

    run(scenario())


def test_records_that_do_not_continue_the_log_are_refused_whole() -> None:
    async def scenario() -> None:
        source, bench = Bench(), Bench()
        await source.create()
        await source.lead(1)
        await fill(source, 0, 3, seed=1)
        raw = everything(source)
        await bench.create()
        await bench.engine.see_epoch(1)
        with pytest.raises(LogDiverged):
            bench.engine.follow_append(everything(source, 2))
        bent = bytearray(raw)
        bent[-1] ^= 1
        with pytest.raises(BatchMalformed):
            bench.engine.follow_append(bent)
        with pytest.raises(BatchMalformed):
            bench.engine.follow_append(raw[:-1])
        assert bench.engine.tail.opnum == 0
        bench.engine.follow_append(raw)
        assert bench.engine.tail.opnum == 4
        with pytest.raises(LogDiverged):
            bench.engine.follow_append(raw)

    run(scenario())


def test_a_diverged_member_truncates_and_catches_up() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        content = await fill(pair.primary, 0, 3, seed=1)
        pair.primary.engine.on_append = lambda first, last, buffers: None
        lost = pair.primary.write(7, pattern(77))
        await until(lambda: pair.primary.engine.durable == 5)
        assert not lost.done()
        # The follower takes over; the old primary comes back with one record that nobody acknowledged.
        pair.follower.stores = pair.primary.stores
        await pair.primary.engine.step_down()
        await pair.follower.lead(2)
        content |= await fill(pair.follower, 10, 3, seed=2)
        pair.announce = False
        old, new = pair.primary.engine, pair.follower.engine
        await old.see_epoch(2)
        with pytest.raises(LogDiverged):
            old.follow_append(everything(pair.follower, 6))
        with pytest.raises(LogDiverged):
            await old.truncate_after(2)
        await old.truncate_after(4)
        old.follow_append(everything(pair.follower, 5))
        await until(lambda: old.durable == new.tail.opnum)
        old.follow_committed(new.committed)
        assert old.epoch_history() == new.epoch_history()
        assert not lost.done()
        await new.close()
        await pair.primary.lead(3)
        await check(pair.primary, content)
        assert await pair.primary.read(7) == bytes(BLOCK_BYTES)
        await old.close()

    run(scenario())


async def trimmed_source() -> tuple[Bench, dict[int, bytes]]:
    """A primary whose log no longer starts at opnum 1."""
    source = Bench(size_blocks=8192)
    await source.create(Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20))
    await source.lead(1)
    content: dict[int, bytes] = {}
    for at in range(0, 8192, 256):
        await source.write(at, pattern(at, 256))
    for at in range(0, 8192, 256):
        data = pattern(at, 256)
        content |= {at + 3: data[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]}
    await until(lambda: source.engine.read_log(1, 1) is None)
    content |= await fill(source, 100, 20, seed=3)
    engine = source.engine
    await until(lambda: len(engine.state.overlay.fresh) < 12 and not engine.state.overlay.leaving)
    await until(lambda: engine.committed == engine.tail.opnum)
    return source, content


async def resync(source: Bench, bench: Bench) -> None:
    await bench.engine.install_checkpoint(b"".join(await source.engine.export_checkpoint()))
    bench.stores = source.stores
    while bench.engine.tail.opnum < source.engine.tail.opnum:
        records = source.engine.read_log(bench.engine.tail.opnum + 1, 1 << 20)
        assert records
        for record in records:
            bench.engine.follow_append(record)
        await asyncio.sleep(0)
    bench.engine.follow_committed(source.engine.committed)
    await until(lambda: bench.engine.committed == source.engine.committed)


def test_a_full_resync_replaces_a_log() -> None:
    async def scenario() -> None:
        source, content = await trimmed_source()
        bench = Bench(size_blocks=8192)
        await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 40, seed=99)
        await bench.engine.step_down()
        await bench.engine.see_epoch(1)
        await resync(source, bench)
        assert bench.engine.log_id != source.engine.log_id
        assert bench.engine.epoch_history() == source.engine.epoch_history()
        bench.disk.power_cut(random.Random(1))
        await bench.open()
        assert bench.engine.tail.opnum == source.engine.tail.opnum
        await source.engine.close()
        await bench.lead(2)
        await check(bench, content)
        assert await bench.read(7000, 50) == await source_read(bench, 7000, 50)
        await bench.engine.close()

    run(scenario())


async def source_read(bench: Bench, lba: int, count: int) -> bytes:
    first = lba // 256 * 256
    data = pattern(first, 256)
    return data[(lba - first) * BLOCK_BYTES : (lba - first + count) * BLOCK_BYTES]


def test_a_resync_cut_short_leaves_no_log() -> None:
    async def scenario() -> None:
        source, _ = await trimmed_source()
        bench = Bench(size_blocks=8192)
        await bench.create()
        data = b"".join(await source.engine.export_checkpoint())
        installing = asyncio.ensure_future(bench.engine.install_checkpoint(data))
        await until(lambda: "installing" in MemoryDirectory(bench.disk).names())
        bench.disk.power_cut(random.Random(1))
        installing.cancel()
        with pytest.raises(LogMissing, match="resync"):
            await bench.open()
        await source.engine.close()

    run(scenario())


def test_a_follower_trims_its_log_by_its_own_checkpoints() -> None:
    async def scenario() -> None:
        pair = Pair(size_blocks=8192)
        await pair.start()
        for at in range(0, 8192, 128):
            await pair.primary.write(at, pattern(at, 128))
        await until(lambda: pair.follower.engine.read_log(1, 1) is None)
        await until(lambda: pair.follower.engine.committed == pair.primary.engine.tail.opnum)
        assert pair.follower.engine.status()["log_segments"] < 5
        pair.follower.disk.power_cut(random.Random(1))
        await pair.primary.engine.close()
        pair.follower.stores = pair.primary.stores
        await pair.follower.open()
        await pair.follower.lead(2)
        for at in range(0, 8192, 128):
            assert await pair.follower.read(at, 128) == pattern(at, 128)
        await pair.follower.engine.close()

    run(scenario())


def test_catch_up_reads_durable_and_pending_records_alike() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 4, seed=1)
        bench.write(9, pattern(9))
        bench.write(10, pattern(10))
        assert bench.engine.tail.opnum == bench.engine.durable + 2
        follower = Bench()
        await follower.create()
        await follower.engine.see_epoch(1)
        for opnum in (1, 3, 6, 7):
            assert follower.engine.tail.opnum <= opnum
            follower.engine.follow_append(everything(bench, follower.engine.tail.opnum + 1)[: 1 << 30])
            if follower.engine.tail.opnum == bench.engine.tail.opnum:
                break
        assert bench.engine.read_log(8, 100) == []
        assert follower.engine.tail == bench.engine.tail
        assert GEOMETRY.stripe_blocks == 12

    run(scenario())


def test_a_full_resync_that_fails_half_way_ends_the_member() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await fill(pair.primary, 0, 4, 1)
        data = b"".join(await pair.primary.engine.export_checkpoint())

        async def full(name: str, size_bytes: int) -> Any:
            raise OSError(errno.ENOSPC, "no space left on device")

        pair.follower.engine._directory.create = full  # type: ignore[method-assign]
        with pytest.raises(OSError, match="no space"):
            await pair.follower.engine.install_checkpoint(data)
        # Its old log is gone: what it said to be durable must not make it a member again.
        assert pair.follower.engine.role is Role.FAILED
        await pair.close()
        with pytest.raises(LogMissing):
            await pair.follower.open()

    run(scenario())


def test_a_truncation_that_fails_half_way_ends_the_member() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 1, 1)
        engine.set_required(frozenset({FOLLOWER}))
        for lba in (5, 6, 7):
            bench.write(lba, pattern(lba))
            await until(lambda: engine.durable == engine.tail.opnum)
        await engine.step_down()
        intended = bench.disk.commit_count + 2

        def gate(finish: Callable[[], None]) -> None:
            bench.disk.fail_commits = bench.disk.commit_count > intended
            asyncio.get_running_loop().call_soon(finish)

        bench.disk.gate = gate
        with pytest.raises(LogFailed):
            await engine.truncate_after(engine.tail.opnum - 2)
        assert engine.role is Role.FAILED
        await engine.close()
        bench.disk.gate, bench.disk.fail_commits = None, False
        assert (await bench.open()).tail.opnum == 3
        await bench.engine.close()

    run(scenario())
