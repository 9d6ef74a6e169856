"""What only the emulated drives do, or can be seen of them only: syncs, errors of files, clones."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.drive import block, read, run, status_of, unexpected

from spdk_bindings import emulator
from spdk_bindings.device import PENDING
from spdk_bindings.emulator import FileDevice, MemoryDevice
from spdk_bindings.nvme import Status


@pytest.fixture
def file_device(tmp_path: Path) -> Iterator[FileDevice]:
    made = FileDevice.create(tmp_path / "drive", 64)
    yield made
    made.close()


def test_smart_counts_commands_and_data(file_device: FileDevice) -> None:
    file_device.write(0, block(1, 4), False, unexpected)
    read(file_device, 0)
    smart = file_device.smart()
    assert smart["host_write_commands"] == 1
    assert smart["host_read_commands"] == 1
    assert smart["data_units_written"] == 1
    assert smart["media_errors"] == 0


def test_flush_and_fua_complete_later_and_once_on_a_file(file_device: FileDevice) -> None:
    async def scenario() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        finished = asyncio.get_running_loop().create_future()

        def note(name: str) -> Callable[[int], None]:
            def done(status: int) -> None:
                seen.append((name, status))
                if len(seen) == 3:
                    finished.set_result(None)

            return done

        assert file_device.flush(note("flush")) == PENDING
        assert file_device.write(1, block(3), True, note("fua")) == PENDING
        assert file_device.write_zeroes(2, 1, True, note("zero")) == PENDING
        assert not seen
        await finished
        return seen

    assert sorted(run(scenario())) == [("flush", 0), ("fua", 0), ("zero", 0)]


def test_those_who_wait_during_a_sync_share_the_next(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr(emulator.os, "fdatasync", syncs.append)

    async def scenario() -> list[int]:
        return await asyncio.gather(
            *(status_of(lambda done: file_device.write(0, block(1), True, done)) for _ in range(20))
        )

    assert run(scenario()) == [0] * 20
    assert len(syncs) == 2


def test_a_failed_sync_is_final(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "gone")

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(emulator.os, "fdatasync", fail)
            assert await status_of(file_device.flush) == Status.WRITE_FAULT
        assert await status_of(file_device.flush) == Status.WRITE_FAULT
        assert file_device.write(0, block(1), False, unexpected) == Status.WRITE_FAULT
        assert file_device.smart()["media_errors"] == 1

    run(scenario())


def test_a_full_disk_is_capacity_exceeded(file_device: FileDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(emulator.os, "pwrite", full)
        assert file_device.write(0, block(1), True, unexpected) == Status.CAPACITY_EXCEEDED
        patch.setattr(emulator.os, "pwrite", lambda fd, data, offset: 512)
        assert file_device.write(0, block(1), True, unexpected) == Status.CAPACITY_EXCEEDED


def test_reset_aborts_those_who_wait_for_a_sync(file_device: FileDevice) -> None:
    async def scenario() -> None:
        waiting = asyncio.ensure_future(status_of(file_device.flush))
        await asyncio.sleep(0)
        assert await status_of(file_device.reset) == 0
        assert await waiting == Status.ABORT_REQUESTED
        assert await status_of(file_device.flush) == 0

    run(scenario())


def test_zeroes_are_written_where_the_file_system_has_no_holes(file_device: FileDevice) -> None:
    file_device._fallocate = None
    file_device.write(0, block(5, 64), False, unexpected)
    assert file_device.write_zeroes(1, 62, False, unexpected) == 0
    assert read(file_device, 0, 64) == block(5) + block(0, 62) + block(5)


def test_a_file_is_locked_while_it_is_open(file_device: FileDevice) -> None:
    with pytest.raises(BlockingIOError):
        FileDevice(file_device.path)
    file_device.close()
    file_device.close()
    FileDevice(file_device.path).close()


def test_a_file_keeps_its_blocks_and_serial_number(tmp_path: Path) -> None:
    first = FileDevice.create(tmp_path / "drive", 8)
    first.write(5, block(6), False, unexpected)
    first.close()
    second = FileDevice(tmp_path / "drive")
    assert read(second, 5) == block(6)
    assert (second.serial, second.block_count) == (first.serial, 8)
    second.close()


def test_files_that_are_no_drives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match="whole number"):
        FileDevice(tmp_path / "odd")
    with pytest.raises(FileNotFoundError):
        FileDevice(tmp_path / "none")
    with pytest.raises(FileExistsError):
        FileDevice.create(tmp_path / "odd", 8)


def test_a_file_cut_short_under_the_drive_is_a_read_error(file_device: FileDevice) -> None:
    os.truncate(file_device.path, 4096)
    assert file_device.read(8, bytearray(4096), unexpected) == Status.UNRECOVERED_READ_ERROR
    assert file_device.smart()["media_errors"] == 1


def test_a_clone_is_independent() -> None:
    first = MemoryDevice(8)
    first.write(0, block(1), False, unexpected)
    second = first.clone()
    second.write(0, block(2), False, unexpected)
    assert read(first, 0) == block(1)


def test_what_is_read_after_a_start_is_what_the_medium_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync leaves clean pages that no later sync writes: what is dirty is synced, then all is dropped."""
    path, steps = tmp_path / "drive", []
    FileDevice.create(path, 4).close()
    monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append("sync"))
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: steps.append(advice))
    FileDevice(path).close()
    assert steps == ["sync", os.POSIX_FADV_DONTNEED]
