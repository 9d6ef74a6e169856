"""Disks below real system calls whose power can be cut: a file system in user space over `power_model`.

It speaks the kernel's FUSE protocol (include/uapi/linux/fuse.h, 7.31) itself: /dev/fuse and the right to mount are all
that it needs. Every write reaches it before the call returns (FOPEN_DIRECT_IO, no write-back cache), nothing is cached
by the kernel, and each directory directly below the mount is a disk of its own. Nothing may be mapped shared: the
kernel would write it back while the process ends, and wait for this thread of the same process for ever.
"""

import contextlib
import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest
from kit.power_model import PAGE_BYTES, ROOT, Inode, Kept, Made, Medium, Mode, Name, Page, Recorded, Size, Sync
from kit.small_disks import private_mounts

_WRITE_BYTES_MAX: Final = 1 << 20
_IN: Final = struct.Struct("<IIQQIIIHH")
_OUT: Final = struct.Struct("<IiQ")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
_ATTRIBUTES: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY: Final = struct.Struct("<QQQQII")
_ATTRIBUTES_VALID: Final = struct.Struct("<QII")
_OPEN_OUT: Final = struct.Struct("<QIi")
_SETATTR_IN: Final = struct.Struct("<IIQQQQQQIIIIIIII")
_CREATE_IN: Final = struct.Struct("<IIII")
_MKDIR_IN: Final = struct.Struct("<II")
_RENAME_IN: Final = struct.Struct("<Q")
_RENAME2_IN: Final = struct.Struct("<QII")
_READ_IN: Final = struct.Struct("<QQIIQII")
_WRITE_IN: Final = struct.Struct("<QQIIQII")
_WRITE_OUT: Final = struct.Struct("<II")
_FSYNC_IN: Final = struct.Struct("<QII")
_FALLOCATE_IN: Final = struct.Struct("<QQQII")
_DIRENT: Final = struct.Struct("<QQII")
_STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")

_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _UNLINK, _RMDIR, _RENAME = 1, 2, 3, 4, 9, 10, 11, 12
_OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC, _INIT, _OPENDIR, _READDIR = 14, 15, 16, 17, 18, 20, 26, 27, 28
_RELEASEDIR, _FSYNCDIR, _CREATE, _INTERRUPT, _DESTROY, _BATCH_FORGET = 29, 30, 35, 36, 38, 42
_FALLOCATE, _RENAME2 = 43, 45
_UNANSWERED: Final = (_FORGET, _BATCH_FORGET, _INTERRUPT)

_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_FOPEN_DIRECT_IO: Final = 1
_FATTR_MODE, _FATTR_SIZE = 1, 8
_PUNCH_HOLE_KEEP_SIZE: Final = 0x03
_MNT_FORCE, _MNT_DETACH = 1, 2
_NOSUID_NODEV: Final = 6
_SHELF: Final = 1  # node id of the root of the mount; others are (number of the disk, from 1, << 32) + inode
_FILE_BYTES_MAX: Final = 1 << 40
_ZEROES: Final = bytes(PAGE_BYTES)

_libc = ctypes.CDLL(None, use_errno=True)


class Disk:
    """One disk on the shelf: a directory of real files."""

    def __init__(self, path: Path, medium: Medium | None) -> None:
        self.path = path
        self.recorded = Recorded(medium)

    @property
    def steps(self) -> int:
        """How much has happened: a moment to which a cut can go back."""
        return len(self.recorded.steps)

    def cut(self, kept: Kept, chance: Random) -> None:
        """Lose what is not synced, now; whatever had files open must be gone."""
        self.recorded = Recorded(self.recorded.medium.after_cut(kept, chance))


