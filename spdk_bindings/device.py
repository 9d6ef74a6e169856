"""The one interface of a mass storage device, whoever is behind it: a file, memory, or an NVMe drive by SPDK.

Every command either completes inline, and its NVMe status is the return value, or returns `PENDING` and calls
`done(status)` later on the event loop, exactly once. A status is `SCT << 8 | SC` (NVM Express Base 2.0, 3.3.3.2.1);
0 is success. The caller leaves the buffer alone until then (F1).
"""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

BLOCK_BYTES: Final = 4096
PENDING: Final = -1

Buffer: TypeAlias = bytes | bytearray | memoryview
Done: TypeAlias = Callable[[int], None]


class Device(Protocol):
    """A drive with 4096-byte blocks, a volatile write cache, FLUSH and FUA."""

    block_count: int
    serial: str
    model: str

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Fill `into` (a multiple of 4096 bytes) from block `lba`."""

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write `data` (a multiple of 4096 bytes) at block `lba`; each block is atomic, the whole is not.

        With `fua` completion means that it is on the medium, otherwise only that it is in the drive's cache.
        """

    def flush(self, done: Done) -> int:
        """Put every write that completed before this call on the medium."""

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Zero `count` blocks from `lba`."""

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """Give `count` blocks from `lba` back; they read as zeroes afterwards."""

    def reset(self, done: Done) -> int:
        """End every outstanding command: once this completes none of them can take effect any more (F3)."""

    def allocate(self, size_bytes: int) -> memoryview:
        """A buffer that this drive and its kin use without a copy, zeroed or not; it lives as long as a view of it.

        Raises MemoryError when there is no more of it; any other memory does, at the price of a copy.
        """

    def smart(self) -> dict[str, int]:
        """SMART / health counters by the field names of NVM Express Base 2.0, figure 207."""

    def close(self) -> None:
        """Release the device; nothing may be outstanding."""
