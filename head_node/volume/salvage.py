"""What can still be read of a log behind a place that has rotted, and what is lost by it.

A rotten byte of client data costs its block: length and chain are in the header, which verifies. A rotten header costs
the rest of its batch: the next MARK says where the log goes on. Nothing here decides that a loss may be borne.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
from crc32c import crc32c

from head_node.files import LogFile
from head_node.volume.blockmap import BlockMap
from head_node.volume.errors import BatchMalformed
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import Kind, Record, check_payload, parse_header
from head_node.volume.segments import MARK, MARK_MAGIC, Batch, Position, Scan, Segment, aligned, decode_mark

NAMED_MAX: Final = 16
"""Lost blocks and ranges that a message names; all of them are in its code."""


class Hole(NamedTuple):
    """Records that were durable and cannot be read any more."""

    first: int
    last: int


class Pending(NamedTuple):
    """What the log says of one record: (opnum, kind, lba, what it names, data), as the replica remembers it."""

    opnum: int
    kind: int
    lba: int
    what: Any
    data: Any


def bad_blocks(record: Record) -> list[int]:
    """Blocks of a WRITE, by lba, whose data does not have the CRC that the record names."""
    data = record.data
    found = enumerate(record.block_crcs())
    return [record.lba + at for at, crc in found if crc32c(data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) != crc]


class Salvage:
    """Takes a scan over what has rotted."""

    def __init__(self, log_id: UUID, segments: list[Segment], replay: Callable[[Record], None]) -> None:
        self._log_id = log_id
        self._segments = segments
        self._replay = replay
        self.holes: list[Hole] = []
        self.blocks: list[tuple[int, int]] = []
        """(lba, opnum) of blocks whose data has rotted in a record that is otherwise whole."""
        self.file, self.offset = "", 0
        """The first rotten place."""

    def skip(self, scan: Scan) -> bool:
        """Let `scan` go on behind the batch where it ended; False when nothing follows."""
        if not self.file:
            self.file, self.offset = scan.segment.file.name, scan.segment.end
        if scan.torn is not None and self._read_in_part(scan, scan.torn[0], scan.torn[1]):
            return True
        following = self._next_batch(scan)
        if following is not None:
            where = Position(following.first_opnum - 1, scan.position.epoch, following.chain)
            scan.segment.end, number = following.offset, following.number
        else:
            at = self._segments.index(scan.segment) + 1
            if at == len(self._segments):
                return False
            segment = self._segments[at]
            where, number = segment.before, segment.first_mark
            scan.segment = segment
        if where.opnum <= scan.position.opnum:
            return False
        self.holes.append(Hole(scan.position.opnum + 1, where.opnum))
        scan.go_on(where, number - 1)
        return True

    def end_lost(self, scan: Scan) -> None:
        """The end of the log cannot be read: at least one record may have been there."""
        if not self.file:
            self.file, self.offset = scan.segment.file.name, scan.segment.end
        self.holes.append(Hole(scan.position.opnum + 1, scan.position.opnum + 1))

    def _read_in_part(self, scan: Scan, batch: Batch, at: int) -> bool:
        """Hand on the records whose headers verify; True when that was the whole batch."""
        body = memoryview(scan.segment.file.read(batch.offset + MARK.size, batch.body_bytes))
        position = scan.position
        while at < len(body):
            try:
                record = parse_header(body, at, len(body), position.opnum + 1, position.chain)
                if record.kind == Kind.WRITE:
                    self.blocks += [(lba, record.opnum) for lba in bad_blocks(record)]
                else:
                    check_payload(record)
            except (BatchMalformed, ValueError):
                scan.position = position
                return False
            self._replay(record)
            position, at = Position(record.opnum, record.epoch, record.crc), record.end
        scan.segment.batches.append(batch)
        scan.committed = max(scan.committed, min(batch.committed, position.opnum))
        scan.segment.end = batch.offset + aligned(MARK.size + batch.body_bytes)
        scan.go_on(position, batch.number)
        return True

    def _next_batch(self, scan: Scan) -> Batch | None:
        """The first batch of this segment behind the rotten one."""
        found = marks(self._log_id, scan.segment.file, scan.segment.end + BLOCK_BYTES)
        later = (b for b, sequence in found if sequence == scan.segment.sequence and b.number > scan.bad_mark)
        return min(later, key=lambda batch: batch.number, default=None)


def marks(log_id: UUID, file: LogFile, start: int) -> Iterable[tuple[Batch, int]]:
    """(batch, segment sequence) of every valid MARK from byte `start` on."""
    offset = start
    while piece := file.read(offset, 1 << 20):
        at = piece.find(MARK_MAGIC)
        while at >= 0:
            found = decode_mark(log_id, piece[at : at + MARK.size], offset + at) if at % BLOCK_BYTES == 0 else None
            if found is not None:
                yield found[0], found[1]
            at = piece.find(MARK_MAGIC, at + 1)
        offset += len(piece)


@dataclass(frozen=True, slots=True)
class Losses:
    """What a log cannot give back, as an operator has to hear it. Empty: everything that is needed exists."""

    log_id: UUID
    blocks: tuple[tuple[int, int], ...]
    """(lba, opnum): each reads as an error until it is written again."""
    unknown: tuple[Hole, ...]
    """Records of which nothing is known; the checkpoint covers all of them that are not client data."""
    cut_after: int | None
    """The log ends here: what follows cannot be applied without what is missing."""
    tail: int

    def __bool__(self) -> bool:
        return bool(self.blocks or self.unknown) or self.cut_after is not None

    @property
    def code(self) -> str:
        """Names exactly these losses of exactly this log."""
        named = f"{self.log_id} {self.blocks} {[tuple(hole) for hole in self.unknown]} {self.cut_after}"
        return f"{crc32c(named.encode()):08x}"

    @property
    def codes(self) -> set[str]:
        """By which it is accepted: once the end that was accepted too is cut, the log just ends there."""
        cut = self if self.cut_after is not None else replace(self, cut_after=self.tail)
        return {self.code, cut.code}

    def __str__(self) -> str:
        parts = []
        if self.blocks:
            parts.append(f"{len(self.blocks)} blocks ({_named(f'lba {lba} of opnum {at}' for lba, at in self.blocks)})")
        if self.unknown:
            ranges = _named(f"{hole.first} to {hole.last}" for hole in self.unknown)
            parts.append(f"client data of opnums {ranges}, whose blocks are not known")
        if self.cut_after is not None:
            parts.append(f"everything of opnums {self.cut_after + 1} to {self.tail}")
        return f"{'; '.join(parts)}; the code of this loss is {self.code}"


def _named(items: Iterable[str]) -> str:
    listed = list(items)
    rest = len(listed) - NAMED_MAX
    return ", ".join(listed[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def find_losses(
    log_id: UUID,
    salvage: Salvage,
    block_map: BlockMap,
    pending: Iterable[Pending],
    *,
    needed_from: int,
    covered: int,
    tail: int,
) -> Losses:
    """What of the rotten places is needed: not what the map has in stripes, or what a later record supersedes."""
    holes = [hole for hole in salvage.holes if hole.last >= needed_from]
    unknown = tuple(hole for hole in holes if hole.first <= covered)
    above = [max(hole.first, covered + 1) for hole in holes if hole.last > covered]
    cut_after = min(above) - 1 if above else None
    wanted = {lba: opnum for lba, opnum in salvage.blocks if block_map.opnum_of(lba) < opnum}
    if wanted:
        for entry in pending:
            if cut_after is None or entry.opnum <= cut_after:
                _supersede(wanted, entry, covered)
    if cut_after is not None:
        wanted = {lba: opnum for lba, opnum in wanted.items() if opnum <= cut_after}
    return Losses(log_id, tuple(sorted(wanted.items())), unknown, cut_after, tail)


def _supersede(wanted: dict[int, int], entry: Pending, covered: int) -> None:
    """Take out what a later record has written again, trimmed or put into a stripe."""
    if entry.kind == Kind.STRIPE:
        if entry.opnum > covered:
            placed = entry.what.blocks[np.isin(entry.what.blocks["lba"], list(wanted))]
            for lba, opnum in zip(placed["lba"].tolist(), placed["opnum"].tolist(), strict=True):
                if wanted.get(lba, opnum + 1) <= opnum:
                    del wanted[lba]
        return
    if entry.kind == Kind.WRITE:
        stop = entry.lba + len(entry.what)
    elif entry.kind == Kind.ZERO:
        stop = entry.lba + entry.what
    else:
        return
    for lba in [lba for lba, opnum in wanted.items() if entry.lba <= lba < stop and opnum < entry.opnum]:
        del wanted[lba]
