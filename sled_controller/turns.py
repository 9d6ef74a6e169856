"""Whose turn it is on an event loop that the trusted share with strangers: work is done in pieces, in a fair order.

A connection that has more to do than one piece waits for its turn (`Turn.ask`). Strangers get a share of the time, so
that a flood of theirs leaves the rest to heartbeats and to those that proved who they are; among them the one that was
served least comes next, first by source, then by connection. Steps that cost much (signatures, key agreements) are
also bounded in number per second and source. Trusted connections wait only with what exceeds their piece.

One `Turns` per event loop: ports that share a loop share it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from sled_controller.environment import Clock

log = logging.getLogger(__name__)

NS_PER_S: Final = 1_000_000_000
STRANGER_PERCENT: Final = 25
"""Of the time of the loop, for all strangers together."""
TRUSTED_PERCENT: Final = 50
"""Of the time of the loop, for what trusted connections have beyond their piece. Only one that sends far more than it
may have in flight gets there."""
BURST_NS: Final = 4_000_000
"""What is not used of a share is saved up to this. With one piece more it is the longest that others wait."""
PIECE_NS_MIN: Final = 50_000
"""What a piece counts for at least: what it costs besides, in the loop and in the kernel."""
ADMITTED_NS_MAX: Final = 1_000_000
"""What the piece counts for at most that made a connection a trusted one: it may have done the first of its work."""
DEBT_NS_MAX: Final = 100_000_000
"""What is overdrawn keeps the others of the share waiting no longer than for this, at the share's rate."""
PIECE_NS_MAX: Final = 5_000_000
"""What a piece counts for at most: one that took longer was mostly held up by other programs of the machine."""
WAIT_SECONDS_MIN: Final = 0.001
"""Timers are no finer."""
STEPS_PER_SECOND: Final = 100
STEPS_BURST: Final = 100
"""Costly steps of strangers, per source: some 20 ms of a second. A head that comes to a sled needs two."""
SOURCES_KEPT_MAX: Final = 1024
"""Sources without a connection that are remembered, for the costly steps that they have taken."""
STRANGER_COMMANDS: Final = 16
TRUSTED_COMMANDS: Final = 128
"""Commands, requests or frames in a piece. A trusted queue has no more in flight, so that its piece is what it may
have asked for."""


def source_of(transport: asyncio.BaseTransport) -> str:
    """Where a connection comes from: its address without the port."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""


class Turn:
    """The place of one connection. `take` does one piece and returns whether more waits; it may `charge`."""

    __slots__ = ("_ended", "_source", "_take", "_turns", "_waiting", "passed", "trusted")

    def __init__(self, turns: "Turns", source: "_Source", take: Callable[[], bool]) -> None:
        self._turns = turns
        self._source = source
        self._take = take
        self._waiting = False
        self._ended = False
        self.trusted = False
        self.passed = 0
        """What it was served, on the clock of its source."""

    @property
    def waiting(self) -> bool:
        """Whether it has asked and was not served since."""
        return self._waiting

    def ask(self) -> None:
        """There is something to do: at once where nothing is in the way, else when it is this connection's turn."""
        if not (self._waiting or self._ended):
            self._turns._ask(self)

    def charge(self, steps: int = 0, time_ns: int = 0) -> None:
        """The piece that was just done had so many costly steps, or goes on elsewhere for so long."""
        if not self.trusted:
            self.passed += time_ns
            self._turns._charge(self._source, steps, time_ns)

    def end(self) -> None:
        """The connection is gone."""
        if not self._ended:
            self._ended = True
            self._turns._end(self._source)


class _Source:
    """All strangers that come from one place."""

    __slots__ = ("connections", "name", "passed", "queued", "served", "steps", "steps_at_ns", "waiting")

    def __init__(self, name: str, now_ns: int) -> None:
        self.name = name
        self.connections = 0
        self.passed = 0
        self.served = 0
        """The clock of its connections: what the last one served had passed."""
        self.queued = False
        self.steps = STEPS_BURST * NS_PER_S
        self.steps_at_ns = now_ns
        self.waiting: list[tuple[int, int, Turn]] = []

    def step_wait_ns(self, now_ns: int) -> int:
        """How long until it may take a costly step again."""
        gained = (now_ns - self.steps_at_ns) * STEPS_PER_SECOND
        self.steps = min(STEPS_BURST * NS_PER_S, self.steps + gained)
        self.steps_at_ns = now_ns
        return 0 if self.steps > 0 else -self.steps // STEPS_PER_SECOND + 1


