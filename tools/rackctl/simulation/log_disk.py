"""Log directories in memory that behave like a disk: what was not synced may or may not survive a power cut.

A disk can fail in the ways that Linux lets a program see. After a sync that failed (`fail_commits`) the pages stay
readable and, with `clean_when_failed`, count as clean: no later sync writes them (ext4, XFS). A disk that `lies` says
that it has synced and has not. Blocks can be `unreadable`, files slow to make, or refused.

All directories of a node are on one `MemoryDisk`, which outlives processes. A process that was killed holds directory
objects of an older generation: nothing that it still wants happens.
"""

import asyncio
import errno
import mmap
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from head_node.files import Committed, Directory, LogFile
from head_node.volume.errors import DirectoryLocked
from head_node.volume.segments import SEGMENT_PREFIX
from spdk_bindings.device import Buffer

BLOCK_BYTES: Final = 4096
LARGE_BYTES: Final = 1 << 20
RECENT_MAX: Final = 32
"""Commits of a disk that `lose_tails` can undo."""


class Content:
    """One file: what is on the medium, and blocks that are only in the kernel's or the drive's cache."""

    def __init__(self, size_bytes: int) -> None:
        # Anonymous memory costs nothing where nobody has written, and most of a segment is such.
        self.durable: bytearray | mmap.mmap = (
            mmap.mmap(-1, size_bytes) if size_bytes >= LARGE_BYTES else bytearray(size_bytes)
        )
        self.cached: dict[int, bytes] = {}
        """Dirty pages."""
        self.clean: dict[int, bytes] = {}
        """Pages whose sync has failed: readable, and never written by a later sync."""
        self.lied: dict[int, bytes] = {}
        """Blocks in the cache of a drive that said that they are on its medium."""
        self.unreadable: set[int] = set()
        """Blocks whose sectors the drive cannot read, until they are written again."""

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, len(self.durable) - offset))
        if not (self.cached or self.clean or self.lied or self.unreadable):
            return bytes(self.durable[offset : offset + length])
        first, stop = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        data = b"".join(map(self._block, range(first, stop)))
        return data[offset - first * BLOCK_BYTES :][:length]

    def _block(self, block: int) -> bytes:
        page = self.cached.get(block) or self.clean.get(block)
        if page is not None:
            return page
        if block in self.unreadable:
            raise OSError(errno.EIO, "unreadable sector")
        return self.lied.get(block) or self._medium(block)

    def _medium(self, block: int) -> bytes:
        return bytes(self.durable[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])

    def write(self, offset: int, data: bytes) -> list[int]:
        assert offset + len(data) <= len(self.durable), "a log file never grows"
        first, stop = offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES)
        base = first * BLOCK_BYTES
        whole = data
        if offset % BLOCK_BYTES or len(data) % BLOCK_BYTES:
            merged = bytearray(self.read(base, (stop - first) * BLOCK_BYTES))
            merged[offset - base : offset - base + len(data)] = data
            whole = bytes(merged)
        for block in range(first, stop):
            at = block * BLOCK_BYTES - base
            self.cached[block] = whole[at : at + BLOCK_BYTES]
            self.clean.pop(block, None)
        return list(range(first, stop))

    def sync(self, blocks: Sequence[int]) -> dict[int, bytes]:
        """Put blocks on the medium; returns what was there before."""
        former = {}
        for block in blocks:
            data = self.cached.pop(block, None)
            if data is not None:
                former[block] = self._medium(block)
                self._put(block, data)
                self.lied.pop(block, None)
        return former

    def fail(self, blocks: Sequence[int]) -> None:
        """The sync of these blocks has failed and they are clean now."""
        for block in blocks:
            if block in self.cached:
                self.clean[block] = self.cached.pop(block)

    def lie(self, blocks: Sequence[int]) -> None:
        """The drive keeps these blocks in its cache."""
        for block in blocks:
            if block in self.cached:
                self.lied[block] = self.cached.pop(block)
                self.unreadable.discard(block)

    def settle(self) -> None:
        """The drive has written its cache."""
        for block, data in self.lied.items():
            self._put(block, data)
        self.lied.clear()

    def undo(self, former: Mapping[int, bytes]) -> None:
        """The medium holds what it held before."""
        for block, data in former.items():
            self._put(block, data)

    def _put(self, block: int, data: bytes) -> None:
        self.durable[block * BLOCK_BYTES : block * BLOCK_BYTES + len(data)] = data
        self.unreadable.discard(block)

    def power_cut(self, chance: random.Random) -> None:
        for block in list(self.cached):
            if chance.random() < 0.5:
                self.sync([block])
        for block, data in self.lied.items():
            if chance.random() < 0.5:
                self._put(block, data)
        self.cached.clear()
        self.clean.clear()
        self.lied.clear()


