"""Log replication over one link: the primary's sender and the member's receiver.

The member opens with JOIN (which log it has); the primary answers TRUNCATE (where the two logs part) and streams what
follows, straight from the appends while the member keeps up, out of the log when it does not. In flight is bounded by
a window; DURABLE opens it again. Heartbeats run on the same link, so silence is noticed on the path that matters.
"""

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import LinkError
from head_node.cluster.frames import (
    BATCH_BYTES_MAX,
    CHUNK_BYTES,
    FRAME_BYTES_MAX,
    FrameType,
    Join,
    Truncate,
    encode_chunk,
    encode_opnum,
)
from head_node.cluster.pace import DelayMeter
from head_node.store.records import Member, VolumeRecord
from head_node.volume.engine import LogPosition
from head_node.volume.errors import LogRotten
from head_node.volume.records import HEADER_BYTES, RECORD_HEADER
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Unanswered record bytes per member: some loop turns of the fastest writer; more only grows the kernel's queues."""

NEAR_BYTES: Final = WINDOW_BYTES // 2
"""A member that owes no more keeps up: its disk makes that durable within moments."""
RESYNCS_AT_ONCE: Final = 2
"""Full resyncs of a member that begin as soon as it asks: one may have met a lost link."""
RESYNC_PAUSE_NS: Final = 5_000_000_000
RESYNC_PAUSE_NS_MAX: Final = 300_000_000_000
"""After them each waits twice as long as the one before."""

History = Sequence[tuple[int, int]]


class SourceLog(Protocol):
    """What a sender needs of the primary's engine."""

    committed: int

    @property
    def tail(self) -> LogPosition: ...
    def epoch_history(self) -> list[tuple[int, int]]: ...
    def read_log(self, from_opnum: int, max_bytes: int) -> list[Buffer] | None: ...
    async def export_checkpoint(self) -> list[Buffer]: ...
    def hold_log(self, holder: UUID, opnum: int | None = None, taken_bytes: int = 0) -> None: ...
    def release_log(self, holder: UUID) -> None: ...


class SenderState(enum.Enum):
    """The life of one member's stream, seen from the primary."""

    JOINING = "joining"
    STREAMING = "streaming"
    RESYNCING = "resyncing"
    CLOSED = "closed"


TRANSITIONS: Final = {
    SenderState.JOINING: {SenderState.STREAMING, SenderState.RESYNCING, SenderState.CLOSED},
    SenderState.STREAMING: {SenderState.JOINING, SenderState.RESYNCING, SenderState.CLOSED},
    SenderState.RESYNCING: {SenderState.JOINING, SenderState.CLOSED},
    SenderState.CLOSED: {SenderState.CLOSED},
}


def common_opnum(ours: History, our_tail: int, theirs: History, their_tail: int) -> int:
    """The last opnum that two logs share. An epoch has one primary and one first record, so logs that both have an
    epoch agree up to the earlier end of the newest such epoch; 0 when they share none."""
    theirs_by_epoch = dict(theirs)
    for position in range(len(ours) - 1, -1, -1):
        epoch, first = ours[position]
        if theirs_by_epoch.get(epoch) == first:
            return min(_end_of(ours, our_tail, epoch), _end_of(theirs, their_tail, epoch))
    return 0


def holds(history: History, tail: int, opnum: int, epoch: int) -> bool:
    """Whether a log has record `opnum` of `epoch`, and with it all that was before: an epoch has one primary."""
    first = dict(history).get(epoch)
    return not opnum or (first is not None and first <= opnum <= _end_of(history, tail, epoch))


def _end_of(history: History, tail: int, epoch: int) -> int:
    later = [first for other, first in history if other > epoch]
    return min(later) - 1 if later else tail


