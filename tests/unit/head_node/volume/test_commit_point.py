"""The commit point outlives a restart, so that a log which has lost committed records is known by it (D1)."""

import asyncio
import mmap
import random
from uuid import UUID

import pytest
from kit.host import golden
from kit.volume import Bench, check, fill, pattern, run, until
from kit.volume_pair import Pair
from rackctl.simulation.log_disk import MemoryDirectory, MemoryDisk

from head_node.volume import commit_point, segments
from head_node.volume.engine import LogPosition, VolumeEngine
from head_node.volume.errors import LogCorrupt, LogDiverged, LogFailed
from head_node.volume.identity import IDENTITY, PROMISE, PromiseFile
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.segments import MARK, MARK_MAGIC, SEGMENT_MAGIC, Batch

LOG = UUID(int=0x0F0E0D0C0B0A09080706050403020100)


def segment(bench: Bench) -> bytearray | mmap.mmap:
    """The only segment that holds records: each open writes it into another file."""
    return next(file.durable for file in bench.disk.files.values() if file.durable[:8] == SEGMENT_MAGIC)


def batches(bench: Bench) -> list[tuple[int, int, int]]:
    """(offset, first opnum, commit point) of every batch on the disk."""
    data = segment(bench)
    found = []
    for at in range(0, len(data), BLOCK_BYTES):
        if data[at : at + 8] == MARK_MAGIC:
            *_, first, _, _, committed = MARK.unpack_from(data, at)
            found.append((at, first, committed))
    return found


def lose_last_batch(bench: Bench) -> None:
    """The disk answered a sync and did not do it, or the last batch has rotted."""
    at = batches(bench)[-1][0]
    segment(bench)[at : at + 2 * BLOCK_BYTES] = bytes(2 * BLOCK_BYTES)


async def idle(engine: VolumeEngine) -> None:
    await until_slowly(lambda: engine._promise.promise.committed[0] == engine.committed)


async def until_slowly(condition: object) -> None:
    while not condition():  # type: ignore[operator]  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_point, "NOTE_SECONDS", 0.01)


async def written(count: int = 4) -> tuple[Bench, dict[int, bytes]]:
    bench, content = Bench(), {}
    await bench.create()
    await bench.lead(1)
    for lba in range(count):
        content |= await fill(bench, lba, 1, seed=lba)
    return bench, content


def test_d1_each_batch_carries_the_commit_point_and_a_restart_finds_it() -> None:
    async def scenario() -> None:
        bench, _ = await written(4)
        assert [(first, committed) for _, first, committed in batches(bench)] == [(n, n - 1) for n in range(1, 6)]
        bench.disk.crash()
        engine = await bench.open()
        assert engine.commit_point == LogPosition(4, 1), "the last batch's own commit is not in it"

    run(scenario())


def test_d1_a_batch_names_no_commit_point_that_its_log_does_not_hold() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        for lba in range(4):
            assert await pair.primary.write(lba, pattern(lba)) == 0
        pair.follower.engine._announced = 1000
        await pair.primary.write(5, pattern(5))
        assert all(committed < first for _, first, committed in batches(pair.follower))
        await pair.close()

    run(scenario())


def test_d1_a_followers_batches_carry_what_its_primary_said_is_committed() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        for lba in range(4):
            await until_slowly(lambda: pair.follower.engine.committed == pair.primary.engine.committed)
            assert await pair.primary.write(lba, pattern(lba)) == 0
        assert [committed for _, _, committed in batches(pair.follower)][1:] == [1, 2, 3, 4]
        await pair.close()

    run(scenario())


def test_d1_the_commit_point_is_noted_when_the_volume_goes_idle() -> None:
    async def scenario() -> None:
        bench, _ = await written(4)
        await idle(bench.engine)
        bench.disk.power_cut(random.Random(1))
        engine = await bench.open()
        assert engine.commit_point == LogPosition(5, 1)

    run(scenario())


class Flow:
    """A volume as the note sees it."""

    committed = 5
    batch_count = 5


def test_the_commit_point_is_noted_once_and_never_while_writes_flow() -> None:
    async def scenario() -> None:
        disk, flow, failures = MemoryDisk(), Flow(), list[Exception]()
        promise = await PromiseFile.create(MemoryDirectory(disk), LOG)
        note = commit_point.IdleNote(promise, flow, lambda opnum: 1, failures.append)
        note.advanced()
        timer = note._timer
        assert timer is not None
        note.advanced()
        assert note._timer is timer, "one timer, however often the commit point advances"
        for _ in range(5):
            flow.committed, flow.batch_count = flow.committed + 1, flow.batch_count + 1
            assert note._timer is not None
            note._timer.cancel()
            note._look((flow.committed - 1, flow.batch_count - 1))
        assert disk.commit_count == 0
        await until_slowly(lambda: promise.promise.committed == (10, 1))
        assert disk.commit_count == 2, "one for each block of the promise"
        assert note._timer is None, "nothing is left to do until the commit point advances again"
        disk.fail_commits = True
        flow.committed = 11
        note.advanced()
        await until_slowly(lambda: bool(failures))
        assert isinstance(failures[0], LogFailed)
        await note.close(wait=True)
        note.advanced()
        assert note._timer is None

    run(scenario())


