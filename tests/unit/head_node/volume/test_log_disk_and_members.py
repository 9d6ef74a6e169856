"""Where two troubles of a log meet: a full disk, sectors that cannot be read, a member that catches up, a commit point
that was given up (D1)."""

import asyncio
from uuid import UUID

import pytest
from kit.volume import VOLUME, Bench, check, fill, pattern, run, until
from rackctl.simulation.log_disk import MemoryDirectory

from head_node.volume import commit_point
from head_node.volume.engine import LogPosition
from head_node.volume.errors import LogDamaged, LogDiverged
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.replica import INSTALLING_FILE

MEMBER = UUID(int=3)
WIDE = Geometry(data_shards=4, parity_shards=2, shard_blocks=64)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_point, "NOTE_SECONDS", 0.01)


async def idle(bench: Bench) -> None:
    engine = bench.engine
    while engine._promise.promise.committed[0] != engine.committed:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def one_batch_each(bench: Bench, count: int) -> dict[int, bytes]:
    content: dict[int, bytes] = {}
    for lba in range(count):
        content |= await fill(bench, lba, 1, seed=1)
    return content


def place_of(bench: Bench, data: bytes) -> tuple[str, int]:
    """(segment, byte) of a block in the log."""
    for name, content in bench.disk.files.items():
        if name.startswith("segment") and (at := bytes(content.durable).find(data)) >= 0:
            return name, at
    raise AssertionError("not in the log")


def flip(bench: Bench, data: bytes, before: int = 0) -> None:
    name, at = place_of(bench, data)
    bench.disk.files[name].durable[at - before] ^= 0x10


async def refused(bench: Bench) -> str:
    """The code of the loss for which the log is not opened."""
    with pytest.raises(LogDamaged) as caught:
        await bench.open()
    bench.disk.crash()
    return str(caught.value).rpartition(" ")[2]


def test_a_log_held_for_a_member_that_takes_nothing_does_not_stop_clients_on_a_full_disk() -> None:
    """Its link lives and its disk hangs: nothing ends the hold but its bound, and the disk is full before that."""

    async def scenario() -> None:
        bench = Bench(size_blocks=16384, geometry=WIDE)
        engine = await bench.create()
        bench.disk.capacity_bytes = 48 << 20
        await bench.lead(1)
        engine.hold_log(MEMBER, 1)
        for at in range(0, 16384, 256):
            assert await bench.write(at, pattern(at, 256)) == 0
        assert engine.status()["log_holds_given_up"] == 1
        assert engine.read_log(1, 1) is None
        await engine.close()

    run(scenario())


def test_a_member_whose_disk_is_full_takes_a_full_resync() -> None:
    """The log that it gives up is what fills the disk."""

    async def scenario() -> None:
        source, target = Bench(), Bench()
        await source.create()
        await source.lead(1)
        content = await fill(source, 0, 20, seed=1)
        engine = await target.create()
        await until(lambda: engine._log._preparing is None)
        target.disk.capacity_bytes = target.disk.used_bytes()
        await engine.install_checkpoint(b"".join(await source.engine.export_checkpoint()))
        await engine.see_epoch(1)
        for piece in source.engine.read_log(engine.tail.opnum + 1, 1 << 20) or ():
            engine.follow_append(bytes(piece))
        await until(lambda: engine.durable == source.engine.tail.opnum)
        target.stores = source.stores
        await target.lead(2)
        await check(target, content)
        await engine.close()
        await source.engine.close()

    run(scenario())


def test_a_full_resync_that_cannot_begin_does_not_end_checkpoints_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        source, target = Bench(), Bench()
        await source.create()
        await source.lead(1)
        await fill(source, 0, 20, seed=1)
        exported = b"".join(await source.engine.export_checkpoint())
        engine = await target.create()
        with monkeypatch.context() as patched:
            patched.setattr(target.disk, "fail_files", 5)
            with pytest.raises(OSError, match=r"injected|Input"):
                await engine.install_checkpoint(exported)
        assert engine.failure is None
        assert not engine._checkpoints_paused
        assert INSTALLING_FILE not in MemoryDirectory(target.disk).names()

    run(scenario())


