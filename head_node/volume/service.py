"""Client requests of a primary: admission, waiting, replies. The lease is asked at both ends (F7)."""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from head_node.volume.callbacks import tell
from head_node.volume.errors import BlockAway, BlockFenced, BlockUnreadable
from head_node.volume.interface import (
    BLOCK_BYTES,
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
    ChangeDone,
    Done,
    ExtentsDone,
    Gone,
    ReadDone,
    ReservationsDone,
    never_gone,
)
from head_node.volume.reservations import NO_HOST, Command, Notice, Outcome, decide
from head_node.volume.sled_waits import SledWaits, WaitingRead
from spdk_bindings.device import Buffer

if TYPE_CHECKING:
    from head_node.volume.engine import VolumeEngine

WAITING_MAX: Final = 65_536
"""Requests kept back; an export admits 128 per connection, so more means an export without a bound."""
POLL_SECONDS: Final = 0.01
"""How often a lease that lapsed is asked again while something waits for it."""
EXTENTS_MAX: Final = 4096
REQUEST_BYTES_MAX: Final = 32 << 20

TRIM_BYTES: Final = BLOCK_BYTES
"""Room in the log that a trim waits for: what its record takes at most."""
RESERVATION_BYTES: Final = 2 * BLOCK_BYTES
"""Room in the log that a change of reservations waits for: what its record takes at most."""

_OFFSET_MASK: Final = BLOCK_BYTES - 1

logger = logging.getLogger(__name__)

Request: TypeAlias = Callable[[], None]
Waiting: TypeAlias = tuple[int, Request, Gone]
"""(bytes of room that it needs, what begins it, whether its client has left)."""