class Shelf:
    """A mounted file system of disks, served by a thread of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disks: dict[int, Disk] = {}
        self._numbers = 0
        self._inodes = ROOT
        self._calls: dict[int, Callable[[int, memoryview], bytes]] = {
            _INIT: self._init, _LOOKUP: self._lookup, _GETATTR: self._getattr, _SETATTR: self._setattr,
            _MKDIR: self._mkdir, _UNLINK: self._unlink, _RMDIR: self._rmdir, _RENAME: self._rename,
            _RENAME2: self._rename2, _OPEN: self._open, _CREATE: self._create, _READ: self._read, _WRITE: self._write,
            _FSYNC: self._fsync, _FSYNCDIR: self._fsync, _FALLOCATE: self._fallocate, _READDIR: self._readdir,
            _STATFS: self._statfs, _OPENDIR: self._open, _RELEASE: self._nothing, _RELEASEDIR: self._nothing,
            _DESTROY: self._nothing,
        }  # fmt: skip
        self._descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._descriptor},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if _libc.mount(b"power", os.fsencode(path), b"fuse", _NOSUID_NODEV, options) != 0:
            os.close(self._descriptor)
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(path))
        self._thread = threading.Thread(target=self._serve, name="power", daemon=True)
        self._thread.start()

    def disk(self, medium: Medium | None = None) -> Disk:
        """Another disk, empty or with what there is on a medium, synced or not."""
        if medium is not None:
            self._inodes = max(self._inodes, *medium.inodes)
        self._numbers += 1
        disk = self._disks[self._numbers] = Disk(self._path / str(self._numbers), medium)
        return disk

    def discard(self, disk: Disk) -> None:
        """Forget a disk; nothing may be open on it."""
        del self._disks[int(disk.path.name)]

    def close(self) -> None:
        """Unmount it, whatever is open."""
        _libc.umount2(os.fsencode(self._path), _MNT_FORCE | _MNT_DETACH)
        self._thread.join()
        os.close(self._descriptor)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._descriptor, _WRITE_BYTES_MAX + PAGE_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue  # ENOENT, EINTR, EAGAIN: the request was taken back
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            if opcode in _UNANSWERED:
                continue
            status, answer = 0, b""
            try:
                answer = self._calls[opcode](node, memoryview(request)[_IN.size :])
            except KeyError:
                status = errno.ENOSYS
            except OSError as error:
                status = error.errno or errno.EIO
            with contextlib.suppress(OSError):  # the caller is gone
                os.writev(self._descriptor, [_OUT.pack(_OUT.size + len(answer), -status, unique), answer])

    # -- nodes ------------------------------------------------------------------------------------------------------

    def _find(self, node: int) -> tuple[Recorded, int, Inode]:
        if node == _SHELF:
            raise OSError(errno.EPERM, "disks are put on the shelf by the test")
        disk, number = self._disks.get(node >> 32), node & 0xFFFFFFFF
        if disk is None or number not in disk.recorded.medium.inodes:
            raise OSError(errno.ESTALE, "lost with the power")
        return disk.recorded, number, disk.recorded.medium.inodes[number]

    def _make(self, node: int, name: str, is_directory: bool, mode: int) -> int:
        recorded, parent, _ = self._find(node)
        self._inodes += 1
        recorded.apply(Made(self._inodes, is_directory, mode & 0o7777))
        recorded.apply(Name(parent, name, self._inodes))
        return (node >> 32 << 32) + self._inodes

    def _attributes(self, node: int) -> bytes:
        size, mode, links = 0, 0o40755, 2
        if node != _SHELF:
            inode = self._find(node)[2]
            size, links = inode.size, 2 if inode.is_directory else 1
            mode = (0o40000 if inode.is_directory else 0o100000) | inode.mode
        sectors = -(-size // PAGE_BYTES) * PAGE_BYTES // 512
        return _ATTRIBUTES.pack(node, size, sectors, 0, 0, 0, 0, 0, 0, mode, links, 0, 0, 0, PAGE_BYTES, 0)

    def _entry(self, node: int) -> bytes:
        return _ENTRY.pack(node, 0, 0, 0, 0, 0) + self._attributes(node)

    # -- calls ------------------------------------------------------------------------------------------------------

    def _nothing(self, node: int, body: memoryview) -> bytes:
        return b""

    def _init(self, node: int, body: memoryview) -> bytes:
        pages = _WRITE_BYTES_MAX // PAGE_BYTES
        return _INIT_OUT.pack(7, 31, 0, _BIG_WRITES | _MAX_PAGES, 12, 9, _WRITE_BYTES_MAX, 1, pages, 0, 0)

    def _lookup(self, node: int, body: memoryview) -> bytes:
        name = _text(body)
        if node == _SHELF:
            if not name.isdigit() or int(name) not in self._disks:
                raise OSError(errno.ENOENT, name)
            return self._entry((int(name) << 32) + ROOT)
        target = self._find(node)[2].names.get(name)
        if target is None:
            raise OSError(errno.ENOENT, name)
        return self._entry((node >> 32 << 32) + target)

    def _getattr(self, node: int, body: memoryview) -> bytes:
        return _ATTRIBUTES_VALID.pack(0, 0, 0) + self._attributes(node)

    def _setattr(self, node: int, body: memoryview) -> bytes:
        valid, _, _, size, *_, mode, _, _, _, _ = _SETATTR_IN.unpack_from(body)
        recorded, number, _ = self._find(node)
        if valid & _FATTR_SIZE:
            self._resize(recorded, number, size)
        if valid & _FATTR_MODE:
            recorded.apply(Mode(number, mode & 0o7777))
        return self._getattr(node, body)

    def _resize(self, recorded: Recorded, number: int, size: int) -> None:
        inode = recorded.medium.inodes[number]
        last, rest = divmod(size, PAGE_BYTES)
        for page in [page for page in inode.pages if page > last or (page == last and not rest)]:
            recorded.apply(Page(number, page, None))
        if rest and last in inode.pages:
            recorded.apply(Page(number, last, inode.pages[last][:rest].ljust(PAGE_BYTES, b"\0")))
        if size != inode.size:
            recorded.apply(Size(number, size))

    def _mkdir(self, node: int, body: memoryview) -> bytes:
        mode, _ = _MKDIR_IN.unpack_from(body)
        return self._entry(self._make(node, _text(body[_MKDIR_IN.size :]), True, mode))

    def _unlink(self, node: int, body: memoryview) -> bytes:
        recorded, number, _ = self._find(node)
        recorded.apply(Name(number, _text(body), None))
        return b""

    def _rmdir(self, node: int, body: memoryview) -> bytes:
        recorded, number, inode = self._find(node)
        name = _text(body)
        if recorded.medium.inodes[inode.names[name]].names:
            raise OSError(errno.ENOTEMPTY, name)
        recorded.apply(Name(number, name, None))
        return b""

    def _rename(self, node: int, body: memoryview) -> bytes:
        (to,) = _RENAME_IN.unpack_from(body)
        return self._renamed(node, to, body[_RENAME_IN.size :])

    def _rename2(self, node: int, body: memoryview) -> bytes:
        to, flags, _ = _RENAME2_IN.unpack_from(body)
        if flags:
            raise OSError(errno.EINVAL, "flags of a rename")
        return self._renamed(node, to, body[_RENAME2_IN.size :])

    def _renamed(self, node: int, to: int, names: memoryview) -> bytes:
        old, new = (os.fsdecode(name) for name in bytes(names).split(b"\0")[:2])
        recorded, number, inode = self._find(node)
        _, target, there = self._find(to)
        if new in there.names and recorded.medium.inodes[there.names[new]].names:
            raise OSError(errno.ENOTEMPTY, new)
        recorded.apply(Name(target, new, inode.names[old]))
        recorded.apply(Name(number, old, None))
        return b""

    def _open(self, node: int, body: memoryview) -> bytes:
        return _OPEN_OUT.pack(0, _FOPEN_DIRECT_IO, 0)

    def _create(self, node: int, body: memoryview) -> bytes:
        _, mode, _, _ = _CREATE_IN.unpack_from(body)
        made = self._make(node, _text(body[_CREATE_IN.size :]), False, mode)
        return self._entry(made) + self._open(made, body)

    def _read(self, node: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_IN.unpack_from(body)
        inode = self._find(node)[2]
        end = min(offset + size, inode.size)
        if end <= offset:
            return b""
        first = offset // PAGE_BYTES
        pages = [inode.pages.get(number, _ZEROES) for number in range(first, -(-end // PAGE_BYTES))]
        return b"".join(pages)[offset - first * PAGE_BYTES : end - first * PAGE_BYTES]

    def _write(self, node: int, body: memoryview) -> bytes:
        _, offset, size, _, _, flags, _ = _WRITE_IN.unpack_from(body)
        data = body[_WRITE_IN.size : _WRITE_IN.size + size]
        recorded, number, inode = self._find(node)
        first = at = offset // PAGE_BYTES
        start = offset % PAGE_BYTES
        while data:
            piece, data = data[: PAGE_BYTES - start], data[PAGE_BYTES - start :]
            content = bytes(piece)
            if len(piece) < PAGE_BYTES:
                before = inode.pages.get(at, _ZEROES)
                content = before[:start] + content + before[start + len(piece) :]
            recorded.apply(Page(number, at, None if content == _ZEROES else content))
            at, start = at + 1, 0
        if offset + size > inode.size:
            recorded.apply(Size(number, offset + size))
        if flags & os.O_DSYNC:
            recorded.apply(Sync(number, range(first, at)))
        return _WRITE_OUT.pack(size, 0)

    def _fsync(self, node: int, body: memoryview) -> bytes:
        recorded, number, _ = self._find(node)
        recorded.apply(Sync(number))
        return b""

    def _fallocate(self, node: int, body: memoryview) -> bytes:
        _, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(body)
        recorded, number, inode = self._find(node)
        if mode == _PUNCH_HOLE_KEEP_SIZE and offset % PAGE_BYTES == length % PAGE_BYTES == 0:
            for page in range(offset // PAGE_BYTES, (offset + length) // PAGE_BYTES):
                if page in inode.pages:
                    recorded.apply(Page(number, page, None))
        elif mode:
            raise OSError(errno.EOPNOTSUPP, "mode of fallocate")
        elif offset + length > _FILE_BYTES_MAX:
            raise OSError(errno.EFBIG, "too long")
        elif offset + length > inode.size:
            recorded.apply(Size(number, offset + length))
        return b""

    def _readdir(self, node: int, body: memoryview) -> bytes:
        _, offset, size, *_ = _READ_IN.unpack_from(body)
        if node == _SHELF:
            found = [(disk.path.name, True) for disk in self._disks.values()]
        else:
            recorded, _, inode = self._find(node)
            found = [(name, recorded.medium.inodes[to].is_directory) for name, to in sorted(inode.names.items())]
        out = bytearray()
        for at, (name, is_directory) in enumerate(found[offset:], start=offset + 1):
            raw = os.fsencode(name)
            entry = _DIRENT.pack(at, at, len(raw), 4 if is_directory else 8) + raw
            if len(out) + len(entry) + 7 > size:
                break
            out += entry + b"\0" * (-len(entry) % 8)
        return bytes(out)

    def _statfs(self, node: int, body: memoryview) -> bytes:
        blocks = 1 << 28
        return _STATFS_OUT.pack(blocks, blocks, blocks, blocks, blocks, PAGE_BYTES, 255, PAGE_BYTES, 0)


def _text(body: memoryview) -> str:
    return os.fsdecode(bytes(body).split(b"\0", 1)[0])


@contextlib.contextmanager
def shelf(path: Path) -> Iterator[Shelf]:
    """A shelf mounted on a directory, for this thread and those begun meanwhile; skips where there can be none."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse: the kernel's module fuse is not loaded")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse may be opened by root only")
    with private_mounts():
        mounted = Shelf(path)
        try:
            yield mounted
        finally:
            mounted.close()
