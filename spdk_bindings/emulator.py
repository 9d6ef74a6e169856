"""Emulated drives: blocks in a file (the emulated rack's default) and blocks in memory (tests, simulator)."""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer, Done
from spdk_bindings.log_pages import data_units
from spdk_bindings.nvme import Status

log = logging.getLogger(__name__)

_SUCCESS: Final = int(Status.SUCCESS)
_OUT_OF_RANGE: Final = int(Status.LBA_OUT_OF_RANGE)
_INVALID_FIELD: Final = int(Status.INVALID_FIELD)
_WRITE_FAULT: Final = int(Status.WRITE_FAULT)
_READ_ERROR: Final = int(Status.UNRECOVERED_READ_ERROR)
_ABORTED: Final = int(Status.ABORT_REQUESTED)
_CAPACITY: Final = int(Status.CAPACITY_EXCEEDED)
_ZERO_CHUNK_BLOCKS: Final = 256
_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01


def _smart(reads: int, read_bytes: int, writes: int, write_bytes: int, media_errors: int) -> dict[str, int]:
    return {
        "critical_warning": 0,
        "composite_temperature_kelvin": 300,
        "available_spare_percent": 100,
        "available_spare_threshold_percent": 10,
        "percentage_used": 0,
        "data_units_read": data_units(read_bytes),
        "data_units_written": data_units(write_bytes),
        "host_read_commands": reads,
        "host_write_commands": writes,
        "controller_busy_minutes": 0,
        "power_cycles": 1,
        "power_on_hours": 0,
        "unsafe_shutdowns": 0,
        "media_errors": media_errors,
        "error_log_entries": media_errors,
    }


class MemoryDevice:
    """A sparse drive in memory that completes everything inline; `blocks` is its medium, open to inspection.

    It has no volatile cache of its own: wrap it in `VolatileCache` to lose what was not flushed.
    """

    def __init__(self, block_count: int, serial: str = "MEM0", model: str = "Palisade memory drive") -> None:
        """A drive of `block_count` blocks of 4096 bytes, all zero."""
        self.block_count = block_count
        self.serial = serial
        self.model = model
        self.blocks: dict[int, bytes] = {}
        self._reads = self._writes = self._read_bytes = self._write_bytes = 0

    def clone(self) -> "MemoryDevice":
        """An independent drive with the same contents and serial number."""
        other = MemoryDevice(self.block_count, self.serial, self.model)
        other.blocks = dict(self.blocks)
        return other

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Fill `into` inline; LBA_OUT_OF_RANGE or INVALID_FIELD (not whole blocks) otherwise."""
        size = len(into)
        count = size // BLOCK_BYTES
        if size % BLOCK_BYTES or not count:
            return _INVALID_FIELD
        if lba < 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        get = self.blocks.get
        zero = bytes(BLOCK_BYTES)
        for index in range(count):
            into[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] = get(lba + index, zero)
        self._reads += 1
        self._read_bytes += size
        return _SUCCESS

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Store `data` inline; durable at once."""
        size = len(data)
        count = size // BLOCK_BYTES
        if size % BLOCK_BYTES or not count:
            return _INVALID_FIELD
        if lba < 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        view = memoryview(data)
        for index in range(count):
            self.blocks[lba + index] = bytes(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES])
        self._writes += 1
        self._write_bytes += size
        return _SUCCESS

    def flush(self, done: Done) -> int:
        """Nothing to do: every write was durable."""
        return _SUCCESS

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Zero `count` blocks inline."""
        if lba < 0 or count <= 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        if count < len(self.blocks):
            for block in range(lba, lba + count):
                self.blocks.pop(block, None)
        else:
            self.blocks = {at: block for at, block in self.blocks.items() if not lba <= at < lba + count}
        return _SUCCESS

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """The same as zeroing: deallocated blocks read as zeroes."""
        return self.write_zeroes(lba, count, False, done)

    def reset(self, done: Done) -> int:
        """Nothing can be outstanding."""
        return _SUCCESS

    def allocate(self, size_bytes: int) -> memoryview:
        """Plain memory."""
        return memoryview(bytearray(size_bytes))

    def smart(self) -> dict[str, int]:
        """Counters since construction."""
        return _smart(self._reads, self._read_bytes, self._writes, self._write_bytes, 0)

    def close(self) -> None:
        """Nothing to release."""


def _sync_name(path: str) -> None:
    """Make the name of a file durable; a drive that served and is gone after a power loss is data lost."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _load_fallocate() -> "ctypes._NamedFuncPointer | None":
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int
    return call


