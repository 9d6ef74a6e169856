"""The write log: segment files, group commit, recovery, truncation and trimming.

One commit is in flight; everything appended meanwhile goes into the next one with one gathered write and one sync.
Any error of a commit is final (`on_failed`): a retried fdatasync would succeed without having written anything.
"""

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from head_node.files import Directory, LogFile
from head_node.volume.errors import LogCorrupt, LogDiverged, LogFailed
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import Record, parse_records
from head_node.volume.segments import (
    BATCH_BYTES_MAX,
    MARK,
    SEGMENT_PREFIX,
    Batch,
    Position,
    Scan,
    Segment,
    aligned,
    commit_now,
    encode_mark,
    encode_segment,
    is_segment,
    live_segments,
    newest_mark,
    offset_of,
    refuse_rot,
    zero_range,
)
from spdk_bindings.device import Buffer

SPARES_MAX: Final = 2
BUFFERS_PER_BATCH_MAX: Final = 1000
"""Below IOV_MAX (1024) with room for MARK, segment header and padding."""
RETRY_SECONDS: Final = 0.5
"""How long to wait before asking again for a segment file that the disk had no room for."""

_PADDING: Final = memoryview(bytes(BLOCK_BYTES))

logger = logging.getLogger(__name__)


class _Chunk:
    """Records that will be one batch."""

    __slots__ = ("before", "buffers", "last", "size")

    def __init__(self, before: Position) -> None:
        self.before = before
        self.last = before.opnum
        self.buffers: list[Buffer] = []
        self.size = 0


