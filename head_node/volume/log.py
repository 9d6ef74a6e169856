"""The write log: segment files, group commit, recovery, truncation and trimming.

One commit is in flight; everything appended meanwhile goes into the next one with one gathered write and one sync.
Any error of a commit is final (`on_failed`): a retried fdatasync would succeed without having written anything.
"""

import asyncio
import errno
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from head_node.files import Directory, LogFile
from head_node.volume.errors import LogCorrupt, LogDiverged, LogFailed, LogRotten
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.kept_records import KeptRecords
from head_node.volume.records import Record, parse_records
from head_node.volume.salvage import Salvage
from head_node.volume.segments import (
    BATCH_BYTES_MAX,
    MARK,
    SEGMENT_PREFIX,
    Batch,
    PastSectors,
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
    refuse_unreadable,
    zero_range,
)
from sled_controller.backoff import Backoff
from spdk_bindings.device import Buffer

SPARES_MAX: Final = 2
"""The next segment, and one that is kept for records which free room (STRIPE, EPOCH): a full disk stops clients, not
these."""
BUFFERS_PER_BATCH_MAX: Final = 1000
"""Below IOV_MAX (1024) with room for MARK, segment header and padding."""
RETRY_SECONDS: Final = 0.5
RETRY_SECONDS_MAX: Final = 4.0
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