def test_d1_a_commit_point_that_was_given_up_does_not_make_later_records_committed() -> None:
    """This log has lost its end, and an operator chose another one, which goes on with fewer records: what follows in
    this log is as committed as that one's primary says, and no more."""

    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await one_batch_each(bench, 4)
        await bench.engine._promise.note_committed(20, 1)
        bench.disk.crash()
        engine = await bench.open()
        assert engine.missing == 15

        other = Bench()
        await other.create()
        await other.lead(1)
        await one_batch_each(other, 4)
        primary = other.engine
        await primary.step_down()
        await primary.wait_committed(await primary.lead(3, other.attach(), 2))
        primary.set_required(frozenset({MEMBER}))
        writes = [other.write(lba, pattern(lba)) for lba in range(3)]
        await until(lambda: primary.durable == primary.tail.opnum == 9)
        await engine.see_epoch(3)
        for piece in primary.read_log(6, 1 << 20) or ():
            engine.follow_append(bytes(piece))
        engine.follow_committed(6)
        await until(lambda: engine.durable == 9)
        assert engine.missing == 0
        assert engine.commit_point == LogPosition(6, 3)
        bench.disk.crash()
        engine = await bench.open()
        assert engine.commit_point <= LogPosition(6, 3)
        assert engine.missing == 0
        await engine.truncate_after(6)
        assert not any(write.done() for write in writes)

    run(scenario())


def test_a_sole_member_goes_on_once_the_loss_of_the_end_of_its_log_is_accepted() -> None:
    """Also where it is noted that the end was committed: the operator has accepted exactly that."""

    async def scenario(*, alone: bool) -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, 5)
        await idle(bench)
        bench.disk.crash()
        flip(bench, content[2], before=20)
        code = await refused(bench)
        engine = await bench.open(accepted_loss=code, alone=alone)
        if not alone:
            assert engine.missing == 3, "another member has it"
            with pytest.raises(LogDiverged):
                await bench.lead(2)
            return
        bench.disk.crash()
        await bench.open(accepted_loss=code)
        await bench.lead(2)
        await check(bench, {lba: content[lba] for lba in (0, 1)})
        await bench.engine.close()

    run(scenario(alone=True))
    run(scenario(alone=False))


def test_one_code_accepts_lost_blocks_and_a_lost_end_together() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, 5)
        bench.disk.crash()
        flip(bench, content[3], before=20)
        flip(bench, content[1], before=-100)
        code = await refused(bench)
        await bench.open(accepted_loss=code)
        bench.disk.crash()
        await bench.open(accepted_loss=code)
        await bench.lead(2)
        await check(bench, {lba: content[lba] for lba in (0, 2)})
        assert (await bench.reading(1))[0] == 5
        await bench.engine.close()

    run(scenario())


@pytest.mark.parametrize("where", ["data", "mark", "end", "segment", "promise", "identity", "checkpoint"])
def test_a_sector_of_a_log_that_cannot_be_read_is_rot(where: str) -> None:
    """One block that the drive refuses is not the end of the log, nor of the volume's attempts to open it."""

    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, 5)
        name, at = place_of(bench, content[4 if where == "end" else 2])
        block = at // BLOCK_BYTES
        bench.disk.crash()
        if where in ("data", "mark", "end"):
            bench.disk.files[name].unreadable.add(block + (where == "data"))
            code = await refused(bench)
            await bench.open(accepted_loss=code)
            kept = {"mark": [0, 1], "end": [0, 1, 2, 3], "data": [0, 1, 3, 4]}[where]
        else:
            bench.disk.files[name if where == "segment" else where].unreadable.add(0)
            await bench.open()
            kept = list(range(5))
        await bench.lead(2)
        await check(bench, {lba: content[lba] for lba in kept})
        await bench.engine.close()
        assert bench.engine.volume == VOLUME

    run(scenario())
