"""A stretch of a file or of a block device: the state, or a slot, of a board that runs Linux."""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_READ_BYTES: Final = 1 << 20


class Region:
    """`size` bytes from `offset` of the file `path`. Opened for each call, so that nothing is held between them.

    It is a `slot_store.Storage`. Every method raises OSError; an access outside of it is a ValueError.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.path = path
        self.offset = offset
        self.size = size

    def overlaps(self, other: "Region") -> bool:
        """Whether a byte of it is also one of the other, as far as their paths tell."""
        return (
            self.path == other.path
            and self.offset < other.offset + other.size
            and other.offset < self.offset + self.size
        )

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; zeros where the file ends before."""
        self._check(offset, length)
        with _opened(self.path, os.O_RDONLY) as fd:
            return os.pread(fd, length, self.offset + offset).ljust(length, b"\0")

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`."""
        self._check(offset, len(data))
        left = memoryview(data)
        with _opened(self.path, os.O_WRONLY) as fd:
            at = self.offset + offset
            while left:
                count = os.pwrite(fd, left, at)
                left = left[count:]
                at += count

    def sync(self) -> None:
        """Return when everything written survives a power loss."""
        with _opened(self.path, os.O_WRONLY) as fd:
            os.fsync(fd)

    def mapped(self, length: int) -> memoryview:
        """The first `length` bytes as memory that the kernel fills when needed and may forget again, for as long as
        there is a view of it.

        All of it is read once before, since a medium that cannot be read would end the process at a mere look.
        """
        self._check(0, length)
        with _opened(self.path, os.O_RDONLY) as fd:
            for at in range(0, length, _READ_BYTES):
                wanted = min(_READ_BYTES, length - at)
                if len(os.pread(fd, wanted, self.offset + at)) != wanted:
                    raise OSError(errno.ENODATA, "ends within the region", str(self.path))
            before = self.offset % mmap.ALLOCATIONGRANULARITY
            whole = mmap.mmap(fd, before + length, prot=mmap.PROT_READ, offset=self.offset - before)
        return memoryview(whole)[before:]

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not within {self.size}")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