def test_d1_a_log_whose_end_is_gone_below_the_commit_point_does_not_lead() -> None:
    async def scenario() -> None:
        bench, _ = await written(4)
        await idle(bench.engine)
        bench.disk.crash()
        lose_last_batch(bench)
        engine = await bench.open()
        assert engine.tail.opnum == 4
        assert engine.missing == engine.status()["missing"] == 1
        with pytest.raises(LogDiverged, match="opnum 5 of epoch 1 was committed, this log ends at 4"):
            await bench.lead(2)
        with pytest.raises(LogDiverged):
            await engine.lead(2, bench.attach(), 1)

    run(scenario())


def test_d1_an_operator_may_let_a_log_go_on_that_has_lost_its_end() -> None:
    async def scenario() -> None:
        bench, content = await written(4)
        await idle(bench.engine)
        bench.disk.crash()
        lose_last_batch(bench)
        engine = await bench.open()
        await engine.wait_committed(await engine.lead(3, bench.attach(), 2))
        assert engine.missing == 0
        del content[3]
        await check(bench, content)
        content |= await fill(bench, 3, 1, seed=33)
        bench.disk.crash()
        engine = await bench.open()
        assert engine.missing == 0
        await bench.lead(4)
        await check(bench, content)

    run(scenario())


def test_d1_what_an_operator_gave_up_once_vouches_for_no_later_loss() -> None:
    async def scenario() -> None:
        bench, _ = await written(4)
        await idle(bench.engine)
        bench.disk.crash()
        lose_last_batch(bench)
        engine = await bench.open()
        await engine.wait_committed(await engine.lead(3, bench.attach(), 2))
        await fill(bench, 3, 1, seed=33)
        await idle(engine)
        bench.disk.crash()
        lose_last_batch(bench)
        lose_last_batch(bench)  # the epoch record of the forced takeover too
        engine = await bench.open()
        assert engine.tail == LogPosition(4, 1)
        assert engine.missing == 2
        with pytest.raises(LogDiverged):
            await engine.lead(4, bench.attach(), 2)

    run(scenario())


def test_d1_a_follower_that_has_lost_its_end_gets_it_again_from_the_primary() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        for lba in range(4):
            assert await pair.primary.write(lba, pattern(lba)) == 0
        await until_slowly(lambda: pair.follower.engine.committed == 5)
        await idle(pair.follower.engine)
        pair.follower.disk.crash()
        lose_last_batch(pair.follower)
        follower = await pair.follower.open()
        assert follower.missing == 1
        assert not follower.vouched
        records = pair.primary.engine.read_log(follower.tail.opnum + 1, 1 << 20)
        assert records is not None
        follower.follow_append(b"".join(records))
        await until(lambda: follower.durable == 5)
        assert follower.missing == 0
        await pair.close()

    run(scenario())


def test_d1_a_log_that_has_not_caught_up_with_its_full_resync_says_what_it_lacks() -> None:
    async def scenario() -> None:
        bench, _ = await written(4)
        newcomer = Bench()
        engine = await newcomer.create()
        await engine.install_checkpoint(b"".join(await bench.engine.export_checkpoint()))
        assert (engine.tail.opnum, engine.commit_point, engine.missing) == (0, LogPosition(5, 1), 5)
        newcomer.disk.crash()
        engine = await newcomer.open()
        assert (engine.commit_point, engine.missing) == (LogPosition(5, 1), 5)
        await engine.see_epoch(1)
        records = bench.engine.read_log(1, 1 << 20)
        while records and engine.tail.opnum < 5:
            engine.follow_append(b"".join(records))
            records = bench.engine.read_log(engine.tail.opnum + 1, 1 << 20)
        assert engine.missing == 0

    run(scenario())


def test_a_log_of_another_format_is_refused_by_name() -> None:
    async def scenario() -> None:
        bench, _ = await written(1)
        await bench.engine.close()
        content = bytearray(bench.disk.files["identity"].durable[: IDENTITY.size])
        content[12:16] = (1).to_bytes(4, "little")
        content[8:12] = segments.crc32c(bytes(content[12:])).to_bytes(4, "little")
        bench.disk.files["identity"].durable[: IDENTITY.size] = content
        with pytest.raises(LogCorrupt, match="is of format 1, this head reads format 3"):
            await bench.open()

    run(scenario())


def test_mark_and_promise_are_the_golden_bytes() -> None:
    mark = segments.encode_mark(LOG, 3, Batch(41, 8192, 4160, 0xCAFE, 12, 40), 2)
    assert mark == golden("log_mark")
    assert segments.decode_mark(LOG, mark, 8192) == (Batch(41, 8192, 4160, 0xCAFE, 12, 40), 3, 2)

    async def promise() -> bytes:
        disk = MemoryDisk()
        file = await PromiseFile.create(MemoryDirectory(disk), LOG)
        await file.see_epoch(7)
        await file.note_committed(40, 6)
        return bytes(disk.files["promise"].durable[: PROMISE.size])

    assert run(promise()) == golden("log_promise")