class FileDevice:
    """A drive whose blocks are a file's, or a block device's; reads and writes are inline in the page cache.

    The page cache plays the drive's volatile cache: it survives this process but not the machine. FLUSH and FUA are
    an fdatasync in a thread; those that wait while one runs share the next. An fdatasync that fails is final, since
    a second one would "succeed": from then on writes and flushes fail with WRITE_FAULT.
    """

    def __init__(self, path: str | os.PathLike[str], serial: str | None = None) -> None:
        """Open what is at `path`, a whole number of blocks long; its exclusive lock is held until `close`.

        Raises OSError (BlockingIOError when another process has it open) or ValueError (size not whole blocks).
        """
        self.path = os.fspath(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)  # of a block device too
            # A failed sync leaves pages that are clean, readable and not on the medium: what is read from now on is
            # what the medium has, as after a drive's restart.
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not self._size or self._size % BLOCK_BYTES:
                raise ValueError(f"{self.path}: {self._size} bytes is not a whole number of 4096-byte blocks")
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                _sync_name(self.path)
        except BaseException:
            os.close(self._fd)
            raise
        self.block_count = self._size // BLOCK_BYTES
        self.serial = serial or hashlib.sha256(os.path.abspath(self.path).encode()).hexdigest()[:20].upper()
        self.model = "Palisade file drive"
        self._fallocate = _load_fallocate()
        self._executor: ThreadPoolExecutor | None = None
        self._syncing: list[Done] | None = None
        self._sync_next: list[Done] = []
        self._sync_failed = False
        self._reads = self._writes = self._read_bytes = self._write_bytes = self._errors = 0

    @classmethod
    def create(cls, path: str | os.PathLike[str], block_count: int, serial: str | None = None) -> "FileDevice":
        """Make a sparse all-zero file of `block_count` blocks (FileExistsError if it's there) and open it.

        It has its name only once it has its size: a file that a power loss cut short would be no drive for good.
        """
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "a drive is there already", os.fspath(path))
        fresh = os.fspath(path) + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, block_count * BLOCK_BYTES)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(fresh, path)
        return cls(path, serial)

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Fill `into` inline from the page cache (the disk behind it, if need be)."""
        size = len(into)
        offset = lba * BLOCK_BYTES
        if size & 4095 or not size:
            return _INVALID_FIELD
        if lba < 0 or offset + size > self._size:
            return _OUT_OF_RANGE
        self._reads += 1
        self._read_bytes += size
        try:
            if os.preadv(self._fd, (into,), offset) == size:
                return _SUCCESS
        except OSError as error:
            return self._failed("read", lba, error, _READ_ERROR)
        return self._failed("read", lba, None, _READ_ERROR)

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write inline into the page cache; with `fua` pending until the fdatasync that follows."""
        size = len(data)
        offset = lba * BLOCK_BYTES
        if size & 4095 or not size:
            return _INVALID_FIELD
        if lba < 0 or offset + size > self._size:
            return _OUT_OF_RANGE
        if self._sync_failed:
            return _WRITE_FAULT
        self._writes += 1
        self._write_bytes += size
        try:
            if os.pwrite(self._fd, data, offset) != size:
                return self._failed("write", lba, None, _CAPACITY)
        except OSError as error:
            return self._failed("write", lba, error, _CAPACITY if error.errno == errno.ENOSPC else _WRITE_FAULT)
        return self._sync(done) if fua else _SUCCESS

    def flush(self, done: Done) -> int:
        """Pending until an fdatasync that began after this call has ended."""
        return _WRITE_FAULT if self._sync_failed else self._sync(done)

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Punch a hole (zeroes are written where the file system has none); with `fua` synced like a write."""
        if lba < 0 or count <= 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        if self._sync_failed:
            return _WRITE_FAULT
        self._writes += 1
        status = self._zero(lba, count)
        if status:
            return status
        return self._sync(done) if fua else _SUCCESS

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """Give the blocks back to the file system; they read as zeroes."""
        return self.write_zeroes(lba, count, False, done)

    def reset(self, done: Done) -> int:
        """Abort whoever waits for an fdatasync; their data is in place already, nothing takes effect later."""
        waiting = (self._syncing or []) + self._sync_next
        if self._syncing is not None:
            self._syncing = []
        self._sync_next = []
        if not waiting:
            return _SUCCESS
        loop = asyncio.get_running_loop()
        for waiter in waiting:
            loop.call_soon(waiter, _ABORTED)
        loop.call_soon(done, _SUCCESS)
        return PENDING

    def allocate(self, size_bytes: int) -> memoryview:
        """Plain memory."""
        return memoryview(bytearray(size_bytes))

    def smart(self) -> dict[str, int]:
        """Counters since it was opened."""
        return _smart(self._reads, self._read_bytes, self._writes, self._write_bytes, self._errors)

    def close(self) -> None:
        """Wait for a running fdatasync, release the lock and the file. A second call does nothing."""
        if self._fd < 0:
            return
        if self._executor is not None:
            self._executor.shutdown(wait=True)
        os.close(self._fd)
        self._fd = -1

    def _zero(self, lba: int, count: int) -> int:
        offset, size = lba * BLOCK_BYTES, count * BLOCK_BYTES
        if self._fallocate is not None:
            if self._fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset, size) == 0:
                return _SUCCESS
            if ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS):
                return self._failed("zero", lba, OSError(ctypes.get_errno(), "fallocate"), _WRITE_FAULT)
            self._fallocate = None
        chunk = bytes(min(count, _ZERO_CHUNK_BLOCKS) * BLOCK_BYTES)
        end = offset + size
        while offset < end:
            try:
                offset += os.pwrite(self._fd, memoryview(chunk)[: end - offset], offset)
            except OSError as error:
                return self._failed("zero", lba, error, _CAPACITY if error.errno == errno.ENOSPC else _WRITE_FAULT)
        return _SUCCESS

    def _sync(self, done: Done) -> int:
        self._sync_next.append(done)
        if self._syncing is None:
            self._start_sync()
        return PENDING

    def _start_sync(self) -> None:
        self._syncing, self._sync_next = self._sync_next, []
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"fdatasync-{self.serial}")
        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._executor, os.fdatasync, self._fd).add_done_callback(self._synced)

    def _synced(self, future: "asyncio.Future[None]") -> None:
        error = None if future.cancelled() else future.exception()
        status = _SUCCESS
        if future.cancelled() or error is not None:
            self._sync_failed = True
            status = self._failed("fdatasync", 0, error if isinstance(error, OSError) else None, _WRITE_FAULT)
        finished, self._syncing = self._syncing or [], None
        if self._sync_failed:
            finished, self._sync_next = finished + self._sync_next, []
        elif self._sync_next:
            self._start_sync()
        for waiter in finished:
            waiter(status)

    def _failed(self, operation: str, lba: int, error: OSError | None, status: int) -> int:
        self._errors += 1
        log.error("event=device_error serial=%s operation=%s lba=%d error=%s", self.serial, operation, lba, error)
        return status
