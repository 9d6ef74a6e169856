"""What clients of a volume did and saw: operations with the times between which each took effect.

Times are integer nanoseconds of one clock that all clients share. Blocks hold *values*: a number that no two writes
share, 0 for zeroes. Only a block is atomic (D3), so a write of several is several writes that begin and end together.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from spdk_bindings.device import Buffer

BLOCK_BYTES: Final = 4096
PIECE_BYTES: Final = 512
ZERO: Final = 0
"""The value of a block of zeroes: never written, trimmed or zeroed."""

_PIECE: Final = struct.Struct("<8sQQI")
_MAGIC: Final = b"PALVALUE"


class Violation(Exception):
    """A promise was broken; the text says by whom, when and how."""


class Kind(Enum):
    """What an operation does to a block."""

    READ = "read"
    WRITE = "write"


@dataclass(slots=True)
class Operation:
    """One operation on one block. `returned_ns` is None as long as it may still take effect: unanswered, or answered
    with an error that does not say whether it did."""

    client: str
    kind: Kind
    lba: int
    value: int
    invoked_ns: int
    returned_ns: int | None = None
    fua: bool = False
    failed: bool = False
    """A read that was answered with an error: it has returned no value, and says nothing."""

    @property
    def succeeded(self) -> bool:
        """Whether it was answered, and not with an error."""
        return self.returned_ns is not None and not self.failed

    def __str__(self) -> str:
        end = "open" if self.returned_ns is None else f"{self.returned_ns / 1e9:.6f}"
        what = f"{self.kind.value} block {self.lba} value {self.value}"
        return f"{self.client} {what} [{self.invoked_ns / 1e9:.6f}, {end}]"


@dataclass(slots=True)
class Flush:
    """A flush of the volume. `returned_ns` is None as long as it has promised nothing."""

    client: str
    invoked_ns: int
    returned_ns: int | None = None


@dataclass(slots=True)
class History:
    """All operations, by block, and the flushes between them."""

    blocks: dict[int, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    flushes: list[Flush] = field(default_factory=list)
    last_value: int = ZERO
    failed_reads: list[Operation] = field(default_factory=list)
    forgotten: int = 0
    """How many operations were checked and are not kept."""
    on_forgotten: Callable[[Iterable[Operation]], None] = lambda operations: None
    """Called with operations that were checked and are not kept."""

    def new_value(self) -> int:
        """A value that was never written."""
        self.last_value += 1
        return self.last_value

    def flush(self, client: str, now_ns: int) -> Flush:
        """A flush begins; it counts once `returned_ns` is set."""
        flush = Flush(client, now_ns)
        self.flushes.append(flush)
        return flush

    def write(self, client: str, lba: int, value: int, now_ns: int, *, fua: bool = False) -> Operation:
        """A write of one block begins; it stays open until `returned_ns` is set."""
        operation = Operation(client, Kind.WRITE, lba, value, now_ns, fua=fua)
        self.blocks[lba].append(operation)
        return operation

    def read(self, client: str, lba: int, value: int, invoked_ns: int, now_ns: int) -> None:
        """A read of one block has returned `value`."""
        self.blocks[lba].append(Operation(client, Kind.READ, lba, value, invoked_ns, now_ns))

    def read_failed(self, client: str, lba: int, invoked_ns: int, now_ns: int) -> None:
        """A read of one block was answered with an error."""
        self.failed_reads.append(Operation(client, Kind.READ, lba, ZERO, invoked_ns, now_ns, failed=True))

    def forget(self) -> None:
        """Keep of what was checked only what later operations depend on: what the last read of each block returned, and
        writes that may still take effect. Call it when none but those are open. Whatever older value is read afterwards
        is one from nowhere.
        """
        before = self.operations
        self.flushes.clear()  # every block was read since, so its last value is what counts
        for lba, operations in self.blocks.items():
            reads = [operation for operation in operations if operation.kind is Kind.READ]
            if not reads:
                continue
            last = max(reads, key=lambda read: read.invoked_ns)
            seen = {read.value for read in reads} - {ZERO, last.value}
            self.blocks[lba] = [
                write
                for write in operations
                if write.kind is Kind.WRITE
                and write.value not in seen
                and (write.returned_ns is None or (write.value == last.value and write.value != ZERO))
            ] + [last]
            kept = set(map(id, self.blocks[lba]))
            self.on_forgotten(operation for operation in operations if id(operation) not in kept)
        self.forgotten += before - self.operations
        self.on_forgotten(self.failed_reads)
        self.failed_reads = []

    @property
    def operations(self) -> int:
        """How many are kept."""
        return sum(map(len, self.blocks.values()))


def content(value: int, lba: int) -> bytes:
    """The block that stands for `value` at `lba`; every 512 bytes say so, so that a torn or misplaced one shows."""
    if value == ZERO:
        return bytes(BLOCK_BYTES)
    return b"".join(
        _PIECE.pack(_MAGIC, value, lba, piece).ljust(PIECE_BYTES, bytes([value & 0xFF]))
        for piece in range(BLOCK_BYTES // PIECE_BYTES)
    )


def value_of(block: Buffer, lba: int) -> int:
    """The value in a block that was read at `lba`. Raises Violation when it is torn, misplaced or nobody's."""
    data = bytes(block)
    if not any(data):
        return ZERO
    magic, value, written_lba, _ = _PIECE.unpack_from(data)
    if data == content(value, lba):
        return int(value)
    if magic == _MAGIC and data == content(value, written_lba):
        raise Violation(f"block {lba} holds value {value} of block {written_lba}: misplaced")
    values = sorted({_PIECE.unpack_from(data, at)[1] for at in range(0, BLOCK_BYTES, PIECE_BYTES)})
    raise Violation(f"block {lba} is torn or from nowhere (D3): its pieces name values {values}")