class WriteLog(KeptRecords):
    """The log of one volume on one head."""

    def __init__(self, directory: Directory, log_id: UUID, segment_bytes: int, position: Position) -> None:
        super().__init__(directory, position)
        self._log_id = log_id
        self._segment_bytes = segment_bytes
        self._chunk_bytes_max = min(BATCH_BYTES_MAX, segment_bytes - BLOCK_BYTES) - MARK.size
        self.failed: LogFailed | None = None
        self.no_room: str | None = None
        """Why a spare segment file cannot be made, while one is missing."""
        self.salvage = Salvage(log_id, [], lambda record: None)
        """What a recovery found rotten."""
        self.on_durable: Callable[[int], None] = lambda opnum: None
        self.on_room: Callable[[], None] = lambda: None
        self.on_failed: Callable[[Exception], None] = lambda error: None
        self.batch_count = 0
        self.commit_point: Callable[[], int] = lambda: 0
        """Last opnum known committed; every batch carries it."""
        self.recovered_commit_point = 0
        """The highest that the batches found by `recover` carry."""
        self._spares: list[LogFile] = []
        self._spares_wanted = SPARES_MAX
        self._chunks: deque[_Chunk] = deque()
        self._inflight: _Chunk | None = None
        self._mark_number = 0
        self._next_file = 1
        self._pending_bytes = 0
        self._preparing: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._backoff = Backoff(None, RETRY_SECONDS, RETRY_SECONDS_MAX)
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
        # The one that is kept for records which free room: a log never begins without it.
        log._spares.append(await directory.create(log._new_name(), segment_bytes))
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
        judge: Callable[[Salvage, int], None] = lambda salvage, tail: None,
        *,
        past_sectors: bool = False,
    ) -> "WriteLog":
        """Open an existing log and hand every valid record to `replay`, in order.

        A torn tail is cut. `cut_after` finishes a truncation that was under way: what follows that opnum is not
        looked at. `past_sectors`: what the drive cannot read has rotted. `judge` hears what is
        rotten, and the tail, before anything is changed; it may raise. Raises LogForeign and LogCorrupt (a segment
        missing, or rot behind which nothing can be read), OSError.
        """
        files = [directory.open(name) for name in directory.names() if name.startswith(SEGMENT_PREFIX)]
        if past_sectors:
            files = [PastSectors(file) for file in files]
        segments, others, copies = live_segments(log_id, files, first_sequence)
        if not segments:
            refuse_unreadable(files)
            raise LogCorrupt(directory.path, 0, f"log segment {first_sequence} is missing; resync this member in full")
        log = cls(directory, log_id, segment_bytes, segments[0].before)
        log._adopt_names()
        log.salvage = Salvage(log_id, segments, replay)
        scan = Scan(log_id, segments[0], segments[0].before, segments[0].first_mark - 1)
        while True:
            await log._replay(scan, segments, replay, cut_after)
            surplus = segments[segments.index(scan.segment) + 1 :]
            if cut_after is not None and scan.position.opnum >= cut_after:
                break
            try:
                refuse_rot(log_id, scan, surplus, files)
                break
            except LogCorrupt as rot:
                sequence = scan.segment.sequence
                if not log.salvage.skip(scan):
                    raise
                log._note_rot(LogRotten(rot.file, rot.offset, rot.reason, sequence, scan.position.opnum))
        tail = scan.position.opnum
        if cut_after is None and scan.end_unreadable:
            log.salvage.end_lost(scan)
            tail += 1
        judge(log.salvage, tail)
        log._mark_number = scan.mark_number
        log.position = scan.position
        log.durable = scan.position.opnum
        log.recovered_commit_point = scan.committed
        log._segments = segments[: len(segments) - len(surplus)]
        others += [segment.file for segment in surplus]
        await log._repair(scan, others, cut_after is not None)
        for segment in log._segments[:-1]:
            if segment.header_rotten:
                await commit_now(segment.file, 0, [encode_segment(log_id, segment)])
        copies += await log._renew(scan.segment, others)
        log._roll_due = log.rot is not None and log.rot.sequence == scan.segment.sequence
        log._spares = others[:SPARES_MAX]
        for file in copies + others[SPARES_MAX:]:
            await directory.remove(file.name)
            file.close()
        log._prepare()
        return log

    async def _replay(
        self, scan: Scan, segments: list[Segment], replay: Callable[[Record], None], cut_after: int | None
    ) -> None:
        """From where `scan` is up to what does not verify, or the end."""
        while True:
            while (records := scan.batch(cut_after)) is not None:
                for record in records:
                    replay(record)
                # Replaying a full log takes a second or two: let heartbeats through.
                await asyncio.sleep(0)
            at = segments.index(scan.segment) + 1
            cut = cut_after is not None and scan.position.opnum >= cut_after
            if cut or scan.torn is not None or at == len(segments) or not scan.joins(segments[at]):
                return
            scan.segment = segments[at]

    async def _renew(self, segment: Segment, spares: list[LogFile]) -> list[LogFile]:
        """Write the last segment again before anything in it counts, into blocks of another file, and return the file
        that it was in.

        A sync that failed leaves pages in the kernel's cache which are clean, readable and not on the disk, and no
        later sync writes them. Only the last batch can be such: each was written when the one before was durable.
        """
        try:
            file = spares.pop() if spares else await self._directory.create(self._new_name(), self._segment_bytes)
        except OSError as error:
            # A full disk: the same bytes in the same place are dirty again, and the sync proves them.
            logger.warning("event=log_rewritten_in_place path=%s error=%s", self._directory.path, error)
            await self._copy_segment(segment, segment.file)
            return []
        stop = min(segment.end + BATCH_BYTES_MAX, file.size_bytes)
        await zero_range(file, 0, BLOCK_BYTES)
        await zero_range(file, segment.end, stop)
        await self._copy_segment(segment, file)
        former, segment.file = segment.file, file
        return [former]

    async def _copy_segment(self, segment: Segment, file: LogFile) -> None:
        """The header last: it makes the file a live segment."""
        pieces = [
            (at, min(BATCH_BYTES_MAX, segment.end - at)) for at in range(2 * BLOCK_BYTES, segment.end, BATCH_BYTES_MAX)
        ]
        for at, length in [*pieces, (BLOCK_BYTES, BLOCK_BYTES)]:
            former = segment.file
            if isinstance(former, PastSectors) and not self.salvage.file and not former.gives(at, length):
                raise OSError(errno.EIO, f"{former.name}: byte {at}: could be read a moment ago")
            await commit_now(file, at, [former.read(at, length)])
        await commit_now(file, 0, [encode_segment(self._log_id, segment)])

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
    def waits_for_room(self) -> bool:
        """Nothing is asked of the disk, because it has no room for the next segment; it is asked again soon."""
        return self.no_room is not None and self._inflight is None and self._preparing is None

    def has_room(self, length: int) -> bool:
        """Whether the disk has blocks for `length` more bytes of client data, and still a whole segment for records
        that free room."""
        if self.has_spare_room(length):
            return True
        left = self._spares_after(length) - 1
        if left >= 0:
            return True
        self._spares_wanted = max(SPARES_MAX, len(self._spares) - left)
        self._prepare()
        return False

    def has_spare_room(self, length: int) -> bool:
        """The same, as far as it is plain at a glance."""
        return bool(self._spares) and self._fits_newest(length)

    def has_kept_room(self, length: int) -> bool:
        """Whether `length` more bytes leave half a segment for records that free room."""
        return self._spares_after(length + self._segment_bytes // 2) >= 0

    def _fits_newest(self, length: int) -> bool:
        """Whether all that was appended, and `length` bytes more, surely go into the segment that is written now. Asked
        for each request, so it counts generously: three blocks for each batch."""
        batches = len(self._chunks) + 3 + length // (self._chunk_bytes_max - BLOCK_BYTES)
        newest = self._segments[-1]
        return self._pending_bytes + length + 3 * BLOCK_BYTES * batches <= newest.file.size_bytes - newest.end

    def _spares_after(self, length: int) -> int:
        """How many spare segments are left, less than none if some are missing, when all that was appended and
        `length` bytes more are in batches."""
        room, spares = self._room_bytes(), len(self._spares)
        sizes = [chunk.size for chunk in self._chunks]
        if self._inflight is not None:
            sizes.insert(0, self._inflight.size)
        whole, rest = divmod(length, self._chunk_bytes_max - BLOCK_BYTES)
        sizes += [self._chunk_bytes_max - BLOCK_BYTES] * whole + [rest]
        for size in sizes:
            # One block more for what headers of records and padding take.
            need = aligned(MARK.size + size) + BLOCK_BYTES
            if need > room:
                spares, room = spares - 1, self._segment_bytes - BLOCK_BYTES
            room -= need
        return spares

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
        if segment.end + need > segment.file.size_bytes or (self._roll_due and self._spares):
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
        self._roll_due = False
        self._spares_wanted = SPARES_MAX
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
        """Have spare segments made in the background."""
        missing = len(self._spares) < self._spares_wanted
        if missing and self._preparing is None and self._retry is None and not self._closed:
            self._preparing = asyncio.get_running_loop().create_task(self._make_spare())

    async def _make_spare(self) -> None:
        try:
            self._gain(await self._directory.create(self._new_name(), self._segment_bytes))
            self._backoff.reset()
        except OSError as error:
            if self.no_room is None:
                logger.error("event=log_segment_refused path=%s error=%s", self._directory.path, error)
            self.no_room = str(error)
            self._retry = asyncio.get_running_loop().call_later(self._backoff.next_s(), self._prepare_again)
        finally:
            self._preparing = None
        self.kick()
        self._prepare()
        self.on_room()

    def _prepare_again(self) -> None:
        self._retry = None
        self._prepare()

    def _gain(self, file: LogFile) -> None:
        """A spare segment, wherever it comes from."""
        self._spares.append(file)
        if len(self._spares) >= self._spares_wanted:
            self.no_room = None

    async def give_up_spare(self, keep: int) -> bool:
        """Give a spare segment back to the disk; False when there are only `keep`. Raises OSError."""
        if len(self._spares) <= keep:
            return False
        file = self._spares.pop()
        await self._directory.remove(file.name)
        file.close()
        return True

    def leave_segment(self) -> None:
        """Begin the next segment with the next commit, if there is a file for it: this one can be given up then."""
        self._roll_due = True

    def _adopt_names(self) -> None:
        numbers = [int(name[len(SEGMENT_PREFIX) :]) for name in self._directory.names() if is_segment(name)]
        self._next_file = max(numbers, default=0) + 1

    def _new_name(self) -> str:
        name = f"{SEGMENT_PREFIX}{self._next_file:06d}"
        self._next_file += 1
        return name

    async def trim_before(self, sequence: int) -> None:
        """Give up segments below `sequence`, which the durable checkpoint does not need any more."""
        surplus = []
        while len(self._segments) > 1 and self._segments[0].sequence < sequence:
            file = self._segments.pop(0).file
            if len(self._spares) < self._spares_wanted:
                self._gain(file)
            else:
                surplus.append(file)
        self._forget_rot()
        self.kick()
        for file in surplus:
            await self._directory.remove(file.name)
            file.close()

    # -- cutting ------------------------------------------------------------------------------------------------------

    def _not_durable(self, opnum: int) -> tuple[int, int, Buffer]:
        chunks = [self._inflight, *self._chunks] if self._inflight else self._chunks
        chunk = next(chunk for chunk in chunks if opnum <= chunk.last)
        return chunk.before.opnum + 1, chunk.last, b"".join(chunk.buffers)

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
                self._gain(file)
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
