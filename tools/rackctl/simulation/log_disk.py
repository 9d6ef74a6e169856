"""Log directories in memory that behave like a disk: what was not synced may or may not survive a power cut.

All directories of a node are on one `MemoryDisk`, which outlives processes. A process that was killed holds directory
objects of an older generation: nothing that it still wants happens.
"""

import asyncio
import errno
import mmap
import random
from collections.abc import Callable, Sequence
from typing import Final

from head_node.files import Committed, Directory, LogFile
from head_node.volume.errors import DirectoryLocked
from spdk_bindings.device import Buffer

BLOCK_BYTES: Final = 4096
LARGE_BYTES: Final = 1 << 20


class Content:
    """One file: what is on the medium, and blocks that are only in the kernel's cache."""

    def __init__(self, size_bytes: int) -> None:
        # Anonymous memory costs nothing where nobody has written, and most of a segment is such.
        self.durable: bytearray | mmap.mmap = (
            mmap.mmap(-1, size_bytes) if size_bytes >= LARGE_BYTES else bytearray(size_bytes)
        )
        self.cached: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, len(self.durable) - offset))
        if not self.cached:
            return bytes(self.durable[offset : offset + length])
        first, stop = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        data = b"".join(
            self.cached.get(block) or bytes(self.durable[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
            for block in range(first, stop)
        )
        return data[offset - first * BLOCK_BYTES :][:length]

    def write(self, offset: int, data: bytes) -> list[int]:
        assert offset + len(data) <= len(self.durable), "a log file never grows"
        first, stop = offset // BLOCK_BYTES, -(-(offset + len(data)) // BLOCK_BYTES)
        base = first * BLOCK_BYTES
        whole = bytearray(self.read(base, (stop - first) * BLOCK_BYTES))
        whole[offset - base : offset - base + len(data)] = data
        for block in range(first, stop):
            at = block * BLOCK_BYTES - base
            self.cached[block] = bytes(whole[at : at + BLOCK_BYTES])
        return list(range(first, stop))

    def sync(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            data = self.cached.pop(block, None)
            if data is not None:
                self.durable[block * BLOCK_BYTES : block * BLOCK_BYTES + len(data)] = data

    def power_cut(self, chance: random.Random) -> None:
        for block in list(self.cached):
            if chance.random() < 0.5:
                self.sync([block])
        self.cached.clear()


class MemoryDisk:
    """Survives its directory objects, as a disk survives processes. Files are named `directory/name`."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.files: dict[str, Content] = {}
        self.capacity_bytes = capacity_bytes
        self.generation = 0
        self.locked: set[str] = set()
        self.fail_commits = False
        self.commit_count = 0
        self.gate: Callable[[Callable[[], None]], None] | None = None
        """Given every completion of a sync; calls it when the sync should end. None: in the next loop turn."""

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


class MemoryFile:
    """LogFile over a Content."""

    def __init__(self, disk: MemoryDisk, path: str) -> None:
        self.name = path.rpartition("/")[2]
        self._disk = disk
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

        def finish() -> None:
            self._busy = False
            if disk.generation != self._generation:
                return
            if disk.fail_commits:
                done(OSError(errno.EIO, "injected"))
                return
            self._content.sync(blocks)
            done(None)

        if disk.gate is not None:
            disk.gate(finish)
        else:
            asyncio.get_running_loop().call_soon(finish)

    def read(self, offset: int, length: int) -> bytes:
        return self._content.read(offset, length)

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
        if self._prefix + name not in self.disk.files:
            raise FileNotFoundError(name)
        return MemoryFile(self.disk, self._prefix + name)

    async def create(self, name: str, size_bytes: int) -> LogFile:
        await self._step()
        self._need_room(size_bytes)
        self.disk.files[self._prefix + name] = Content(size_bytes)
        return MemoryFile(self.disk, self._prefix + name)

    async def replace(self, name: str, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        await self._step()
        self._need_room(len(data))
        content = Content(len(data))
        content.durable[:] = data
        self.disk.files[self._prefix + name] = content

    def read(self, name: str) -> bytes:
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

    def _need_room(self, size_bytes: int) -> None:
        if self.disk.used_bytes() + size_bytes > self.disk.capacity_bytes:
            raise OSError(errno.ENOSPC, "no space left on device")

    async def _step(self) -> None:
        await asyncio.sleep(0)
        if self.disk.generation != self._generation:
            # This process is dead; whatever it still wants must not happen.
            await asyncio.get_running_loop().create_future()


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
