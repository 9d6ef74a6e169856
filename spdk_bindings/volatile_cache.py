"""A drive's volatile write cache: what was not flushed may be lost, in any subset and order, when the power goes."""

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer, Device, Done
from spdk_bindings.nvme import Status

_SUCCESS: Final = int(Status.SUCCESS)
_OFF: Final = int(Status.INTERNAL_PATH_ERROR)
_ABORTED: Final = int(Status.ABORT_REQUESTED)
_ZERO: Final = bytes(BLOCK_BYTES)
CAPACITY_BLOCKS: Final = 16384
"""64 MiB, as an SSD's cache may be; beyond it the oldest writes go to the medium."""


class _Version:
    """What one write put into one block, until it's on the medium or lost."""

    __slots__ = ("data", "lba")

    def __init__(self, lba: int, data: bytes) -> None:
        self.lba = lba
        self.data = data


class VolatileCache:
    """Wraps a device that plays the medium; `power_cut` decides what of the cache reached it, `power_on` goes on.

    Every version of a block since its last flush may be what a power cut leaves, or the one before them all. Blocks
    are atomic, a write of several may be torn. FUA and FLUSH put exactly what they promise on the medium, after
    `latency_s()` seconds when that is given: in between, a cut tears them too. While the power is off commands fail
    with INTERNAL_PATH_ERROR; what was pending at the cut never completes, as on a drive that is gone.
    """

    def __init__(
        self,
        medium: Device,
        *,
        latency_s: Callable[[], float] | None = None,
        capacity_blocks: int = CAPACITY_BLOCKS,
    ) -> None:
        """`medium` must complete reads and writes inline (as `MemoryDevice`, `FileDevice` without FUA do)."""
        self.medium = medium
        self.block_count = medium.block_count
        self.serial = medium.serial
        self.model = medium.model
        self.powered = True
        self._latency_s = latency_s
        self._capacity_blocks = capacity_blocks
        self._versions: dict[_Version, None] = {}
        self._by_lba: dict[int, list[_Version]] = {}
        self._pending: dict[int, tuple[asyncio.TimerHandle, Done]] = {}
        self._next_pending = 0
        self._power_cycles = 1
        self._unsafe_shutdowns = 0

    @property
    def dirty_blocks(self) -> int:
        """Blocks whose newest content is in the cache only."""
        return len(self._by_lba)

    def power_cut(self, random: Random) -> None:
        """Turn the power off; `random` picks which versions had reached the medium. Nothing pending completes."""
        self.forget_host()
        for lba in sorted(self._by_lba):
            survivor = random.choice([None, *self._by_lba[lba]])
            if survivor is not None:
                self.medium.write(lba, survivor.data, False, _ignore)
        self._versions.clear()
        self._by_lba.clear()
        self.powered = False
        self._unsafe_shutdowns += 1

    def power_on(self) -> None:
        """Turn the power on again, with an empty cache."""
        self.powered = True
        self._power_cycles += 1

    def forget_host(self) -> None:
        """The host is gone without a word: what is pending completes for nobody; the cache keeps its content."""
        for handle, _ in self._pending.values():
            handle.cancel()
        self._pending.clear()

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """The newest content, cached or not."""
        if not self.powered:
            return _OFF
        status = self.medium.read(lba, into, done)
        if status == _SUCCESS and self._by_lba:
            for offset in range(len(into) // BLOCK_BYTES):
                cached = self._by_lba.get(lba + offset)
                if cached is not None:
                    into[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES] = cached[-1].data
        return status

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Into the cache; with `fua` complete when these blocks are on the medium."""
        count, rest = divmod(len(data), BLOCK_BYTES)
        if rest or not count:
            return int(Status.INVALID_FIELD)
        view = memoryview(data)
        blocks = [bytes(view[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at in range(count)]
        return self._put(lba, blocks, fua, done)

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """A write of zeroes, as volatile as any."""
        return self._put(lba, [_ZERO] * max(0, count), fua, done)

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """As volatile as a write of zeroes."""
        return self._put(lba, [_ZERO] * max(0, count), False, done)

    def flush(self, done: Done) -> int:
        """Put all that was written before this call on the medium."""
        if not self.powered:
            return _OFF
        return self._settle(list(self._versions), done)

    def reset(self, done: Done) -> int:
        """Abort what is pending; its blocks stay in the cache, which keeps its content across a controller reset."""
        pending, self._pending = self._pending, {}
        if not pending:
            return _SUCCESS
        loop = asyncio.get_running_loop()
        for handle, waiter in pending.values():
            handle.cancel()
            loop.call_soon(waiter, _ABORTED)
        loop.call_soon(done, _SUCCESS)
        return PENDING

    def allocate(self, size_bytes: int) -> memoryview:
        """What the medium gives."""
        return self.medium.allocate(size_bytes)

    def smart(self) -> dict[str, int]:
        """The medium's counters with the power cycles of this wrapper."""
        return self.medium.smart() | {"power_cycles": self._power_cycles, "unsafe_shutdowns": self._unsafe_shutdowns}

    def close(self) -> None:
        """An orderly shutdown: everything cached goes to the medium."""
        if self.powered:
            self._to_medium(list(self._versions))
        self.medium.close()

    def _put(self, lba: int, blocks: list[bytes], fua: bool, done: Done) -> int:
        if not self.powered:
            return _OFF
        if lba < 0 or not blocks or lba + len(blocks) > self.block_count:
            return int(Status.LBA_OUT_OF_RANGE)
        versions = [_Version(lba + offset, block) for offset, block in enumerate(blocks)]
        for version in versions:
            self._versions[version] = None
            self._by_lba.setdefault(version.lba, []).append(version)
        if fua:
            return self._settle(versions, done)
        excess = len(self._versions) - self._capacity_blocks
        if excess > 0:
            self._to_medium([version for _, version in zip(range(excess), self._versions, strict=False)])
        return _SUCCESS

    def _settle(self, versions: list[_Version], done: Done) -> int:
        if self._latency_s is None:
            return self._to_medium(versions)
        number = self._next_pending
        self._next_pending += 1

        def settle() -> None:
            del self._pending[number]
            done(self._to_medium(versions))

        self._pending[number] = (asyncio.get_running_loop().call_later(self._latency_s(), settle), done)
        return PENDING

    def _to_medium(self, versions: Iterable[_Version]) -> int:
        """Write those still cached, in the order they came; older versions of the same blocks are gone with that."""
        for version in versions:
            if version not in self._versions:
                continue
            status = self.medium.write(version.lba, version.data, False, _ignore)
            if status:
                return status
            cached = self._by_lba[version.lba]
            settled = cached.index(version) + 1
            for older in cached[:settled]:
                del self._versions[older]
            del cached[:settled]
            if not cached:
                del self._by_lba[version.lba]
        return _SUCCESS


def _ignore(_: int) -> None:
    """The medium completes inline."""
