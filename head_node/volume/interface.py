"""What an export sees of a volume: byte ranges in, completion callbacks out, no task per request."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from spdk_bindings.device import Buffer

BLOCK_BYTES: Final = 4096

EXTENT_DATA: Final = 0
EXTENT_HOLE: Final = 1
"""Not allocated (NBD base:allocation, bit 0)."""
EXTENT_ZERO: Final = 2
"""Reads as zeroes (NBD base:allocation, bit 1)."""

Done: TypeAlias = Callable[[int], None]
"""Called once with 0 or an errno."""
ReadDone: TypeAlias = Callable[[int, Sequence[Buffer]], None]
"""Called once with 0 and buffers that add up to the length, or an errno and nothing."""
ExtentsDone: TypeAlias = Callable[[int, Sequence[tuple[int, int]]], None]
"""Called once with 0 and (length in bytes, EXTENT_* flags) pairs in order, or an errno and nothing."""
Gone: TypeAlias = Callable[[], bool]
"""Asked right before a request that had to wait is begun: True when its client's connection is gone."""


def never_gone() -> bool:
    """The `Gone` of a client without a connection."""
    return False


class ServedVolume(Protocol):
    """A volume as a client may use it. Offsets and lengths are bytes and multiples of 4096.

    Every completion is called at most once: a request that the primary may not answer any more (F6, F7) is never
    completed, and its connection is reset by the cluster instead. A completion may come inside the call.
    A range outside the volume completes with EINVAL (reads, trims) or ENOSPC (writes).
    A request that had to wait is forgotten, uncompleted, if its client is `gone` when its turn comes: the client may
    have repeated it elsewhere by then, and newer ones.
    """

    size_bytes: int

    def read(self, offset: int, length: int, done: ReadDone, gone: Gone = never_gone) -> None:
        """Read committed bytes; the buffers stay valid and unchanged as long as they are referenced."""

    def write(self, offset: int, data: Buffer, fua: bool, done: Done, gone: Gone = never_gone) -> None:
        """Write `data`, which belongs to the volume from now on; 0 means committed (F5), `fua` or not."""

    def trim(self, offset: int, length: int, done: Done, gone: Gone = never_gone) -> None:
        """Forget a range; it reads as zeroes afterwards. Committed like a write."""

    def write_zeroes(self, offset: int, length: int, *, no_hole: bool, done: Done, gone: Gone = never_gone) -> None:
        """Zero a range. Space is never reserved, so `no_hole` changes nothing."""

    def flush(self, done: Done) -> None:
        """Every write completed before this call is durable (it was when it completed)."""

    def extents(self, offset: int, length: int, done: ExtentsDone, gone: Gone = never_gone) -> None:
        """Say which parts hold data."""

    def ready(self) -> bool:
        """False while the volume is over its bounds; further requests wait inside."""

    def on_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when `ready()` is True again (at once if it is)."""