class MemoryDisk:
    """Survives its directory objects, as a disk survives processes. Files are named `directory/name`."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.files: dict[str, Content] = {}
        self.capacity_bytes = capacity_bytes
        self.generation = 0
        self.locked: set[str] = set()
        self.fail_commits = False
        self.clean_when_failed = False
        """Whether a failed sync leaves its pages clean, as Linux does, or dirty."""
        self.lies = False
        """Syncs succeed and sync nothing."""
        self.fail_reads = False
        self.fail_files: int | None = None
        """errno with which files are neither made, replaced nor removed."""
        self.files_slow_s: Callable[[], float] | None = None
        """How long it takes to make, replace or remove a file."""
        self.no_descriptors = False
        """No file can be opened."""
        self.commit_count = 0
        self.on_commit: Callable[[], None] | None = None
        """Called when a commit has begun: what is cut soon afterwards is torn."""
        self.gate: Callable[[Callable[[], None]], None] | None = None
        """Given every completion of a sync; calls it when the sync should end. None: in the next loop turn."""
        self._recent: deque[tuple[str, Content, dict[int, bytes]]] = deque(maxlen=RECENT_MAX)

    def power_cut(self, chance: random.Random) -> None:
        """Everything stops; each unsynced block is lost or kept by chance."""
        self.crash()
        for content in self.files.values():
            content.power_cut(chance)

    def crash(self) -> None:
        """The process is gone, the kernel's cache is not."""
        self.generation += 1
        self.locked.clear()

    def drop(self, directory: str) -> None:
        """Remove a directory with its files, while nobody has it open."""
        for path in [path for path in self.files if path.startswith(f"{directory}/")]:
            del self.files[path]

    def used_bytes(self) -> int:
        return sum(len(content.durable) for content in self.files.values())

    def settle(self) -> None:
        """A drive that lied has written everything after all."""
        for content in self.files.values():
            content.settle()

    def lose_tails(self, commits: int) -> list[str]:
        """Undo the last commits of the segments in each directory, as a drive that lied does; returns which."""
        left: Counter[str] = Counter()
        lost = []
        for path, content, former in reversed(self._recent):
            directory = path.rpartition("/")[0]
            if left[directory] < commits and self.files.get(path) is content:
                left[directory] += 1
                content.undo(former)
                lost.append(path)
        self._recent.clear()
        return lost

    def synced(self, path: str, content: Content, former: dict[int, bytes]) -> None:
        """Remember what a commit has changed."""
        if path.rpartition("/")[2].startswith(SEGMENT_PREFIX):
            self._recent.append((path, content, former))


