"""Real file systems that are small and can be filled: tmpfs in a mount namespace of the test's own thread.

Whatever the thread starts meanwhile lives in that namespace too; the mounts go with the last of it.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from rackctl.rack import Rack, RackSize

CLONE_NEWNS = 0x20000
MS_PRIVATE, MS_REC = 1 << 18, 1 << 14
BALLAST = "ballast"

_libc = ctypes.CDLL(None, use_errno=True)


class SmallDisk:
    """A mounted file system of its own below a directory."""

    def __init__(self, path: Path) -> None:
        self._ballast = path / BALLAST

    def fill(self) -> None:
        """Take every byte that is left."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                while _written(file, bytes(size)):
                    pass

    def free(self) -> None:
        self._ballast.unlink()


def _written(file: FileIO, data: bytes) -> bool:
    try:
        file.write(data)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """A mount namespace for this thread until the block ends; skips the test where the system allows none."""
    before = os.open(f"/proc/self/task/{_libc.gettid()}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if _libc.unshare(CLONE_NEWNS) != 0:
        os.close(before)
        pytest.skip(f"a mount namespace needs CAP_SYS_ADMIN: {os.strerror(ctypes.get_errno())}")
    try:
        # What is mounted here must not show outside, whatever the parent's propagation is.
        _mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        yield
    finally:
        assert _libc.setns(before, CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(before)


def mount_small(path: Path, size_bytes: int) -> SmallDisk:
    """Put a file system of that size below a directory, with what the directory holds."""
    kept = path.with_name(path.name + ".kept")
    path.rename(kept)
    path.mkdir()
    _mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size_bytes}".encode())
    subprocess.run(["cp", "-a", "--sparse=always", f"{kept}/.", str(path)], check=True)
    shutil.rmtree(kept)
    return SmallDisk(path)


@contextlib.contextmanager
def rack_on_small_disks(directory: Path, sizes: dict[str, int]) -> Iterator[tuple[Rack, dict[str, SmallDisk]]]:
    """A rack in which the state directories of some nodes, by name, are file systems of so many bytes."""
    with private_mounts():
        with Rack.running(directory, RackSize()) as rack:
            state_dirs = {name: rack.layout.state_dir(rack.node(name)) for name in sizes}
        disks = {name: mount_small(state_dirs[name], size) for name, size in sizes.items()}
        with Rack.running(directory, RackSize()) as rack:
            yield rack, disks


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None) -> None:
    if _libc.mount(source, target, kind, flags, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(target))
