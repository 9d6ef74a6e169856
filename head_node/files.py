"""Files of a head node: what its logs may ask of a directory, and the real directory behind it.

A log writes through `LogFile.commit` only: one write and one fdatasync away from the loop, one outstanding per file.
Files are made at full size, written with zeroes and synced before use, so that a commit changes no metadata.
"""

import asyncio
import fcntl
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from head_node.volume.errors import DirectoryLocked
from sled_controller.durable import check_own_directory, make_directory, open_new, open_own, sync_directory
from spdk_bindings.device import Buffer

Committed: TypeAlias = Callable[[OSError | None], None]


class LogFile(Protocol):
    """A file of fixed size."""

    name: str
    size_bytes: int

    def commit(self, offset: int, buffers: Sequence[Buffer], done: Committed) -> None:
        """Write `buffers` one after the other at `offset` and make them durable, then call `done` on the loop.

        With no buffers everything written to the file before becomes durable.

        One call may be outstanding per file. The buffers must not change until then. After an error the state of the
        range is unknown, and a retry would prove nothing (an fdatasync reports an error once).
        """

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset` inline; fewer at the end of the file. Raises OSError."""

    async def fetch(self, offset: int, length: int) -> bytes:
        """The same for what may not be in memory: nothing waits for the disk but the caller. The file may be closed
        meanwhile."""

    def close(self) -> None:
        """Give the file back; nothing may be outstanding."""


class Directory(Protocol):
    """One directory of files that belong together, used by one process at a time."""

    path: str

    def lock(self) -> None:
        """Take the directory for this process until `close`, and make its name durable; raises DirectoryLocked."""

    def names(self) -> list[str]:
        """The files present, sorted."""

    def open(self, name: str) -> LogFile:
        """Open a file made by `create`; raises FileNotFoundError."""

    async def create(self, name: str, size_bytes: int) -> LogFile:
        """Make a file of zeroes, durable with its name; raises OSError (ENOSPC) and leaves nothing behind then."""

    async def replace(self, name: str, buffers: Sequence[Buffer], within: str | None = None) -> None:
        """Put a whole file in place atomically and durably; raises OSError and leaves the old one then. The blocks of
        the file `within`, which is gone afterwards, are used for it: a full disk has no others."""

    async def reserve(self, name: str, size_bytes: int) -> None:
        """Have a file of at least `size_bytes` whose content means nothing: blocks to use later, durable with its name.
        Raises OSError (ENOSPC) and leaves what was there then."""

    def size_of(self, name: str) -> int:
        """Bytes of a file, 0 when there is none."""

    def read(self, name: str) -> bytes:
        """The whole content of a file; raises FileNotFoundError."""

    async def remove(self, name: str) -> None:
        """Remove a file durably; no error when there is none."""

    async def remove_all(self) -> None:
        """Remove every file and the directory itself durably; the directory must not be used afterwards."""

    def close(self) -> None:
        """Close what is open and give up the lock."""


class DirectoryRoot(Protocol):
    """Where directories are, side by side."""

    def directory(self, name: str) -> Directory:
        """The directory of that name, made when missing."""

    def names(self) -> list[str]:
        """The directories present, sorted."""

    def rename(self, name: str, new_name: str) -> None:
        """Durably give a directory that nobody uses another name, which must be free."""

    def shown(self, name: str) -> str:
        """The directory as people are to be told of it."""


_ZEROES: Final = bytes(1 << 20)
_LOCK_NAME: Final = "lock"
_NEW_SUFFIX: Final = ".new"
CLOSED: Final = -1
"""Descriptor of a file that was closed; every system call refuses it."""
_BUFFERS_MAX: Final = 1024
"""IOV_MAX of Linux."""
_RWF_DSYNC: Final = getattr(os, "RWF_DSYNC", 0)
"""With it one system call writes and syncs the range, and the thread takes the interpreter lock once, not twice."""

logger = logging.getLogger(__name__)


class HostFile:
    """A file of the machine's file system; commits run in the thread of its directory."""

    def __init__(self, name: str, descriptor: int, worker: "_Worker") -> None:
        self.name = name
        self.size_bytes = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self._worker = worker
        self._busy = False

    def commit(self, offset: int, buffers: Sequence[Buffer], done: Committed) -> None:
        assert not self._busy, f"{self.name}: two commits at once"
        self._busy = True

        def finished(error: OSError | None) -> None:
            self._busy = False
            done(error)

        self._worker.submit(self._descriptor, offset, buffers, finished)

    @property
    def closed(self) -> bool:
        return self._descriptor == CLOSED

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    async def fetch(self, offset: int, length: int) -> bytes:
        # A descriptor of its own: the number of one that is closed meanwhile may be another file's by then.
        own = os.dup(self._descriptor)
        return await asyncio.get_running_loop().run_in_executor(None, _read_and_close, own, offset, length)

    def close(self) -> None:
        # Once only: the number may be another file's or socket's by now.
        descriptor, self._descriptor = self._descriptor, CLOSED
        if descriptor != CLOSED:
            os.close(descriptor)


def _read_and_close(descriptor: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


class _Worker:
    """The one thread that writes and syncs for a directory; made at the first commit."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[tuple[int, int, Sequence[Buffer], Committed] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, descriptor: int, offset: int, buffers: Sequence[Buffer], done: Committed) -> None:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=f"log {self._path}", daemon=True)
            self._thread.start()
        self._jobs.put((descriptor, offset, buffers, done))

    def close(self) -> None:
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        assert self._loop is not None
        take, give = self._jobs.get, self._loop.call_soon_threadsafe
        while (job := take()) is not None:
            descriptor, offset, buffers, done = job
            error: OSError | None = None
            try:
                _write_durably(descriptor, offset, buffers)
            except OSError as caught:
                error = caught
            try:
                give(done, error)
            except RuntimeError:
                logger.warning("event=commit_after_loop_end path=%s", self._path)


def _write_durably(descriptor: int, offset: int, buffers: Sequence[Buffer]) -> None:
    length = sum(map(len, buffers))
    if not length:
        os.fdatasync(descriptor)
        return
    one_call = _RWF_DSYNC and len(buffers) <= _BUFFERS_MAX
    if one_call and os.pwritev(descriptor, buffers, offset, _RWF_DSYNC) == length:
        return
    _write_fully(descriptor, offset, buffers)
    os.fdatasync(descriptor)


def _write_fully(descriptor: int, offset: int, buffers: Iterable[Buffer]) -> None:
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view:
            written = os.pwrite(descriptor, view, offset)
            offset, view = offset + written, view[written:]


class HostDirectory:
    """A directory of the machine's file system. Made with its parents when missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        check_own_directory(Path(self.path))
        self._worker = _Worker(self.path)
        self._open: list[HostFile] = []
        self._lock: int | None = None

    def lock(self) -> None:
        if self._lock is not None:
            raise DirectoryLocked(f"{self.path}: this process holds it already")
        descriptor = open_own(Path(self._path(_LOCK_NAME)), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise DirectoryLocked(f"{self.path}: another process holds it; end that process") from None
        self._lock = descriptor
        # Names that a crashed process left in the kernel's cache only must not be trusted more than the disk; nor may
        # the name of this directory be lost with all that is acknowledged in it.
        self._sync_names()
        sync_directory(Path(self.path).parent)

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.path) if name != _LOCK_NAME and not name.endswith(_NEW_SUFFIX))

    def open(self, name: str) -> LogFile:
        return self._adopt(name, open_own(Path(self._path(name)), os.O_RDWR))

    async def create(self, name: str, size_bytes: int) -> LogFile:
        descriptor = await asyncio.get_running_loop().run_in_executor(None, self._create, name, size_bytes)
        return self._adopt(name, descriptor)

    async def replace(self, name: str, buffers: Sequence[Buffer], within: str | None = None) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._replace, name, buffers, within)

    async def reserve(self, name: str, size_bytes: int) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._reserve, name, size_bytes)

    def size_of(self, name: str) -> int:
        try:
            return os.stat(self._path(name)).st_size
        except FileNotFoundError:
            return 0

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    async def remove(self, name: str) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._remove, name)

    async def remove_all(self) -> None:
        self.close()
        await asyncio.get_running_loop().run_in_executor(None, self._remove_all)

    def close(self) -> None:
        self._worker.close()
        for file in self._open:
            file.close()
        self._open.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _adopt(self, name: str, descriptor: int) -> HostFile:
        file = HostFile(name, descriptor, self._worker)
        self._open = [other for other in self._open if not other.closed]
        self._open.append(file)
        return file

    def _create(self, name: str, size_bytes: int) -> int:
        new = self._path(name) + _NEW_SUFFIX
        self._discard(new)
        descriptor = open_new(Path(new))
        try:
            if size_bytes:
                os.posix_fallocate(descriptor, 0, size_bytes)
            for offset in range(0, size_bytes, len(_ZEROES)):
                _write_fully(descriptor, offset, (memoryview(_ZEROES)[: size_bytes - offset],))
            os.fsync(descriptor)
            os.rename(new, self._path(name))
            self._sync_names()
        except OSError:
            os.close(descriptor)
            self._discard(new)
            # The name may be there already, and its own sync be what failed.
            self._discard(self._path(name))
            raise
        return descriptor

    def _reserve(self, name: str, size_bytes: int) -> None:
        descriptor = open_own(Path(self._path(name)), os.O_WRONLY | os.O_CREAT)
        try:
            before = os.fstat(descriptor).st_size
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        self._sync_names()

    def _replace(self, name: str, buffers: Sequence[Buffer], within: str | None) -> None:
        new = self._path(name) + _NEW_SUFFIX
        if within is not None:
            os.rename(self._path(within), new)
            # What is written goes into the blocks that the file has; only the rest is given back.
            descriptor = open_own(Path(new), os.O_WRONLY)
        else:
            self._discard(new)
            descriptor = open_new(Path(new))
        try:
            _write_fully(descriptor, 0, buffers)
            os.ftruncate(descriptor, sum(map(len, buffers)))
            os.fsync(descriptor)
        except OSError:
            self._discard(new)
            raise
        finally:
            os.close(descriptor)
        os.rename(new, self._path(name))
        self._sync_names()

    def _remove(self, name: str) -> None:
        self._discard(self._path(name))
        self._sync_names()

    def _remove_all(self) -> None:
        shutil.rmtree(self.path)
        sync_directory(Path(self.path).parent)

    @staticmethod
    def _discard(path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def _sync_names(self) -> None:
        sync_directory(Path(self.path))


class HostRoot:
    """A directory of directories in the machine's file system. Made with its parents when missing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        make_directory(Path(path), 0o700)

    def directory(self, name: str) -> Directory:
        return HostDirectory(self.shown(name))

    def names(self) -> list[str]:
        return sorted(os.listdir(self._path))

    def rename(self, name: str, new_name: str) -> None:
        os.rename(self.shown(name), self.shown(new_name))
        sync_directory(Path(self._path))

    def shown(self, name: str) -> str:
        return os.path.join(self._path, name)
