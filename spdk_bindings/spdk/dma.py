"""Memory that a drive may read and write by itself, and what is free of it."""

from bisect import insort
from typing import Any, Final

from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.spdk.errors import PoolExhausted
from spdk_bindings.spdk.native import Native

NONE_FREE: Final = -1


class DmaArena:
    """One piece of DMA memory, handed out in blocks of 4096 bytes: first fit, and the last ones given back first."""

    def __init__(self, native: Native, size_bytes: int) -> None:
        """`size_bytes` is a multiple of 4096. Raises PoolExhausted when SPDK has not so much left."""
        self._native = native
        self._memory = native.lib.environment_allocate(size_bytes)
        if self._memory == native.ffi.NULL:
            raise PoolExhausted(
                f"SPDK has no {size_bytes >> 20} MiB of memory in one piece left: give it more (memory_mib), or have "
                "more hugepages"
            )
        self.base = int(native.ffi.cast("uintptr_t", self._memory))
        self.end = self.base + size_bytes
        self.view = memoryview(native.ffi.buffer(self._memory, size_bytes)).cast("B")
        self._free: list[tuple[int, int]] = [(0, size_bytes // BLOCK_BYTES)]
        self._returned: dict[int, list[int]] = {}

    def take(self, blocks: int) -> int:
        """Offset in bytes of `blocks` free blocks in a row, or NONE_FREE."""
        returned = self._returned.get(blocks)
        if returned:
            return returned.pop()
        offset = self._carve(blocks)
        if offset == NONE_FREE and self._returned:
            self._merge()
            offset = self._carve(blocks)
        return offset

    def give(self, offset: int, blocks: int) -> None:
        """Take back what `take` handed out."""
        returned = self._returned.get(blocks)
        if returned is None:
            self._returned[blocks] = [offset]
        else:
            returned.append(offset)

    def allocate(self, size_bytes: int) -> memoryview:
        """A view of that many bytes on a block boundary, its own until the last view of it is gone.

        Raises PoolExhausted.
        """
        blocks = -(-size_bytes // BLOCK_BYTES)
        self._merge()  # it may stay for long: better where it leaves no hole
        offset = self._carve(blocks) if blocks else NONE_FREE
        if offset == NONE_FREE:
            raise PoolExhausted(f"no {size_bytes} bytes in a row are left of {self.end - self.base} bytes for buffers")
        ffi = self._native.ffi

        def gone(_: Any) -> None:
            self.give(offset, blocks)

        owned = ffi.gc(ffi.cast("char *", self.base + offset), gone, size_bytes)
        return memoryview(ffi.buffer(owned, size_bytes)).cast("B")

    def release(self) -> None:
        """Give the memory back to SPDK; no view of it may be used any more."""
        self._native.lib.environment_free(self._memory)

    def _carve(self, blocks: int) -> int:
        for index, (first, count) in enumerate(self._free):
            if count >= blocks:
                if count == blocks:
                    del self._free[index]
                else:
                    self._free[index] = (first + blocks, count - blocks)
                return first * BLOCK_BYTES
        return NONE_FREE

    def _merge(self) -> None:
        returned, self._returned = self._returned, {}  # more may come back while this goes on, when views are collected
        for blocks, offsets in returned.items():
            for offset in offsets:
                insort(self._free, (offset // BLOCK_BYTES, blocks))
        merged: list[tuple[int, int]] = []
        for first, count in self._free:
            if merged and sum(merged[-1]) == first:
                merged[-1] = (merged[-1][0], merged[-1][1] + count)
            else:
                merged.append((first, count))
        self._free = merged