class ClientService:
    """The ServedVolume of an engine."""

    def __init__(self, engine: "VolumeEngine") -> None:
        self._engine = engine
        self.size_bytes = engine.size_blocks * BLOCK_BYTES
        self._unserved: deque[Waiting] = deque()
        """Whatever came while nothing may be begun (F6, F7), in order."""
        self._trims: deque[Waiting] = deque()
        self._waiting: deque[Waiting] = deque()
        """Trims, and writes, that wait for room. No client may rely on an order among unanswered requests, so neither
        keeps anything else waiting: reads need no room, and a trim gives some back."""
        self._waiting_bytes = 0
        """What writes in `_waiting` hold."""
        self._away = SledWaits(lambda: self._engine.policy.read_wait_s)
        self._attaches = 0
        """Sleds attached so far: a read that failed while this rose has not seen the newest."""
        self._acks: deque[tuple[int, Done, int]] = deque()
        """(last opnum, done, bytes) of writes not yet answered."""
        self._replies: deque[Request] = deque()
        """Reads that are done but were not answered for want of the lease."""
        self._unanswered_bytes = 0
        self._poll: asyncio.TimerHandle | None = None
        self._on_ready: list[Callable[[], None]] = []
        self._generation = 0
        self._watchers: list[Callable[[Notice], None]] = []
        self.read_count = 0
        self.write_count = 0
        self.lease_wait_count = 0
        self.forgotten_count = 0
        """Requests that waited until their client was gone."""

    # -- ServedVolume -----------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int, done: ReadDone, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        if not self._fits(offset, length):
            done(errno.EINVAL, ())
        elif not length:
            done(0, ())
        elif self._stopped():
            self._wait(self._unserved, 0, lambda: self._read(offset, length, done, gone, host), gone)
        else:
            self._read(offset, length, done, gone, host)

    def write(
        self, offset: int, data: Buffer, fua: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        length = len(data)
        if offset & _OFFSET_MASK or length & _OFFSET_MASK or offset < 0:
            done(errno.EINVAL)
        elif offset + length > self.size_bytes:
            done(errno.ENOSPC)
        elif not length:
            done(0)
        elif self._waiting or self._stopped() or not self._room(length):
            self._admit(self._waiting, length, lambda: self._write(offset, data, done, host), gone)
        else:
            self._write(offset, data, done, host)

    def trim(self, offset: int, length: int, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        if not self._fits(offset, length):
            done(errno.EINVAL)
        elif not length:
            done(0)
        else:
            self._admit(self._trims, TRIM_BYTES, lambda: self._zero(offset, length, done, host), gone)

    def write_zeroes(
        self, offset: int, length: int, *, no_hole: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        if self._fits(offset, 0) and self._fits(0, length) and offset + length > self.size_bytes:
            done(errno.ENOSPC)
        else:
            self.trim(offset, length, done, gone, host)

    def flush(self, done: Done, host: bytes = NO_HOST) -> None:
        self._reply(lambda: done(0 if self._engine.state.reservations.may_write(host) else errno.EPERM))

    def extents(
        self, offset: int, length: int, done: ExtentsDone, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        reply = partial(self._extents, offset, length, done, host)
        if not self._fits(offset, length):
            done(errno.EINVAL, ())
        elif self._stopped():
            self._wait(self._unserved, 0, partial(self._reply, reply), gone)
        else:
            self._reply(reply)

    def change_reservation(self, host: bytes, command: Command, done: ChangeDone, gone: Gone = never_gone) -> None:
        self._admit(self._waiting, RESERVATION_BYTES, lambda: self._change(host, command, done), gone)

    def reservations(self, done: ReservationsDone, gone: Gone = never_gone) -> None:
        if self._stopped():
            self._wait(self._unserved, 0, lambda: self._report(done), gone)
        else:
            self._report(done)

    def watch_reservations(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        self._watchers.append(watcher)
        return partial(self._watchers.remove, watcher)

    def ready(self) -> bool:
        return not self._unserved and self._waiting_bytes <= self._engine.limits.unanswered_bytes_max

    def on_ready(self, callback: Callable[[], None]) -> None:
        if self.ready():
            callback()
        else:
            self._on_ready.append(callback)

    # -- admission --------------------------------------------------------------------------------------------------

    def _fits(self, offset: int, length: int) -> bool:
        unaligned = (offset | length) & _OFFSET_MASK
        return not unaligned and offset >= 0 and length >= 0 and offset + length <= self.size_bytes

    def _serving(self) -> bool:
        """May a request be begun or answered right now (F6, F7)?"""
        engine = self._engine
        return engine.serving and engine.lease()

    def _stopped(self) -> bool:
        """Has whatever comes to wait until requests may be begun again, behind those that do already?"""
        return bool(self._unserved) or not self._serving()

    def _admit(self, queue: deque[Waiting], cost: int, request: Request, gone: Gone) -> None:
        """Begin what needs room in the log, or let it wait: for serving, then behind others that need room too."""
        if self._stopped():
            self._wait(self._unserved, cost, lambda: self._admit_served(queue, cost, request, gone), gone)
        else:
            self._admit_served(queue, cost, request, gone)

    def _admit_served(self, queue: deque[Waiting], cost: int, request: Request, gone: Gone) -> None:
        if queue or not self._room_in(queue, cost):
            self._wait(queue, cost, request, gone)
        else:
            request()

    def _room_in(self, queue: deque[Waiting], cost: int) -> bool:
        return self._engine.has_room_without_data(cost) if queue is self._trims else self._room(cost)

    def _room(self, length: int) -> bool:
        # A request larger than the bound must get through when nothing else is in the way.
        over = self._unanswered_bytes and self._unanswered_bytes + length > self._engine.limits.unanswered_bytes_max
        return not over and self._engine.has_room(length)

    def _wait(self, queue: deque[Waiting], cost: int, request: Request, gone: Gone) -> None:
        if not self._engine.leading:
            # Kept, it would be carried out in a later epoch, for a connection that is long gone.
            return
        if self._waiting_count() >= WAITING_MAX:
            logger.error("event=requests_unbounded volume=%s waiting=%d", self._engine.volume, self._waiting_count())
            return
        queue.append((cost, request, gone))
        if queue is self._waiting:
            self._waiting_bytes += cost
        self._arm()

    def _waiting_count(self) -> int:
        return len(self._unserved) + len(self._trims) + len(self._waiting) + len(self._away)

    def pump(self) -> None:
        """Begin what waits, as far as lease and bounds allow."""
        for queue in (self._unserved, self._trims, self._waiting):
            self._pump(queue)
        if not self.ready():
            return
        callbacks, self._on_ready = self._on_ready, []
        for callback in callbacks:
            tell(self._engine.volume, "on_ready", callback)

    def _pump(self, queue: deque[Waiting]) -> None:
        while queue:
            cost, request, gone = queue[0]
            if gone():
                self._leave(queue)
                self.forgotten_count += 1
                continue
            if not self._serving():
                self._arm()
                return
            if queue is not self._unserved and not self._room_in(queue, cost):
                if queue is self._trims or not self._engine.no_space():
                    return
                # No slot and nothing to compact: waiting would be for ever.
                self._leave(queue)
                self._refuse(request)
                continue
            self._leave(queue)
            tell(self._engine.volume, "request", request)

    def _leave(self, queue: deque[Waiting]) -> None:
        cost, _, _ = queue.popleft()
        if queue is self._waiting:
            self._waiting_bytes -= cost

    def _refuse(self, request: Request) -> None:
        self._refusing = True
        tell(self._engine.volume, "request", request)
        self._refusing = False

    _refusing = False

    def _arm(self) -> None:
        """Ask the lease again soon; `pump` and `answer` come by themselves otherwise."""
        if self._poll is None and self._engine.serving:
            self.lease_wait_count += 1
            self._poll = asyncio.get_running_loop().call_later(POLL_SECONDS, self._polled)

    def _polled(self) -> None:
        self._poll = None
        self.answer(self._engine.committed)
        self.pump()

    # -- doing it ---------------------------------------------------------------------------------------------------

    def _read(
        self, offset: int, length: int, done: ReadDone, gone: Gone, host: bytes, since_s: float | None = None
    ) -> None:
        """`since_s`: since when it has waited for sleds."""
        self.read_count += since_s is None
        generation, attaches = self._generation, self._attaches
        reservations = self._engine.state.reservations
        if not reservations.may_read(host):
            self._reply(lambda: done(errno.EPERM, ()))
            return

        def finished(error: Exception | None, blocks: Sequence[Buffer]) -> None:
            if generation != self._generation:
                return
            if error is not None:
                failed(error)
            elif not self._replies and self._serving():
                deliver(blocks)
            else:
                self._reply(lambda: deliver(blocks))

        def failed(error: Exception) -> None:
            since = since_s or asyncio.get_running_loop().time()
            again = partial(self._read_again, offset, length, done, gone, host, since)
            if isinstance(error, BlockFenced) and not self._serving():
                self._wait(self._unserved, 0, again, gone)
            elif isinstance(error, BlockAway | BlockFenced):
                fail = partial(self._reply, partial(done, errno.EIO, ()))
                self._wait_for_sleds(error, since, attaches != self._attaches, gone, again, fail)
            else:
                self._reply(partial(done, errno.EIO, ()))

        def deliver(blocks: Sequence[Buffer]) -> None:
            if self._engine.state.reservations is reservations:
                done(0, blocks)
            else:
                # They may be of a time when the host was kept from them: read again, if it still may.
                since = since_s or asyncio.get_running_loop().time()
                self._read_again(offset, length, done, gone, host, since)

        self._engine.reader.read(offset // BLOCK_BYTES, length // BLOCK_BYTES, finished)

    def _read_again(self, offset: int, length: int, done: ReadDone, gone: Gone, host: bytes, since_s: float) -> None:
        if self._stopped():
            self._wait(self._unserved, 0, partial(self._read, offset, length, done, gone, host, since_s), gone)
        else:
            self._read(offset, length, done, gone, host, since_s)

    def _wait_for_sleds(
        self, error: BlockUnreadable, since_s: float, newer: bool, gone: Gone, again: Request, fail: Request
    ) -> None:
        """A read failed for want of shards that may come back. `newer`: a sled was attached since it began."""
        loop = asyncio.get_running_loop()
        if newer:
            loop.call_soon(self._again_unless_gone, self._generation, gone, again)
            return
        if not self._engine.leading:
            return
        if self._waiting_count() >= WAITING_MAX:
            logger.error("event=requests_unbounded volume=%s waiting=%d", self._engine.volume, self._waiting_count())
            return
        if not self._away:
            logger.warning("event=reads_wait_for_sleds volume=%s reason=%s", self._engine.volume, error)
        columns, moment = (error.columns, error.moment) if isinstance(error, BlockAway) else (frozenset[int](), True)
        self._away.add(WaitingRead(since_s, columns, moment, gone, again, fail))

    def _again_unless_gone(self, generation: int, gone: Gone, again: Request) -> None:
        if generation == self._generation and not gone():
            again()

    def attached(self) -> None:
        """A sled is attached, or a column answers again: what waits for one is asked again."""
        self._attaches += 1
        self._away.attached()

    def policy_changed(self) -> None:
        """How long reads may wait is another time now."""
        self._away.look()

    def _write(self, offset: int, data: Buffer, done: Done, host: bytes) -> None:
        if self._kept_out(host, done):
            return
        if self._refusing:
            done(errno.ENOSPC)
            return
        self.write_count += 1
        length = len(data)
        self._unanswered_bytes += length
        self._acks.append((self._engine.append_write(offset // BLOCK_BYTES, data), done, length))

    def _zero(self, offset: int, length: int, done: Done, host: bytes) -> None:
        if self._kept_out(host, done):
            return
        self.write_count += 1
        self._acks.append((self._engine.append_zero(offset // BLOCK_BYTES, length // BLOCK_BYTES), done, 0))

    def _kept_out(self, host: bytes, done: Done) -> bool:
        """Whether a reservation keeps `host` from writing where the log is now; `done` says so then."""
        if self._engine.reservations_ahead.may_write(host):
            return False
        self._settled(partial(done, errno.EPERM))
        return True

    def _change(self, host: bytes, command: Command, done: ChangeDone) -> None:
        engine = self._engine
        outcome = decide(engine.reservations_ahead, host, command)
        if outcome.state is engine.reservations_ahead:
            self._settled(partial(done, outcome.status))
            return
        logger.info("event=reservation volume=%s host=%s command=%s", engine.volume, host.hex(), command)
        opnum = engine.append_reservation(outcome.state)
        self._acks.append((opnum, lambda error: self._changed(outcome, done), 0))

    def _report(self, done: ReservationsDone) -> None:
        self._reply(lambda: done(self._engine.state.reservations))

    def _changed(self, outcome: Outcome, done: ChangeDone) -> None:
        for notice in outcome.notices:
            for watcher in self._watchers:
                tell(self._engine.volume, "watcher", watcher, notice)
        done(outcome.status)

    def _settled(self, reply: Request) -> None:
        """Answer what the newest reservations decided, once they are committed: until then they may still be undone."""
        engine = self._engine
        if engine.state.reservations is engine.reservations_ahead:
            self._reply(reply)
        else:
            self._acks.append((engine.tail.opnum, lambda error: reply(), 0))

    def _extents(self, offset: int, length: int, done: ExtentsDone, host: bytes) -> None:
        state = self._engine.state
        if not state.reservations.may_read(host):
            done(errno.EPERM, ())
            return
        lba, count = offset // BLOCK_BYTES, length // BLOCK_BYTES
        present = state.map.find_data(lba, count)
        for at in state.overlay.within(lba, count):
            present[at - lba] = True
        edges = [0, *((present[1:] != present[:-1]).nonzero()[0] + 1).tolist(), count] if count else []
        out = []
        for start, stop in pairwise(edges[: EXTENTS_MAX + 1]):
            out.append(((stop - start) * BLOCK_BYTES, EXTENT_DATA if present[start] else EXTENT_HOLE | EXTENT_ZERO))
        done(0, out)

    # -- replies ----------------------------------------------------------------------------------------------------

    def _reply(self, reply: Request) -> None:
        if not self._replies and self._serving():
            reply()
        elif self._engine.leading:
            self._replies.append(reply)
            self._arm()

    def answer(self, committed: int) -> None:
        """Acknowledge writes up to `committed` and send what else is ready, each under the lease."""
        acks = self._acks
        while acks and acks[0][0] <= committed:
            if not self._serving():
                self._arm()
                return
            _, done, length = acks.popleft()
            self._unanswered_bytes -= length
            try:
                done(0)
            except Exception:
                logger.exception("event=callback_failed volume=%s callback=done", self._engine.volume)
        while self._replies:
            if not self._serving():
                self._arm()
                return
            tell(self._engine.volume, "done", self._replies.popleft())

    def drop(self) -> None:
        """Forget every request unanswered (F6); their connections are reset by the cluster."""
        self._generation += 1
        for queue in (self._unserved, self._trims, self._waiting):
            queue.clear()
        self._waiting_bytes = 0
        self._away.drop()
        self._acks.clear()
        self._replies.clear()
        self._on_ready.clear()
        self._unanswered_bytes = 0
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def sled_waits(self) -> dict[str, Any]:
        """Reads that wait for sleds: how many, how long the oldest has waited, and for which columns."""
        oldest_s = self._away.oldest_s(asyncio.get_running_loop().time()) if self._away else 0.0
        return {"reads": len(self._away), "oldest_s": round(oldest_s, 1), "columns": self._away.columns}

    def gauges(self) -> dict[str, int]:
        """For status reports."""
        return {
            "reads": self.read_count,
            "writes": self.write_count,
            "unanswered": len(self._acks) + len(self._replies),
            "waiting": self._waiting_count(),
            "waiting_for_room": len(self._trims) + len(self._waiting),
            "waiting_for_sleds": len(self._away),
            "lease_waits": self.lease_wait_count,
            "forgotten": self.forgotten_count + self._away.gone_count,
            "timed_out": self._away.expired_count,
        }
