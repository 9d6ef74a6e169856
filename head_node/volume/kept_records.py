"""What a log has durably: where each record lies, reading it verified, and what is known to be rotten (D2)."""

import logging
from abc import ABC, abstractmethod
from bisect import bisect_right

from head_node.files import Directory
from head_node.volume.errors import BatchMalformed, LogRotten
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import Record, parse_records
from head_node.volume.segments import MARK, Batch, Position, Segment, offset_of
from spdk_bindings.device import Buffer

logger = logging.getLogger(__name__)


class KeptRecords(ABC):
    """The live segments of a log."""

    def __init__(self, directory: Directory, position: Position) -> None:
        self._directory = directory
        self.position = position
        self.durable = position.opnum
        self.rot: LogRotten | None = None
        """The newest place known to be rotten, while a live segment holds it."""
        self._segments: list[Segment] = []
        self._roll_due = False
        """Begin the next segment with the next commit."""
        self._looked_to = 0

    @abstractmethod
    def _not_durable(self, opnum: int) -> tuple[int, int, Buffer]:
        """(first opnum, last opnum, body) of the batch, yet to be written, that holds `opnum`."""

    def index_of(self, opnum: int) -> int:
        """How many live segments lie wholly before `opnum`."""
        return max(bisect_right(self._segments, opnum, key=lambda segment: segment.first_opnum) - 1, 0)

    def segment_of(self, opnum: int) -> tuple[int, Position]:
        """(sequence, position before) of the live segment that holds `opnum` or will."""
        segment = self._segments[self.index_of(opnum)]
        return segment.sequence, segment.before

    @property
    def newest_sequence(self) -> int:
        """The sequence of the segment that is written now."""
        return self._segments[-1].sequence

    @property
    def segment_count(self) -> int:
        """Live segments."""
        return len(self._segments)

    @property
    def first_sequence(self) -> int:
        """The oldest live segment."""
        return self._segments[0].sequence

    @property
    def first_position(self) -> Position:
        """What the oldest record kept continues."""
        return self._segments[0].before

    @property
    def first_opnum(self) -> int:
        """The oldest opnum kept."""
        return self._segments[0].first_opnum

    def read(self, opnum: int, max_bytes: int) -> list[Buffer] | None:
        """Raw records from `opnum` on, each verified: whole batches until `max_bytes` is passed; None when trimmed.
        Raises LogRotten."""
        if opnum < self.first_opnum:
            return None
        out: list[Buffer] = []
        size = 0
        while opnum <= self.position.opnum and size < max_bytes:
            first, last, body = self._batch_at(opnum)
            piece = memoryview(body)[offset_of(body, first, opnum) :]
            out.append(piece)
            size += len(piece)
            opnum = last + 1
        return out

    def _batch_at(self, opnum: int) -> tuple[int, int, Buffer]:
        """(first opnum, last opnum, body) of the batch that holds `opnum`, durable or not."""
        if opnum > self.durable:
            return self._not_durable(opnum)
        segment, batch = self._place_of(opnum)
        body, records = (b"", []) if batch is None else self._verified(segment, batch)
        if not records or records[-1].opnum < opnum:
            first = segment.batches[0] if segment.batches else None
            raise self._rotten(segment, batch or first, opnum, "was skipped")
        return records[0].opnum, records[-1].opnum, body

    def _place_of(self, opnum: int) -> tuple[Segment, Batch | None]:
        """The segment and the batch that hold a durable record, as far as the segment has one that begins before."""
        segment = self._segments[bisect_right(self._segments, opnum, key=lambda segment: segment.first_opnum) - 1]
        at = bisect_right(segment.batches, opnum, key=lambda batch: batch.first_opnum) - 1
        return segment, segment.batches[at] if at >= 0 else None

    def find(self, opnum: int) -> Record | None:
        """One durable record, verified; None when it was trimmed. Raises LogRotten."""
        if not self.first_opnum <= opnum <= self.durable:
            return None
        segment, batch = self._place_of(opnum)
        records = [] if batch is None else self._verified(segment, batch)[1]
        if not records or records[-1].opnum < opnum:
            raise self._rotten(segment, batch, opnum, "was skipped")
        return next(record for record in records if record.opnum == opnum)

    def _verified(self, segment: Segment, batch: Batch, fetched: bytes | None = None) -> tuple[bytes, list[Record]]:
        """Its body, read here unless it was `fetched`, and records. Raises LogRotten."""
        try:
            body = segment.file.read(batch.offset + MARK.size, batch.body_bytes) if fetched is None else fetched
            records = list(parse_records(body, batch.first_opnum, batch.chain))
        except (BatchMalformed, OSError) as error:
            raise self._rotten(segment, batch, batch.first_opnum, str(error)) from None
        if len(body) < batch.body_bytes or not records:
            raise self._rotten(segment, batch, batch.first_opnum, "the file has become shorter")
        return body, records

    def _rotten(self, segment: Segment, batch: Batch | None, opnum: int, reason: str) -> LogRotten:
        at = segment.batches.index(batch) + 1 if batch is not None else 0
        last = segment.batches[at].first_opnum - 1 if at < len(segment.batches) else self._last_of(segment)
        offset = BLOCK_BYTES if batch is None else batch.offset
        text = f"the batch of opnum {opnum} has rotted: {reason}"
        self._note_rot(LogRotten(segment.file.name, offset, text, segment.sequence, last))
        assert self.rot is not None
        return self.rot

    def _last_of(self, segment: Segment) -> int:
        at = self._segments.index(segment) + 1
        return self._segments[at].before.opnum if at < len(self._segments) else self.durable

    def _note_rot(self, rot: LogRotten) -> None:
        """Keep the newest place; the segment is not written any further, so that it can be dropped."""
        if self.rot is None or rot.last_opnum > self.rot.last_opnum:
            logger.error("event=log_rotten path=%s opnum=%d error=%s", self._directory.path, rot.last_opnum, rot)
            self.rot = rot
        if self._segments and self._segments[-1].sequence <= rot.sequence:
            self._roll_due = True

    def _forget_rot(self) -> None:
        if self.rot is not None and self._segments[0].sequence > self.rot.sequence:
            logger.warning("event=log_rot_dropped path=%s segment=%d", self._directory.path, self.rot.sequence)
            self.rot = None

    async def look_for_rot(self) -> None:
        """Verify the next durable batch, going round (a recovery would trust none that fails). It may have left the
        page cache long ago, so the loop does not read it. Raises LogRotten."""
        opnum = self._looked_to + 1 if self.first_opnum <= self._looked_to < self.durable else self.first_opnum
        if opnum > self.durable:
            return
        segment, batch = self._place_of(opnum)
        if batch is None:
            raise self._rotten(segment, segment.batches[0] if segment.batches else None, opnum, "was skipped")
        body, reason = b"", ""
        try:
            body = await segment.file.fetch(batch.offset + MARK.size, batch.body_bytes)
        except OSError as error:
            reason = str(error)
        if not self.first_opnum <= opnum <= self.durable or self._place_of(opnum) != (segment, batch):
            return  # trimmed or cut meanwhile
        if reason:
            raise self._rotten(segment, batch, opnum, reason)
        self._looked_to = self._verified(segment, batch, body)[1][-1].opnum
