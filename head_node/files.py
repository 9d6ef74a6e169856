"""Files of a head node: what its logs may ask of a directory, and the real directory behind it.

A log writes through `LogFile.commit` only: one write and one fdatasync away from the loop, one outstanding per file.
Files are made at full size, written with zeroes and synced before use, so that a commit changes no metadata.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
Committed: TypeAlias = Callable[[OSError | None], None]


class LogFile(Protocol):
    """A file of fixed size."""

    name: str
    size_bytes: int

    def commit(self, offset: int, buffers: Sequence[Buffer], done: Committed) -> None:
        """Write `buffers` one after the other at `offset` and make them durable, then call `done` on the loop.

        One call may be outstanding per file. The buffers must not change until then. After an error the state of the
        range is unknown, and a retry would prove nothing (an fdatasync reports an error once).
        """

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes at `offset` inline; fewer at the end of the file. Raises OSError."""

    def close(self) -> None:
        """Give the file back; nothing may be outstanding."""


class Directory(Protocol):
    """One directory of files that belong together, used by one process at a time."""

    path: str

    def lock(self) -> None:
        """Take the directory for this process until `close`; raises DirectoryLocked."""

    def names(self) -> list[str]:
        """The files present, sorted."""

    def open(self, name: str) -> LogFile:
        """Open a file made by `create`; raises FileNotFoundError."""

    async def create(self, name: str, size_bytes: int) -> LogFile:
        """Make a file of zeroes, durable with its name; raises OSError (ENOSPC) and leaves nothing behind then."""

    async def replace(self, name: str, buffers: Sequence[Buffer]) -> None:
        """Put a whole file in place atomically and durably; raises OSError and leaves the old one then."""

    def read(self, name: str) -> bytes:
        """The whole content of a file; raises FileNotFoundError."""

    async def remove(self, name: str) -> None:
        """Remove a file durably; no error when there is none."""

    async def remove_all(self) -> None:
        """Remove every file and the directory itself; the directory must not be used afterwards."""

    def close(self) -> None:
        """Close what is open and give up the lock."""
