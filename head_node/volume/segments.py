"""Segment files: how batches of log records lie on disk, and what a scan may conclude from damaged ones.

Block 0 of a segment is its header; batches follow, each starting on a block with a MARK and padded to whole blocks, so
that no block that holds durable records is ever written again. MARK numbers count up by one through the whole log. A
batch is only written when the one before it is durable. Hence: bytes that should be batch n and are not are a torn
tail, unless a valid MARK above n exists anywhere, which proves that n was durable once and has rotted.

A MARK also carries the commit point as this head knew it, at most the last record before its batch: so the commit point
is kept without a sync of its own (D1).
"""

import asyncio
import errno
import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import construct as c
from crc32c import crc32c

from head_node.files import LogFile
from head_node.volume.errors import BatchMalformed, LogCorrupt, LogFailed, LogForeign
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import RECORD_HEADER, Record, parse_records
from spdk_bindings.device import Buffer

SEGMENT_MAGIC: Final = b"PALSEGM1"
MARK_MAGIC: Final = b"PALBATCH"
SEGMENT_HEADER: Final = struct.Struct("<8sII16sQQQQ")
MARK: Final = struct.Struct("<8sIIQQQIIQ")
SEGMENT_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(SEGMENT_MAGIC),
    "crc" / c.Int32ul,
    "chain" / c.Int32ul,
    "log_id" / c.Bytes(16),
    "sequence" / c.Int64ul,
    "first_opnum" / c.Int64ul,
    "first_mark" / c.Int64ul,
    "epoch" / c.Int64ul,
)
MARK_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(MARK_MAGIC),
    "crc" / c.Int32ul,
    "chain" / c.Int32ul,
    "number" / c.Int64ul,
    "sequence" / c.Int64ul,
    "first_opnum" / c.Int64ul,
    "body_bytes" / c.Int32ul,
    "records" / c.Int32ul,
    "committed" / c.Int64ul,
)
BATCH_BYTES_MAX: Final = 4 << 20
"""Bound of one commit; also how much of a segment's end may stay unused."""
SEGMENT_PREFIX: Final = "segment-"

_CRC_AT: Final = 8
_AFTER_CRC: Final = 12


def aligned(length: int) -> int:
    """`length` rounded up to whole blocks."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


class Position(NamedTuple):
    """A point between two records: what came before it."""

    opnum: int
    epoch: int
    chain: int


@dataclass(frozen=True, slots=True, order=True)
class LogPosition:
    """A record of a log: its operation number and the epoch that wrote it."""

    opnum: int
    epoch: int


class Batch(NamedTuple):
    """Where one durable batch lies."""

    first_opnum: int
    offset: int
    body_bytes: int
    chain: int
    number: int
    committed: int = 0
    """Last opnum known committed here when the batch was written, below `first_opnum`."""


@dataclass(slots=True)
class Segment:
    """A live segment file; `before` is the position that its first record continues."""

    file: LogFile
    sequence: int
    before: Position
    first_mark: int
    end: int = 0
    batches: list[Batch] = field(default_factory=list)
    header_rotten: bool = False
    """The header was taken from the first MARK, which repeats it but for the epoch."""

    @property
    def first_opnum(self) -> int:
        return self.before.opnum + 1


class PastSectors:
    """A log file in which a block that the drive cannot give is zeroes: it has rotted like one that does not verify."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self.name = file.name
        self.size_bytes = file.size_bytes
        self.commit, self.close = file.commit, file.close

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size_bytes - offset))
        if (data := self._given(offset, length)) is not None:
            return data
        pieces, at, stop = [], offset, offset + length
        while at < stop:
            end = min(stop, at - at % BLOCK_BYTES + BLOCK_BYTES)
            pieces.append(self._given(at, end - at) or bytes(end - at))
            at = end
        return b"".join(pieces)

    async def fetch(self, offset: int, length: int) -> bytes:
        return self.read(offset, length)

    def gives(self, offset: int, length: int) -> bool:
        """Whether all of that can be read."""
        return self._given(offset, min(length, self.size_bytes - offset)) is not None

    def _given(self, offset: int, length: int) -> bytes | None:
        try:
            data = self._file.read(offset, length)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None
        return data if len(data) == length else None  # what Linux gives before a sector that it cannot read


def refuse_unreadable(files: list[LogFile]) -> None:
    """Raise OSError when the beginning of a file cannot be read: no wonder that its segment is missing."""
    for file in files:
        if isinstance(file, PastSectors) and not file.gives(0, BLOCK_BYTES):
            raise OSError(errno.EIO, f"{file.name}: unreadable sector where the segment begins")


def encode_segment(log_id: UUID, segment: Segment) -> bytes:
    """Block 0 of a segment."""
    before = segment.before
    values = (before.chain, log_id.bytes, segment.sequence, segment.first_opnum, segment.first_mark, before.epoch)
    crc = crc32c(SEGMENT_HEADER.pack(SEGMENT_MAGIC, 0, *values)[_AFTER_CRC:])
    return SEGMENT_HEADER.pack(SEGMENT_MAGIC, crc, *values).ljust(BLOCK_BYTES, b"\0")