class MemoryFile:
    """LogFile over a Content."""

    def __init__(self, disk: MemoryDisk, path: str) -> None:
        self.name = path.rpartition("/")[2]
        self._disk = disk
        self._path = path
        self._content = disk.files[path]
        self.size_bytes = len(self._content.durable)
        self._generation = disk.generation
        self._busy = False

    def commit(self, offset: int, buffers: Sequence[Buffer], done: Committed) -> None:
        assert not self._busy, "one outstanding commit per file"
        self._busy = True
        disk = self._disk
        if disk.generation != self._generation:
            return
        disk.commit_count += 1
        data = b"".join(buffers)
        blocks = self._content.write(offset, data) if data else list(self._content.cached)
        if disk.on_commit is not None:
            disk.on_commit()

        def finish() -> None:
            self._busy = False
            if disk.generation != self._generation:
                return
            if disk.fail_commits:
                if disk.clean_when_failed:
                    self._content.fail(blocks)
                done(OSError(errno.EIO, "injected"))
                return
            if disk.lies:
                self._content.lie(blocks)
            else:
                disk.synced(self._path, self._content, self._content.sync(blocks))
            done(None)

        if disk.gate is not None:
            disk.gate(finish)
        else:
            asyncio.get_running_loop().call_soon(finish)

    def read(self, offset: int, length: int) -> bytes:
        if self._disk.fail_reads:
            raise OSError(errno.EIO, "injected")
        return self._content.read(offset, length)

    async def fetch(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        return self.read(offset, length)

    def close(self) -> None:
        return


class MemoryDirectory:
    """Directory over a MemoryDisk; names and replacements are durable when the call returns."""

    def __init__(self, disk: MemoryDisk, name: str = "") -> None:
        """`name` tells the directories of one disk apart; a disk with one needs none."""
        self.path = name or "memory"
        self.disk = disk
        self._prefix = f"{name}/" if name else ""
        self._generation = disk.generation
        self._locked = False

    def lock(self) -> None:
        if self.path in self.disk.locked:
            raise DirectoryLocked(f"{self.path}: held")
        self.disk.locked.add(self.path)
        self._locked = True

    def names(self) -> list[str]:
        start = len(self._prefix)
        return sorted(path[start:] for path in self.disk.files if path.startswith(self._prefix))

    def open(self, name: str) -> LogFile:
        self._need_descriptor()
        if self._prefix + name not in self.disk.files:
            raise FileNotFoundError(name)
        return MemoryFile(self.disk, self._prefix + name)

    async def create(self, name: str, size_bytes: int) -> LogFile:
        self._need_descriptor()
        await self._step()
        self._need_room(size_bytes)
        self.disk.files[self._prefix + name] = Content(size_bytes)
        return MemoryFile(self.disk, self._prefix + name)

    async def replace(self, name: str, buffers: Sequence[Buffer], within: str | None = None) -> None:
        data = b"".join(buffers)
        self._need_descriptor()
        await self._step()
        if within is not None:
            kept = len(self.disk.files.pop(self._prefix + within).durable)
            self._need_room(len(data) - kept)
        else:
            self._need_room(len(data))
        content = Content(len(data))
        content.durable[:] = data
        self.disk.files[self._prefix + name] = content

    async def reserve(self, name: str, size_bytes: int) -> None:
        await self._step()
        size_bytes = max(size_bytes, self.size_of(name))
        self._need_room(size_bytes - self.size_of(name))
        self.disk.files[self._prefix + name] = Content(size_bytes)

    def size_of(self, name: str) -> int:
        content = self.disk.files.get(self._prefix + name)
        return 0 if content is None else len(content.durable)

    def read(self, name: str) -> bytes:
        self._need_descriptor()
        if self.disk.fail_reads:
            raise OSError(errno.EIO, "injected")
        content = self.disk.files.get(self._prefix + name)
        if content is None:
            raise FileNotFoundError(name)
        return content.read(0, len(content.durable))

    async def remove(self, name: str) -> None:
        await self._step()
        self.disk.files.pop(self._prefix + name, None)

    async def remove_all(self) -> None:
        self.close()
        for name in self.names():
            del self.disk.files[self._prefix + name]

    def close(self) -> None:
        if self._locked and self.disk.generation == self._generation:
            self.disk.locked.discard(self.path)
        self._locked = False

    def _need_descriptor(self) -> None:
        if self.disk.no_descriptors:
            raise OSError(errno.EMFILE, "too many open files")

    def _need_room(self, size_bytes: int) -> None:
        if self.disk.used_bytes() + size_bytes > self.disk.capacity_bytes:
            raise OSError(errno.ENOSPC, "no space left on device")

    async def _step(self) -> None:
        slow_s = self.disk.files_slow_s
        await asyncio.sleep(0 if slow_s is None else slow_s())
        if self.disk.generation != self._generation:
            # This process is dead; whatever it still wants must not happen.
            await asyncio.get_running_loop().create_future()
        if self.disk.fail_files is not None:
            raise OSError(self.disk.fail_files, "injected")


class MemoryRoot:
    """DirectoryRoot over a MemoryDisk: one level of directories."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    def directory(self, name: str) -> Directory:
        return MemoryDirectory(self._disk, name)

    def names(self) -> list[str]:
        return sorted({path.partition("/")[0] for path in self._disk.files})

    def rename(self, name: str, new_name: str) -> None:
        prefix = name + "/"
        for path in [path for path in self._disk.files if path.startswith(prefix)]:
            self._disk.files[f"{new_name}/{path[len(prefix) :]}"] = self._disk.files.pop(path)

    def shown(self, name: str) -> str:
        return name
