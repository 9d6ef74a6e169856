"""The log on a disk that tears, rots, fills up and fails."""

import asyncio
import errno
import random

import pytest
from kit.volume import Bench, check, fill, pattern, run, until
from kit.volume_pair import FOLLOWER
from rackctl.simulation.log_disk import MemoryDirectory

from head_node.volume.errors import (
    DirectoryLocked,
    LogCorrupt,
    LogDiverged,
    LogFailed,
    LogForeign,
    LogMissing,
    VolumeStopped,
)
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import SEGMENT_BYTES_MIN, Limits
from head_node.volume.records import RECORD_BLOCKS_MAX
from head_node.volume.segments import MARK_MAGIC

SEGMENT = "segment-000001"


async def one_batch_each(bench: Bench, count: int) -> dict[int, bytes]:
    content: dict[int, bytes] = {}
    for lba in range(count):
        content |= await fill(bench, lba, 1, seed=lba)
    return content


async def one_uncommitted_batch_each(bench: Bench, lbas: range, blocks: int = 1) -> None:
    """What a primary made durable and no member has: nothing of it is committed."""
    bench.engine.set_required(frozenset({FOLLOWER}))
    for lba in lbas:
        bench.write(lba, pattern(lba * 1000 + lba, blocks))
        await until(lambda: bench.engine.durable == bench.engine.tail.opnum)


def flip(bench: Bench, name: str, offset: int) -> None:
    bench.disk.files[name].durable[offset] ^= 0x10


def batch_offsets(bench: Bench, name: str = SEGMENT) -> list[int]:
    data = bench.disk.files[name].durable
    return [at for at in range(0, len(data), BLOCK_BYTES) if data[at : at + 8] == MARK_MAGIC]


def test_a_torn_tail_is_cut_and_the_log_goes_on() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, 4)
        bench.disk.crash()
        flip(bench, SEGMENT, batch_offsets(bench)[-1] + 200)
        engine = await bench.open()
        assert engine.tail.opnum == 4
        del content[3]
        await bench.lead(2)
        await check(bench, content)
        content |= await fill(bench, 9, 2, seed=9)
        bench.disk.crash()
        await bench.open()
        await bench.lead(3)
        await check(bench, content)

    run(scenario())


def test_a_rotten_record_before_a_valid_one_is_corruption_and_names_its_place() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await one_batch_each(bench, 4)
        bench.disk.crash()
        offset = batch_offsets(bench)[2]
        for damaged in (offset + 3, offset + 60, offset + 3000):
            flip(bench, SEGMENT, damaged)
            with pytest.raises(LogCorrupt, match="rotten") as caught:
                await bench.open()
            assert caught.value.file == SEGMENT
            assert offset <= caught.value.offset <= damaged
            flip(bench, SEGMENT, damaged)
        await bench.open()

    run(scenario())


def test_a_torn_batch_of_which_the_end_survived_is_no_corruption() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, 2)
        bench.disk.gate = lambda finish: None
        for lba in range(10, 20):
            bench.write(lba, pattern(lba))
        await until(lambda: len(bench.disk.files[SEGMENT].cached) > 9)
        cached = bench.disk.files[SEGMENT].cached
        del cached[sorted(cached)[4]]
        bench.disk.files[SEGMENT].sync(list(cached))
        bench.disk.power_cut(random.Random(1))
        bench.disk.gate = None
        engine = await bench.open()
        assert 3 <= engine.tail.opnum < 13
        await bench.lead(2)
        await check(bench, content)
        kept = engine.tail.opnum
        content |= await one_batch_each(bench, 3)
        bench.disk.crash()
        engine = await bench.open()
        assert engine.tail.opnum == kept + 3
        await bench.lead(3)
        await check(bench, content)

    run(scenario())


def test_a_missing_segment_is_corruption() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=8192)
        await bench.create()
        await bench.lead(1)
        for column in range(6):
            bench.engine.set_column(column, None)
        for at in range(0, 5120, 256):
            await bench.write(at, pattern(at, 256))
        assert bench.engine.status()["log_segments"] == 3
        bench.disk.crash()
        second = bench.disk.files.pop("segment-000002")
        with pytest.raises(LogCorrupt, match="missing"):
            await bench.open()
        bench.disk.files["segment-000002"] = second
        await bench.open()

    run(scenario())


def test_a_wiped_directory_is_no_log() -> None:
    async def scenario() -> None:
        bench = Bench()
        first = await bench.create()
        await first.close()
        bench.disk.files.clear()
        with pytest.raises(LogMissing):
            await bench.open()
        assert (await bench.create()).log_id != first.log_id

    run(scenario())