def decode_segment(log_id: UUID, file: LogFile) -> Segment | None:
    """The segment that a file's block 0 names, None when it names none; raises LogForeign."""
    block = file.read(0, SEGMENT_HEADER.size)
    if len(block) < SEGMENT_HEADER.size:
        return None
    magic, crc, chain, owner, sequence, first_opnum, first_mark, epoch = SEGMENT_HEADER.unpack(block)
    if magic != SEGMENT_MAGIC or crc != crc32c(block[_AFTER_CRC:]):
        return _from_first_mark(log_id, file)
    if owner != log_id.bytes:
        raise LogForeign(f"{file.name}: belongs to log {UUID(bytes=owner)}, this directory is log {log_id}")
    return Segment(file, sequence, Position(first_opnum - 1, epoch, chain), first_mark, BLOCK_BYTES)


def _from_first_mark(log_id: UUID, file: LogFile) -> Segment | None:
    found = decode_mark(log_id, file.read(BLOCK_BYTES, MARK.size), BLOCK_BYTES)
    if found is None:
        return None
    batch, sequence, _ = found
    before = Position(batch.first_opnum - 1, 0, batch.chain)
    return Segment(file, sequence, before, batch.number, BLOCK_BYTES, header_rotten=True)


def encode_mark(log_id: UUID, sequence: int, batch: Batch, records: int) -> bytes:
    """The MARK that opens `batch`. Its crc is seeded with the log id, so that another log's MARK never counts."""
    values = (
        batch.chain, batch.number, sequence, batch.first_opnum, batch.body_bytes, records, batch.committed,
    )  # fmt: skip
    crc = crc32c(MARK.pack(MARK_MAGIC, 0, *values)[_AFTER_CRC:], crc32c(log_id.bytes))
    return MARK.pack(MARK_MAGIC, crc, *values)


def decode_mark(log_id: UUID, block: Buffer, offset: int) -> tuple[Batch, int, int] | None:
    """(batch, segment sequence, record count) of the MARK at the start of `block`, or None."""
    if len(block) < MARK.size:
        return None
    magic, crc, chain, number, sequence, first_opnum, body_bytes, records, committed = MARK.unpack_from(block)
    if magic != MARK_MAGIC or crc != crc32c(bytes(block[_AFTER_CRC : MARK.size]), crc32c(log_id.bytes)):
        return None
    return Batch(first_opnum, offset, body_bytes, chain, number, committed), sequence, records


def newest_mark(log_id: UUID, file: LogFile, start: int = 0) -> tuple[int, int]:
    """(highest number of a valid MARK from byte `start` on, its offset), (0, 0) when there is none."""
    best = (0, 0)
    offset = start
    while piece := file.read(offset, 1 << 20):
        at = piece.find(MARK_MAGIC)
        while at >= 0:
            found = decode_mark(log_id, piece[at : at + MARK.size], offset + at) if at % BLOCK_BYTES == 0 else None
            if found is not None:
                best = max(best, (found[0].number, offset + at))
            at = piece.find(MARK_MAGIC, at + 1)
        offset += len(piece)
    return best


class Scan:
    """Reads the batches of one segment, in order, for recovery."""

    def __init__(self, log_id: UUID, segment: Segment, position: Position, mark_number: int) -> None:
        self._log_id = log_id
        self.segment = segment
        self.position = position
        self.mark_number = mark_number
        self.committed = 0
        """Highest commit point that a batch names."""
        self.bad_mark = mark_number + 1
        """Number of the batch that is missing or torn where the scan ended."""
        self.torn: tuple[Batch, int, int] | None = None
        """(batch, valid bytes, valid records) of a last batch that is only valid in part."""

    def joins(self, segment: Segment) -> bool:
        """Whether `segment` continues what was read; its header's epoch is corrected if only its MARK was left."""
        expected = (self.position.opnum, self.position.chain, self.mark_number + 1)
        if (segment.before.opnum, segment.before.chain, segment.first_mark) != expected:
            return False
        segment.before = self.position
        return True

    def go_on(self, position: Position, mark_number: int) -> None:
        """The next batch continues `position` and has the number after `mark_number`."""
        self.position, self.mark_number, self.bad_mark, self.torn = position, mark_number, mark_number + 1, None

    @property
    def end_unreadable(self) -> bool:
        """Whether the drive cannot give what follows, so that nothing says whether the log ends there."""
        at = self.segment.end
        length = aligned(MARK.size + self.torn[0].body_bytes) if self.torn is not None else BLOCK_BYTES
        file = self.segment.file
        return isinstance(file, PastSectors) and not file.gives(at, length)

    def batch(self, last_opnum: int | None) -> list[Record] | None:
        """The next batch's valid records; None at the end. `last_opnum` cuts: records after it do not count."""
        if self.torn is not None:
            return None
        segment, offset = self.segment, self.segment.end
        block = segment.file.read(offset, BLOCK_BYTES)
        found = decode_mark(self._log_id, block, offset)
        if found is None:
            return None
        batch, sequence, count = found
        position = self.position
        expected = (segment.sequence, self.mark_number + 1, position.opnum + 1, position.chain)
        if (sequence, batch.number, batch.first_opnum, batch.chain) != expected or batch.body_bytes > BATCH_BYTES_MAX:
            return None
        self.committed = max(self.committed, min(batch.committed, position.opnum))
        body = block[MARK.size : MARK.size + batch.body_bytes]
        if len(body) < batch.body_bytes:
            body += segment.file.read(offset + BLOCK_BYTES, batch.body_bytes - len(body))
        records = self._records(body, position, last_opnum)
        valid_bytes = records[-1].end if records else 0
        if len(records) < count or valid_bytes < batch.body_bytes:
            self.torn, self.bad_mark = (batch, valid_bytes, len(records)), batch.number
            return records or None
        self.mark_number, self.bad_mark = batch.number, batch.number + 1
        segment.batches.append(batch)
        segment.end = offset + aligned(MARK.size + batch.body_bytes)
        return records

    def _records(self, body: bytes, position: Position, last_opnum: int | None) -> list[Record]:
        records: list[Record] = []
        try:
            for record in parse_records(body, position.opnum + 1, position.chain):
                if last_opnum is not None and record.opnum > last_opnum:
                    break
                records.append(record)
        except BatchMalformed:
            # Whether that is a torn tail or corruption is decided by what follows (`refuse_rot`).
            pass
        if records:
            self.position = Position(records[-1].opnum, records[-1].epoch, records[-1].crc)
        return records


