"""Client requests of a primary: admission, waiting, replies. The lease is asked at both ends (F7)."""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final, TypeAlias

from head_node.volume.callbacks import tell
from head_node.volume.errors import BlockAway, BlockFenced
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
from spdk_bindings.device import Buffer

if TYPE_CHECKING:
    from head_node.volume.engine import VolumeEngine

WAITING_MAX: Final = 65_536
"""Requests kept back; an export admits 128 per connection, so more means an export without a bound."""
POLL_SECONDS: Final = 0.01
"""How often a lease that lapsed is asked again while something waits for it."""
AWAY_SECONDS: Final = 0.1
AWAY_TRIES_MAX: Final = 300
"""A read whose shards are out of reach is tried again for half a minute before it fails with EIO: as long as a block
layer waits for a drive, and longer than a sled takes to restart."""
EXTENTS_MAX: Final = 4096
REQUEST_BYTES_MAX: Final = 32 << 20

RESERVATION_BYTES: Final = 2 * BLOCK_BYTES
"""Room in the log that a change of reservations waits for: what its record takes at most."""

_OFFSET_MASK: Final = BLOCK_BYTES - 1

logger = logging.getLogger(__name__)

Request: TypeAlias = Callable[[], None]


class ClientService:
    """The ServedVolume of an engine."""

    def __init__(self, engine: "VolumeEngine") -> None:
        self._engine = engine
        self.size_bytes = engine.size_blocks * BLOCK_BYTES
        self._waiting: deque[tuple[int, Request, Gone]] = deque()
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
        elif self._waiting or not self._serving():
            self._wait(0, lambda: self._read(offset, length, done, gone, host), gone)
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
        elif self._waiting or not self._serving() or not self._room(length):
            self._wait(length, lambda: self._write(offset, data, done, host), gone)
        else:
            self._write(offset, data, done, host)

    def trim(self, offset: int, length: int, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        if not self._fits(offset, length):
            done(errno.EINVAL)
        elif not length:
            done(0)
        elif self._waiting or not self._serving():
            self._wait(0, lambda: self._zero(offset, length, done, host), gone)
        else:
            self._zero(offset, length, done, host)

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
        if not self._fits(offset, length):
            done(errno.EINVAL, ())
        elif self._waiting or not self._serving():
            self._wait(0, lambda: self._reply(lambda: self._extents(offset, length, done, host)), gone)
        else:
            self._reply(lambda: self._extents(offset, length, done, host))

    def change_reservation(self, host: bytes, command: Command, done: ChangeDone, gone: Gone = never_gone) -> None:
        if self._waiting or not self._serving() or not self._room(RESERVATION_BYTES):
            self._wait(RESERVATION_BYTES, lambda: self._change(host, command, done), gone)
        else:
            self._change(host, command, done)

    def reservations(self, done: ReservationsDone, gone: Gone = never_gone) -> None:
        if self._waiting or not self._serving():
            self._wait(0, lambda: self._report(done), gone)
        else:
            self._report(done)

    def watch_reservations(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        self._watchers.append(watcher)
        return partial(self._watchers.remove, watcher)

    def ready(self) -> bool:
        return not self._waiting

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

    def _room(self, length: int) -> bool:
        # A request larger than the bound must get through when nothing else is in the way.
        over = self._unanswered_bytes and self._unanswered_bytes + length > self._engine.limits.unanswered_bytes_max
        return not over and self._engine.has_room(length)

    def _wait(self, cost: int, request: Request, gone: Gone) -> None:
        if not self._engine.leading:
            # Kept, it would be carried out in a later epoch, for a connection that is long gone.
            return
        if len(self._waiting) >= WAITING_MAX:
            logger.error("event=requests_unbounded volume=%s waiting=%d", self._engine.volume, len(self._waiting))
            return
        self._waiting.append((cost, request, gone))
        self._arm()

    def pump(self) -> None:
        """Begin what waits, as far as lease and bounds allow."""
        waiting = self._waiting
        while waiting:
            cost, request, gone = waiting[0]
            if gone():
                waiting.popleft()
                self.forgotten_count += 1
                continue
            if not self._serving():
                self._arm()
                return
            if cost and not self._room(cost):
                if not self._engine.no_space():
                    return
                # No slot and nothing to compact: waiting would be for ever.
                waiting.popleft()
                self._refuse(request)
                continue
            waiting.popleft()
            tell(self._engine.volume, "request", request)
        callbacks, self._on_ready = self._on_ready, []
        for callback in callbacks:
            tell(self._engine.volume, "on_ready", callback)

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

    def _read(self, offset: int, length: int, done: ReadDone, gone: Gone, host: bytes, tries: int = 1) -> None:
        self.read_count += tries == 1
        generation = self._generation
        reservations = self._engine.state.reservations
        if not reservations.may_read(host):
            self._reply(lambda: done(errno.EPERM, ()))
            return

        def finished(error: Exception | None, blocks: Sequence[Buffer]) -> None:
            if generation != self._generation:
                return
            if isinstance(error, BlockFenced):
                self._wait(0, lambda: self._read(offset, length, done, gone, host), gone)
            elif isinstance(error, BlockAway) and tries < AWAY_TRIES_MAX:
                asyncio.get_running_loop().call_later(AWAY_SECONDS, again)
            elif error is not None:
                self._reply(lambda: done(errno.EIO, ()))
            elif not self._replies and self._serving():
                deliver(blocks)
            else:
                self._reply(lambda: deliver(blocks))

        def deliver(blocks: Sequence[Buffer]) -> None:
            if self._engine.state.reservations is reservations:
                done(0, blocks)
            else:
                # They may be of a time when the host was kept from them: read again, if it still may.
                self._read(offset, length, done, gone, host, tries + 1)

        def again() -> None:
            if generation == self._generation and not gone():
                self._wait(0, lambda: self._read(offset, length, done, gone, host, tries + 1), gone)

        self._engine.reader.read(offset // BLOCK_BYTES, length // BLOCK_BYTES, finished)

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
        self._waiting.clear()
        self._acks.clear()
        self._replies.clear()
        self._on_ready.clear()
        self._unanswered_bytes = 0
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None

    def gauges(self) -> dict[str, int]:
        """For status reports."""
        return {
            "reads": self.read_count,
            "writes": self.write_count,
            "unanswered": len(self._acks) + len(self._replies),
            "waiting": len(self._waiting),
            "lease_waits": self.lease_wait_count,
            "forgotten": self.forgotten_count,
        }