def test_a_swapped_directory_is_refused() -> None:
    async def scenario() -> None:
        one, two = Bench(), Bench()
        for bench in (one, two):
            await bench.create()
            await bench.lead(1)
            await fill(bench, 0, 3, seed=1)
            await bench.engine.close()
        one.disk.files[SEGMENT] = two.disk.files[SEGMENT]
        with pytest.raises(LogForeign, match="belongs to log"):
            await one.open()
        one.disk.files["promise"] = two.disk.files["promise"]
        with pytest.raises(LogForeign, match="promise"):
            await one.open()

    run(scenario())


def test_a_directory_has_one_owner() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        other = Bench()
        other.disk = bench.disk
        with pytest.raises(DirectoryLocked):
            await other.open()

    run(scenario())


def test_a_full_disk_acknowledges_nothing_and_says_so_until_there_is_room() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=8192)
        await bench.create(Limits(segment_bytes=8 << 20, log_bytes_max=64 << 20))
        await until(lambda: len(bench.disk.files) == 8)
        bench.disk.capacity_bytes = bench.disk.used_bytes()
        await bench.engine.wait_committed(await bench.engine.lead(1, [None] * 6))
        writes = [bench.write(at, pattern(at, 256)) for at in range(0, 5120, 256)]
        await until(lambda: bench.engine.status()["log_no_room"] is not None and not bench.engine._log._inflight)
        answered = [write for write in writes if write.done()]
        assert 7 < len(answered) < 20
        assert not any(write.result() for write in answered)
        assert "no space" in bench.engine.status()["log_no_room"]
        bench.disk.capacity_bytes *= 4
        assert not any(await asyncio.gather(*writes))
        assert bench.engine.status()["log_no_room"] is None
        await bench.engine.close()

    run(scenario())


def test_creating_on_a_full_disk_fails_cleanly() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.disk.capacity_bytes = 1 << 20
        with pytest.raises(OSError, match="no space") as caught:
            await bench.create()
        assert caught.value.errno == errno.ENOSPC
        assert not bench.disk.locked

    run(scenario())


def test_a_failed_sync_is_final() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 3, seed=1)
        failures: list[Exception] = []
        bench.engine.on_failed = failures.append
        bench.disk.fail_commits = True
        lost = bench.write(5, pattern(5))
        await until(lambda: bool(failures))
        assert isinstance(failures[0], LogFailed)
        bench.disk.fail_commits = False
        commits = bench.disk.commit_count
        later = bench.write(6, pattern(6))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not lost.done()
        assert not later.done()
        assert bench.disk.commit_count == commits
        assert bench.engine.status()["role"] == "failed"
        with pytest.raises(VolumeStopped):
            await bench.engine.lead(2, [None] * 6)
        await bench.engine.close()
        await bench.open()
        await bench.lead(2)
        await check(bench, content)

    run(scenario())


def test_truncation_cuts_what_diverged_and_lets_another_history_follow() -> None:
    async def scenario() -> None:
        bench, other = Bench(), Bench()
        await bench.create()
        await bench.lead(1)
        await one_batch_each(bench, 6)
        await bench.engine.close()
        await bench.open()
        engine = bench.engine
        bench.disk.crash()
        engine = await bench.open()
        assert engine.committed == 7
        with pytest.raises(LogDiverged):
            await engine.truncate_after(3)
        await other.create()
        await other.lead(1)
        await one_uncommitted_batch_each(other, range(6))
        other.disk.crash()
        engine = await other.open()
        assert engine.committed == 1
        records = engine.read_log(1, 1 << 20)
        assert records is not None
        await engine.truncate_after(4)
        assert (engine.tail.opnum, engine.durable) == (4, 4)
        assert engine.epoch_history() == [(1, 1)]
        await other.lead(2)
        await fill(other, 20, 1, seed=3)
        other.disk.power_cut(random.Random(1))
        engine = await other.open()
        assert engine.tail.opnum == 6
        assert engine.epoch_history() == [(1, 1), (2, 5)]
        await other.lead(3)
        assert await other.read(2) == pattern(2002)
        assert await other.read(4) == bytes(BLOCK_BYTES)
        assert await other.read(20) == pattern(3020)

    run(scenario())


def test_truncation_inside_a_batch_and_over_segments() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=8192)
        await bench.create()
        bench.engine.set_required(frozenset({FOLLOWER}))
        await bench.engine.lead(1, [None] * 6)
        for at in range(0, 4096, 512):
            bench.engine.append_write(at, pattern(at, 256))
            bench.engine.append_write(at + 256, pattern(at + 256, 256))
            await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
        assert bench.engine.status()["log_segments"] == 3
        bench.disk.crash()
        for cut in (15, 12, 5, 2, 1, 0):
            engine = await bench.open()
            await engine.truncate_after(cut)
            assert engine.tail.opnum == cut
            await engine.see_epoch(100)
            bench.disk.power_cut(random.Random(cut))
        engine = await bench.open()
        assert engine.tail.opnum == 0
        assert engine.highest_epoch == 100
        assert engine.epoch_history() == []

    run(scenario())