class WriteLog:
    """The log of one volume on one head."""

    def __init__(self, directory: Directory, log_id: UUID, segment_bytes: int, position: Position) -> None:
        self._directory = directory
        self._log_id = log_id
        self._segment_bytes = segment_bytes
        self._chunk_bytes_max = min(BATCH_BYTES_MAX, segment_bytes - BLOCK_BYTES) - MARK.size
        self.position = position
        self.durable = position.opnum
        self.failed: LogFailed | None = None
        self.no_room: str | None = None
        """Why the next segment file cannot be made, while it cannot."""
        self.on_durable: Callable[[int], None] = lambda opnum: None
        self.on_failed: Callable[[Exception], None] = lambda error: None
        self.batch_count = 0
        self.commit_point: Callable[[], int] = lambda: 0
        """Last opnum known committed; every batch carries it."""
        self.recovered_commit_point = 0
        """The highest that the batches found by `recover` carry."""
        self._segments: list[Segment] = []
        self._spares: list[LogFile] = []
        self._chunks: deque[_Chunk] = deque()
        self._inflight: _Chunk | None = None
        self._mark_number = 0
        self._next_file = 1
        self._pending_bytes = 0
        self._preparing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._closed = False

    # -- making and recovering ------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls, directory: Directory, log_id: UUID, segment_bytes: int, before: Position, sequence: int
    ) -> "WriteLog":
        """A log without records that continues `before`; its first segment header is durable on return."""
        log = cls(directory, log_id, segment_bytes, before)
        log._adopt_names()
        file = await directory.create(log._new_name(), segment_bytes)
        segment = Segment(file, sequence, before, 1)
        await commit_now(file, 0, [encode_segment(log_id, segment)])
        segment.end = BLOCK_BYTES
        log._segments.append(segment)
        log._prepare()
        return log

    @classmethod
    async def recover(
        cls,
        directory: Directory,
        log_id: UUID,
        segment_bytes: int,
        first_sequence: int,
        replay: Callable[[Record], None],
        cut_after: int | None = None,
    ) -> "WriteLog":
        """Open an existing log and hand every valid record to `replay`, in order.

        A torn tail is cut. `cut_after` finishes a truncation that was under way: what follows that opnum is not
        looked at. Raises LogForeign and LogCorrupt (a segment missing, or a rotten record before a valid one).
        """
        files = [directory.open(name) for name in directory.names() if name.startswith(SEGMENT_PREFIX)]
        segments, others = live_segments(log_id, files, first_sequence)
        if not segments:
            raise LogCorrupt(directory.path, 0, f"log segment {first_sequence} is missing; resync this member in full")
        log = cls(directory, log_id, segment_bytes, segments[0].before)
        log._adopt_names()
        scan = await log._replay(segments, replay, cut_after)
        surplus = segments[segments.index(scan.segment) + 1 :]
        if cut_after is None:
            refuse_rot(log_id, scan, surplus, files)
        log._mark_number = scan.mark_number
        log.position = scan.position
        log.durable = scan.position.opnum
        log.recovered_commit_point = scan.committed
        log._segments = segments[: len(segments) - len(surplus)]
        others += [segment.file for segment in surplus]
        await log._repair(scan, others, cut_after is not None)
        await commit_now(scan.segment.file, 0, [])
        log._spares = others[:SPARES_MAX]
        for file in others[SPARES_MAX:]:
            await directory.remove(file.name)
            file.close()
        log._prepare()
        return log

    async def _replay(self, segments: list[Segment], replay: Callable[[Record], None], cut_after: int | None) -> Scan:
        scan = Scan(self._log_id, segments[0], segments[0].before, segments[0].first_mark - 1)
        for segment in segments:
            joins = segment.before == scan.position and segment.first_mark == scan.mark_number + 1
            if not joins or scan.torn is not None:
                break
            scan.segment = segment
            while (records := scan.batch(cut_after)) is not None:
                for record in records:
                    replay(record)
                # Replaying a full log takes a second or two: let heartbeats through.
                await asyncio.sleep(0)
            if cut_after is not None and scan.position.opnum >= cut_after:
                break
        return scan

    async def _repair(self, scan: Scan, stale: list[LogFile], wipe: bool) -> None:
        """Make the disk say what the scan concluded, so that a later scan concludes the same.

        With `wipe` (a truncation) every later MARK goes too: its number will be given out again.
        """
        if wipe:
            for file in stale:
                if newest_mark(self._log_id, file)[0] > scan.mark_number:
                    await zero_range(file, 0, file.size_bytes)
        segment, size_bytes = scan.segment, scan.segment.file.size_bytes
        if scan.torn is not None:
            batch, valid_bytes, valid_records = scan.torn
            await self._shrink(segment, batch, valid_bytes, valid_records, size_bytes)
        else:
            stop = size_bytes if wipe else min(segment.end + BATCH_BYTES_MAX, size_bytes)
            await zero_range(segment.file, segment.end, stop)

    async def _shrink(self, segment: Segment, batch: Batch, keep_bytes: int, keep_records: int, written: int) -> None:
        """Cut `batch` to its first records and zero what follows up to byte `written`."""
        if keep_records:
            kept = batch._replace(body_bytes=keep_bytes)
            body = segment.file.read(batch.offset + MARK.size, BLOCK_BYTES - MARK.size)
            await commit_now(
                segment.file, batch.offset, [encode_mark(self._log_id, segment.sequence, kept, keep_records), body]
            )
            segment.batches.append(kept)
            segment.end = batch.offset + aligned(MARK.size + keep_bytes)
            self._mark_number = batch.number
        else:
            segment.end = batch.offset
            self._mark_number = batch.number - 1
        await zero_range(segment.file, segment.end, written)

    # -- appending ------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes that live segments and records waiting for one take."""
        return len(self._segments) * self._segment_bytes - self._room_bytes() + self._pending_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes appended and not yet durable."""
        return self._pending_bytes

    @property
    def segment_count(self) -> int:
        """Live segments."""
        return len(self._segments)

    def _room_bytes(self) -> int:
        return self._segments[-1].file.size_bytes - self._segments[-1].end

    def append(self, header: Buffer, data: Buffer | None, position: Position) -> None:
        """Add one record (or several in one buffer) that ends at `position`; `kick` sends it off."""
        size = len(header) if data is None else len(header) + len(data)
        chunk = self._chunks[-1] if self._chunks else None
        bytes_max = self._chunk_bytes_max
        if chunk is None or chunk.size + size > bytes_max or len(chunk.buffers) >= BUFFERS_PER_BATCH_MAX - 1:
            chunk = _Chunk(self.position)
            self._chunks.append(chunk)
        chunk.buffers.append(header)
        if data is not None:
            chunk.buffers.append(data)
        chunk.size += size
        chunk.last = position.opnum
        self.position = position
        self._pending_bytes += size

    def kick(self) -> None:
        """Commit what was appended, unless a commit is in flight (then it follows by itself)."""
        if self._inflight is not None or not self._chunks or self.failed is not None or self._closed:
            return
        chunk = self._chunks[0]
        need = aligned(MARK.size + chunk.size)
        segment = self._segments[-1]
        if segment.end + need > segment.file.size_bytes:
            if not self._spares:
                self._prepare()
                return
            segment = self._roll(chunk.before)
        self._chunks.popleft()
        self._inflight = chunk
        self._mark_number += 1
        offset = segment.end
        before, committed = chunk.before, min(self.commit_point(), chunk.before.opnum)
        batch = Batch(
            before.opnum + 1, offset or BLOCK_BYTES, chunk.size, before.chain, self._mark_number, committed
        )  # fmt: skip
        mark = encode_mark(self._log_id, segment.sequence, batch, chunk.last - chunk.before.opnum)
        padding = _PADDING[: need - MARK.size - chunk.size]
        opening = [] if offset else [encode_segment(self._log_id, segment)]
        segment.file.commit(
            offset, [*opening, mark, *chunk.buffers, padding], lambda error: self._written(segment, batch, need, error)
        )

    def _roll(self, before: Position) -> Segment:
        segment = Segment(self._spares.pop(0), self._segments[-1].sequence + 1, before, self._mark_number + 1)
        self._segments.append(segment)
        if not self._spares:
            self._prepare()
        return segment

    def _written(self, segment: Segment, batch: Batch, need: int, error: OSError | None) -> None:
        chunk, self._inflight = self._inflight, None
        assert chunk is not None
        if error is not None:
            self._fail(LogFailed(f"{segment.file.name}: byte {batch.offset}: {error}; the log ends here"), error)
            return
        segment.end = batch.offset + need
        segment.batches.append(batch)
        self._pending_bytes -= chunk.size
        self.durable = chunk.last
        self.batch_count += 1
        if not self._idle_waiters:
            try:
                self.kick()
            except Exception as cause:
                logger.exception("event=log_commit_refused path=%s", self._directory.path)
                self._fail(LogFailed(f"{segment.file.name}: no commit can be started: {cause!r}; the log ends"), cause)
                return
        self.on_durable(chunk.last)
        self._wake()

    def _wake(self) -> None:
        if self._inflight is None:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _fail(self, error: LogFailed, cause: Exception) -> None:
        error.__cause__ = cause
        self.failed = error
        logger.error("event=log_failed path=%s error=%s", self._directory.path, error)
        self._wake()
        self.on_failed(error)

    # -- segment files ----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Have a spare segment made in the background."""
        if self._preparing is None and self._retry is None and not self._closed:
            self._preparing = asyncio.get_running_loop().create_task(self._make_spare())

    async def _make_spare(self) -> None:
        try:
            self._spares.append(await self._directory.create(self._new_name(), self._segment_bytes))
            self.no_room = None
        except OSError as error:
            if self.no_room is None:
                logger.error("event=log_segment_refused path=%s error=%s", self._directory.path, error)
            self.no_room = str(error)
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._prepare_again)
        finally:
            self._preparing = None
        self.kick()

    def _prepare_again(self) -> None:
        self._retry = None
        if not self._spares:
            self._prepare()

    def _adopt_names(self) -> None:
        numbers = [int(name[len(SEGMENT_PREFIX) :]) for name in self._directory.names() if is_segment(name)]
        self._next_file = max(numbers, default=0) + 1

    def _new_name(self) -> str:
        name = f"{SEGMENT_PREFIX}{self._next_file:06d}"
        self._next_file += 1
        return name

    def index_of(self, opnum: int) -> int:
        """How many live segments lie wholly before `opnum`."""
        return max(bisect_right(self._segments, opnum, key=lambda segment: segment.first_opnum) - 1, 0)

    def segment_of(self, opnum: int) -> tuple[int, Position]:
        """(sequence, position before) of the live segment that holds `opnum` or will."""
        segment = self._segments[self.index_of(opnum)]
        return segment.sequence, segment.before

    @property
    def first_position(self) -> Position:
        """What the oldest record kept continues."""
        return self._segments[0].before

    async def trim_before(self, sequence: int) -> None:
        """Give up segments below `sequence`, which the durable checkpoint does not need any more."""
        surplus = []
        while len(self._segments) > 1 and self._segments[0].sequence < sequence:
            file = self._segments.pop(0).file
            if len(self._spares) < SPARES_MAX:
                self._spares.append(file)
            else:
                surplus.append(file)
        self.kick()
        for file in surplus:
            await self._directory.remove(file.name)
            file.close()

    # -- reading and cutting ----------------------------------------------------------------------------------------

    @property
    def first_opnum(self) -> int:
        """The oldest opnum kept."""
        return self._segments[0].first_opnum

    def read(self, opnum: int, max_bytes: int) -> list[Buffer] | None:
        """Raw records from `opnum` on: whole batches until `max_bytes` is passed; None when trimmed."""
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
            for chunk in ([self._inflight] if self._inflight else []) + list(self._chunks):
                if opnum <= chunk.last:
                    return chunk.before.opnum + 1, chunk.last, b"".join(chunk.buffers)
        index = bisect_right(self._segments, opnum, key=lambda segment: segment.first_opnum) - 1
        segment = self._segments[index]
        at = bisect_right(segment.batches, opnum, key=lambda batch: batch.first_opnum) - 1
        batch = segment.batches[at]
        if at + 1 < len(segment.batches):
            last = segment.batches[at + 1].first_opnum - 1
        else:
            later = index + 1 < len(self._segments) and self._segments[index + 1]
            last = later.before.opnum if later else self.durable
        body = segment.file.read(batch.offset + MARK.size, batch.body_bytes)
        return batch.first_opnum, last, body

    async def settle(self) -> None:
        """Wait until no commit is in flight; none starts until the caller yields again."""
        while self._inflight is not None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle_waiters.append(waiter)
            await waiter
        if self.failed is not None:
            raise self.failed

    async def truncate_after(self, opnum: int) -> None:
        """Durably forget everything after `opnum`. The caller keeps an intent record until this returns, because a
        power cut in the middle leaves later batches that look like proof of rot."""
        await self.settle()
        if opnum >= self.position.opnum:
            return
        if opnum < self._segments[0].before.opnum:
            raise LogDiverged(f"opnum {opnum} was trimmed: the log starts at {self.first_opnum}; resync in full")
        self._drop_chunks(opnum)
        if opnum < self.durable:
            while self._segments[-1].before.opnum > opnum or (
                len(self._segments) > 1 and self._segments[-1].before.opnum == opnum
            ):
                file = self._segments.pop().file
                await zero_range(file, 0, file.size_bytes)
                self._spares.append(file)
            await self._cut_segment(self._segments[-1], opnum)
            self.durable = min(self.durable, opnum)
        if self._chunks:
            self.kick()

    def _drop_chunks(self, opnum: int) -> None:
        kept = [chunk for chunk in self._chunks if chunk.last <= opnum]
        for chunk in self._chunks:
            if chunk.before.opnum < opnum < chunk.last:
                kept.append(_cut_chunk(chunk, opnum))
        self._chunks = deque(kept)
        self._pending_bytes = sum(chunk.size for chunk in kept)
        if kept:
            last = parse_records(b"".join(kept[-1].buffers), kept[-1].before.opnum + 1, kept[-1].before.chain)
            *_, record = last
            self.position = Position(record.opnum, record.epoch, record.crc)
        elif opnum >= self.durable and self._segments:
            self.position = self._position_at(self.durable)

    def _position_at(self, opnum: int) -> Position:
        """The position after the durable record `opnum`."""
        segment = next(s for s in reversed(self._segments) if s.before.opnum <= opnum)
        if segment.before.opnum == opnum:
            return segment.before
        batch = segment.batches[bisect_right(segment.batches, opnum, key=lambda b: b.first_opnum) - 1]
        body = segment.file.read(batch.offset + MARK.size, batch.body_bytes)
        for record in parse_records(body, batch.first_opnum, batch.chain):
            if record.opnum == opnum:
                return Position(record.opnum, record.epoch, record.crc)
        raise LogCorrupt(segment.file.name, batch.offset, f"opnum {opnum} is not in its batch")

    async def _cut_segment(self, segment: Segment, opnum: int) -> None:
        self.position = self._position_at(opnum)
        written = segment.end
        removed = [batch for batch in segment.batches if batch.first_opnum > opnum]
        segment.batches = segment.batches[: len(segment.batches) - len(removed)]
        if segment.batches:
            batch = segment.batches.pop()
            body = segment.file.read(batch.offset + MARK.size, batch.body_bytes)
            keep = offset_of(body, batch.first_opnum, opnum + 1)
            await self._shrink(segment, batch, keep, opnum - batch.first_opnum + 1, written)
        else:
            segment.end = BLOCK_BYTES
            self._mark_number = segment.first_mark - 1
            await zero_range(segment.file, segment.end, written)

    async def discard(self) -> None:
        """Close and remove every segment file: a removed file that stays open keeps its space."""
        await self.close()
        for file in [segment.file for segment in self._segments] + self._spares:
            file.close()
        for name in self._directory.names():
            if name.startswith(SEGMENT_PREFIX):
                await self._directory.remove(name)

    async def close(self) -> None:
        """Wait for the commit in flight and stop; what was appended after it is not written."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._preparing is not None:
            await asyncio.wait([self._preparing])
        try:
            await self.settle()
        except LogFailed:
            logger.info("event=log_closed_after_failure path=%s", self._directory.path)


def _cut_chunk(chunk: _Chunk, opnum: int) -> _Chunk:
    cut = _Chunk(chunk.before)
    body = b"".join(chunk.buffers)
    cut.buffers = [body[: offset_of(body, chunk.before.opnum + 1, opnum + 1)]]
    cut.size, cut.last = len(cut.buffers[0]), opnum
    return cut