@dataclass(slots=True)
class _Share:
    """A bucket of time. What is overdrawn is waited for."""

    percent: int
    at_ns: int = 0
    credit_ns: int = BURST_NS

    def refill(self, now_ns: int) -> bool:
        """Whether anything may be done now."""
        self.credit_ns = min(BURST_NS, self.credit_ns + (now_ns - self.at_ns) * self.percent // 100)
        self.at_ns = now_ns
        return self.credit_ns > 0

    def spend(self, time_ns: int) -> None:
        """So much was used."""
        self.credit_ns = max(self.credit_ns - time_ns, -DEBT_NS_MAX)

    @property
    def wait_ns(self) -> int:
        """Until something may be done."""
        return 0 if self.credit_ns > 0 else -self.credit_ns * 100 // self.percent + 1


class Turns:
    """The order of one event loop, which has to run when a connection asks. What pieces take is measured with `clock`:
    the loop's own time stands still for as long as it turns once. Shares grow with the loop's."""

    def __init__(self, clock: Clock) -> None:
        self._clock_ns = clock.boottime_ns
        self._strangers = _Share(STRANGER_PERCENT)
        self._trusted = _Share(TRUSTED_PERCENT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sources: dict[str, _Source] = {}
        """Those with a connection, and SOURCES_KEPT_MAX others at most."""
        self._queue: list[tuple[int, int, _Source]] = []
        self._resting: list[_Source] = []
        """Sources that have used up their costly steps."""
        self._behind: deque[Turn] = deque()
        self._passed = 0
        self._number = 0
        self._serving = False
        self._timer: asyncio.TimerHandle | None = None
        self.waits_total = 0
        """How often a connection did not get its turn at once."""

    def place(self, source: str, take: Callable[[], bool]) -> Turn:
        """A place for a new connection from `source`, an address without its port."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._strangers.at_ns = self._trusted.at_ns = self._now_ns()
        known = self._sources.get(source)
        if known is None:
            self._forget_sources()
            known = self._sources[source] = _Source(source, self._now_ns())
        known.connections += 1
        return Turn(self, known, take)

    # --- for Turn

    def _ask(self, turn: Turn) -> None:
        now_ns = self._now_ns()
        idle = not (self._serving or self._behind if turn.trusted else self._serving or self._queue)
        share = self._trusted if turn.trusted else self._strangers
        free = turn.trusted or not turn._source.step_wait_ns(now_ns)
        if idle and free and share.refill(now_ns):
            self._serving = True
            self._piece(turn, share)
            self._serving = False
        else:
            self.waits_total += 1
            self._enqueue(turn)
        self._arm()

    def _charge(self, source: _Source, steps: int, time_ns: int) -> None:
        source.steps -= steps * NS_PER_S
        source.passed += time_ns
        self._strangers.spend(time_ns)

    def _end(self, source: _Source) -> None:
        source.connections -= 1

    def _forget_sources(self) -> None:
        """Keep those in mind that have something to make up for, up to a bound."""
        if len(self._sources) < SOURCES_KEPT_MAX:
            return
        idle = [source for source in self._sources.values() if not source.connections]
        for source in idle[: len(idle) // 2 + 1]:
            del self._sources[source.name]

    # --- inside

    def _now_ns(self) -> int:
        assert self._loop is not None
        return int(self._loop.time() * NS_PER_S)

    def _enqueue(self, turn: Turn) -> None:
        turn._waiting = True
        if turn.trusted:
            self._behind.append(turn)
            return
        source = turn._source
        turn.passed = max(turn.passed, source.served - 1)  # a newcomer before those who had as much
        self._number += 1
        heappush(source.waiting, (turn.passed, self._number, turn))
        self._queue_source(source)

    def _queue_source(self, source: _Source) -> None:
        if not source.queued and source.waiting:
            source.queued = True
            source.passed = max(source.passed, self._passed)
            self._number += 1
            heappush(self._queue, (source.passed, self._number, source))

    def _arm(self) -> None:
        """Have a timer for the next piece that may be done."""
        if self._timer is not None or self._serving:
            return
        waits_ns = []
        if self._behind:
            waits_ns.append(self._trusted.wait_ns)
        if self._queue:
            waits_ns.append(self._strangers.wait_ns)
        waits_ns += [-source.steps // STEPS_PER_SECOND for source in self._resting]
        if waits_ns and self._loop is not None:
            self._timer = self._loop.call_later(max(min(waits_ns) / NS_PER_S, WAIT_SECONDS_MIN), self._serve)

    def _serve(self) -> None:
        """One timer's worth of pieces: the trusted first."""
        self._timer = None
        now_ns = self._now_ns()
        resting, self._resting = self._resting, []
        for source in resting:
            if source.step_wait_ns(now_ns):
                self._resting.append(source)
            else:
                source.queued = False
                self._queue_source(source)
        self._serving = True
        try:
            for _ in range(len(self._behind)):
                if not self._trusted.refill(now_ns):
                    break
                turn = self._behind.popleft()
                turn._waiting = False
                self._piece(turn, self._trusted)
            while self._queue and self._strangers.refill(now_ns):
                self._next_stranger(now_ns)
        finally:
            self._serving = False
        self._arm()

    def _next_stranger(self, now_ns: int) -> None:
        self._passed, _, source = heappop(self._queue)
        if source.step_wait_ns(now_ns):
            self._resting.append(source)  # it stays queued, so that it is not queued twice
            return
        source.queued = False
        source.served, _, turn = heappop(source.waiting)
        turn._waiting = False
        self._piece(turn, self._strangers)
        self._queue_source(source)

    def _piece(self, turn: Turn, share: _Share) -> None:
        if turn._ended:
            return
        more, trusted, begun_ns = False, turn.trusted, self._clock_ns()
        try:
            more = turn._take()
        except Exception:
            log.exception("event=turn_broke source=%s", turn._source.name)
        spent_ns = max(self._clock_ns() - begun_ns, PIECE_NS_MIN)
        if turn.trusted and not trusted:
            spent_ns = min(spent_ns, ADMITTED_NS_MAX)
        spent_ns = min(spent_ns, PIECE_NS_MAX)
        share.spend(spent_ns)
        turn.passed += spent_ns
        turn._source.passed += spent_ns
        if more and not turn._ended and not turn._waiting:
            self.waits_total += 1
            self._enqueue(turn)