def test_a_power_cut_during_truncation_is_finished_at_the_next_start() -> None:
    async def scenario(seed: int) -> None:
        bench = Bench(size_blocks=8192)
        await bench.create()
        await bench.engine.wait_committed(await bench.engine.lead(1, [None] * 6))
        await one_uncommitted_batch_each(bench, range(0, 5120, 256), 256)
        bench.disk.crash()
        engine = await bench.open()
        chance = random.Random(seed)
        left = chance.randrange(1, 30)

        def gate(finish: object) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                asyncio.get_running_loop().call_soon(finish)  # type: ignore[arg-type]

        bench.disk.gate = gate
        cutting = asyncio.ensure_future(engine.truncate_after(7))
        await until(lambda: left <= 0 or cutting.done())
        bench.disk.power_cut(chance)
        bench.disk.gate = None
        cutting.cancel()
        engine = await bench.open()
        assert engine.tail.opnum in (7, 21)
        await engine.truncate_after(7)
        assert engine.tail.opnum == 7
        bench.disk.power_cut(chance)
        assert (await bench.open()).tail.opnum == 7

    for seed in range(6):
        run(scenario(seed))


def test_a_promise_survives_one_rotten_byte_and_two_are_corruption() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await engine.see_epoch(5)
        await engine.see_epoch(9)
        bench.disk.power_cut(random.Random(1))
        assert (await bench.open()).highest_epoch == 9
        bench.disk.crash()
        for block in (0, BLOCK_BYTES):
            flip(bench, "promise", block + 30)
            assert (await bench.open()).highest_epoch == 9
            bench.disk.power_cut(random.Random(1))
        flip(bench, "promise", 30)
        flip(bench, "promise", BLOCK_BYTES + 30)
        with pytest.raises(LogCorrupt, match="promise"):
            await bench.open()

    run(scenario())


def test_a_rotten_or_missing_checkpoint_is_taken_from_its_copy_and_written_again() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 14, seed=1)
        await bench.engine.close(destage=True)
        whole = bytes(bench.disk.files["checkpoint"].durable)
        epoch = 1
        for name in ("checkpoint", "checkpoint-copy"):
            for damage in (lambda name=name: flip(bench, name, 60), lambda name=name: bench.disk.files.pop(name)):
                damage()  # type: ignore[no-untyped-call]
                await bench.open()
                assert bytes(bench.disk.files[name].durable) == whole
                bench.disk.crash()
        await bench.open()
        await bench.lead(epoch + 1)
        await check(bench, content)
        await bench.engine.close()
        for name in ("checkpoint", "checkpoint-copy"):
            flip(bench, name, 60)
        with pytest.raises(LogCorrupt, match="checkpoint"):
            await bench.open()
        bench.disk.files["checkpoint"].durable[:] = b""
        with pytest.raises(LogCorrupt, match="too short"):
            await bench.open()
        assert MemoryDirectory(bench.disk).names()

    run(scenario())


def test_d1_what_a_restart_finds_in_the_page_cache_is_durable_before_it_counts() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        bench.disk.gate = lambda finish: None  # a sync that never ends
        bench.write(0, pattern(1))
        await until(lambda: bool(bench.disk.files[SEGMENT].cached))
        bench.disk.crash()
        bench.disk.gate = None
        restarted = await bench.open()
        durable = restarted.durable
        assert durable == 2, "the page cache outlives a process"
        bench.disk.power_cut(Losing())
        assert (await bench.open()).durable >= durable
        await bench.engine.close()

    run(scenario())


class Losing(random.Random):
    """A power cut in which nothing unsynced survives."""

    def random(self) -> float:
        return 0.99


def test_the_smallest_segments_hold_the_largest_records() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=1024)
        await bench.create(Limits(SEGMENT_BYTES_MIN, log_bytes_max=16 * SEGMENT_BYTES_MIN))
        await bench.engine.wait_committed(await bench.engine.lead(1, [None] * 6))
        content = pattern(1, 3 * RECORD_BLOCKS_MAX)
        assert await bench.write(0, content) == 0
        assert await bench.write(0, pattern(2)) == 0
        assert "segment-000004" in bench.disk.files
        bench.disk.crash()
        await bench.open()
        await bench.engine.wait_committed(await bench.engine.lead(2, [None] * 6))
        assert await bench.read(0) == pattern(2)
        assert await bench.read(1, 3 * RECORD_BLOCKS_MAX - 1) == content[BLOCK_BYTES:]
        await bench.engine.close()

    run(scenario())


def test_segments_below_the_largest_record_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        Limits(segment_bytes=SEGMENT_BYTES_MIN - BLOCK_BYTES)