def refuse_rot(log_id: UUID, scan: Scan, surplus: list[Segment], files: list[LogFile]) -> None:
    """Raise LogCorrupt when the batch where `scan` ended was durable once: a segment that was opened after it, or a
    valid MARK above its number in any file, proves that."""
    at = scan.torn[0].offset + MARK.size + scan.torn[1] if scan.torn else scan.segment.end
    if surplus:
        reason = f"batch {scan.bad_mark} does not verify but segment {surplus[0].sequence} was begun after it"
        raise LogCorrupt(scan.segment.file.name, at, reason + ": rotten; resync this member in full")
    for file in files:
        number, offset = newest_mark(log_id, file)
        if number > scan.bad_mark:
            reason = (
                f"batch {scan.bad_mark} (from opnum {scan.position.opnum + 1}) does not verify but batch {number} "
                f"in {file.name} at byte {offset} does: rotten, not a torn tail; resync this member in full"
            )
            raise LogCorrupt(scan.segment.file.name, at, reason)


def is_segment(name: str) -> bool:
    return name.startswith(SEGMENT_PREFIX) and name[len(SEGMENT_PREFIX) :].isdigit()


def live_segments(
    log_id: UUID, files: list[LogFile], first_sequence: int
) -> tuple[list[Segment], list[LogFile], list[LogFile]]:
    """(segments from `first_sequence` on without a gap, the files that are not live, second copies of live ones: a
    recovery that was writing its last segment again did not get as far as to remove the former file)."""
    found: dict[int, Segment] = {}
    others: list[LogFile] = []
    copies: list[LogFile] = []
    for file in files:
        segment = decode_segment(log_id, file)
        if segment is None or segment.sequence < first_sequence:
            others.append(file)
        elif (twin := found.get(segment.sequence)) is None or twin.header_rotten:
            copies += [] if twin is None else [twin.file]
            found[segment.sequence] = segment
        else:
            copies.append(file)
    segments: list[Segment] = []
    while (sequence := first_sequence + len(segments)) in found:
        segments.append(found.pop(sequence))
    if found:
        late = min(found)
        raise LogCorrupt(found[late].file.name, 0, f"segment {sequence} is missing before segment {late}")
    return segments, others, copies


def offset_of(body: Buffer, first_opnum: int, opnum: int) -> int:
    """Where record `opnum` starts in a body whose first record is `first_opnum`."""
    at = 0
    for _ in range(opnum - first_opnum):
        _, _, _, _, meta_bytes, data_bytes, _, _, _ = RECORD_HEADER.unpack_from(body, at)
        at += RECORD_HEADER.size + meta_bytes + data_bytes
    return at


async def commit_now(file: LogFile, offset: int, buffers: list[Buffer]) -> None:
    """`LogFile.commit` as a coroutine; raises LogFailed."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finished(error: OSError | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            failure = LogFailed(f"{file.name}: byte {offset}: {error}")
            failure.__cause__ = error
            done.set_exception(failure)

    file.commit(offset, buffers, finished)
    await done


async def zero_range(file: LogFile, start: int, stop: int) -> None:
    """Durably zero bytes `start` to `stop`; raises LogFailed."""
    piece = bytes(1 << 20)
    for offset in range(start, stop, len(piece)):
        await commit_now(file, offset, [memoryview(piece)[: stop - offset]])
