"""Where a head keeps its logs: what becomes of a directory in which no log could be made."""

import asyncio
import errno
from pathlib import Path
from uuid import UUID

import pytest
from kit.cluster import VOLUME, record_of
from kit.volume import run
from rackctl.simulation.log_disk import MemoryDisk, MemoryRoot

from head_node.files import HostDirectory, HostRoot
from head_node.log_directories import ACCEPTED_FILE, ASIDES_MAX, UNREADABLE_TRIES, LogDirectories
from head_node.store.records import Member, VolumeRecord
from head_node.volume.errors import LogDamaged
from head_node.volume.replica import INSTALLING_FILE
from sled_controller.environment import Environment

HEAD, OTHER, LOG = UUID(int=1), UUID(int=2), UUID(int=3)
OTHERS = record_of([HEAD], [], current=(Member(OTHER, LOG),))


def test_a_full_disk_uses_up_no_names_for_logs_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = HostDirectory._create

    def full(directory: HostDirectory, name: str, size_bytes: int) -> int:
        if name.startswith("segment"):
            raise OSError(errno.ENOSPC, "no space left on device")
        return create(directory, name, size_bytes)

    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        record = record_of([HEAD], [])
        monkeypatch.setattr(HostDirectory, "_create", full)
        for _ in range(ASIDES_MAX + 2):
            with pytest.raises(OSError, match="no space"):
                await logs.open(record)
        monkeypatch.setattr(HostDirectory, "_create", create)
        engine = await logs.open(record)
        assert logs.orphans({VOLUME}) == []
        await engine.close()

    run(scenario())


def test_a_log_that_is_set_aside_is_kept_and_another_one_begins(tmp_path: Path) -> None:
    async def scenario() -> None:
        logs, record = LogDirectories(HostRoot(tmp_path), HEAD, Environment()), record_of([HEAD], [])
        former = await logs.open(record)
        await former.close()
        await logs.set_aside(VOLUME)
        engine = await logs.open(record)
        assert engine.log_id != former.log_id
        assert logs.orphans({VOLUME}) == [f"{VOLUME}.aside-parted-0"]
        await engine.close()

    run(scenario())


async def unreadable_log(disk: MemoryDisk, logs: LogDirectories, record: VolumeRecord) -> UUID:
    """A log of which one sector cannot be read any more; returns its id."""
    engine = await logs.open(record)
    await engine.close()
    disk.files[f"{VOLUME}/segment-000001"].unreadable.add(0)
    return engine.log_id


def test_a_log_with_unreadable_sectors_is_set_aside_when_another_member_has_its_content() -> None:
    async def scenario() -> None:
        disk = MemoryDisk()
        logs = LogDirectories(MemoryRoot(disk), HEAD, Environment())
        record = record_of([HEAD, OTHER], [], current=(Member(HEAD, LOG), Member(OTHER, LOG)))
        former = await unreadable_log(disk, logs, record)
        for _ in range(UNREADABLE_TRIES - 1):
            with pytest.raises(OSError, match="unreadable"):
                await logs.open(record)
        engine = await logs.open(record)
        assert engine.log_id != former
        assert logs.orphans({VOLUME}) == [f"{VOLUME}.aside-0"]
        await engine.close()

    run(scenario())


def test_d1_a_log_with_unreadable_sectors_that_nobody_else_has_is_never_set_aside() -> None:
    async def scenario() -> None:
        disk = MemoryDisk()
        logs = LogDirectories(MemoryRoot(disk), HEAD, Environment())
        record = record_of([HEAD, OTHER], [], current=(Member(HEAD, LOG),))
        await unreadable_log(disk, logs, record)
        for _ in range(2 * UNREADABLE_TRIES):
            with pytest.raises(OSError, match="unreadable"):
                await logs.open(record)
        assert logs.orphans({VOLUME}) == []

    run(scenario())


def test_a_loss_is_accepted_by_a_file_with_its_code_in_the_directory_of_the_log() -> None:
    async def scenario() -> None:
        disk = MemoryDisk()
        logs = LogDirectories(MemoryRoot(disk), HEAD, Environment())
        record = record_of([HEAD], [])
        engine = await logs.open(record)
        await engine.wait_committed(await engine.lead(1, [None] * engine.geometry.shards))
        for fill in (b"\x37", b"\x38"):
            done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            engine.served.write(0 if fill == b"\x37" else 4096, fill * 4096, False, done.set_result)
            assert await done == 0
        disk.crash()
        segment = disk.files[f"{VOLUME}/segment-000001"].durable
        segment[bytes(segment).find(b"\x37" * 4096)] ^= 1
        with pytest.raises(LogDamaged, match="lba 0 of opnum 2") as caught:
            await logs.open(record)
        for code in ("00000000", str(caught.value).rpartition(" ")[2]):
            disk.crash()
            await MemoryRoot(disk).directory(str(VOLUME)).replace(ACCEPTED_FILE, [code.encode() + b"\n"])
            if code == "00000000":
                with pytest.raises(LogDamaged):
                    await logs.open(record)
        disk.crash()
        assert (await logs.open(record)).tail.opnum == 3

    run(scenario())


def asides(path: Path) -> list[str]:
    """Numbers of the logs set aside."""
    return sorted(entry.name.partition(".aside-")[2] for entry in path.glob("*.aside-*"))


async def spoil(logs: LogDirectories, path: Path) -> None:
    """Make a log and let both copies of its checkpoint rot."""
    await (await logs.open(OTHERS)).close()
    for name in ("checkpoint", "checkpoint-copy"):
        (path / str(VOLUME) / name).write_bytes(b"rot" * 100)


def test_the_oldest_log_set_aside_goes_when_another_member_has_all(tmp_path: Path) -> None:
    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        for _ in range(ASIDES_MAX + 3):
            await spoil(logs, tmp_path)
        engine = await logs.open(OTHERS)
        assert asides(tmp_path) == [str(number) for number in range(3, ASIDES_MAX + 3)]
        await engine.close()

    run(scenario())


def test_a_full_disk_is_not_kept_full_by_logs_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = HostDirectory._create

    def full(directory: HostDirectory, name: str, size_bytes: int) -> int:
        if name.startswith("segment") and asides(tmp_path):
            raise OSError(errno.ENOSPC, "no space left on device")
        return create(directory, name, size_bytes)

    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        await spoil(logs, tmp_path)
        monkeypatch.setattr(HostDirectory, "_create", full)
        engine = await logs.open(OTHERS)
        assert not asides(tmp_path)
        await engine.close()

    run(scenario())


def test_the_last_copies_are_never_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        for _ in range(ASIDES_MAX):
            await spoil(logs, tmp_path)
        await (await logs.open(OTHERS)).close()
        (tmp_path / str(VOLUME) / "identity").unlink()
        with pytest.raises(OSError, match="set aside already"):
            await logs.open(record_of([HEAD], []))
        assert len(asides(tmp_path)) == ASIDES_MAX

    run(scenario())


def test_what_an_unfinished_full_resync_left_is_not_set_aside(tmp_path: Path) -> None:
    async def scenario() -> None:
        logs = LogDirectories(HostRoot(tmp_path), HEAD, Environment())
        for _ in range(5):
            await (await logs.open(OTHERS)).close()
            (tmp_path / str(VOLUME) / INSTALLING_FILE).write_bytes(b"")
        await (await logs.open(OTHERS)).close()
        assert not asides(tmp_path)

    run(scenario())
