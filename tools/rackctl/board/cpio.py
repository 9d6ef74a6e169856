"""The archive that a kernel unpacks into its first file system: cpio in the "new ASCII" format, without root's help.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

import stat
from dataclasses import dataclass, field
from typing import Final, Protocol

MAGIC: Final = b"070701"
TRAILER: Final = "TRAILER!!!"


class Writable(Protocol):
    """A binary file, or what compresses into one."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


@dataclass(slots=True)
class Archive:
    """Writes entries to `out` in the order given; a folder comes before what is in it. Owners are root, times zero."""

    out: Writable
    _inode: int = field(default=0, init=False)

    def folder(self, path: str) -> None:
        """A folder that anybody may enter."""
        self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, *, executable: bool = False) -> None:
        """A plain file."""
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """A device node."""
        self._entry(path, stat.S_IFCHR | 0o600, major=major, minor=minor)

    def end(self) -> None:
        """What tells the kernel that nothing follows."""
        self._entry(TRAILER, 0)

    def _entry(self, path: str, mode: int, data: bytes = b"", *, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file (2), device named (2), name's size, checksum
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
        header = MAGIC + b"".join(b"%08X" % number for number in numbers) + name
        self.out.write(header.ljust(_aligned(len(header)), b"\0"))
        self.out.write(data.ljust(_aligned(len(data)), b"\0"))


def _aligned(size: int) -> int:
    return (size + 3) & ~3