def split(batch: Buffer, bytes_max: int) -> list[tuple[int, memoryview]]:
    """Cut a batch of whole records into pieces of whole records, each at most `bytes_max` long unless one record is
    longer: (last opnum, piece). Raises LinkError when the batch is not whole."""
    view, pieces = memoryview(batch), []
    start = at = last = 0
    while at < len(view):
        if len(view) - at < HEADER_BYTES:
            raise LinkError("a batch ends inside a record")
        _, _, _, _, meta_bytes, data_bytes, opnum, _, _ = RECORD_HEADER.unpack_from(view, at)
        end = at + HEADER_BYTES + meta_bytes + data_bytes
        if end > len(view):
            raise LinkError("a batch ends inside a record")
        if end - start > bytes_max and at > start:
            pieces.append((last, view[start:at]))
            start = at
        last, at = int(opnum), end
    if at > start:
        pieces.append((last, view[start:at]))
    return pieces


class Resyncs:
    """How often full resyncs of a member have come to nothing, and when the next one may begin: each costs a checkpoint
    of the whole volume. Times are handed in, in nanoseconds of CLOCK_BOOTTIME."""

    def __init__(self) -> None:
        self._begun: dict[UUID, tuple[int, int]] = {}

    def count(self, head: UUID) -> int:
        """Full resyncs begun since the member last caught up."""
        return self._begun.get(head, (0, 0))[0]

    def counts(self) -> dict[UUID, int]:
        return {head: count for head, (count, _) in self._begun.items()}

    def wait_s(self, head: UUID, now_ns: int) -> float:
        """Seconds until another one may begin; 0 when it may now."""
        count, at_ns = self._begun.get(head, (0, 0))
        if count < RESYNCS_AT_ONCE:
            return 0.0
        pause_ns = min(RESYNC_PAUSE_NS << min(count - RESYNCS_AT_ONCE, 16), RESYNC_PAUSE_NS_MAX)
        return max(0, at_ns + pause_ns - now_ns) / 1e9

    def begun(self, head: UUID, now_ns: int) -> None:
        self._begun[head] = (self.count(head) + 1, now_ns)

    def succeeded(self, head: UUID) -> None:
        """The member has caught up."""
        self._begun.pop(head, None)


class LogSender:
    """The stream of one volume's log to one member. Frames of the link come in through `joined` and `durable`."""

    def __init__(
        self,
        connection: PeerConnection,
        engine: SourceLog,
        member: Member,
        on_durable: Callable[[Member, int], None],
        on_diverged: Callable[[Member, Join, int], None],
        record: Callable[[], VolumeRecord],
        now_ns: Callable[[], int],
        resyncs: "Resyncs",
    ) -> None:
        self._resyncs = resyncs
        self.member = member
        self.records_pace = DelayMeter()
        self.heartbeats_pace = DelayMeter()
        self._now_ns = now_ns
        self.state = SenderState.JOINING
        self.connection = connection
        self.durable = 0
        self._engine = engine
        self._on_durable = on_durable
        self._on_diverged = on_diverged
        """(member, its JOIN, last opnum that both logs share): the member has committed records that this log lacks."""
        self._record = record
        self._epoch = 0
        self._next_opnum = 0
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._join: Join | None = None
        self._resync: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._commit_due = False
        self._holding = False
        self._waiting: asyncio.TimerHandle | None = None
        connection.on_writable = self._writable

    @property
    def caught_up(self) -> bool:
        """The member holds everything committed, durably, and gets each new record as it is appended."""
        return (
            self.state is SenderState.STREAMING
            and self._next_opnum > self._engine.tail.opnum
            and self.durable >= self._engine.committed
        )

    @property
    def keeps_up(self) -> bool:
        """All that is committed was sent, and the member takes it as it comes. Under load it is never caught up in any
        one moment: that takes commits that wait for it."""
        return (
            self.state is SenderState.STREAMING
            and self._next_opnum > self._engine.committed
            and self._in_flight_bytes <= NEAR_BYTES
        )

    @property
    def holds_all(self) -> bool:
        """The member holds everything committed, durably."""
        return self.state is SenderState.STREAMING and self.durable >= self._engine.committed

    @property
    def lag(self) -> int:
        """Records that the member has not said to be durable."""
        return max(0, self._engine.tail.opnum - self.durable)

    def joined(self, join: Join) -> None:
        """The member's JOIN: kept until `lead`, answered at once afterwards. Again after a checkpoint."""
        self._join = join
        if self.state is not SenderState.JOINING:
            self._to(SenderState.JOINING)
        if self._epoch:
            self._answer(join)

    def lead(self, epoch: int) -> None:
        """The primary's epoch record is in its log: from now on the member may follow."""
        self._epoch = epoch
        if self._join is not None and self.state is SenderState.JOINING:
            self._answer(self._join)

    def appended(self, first: int, last: int, buffers: Sequence[Buffer]) -> None:
        """Records that were just appended. Sent as they are when the member has all before them and room."""
        if self.state is not SenderState.STREAMING:
            return
        size = sum(map(len, buffers))
        if self._next_opnum == first and size < FRAME_BYTES_MAX and self._has_room():
            self._send(last, size, buffers)
        else:
            self._pump()

    def committed(self) -> None:
        """The commit point moved: the member is told once per loop turn."""
        if self.state is SenderState.STREAMING and not self._commit_due:
            self._commit_due = True
            asyncio.get_running_loop().call_soon(self._tell_committed)

    def durable_received(self, opnum: int) -> None:
        """The member's DURABLE. Raises LinkError when it names what was never sent."""
        if self.state is not SenderState.STREAMING or opnum < self.durable:
            return
        if opnum >= self._next_opnum:
            raise LinkError(f"DURABLE {opnum}, but only {self._next_opnum - 1} was sent")
        self.durable = opnum
        self.records_pace.answered(opnum, self._now_ns())
        taken_bytes = 0
        while self._in_flight and self._in_flight[0][0] <= opnum:
            taken_bytes += self._in_flight.popleft()[1]
        self._in_flight_bytes -= taken_bytes
        if self._holding:
            self._keep_log(taken_bytes)
        self._on_durable(self.member, opnum)
        self._pump()

    def close(self) -> None:
        """Send nothing more; the connection is the caller's."""
        self._to(SenderState.CLOSED)
        self._release_log()
        if self._waiting is not None:
            self._waiting.cancel()
        if self._resync is not None:
            self._resync.cancel()

    def _answer(self, join: Join) -> None:
        history, tail = self._engine.epoch_history(), self._engine.tail.opnum
        after = common_opnum(history, tail, join.history, join.tail_opnum)
        held = holds(history, tail, join.committed_opnum, join.committed_epoch)
        if self._parts(join, after, held):
            return
        try:
            trimmed = self._engine.read_log(after + 1, 1) is None
        except LogRotten as error:
            self._refuse_rot(error)
            return
        if trimmed:
            self._start_resync(join, after)
            return
        if after < join.tail_opnum:
            log.info(
                "event=member_diverges head=%s tail=%d common=%d epoch=%d",
                self.member.head, join.tail_opnum, after, self._epoch,
            )  # fmt: skip
        self._to(SenderState.STREAMING)
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self.records_pace = DelayMeter()
        self.durable = 0
        self._next_opnum = after + 1
        self._holding = True
        self._engine.hold_log(self.member.head, after + 1)
        self._order(after)
        self.committed()
        self._pump()

    def _parts(self, join: Join, after: int, held: bool) -> bool:
        """Answer a member whose log may not simply be cut; False: it may. `held`: this log has all that the member
        knows as committed.

        If it has not, that is a loss: nothing is cut on either side, and the volume freezes (D1). An operator may have
        given up, by a forced takeover, what only other logs have; and an epoch that was begun without knowing where
        they end may lack what was acknowledged just before. Then the member sets its log aside, and cuts nothing."""
        record = self._record()
        if not held and record.forced_epoch <= join.committed_epoch:
            self._on_diverged(self.member, join, after)
            self.connection.refuse(
                f"operation {join.committed_opnum} of epoch {join.committed_epoch} was committed and is not in the log"
                " of this primary; both logs are kept, the volume freezes until an operator chooses one"
            )
            return True
        records = join.tail_opnum - after
        if records <= 0 or (held and join.tail_epoch >= max(record.forced_epoch, record.doubtful_epoch)):
            return False
        log.warning(
            "event=records_given_up head=%s records=%d after=%d committed=%d epoch=%d forced=%d doubtful=%d",
            self.member.head, records, after, join.committed_opnum, self._epoch,
            record.forced_epoch, record.doubtful_epoch,
        )  # fmt: skip
        self._order(after)
        return True

    def _order(self, after: int, *, resync: bool = False) -> None:
        record = self._record()
        order = Truncate(self._epoch, resync, after, record.forced_epoch, record.doubtful_epoch)
        self.connection.send(FrameType.TRUNCATE, order.encode())

    def _keep_log(self, taken_bytes: int) -> None:
        """A member that catches up has what it needs kept for it, until it has caught up."""
        if self.keeps_up:
            self._release_log()
            self._resyncs.succeeded(self.member.head)
        else:
            self._engine.hold_log(self.member.head, self.durable + 1, taken_bytes)

    def _release_log(self) -> None:
        if self._holding:
            self._holding = False
            self._engine.release_log(self.member.head)

    def _pump(self) -> None:
        while self.state is SenderState.STREAMING and self._has_room() and self._next_opnum <= self._engine.tail.opnum:
            try:
                buffers = self._engine.read_log(self._next_opnum, BATCH_BYTES_MAX)
            except LogRotten as error:
                self._refuse_rot(error)
                return
            if buffers is None:
                self.connection.abort("the log was trimmed below what this member needs")
                return
            if not buffers:
                return
            for last, piece in split(b"".join(buffers), BATCH_BYTES_MAX):
                self._send(last, len(piece), (piece,))

    def _refuse_rot(self, error: LogRotten) -> None:
        """The member dials again, until the engine has dropped the segment; then it gets a full resync."""
        log.error("event=log_rotten_for_member head=%s epoch=%d error=%s", self.member.head, self._epoch, error)
        self.connection.refuse(f"the primary's log is being mended: {error}")

    def _send(self, last: int, size: int, buffers: Sequence[Buffer]) -> None:
        self._next_opnum = last + 1
        self._in_flight.append((last, size))
        self._in_flight_bytes += size
        self.records_pace.sent(last, self._now_ns())
        self.connection.send(FrameType.RECORDS, *buffers)

    def _has_room(self) -> bool:
        return self._in_flight_bytes < WINDOW_BYTES and self.connection.writable

    def _tell_committed(self) -> None:
        self._commit_due = False
        if self.state is SenderState.STREAMING:
            self.connection.send(FrameType.COMMITTED, encode_opnum(self._engine.committed))

    def _writable(self, writable: bool) -> None:
        if writable:
            self._drained.set()
            self._pump()
        else:
            self._drained.clear()

    def _start_resync(self, join: Join, after: int) -> None:
        if wait_s := self._resyncs.wait_s(self.member.head, self._now_ns()):
            count = self._resyncs.count(self.member.head)
            log.warning("event=resync_waits head=%s came_to_nothing=%d wait_s=%.0f", self.member.head, count, wait_s)
            self._waiting = asyncio.get_running_loop().call_later(wait_s, self._resync_due)
            return
        self._resyncs.begun(self.member.head, self._now_ns())
        log.warning(
            "event=member_resyncs head=%s tail=%d common=%d epoch=%d",
            self.member.head, join.tail_opnum, after, self._epoch,
        )  # fmt: skip
        self._to(SenderState.RESYNCING)
        self._order(after, resync=True)
        self._resync = asyncio.get_running_loop().create_task(self._send_checkpoint())
        self._resync.add_done_callback(self._checkpoint_sent)

    def _resync_due(self) -> None:
        if self._join is not None and self.state is SenderState.JOINING:
            self._answer(self._join)

    def _checkpoint_sent(self, task: "asyncio.Task[None]") -> None:
        """A member that got half a checkpoint would wait for the rest for ever; without its link it begins anew."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("event=resync_failed head=%s epoch=%d error=%r", self.member.head, self._epoch, error)
            self.connection.abort(f"the full resync failed: {error}")

    async def _send_checkpoint(self) -> None:
        self._holding = True
        self._engine.hold_log(self.member.head)
        data = memoryview(b"".join(await self._engine.export_checkpoint()))
        for offset in range(0, len(data), CHUNK_BYTES):
            await self._drained.wait()
            if self.state is not SenderState.RESYNCING:
                return
            self.connection.send(
                FrameType.CHECKPOINT, *encode_chunk(len(data), offset, data[offset : offset + CHUNK_BYTES])
            )

    def _to(self, state: SenderState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
