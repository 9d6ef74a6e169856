"""Reads that wait for sleds: what they need cannot be had now, and may come back.

They are asked again when a sled is attached; those that failed although all sleds are attached, after a moment too. One
timer serves them all, and a turn of the loop begins a bounded number of them.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from head_node.volume.interface import Gone

MOMENT_SECONDS: Final = 1.0
"""Until a read is asked again that failed although all of its sleds are attached (a drive that is not ready, say)."""
PER_TURN_MAX: Final = 256
"""Reads begun again, or looked at, in one turn of the loop: a few milliseconds."""


@dataclass(slots=True, eq=False)
class WaitingRead:
    """One read; `again` begins it once more, `fail` answers it with an error."""

    since_s: float
    columns: frozenset[int]
    moment: bool
    gone: Gone
    again: Callable[[], None]
    fail: Callable[[], None]


class SledWaits:
    """All of one volume's."""

    def __init__(self, limit_s: Callable[[], float | None]) -> None:
        """`limit_s()`: how long a read may wait; None is for ever."""
        self._limit_s = limit_s
        self._reads: dict[WaitingRead, None] = {}
        self._columns: Counter[int] = Counter()
        self._due: deque[WaitingRead] = deque()
        """Those whose turn has come."""
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.expired_count = 0
        self.gone_count = 0

    def __len__(self) -> int:
        return len(self._reads)

    @property
    def columns(self) -> list[int]:
        """The columns that any of them waits for."""
        return sorted(self._columns)

    def oldest_s(self, now_s: float) -> float:
        """How long the one that has waited longest has waited."""
        return max((now_s - read.since_s for read in self._reads), default=0.0)

    def add(self, read: WaitingRead) -> None:
        """Keep a read until a sled comes, its moment is over, its time is up, or its client is gone."""
        self._reads[read] = None
        self._columns.update(read.columns)
        self._arm()

    def attached(self) -> None:
        """A sled was attached, so each may be answered now."""
        self._due = deque(self._reads)
        self._begin()

    def drop(self) -> None:
        """Forget all of them unanswered."""
        self._reads.clear()
        self._columns.clear()
        self._due.clear()
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        self._turn = self._timer = None

    def look(self) -> None:
        """The limit has changed."""
        if self._timer is not None:
            self._timer.cancel()
        self._look()

    def _take(self, read: WaitingRead) -> bool:
        if read not in self._reads:
            return False
        del self._reads[read]
        self._columns -= Counter(read.columns)
        return True

    def _begin(self) -> None:
        if self._turn is None and self._due:
            self._turn = asyncio.get_running_loop().call_soon(self._retry)

    def _retry(self) -> None:
        self._turn = None
        due = self._due
        for _ in range(min(PER_TURN_MAX, len(due))):
            read = due.popleft()
            if not self._take(read):
                continue
            if read.gone():
                self.gone_count += 1
            else:
                read.again()
        self._begin()

    def _arm(self) -> None:
        if self._timer is None and self._reads:
            limit_s = self._limit_s()
            pause_s = MOMENT_SECONDS if limit_s is None else min(MOMENT_SECONDS, limit_s)
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._look)

    def _look(self) -> None:
        """Answer those whose time is up, forget those whose clients are gone, ask again those that waited a moment.

        What was looked at goes to the end, so that each has its turn."""
        self._timer = None
        now_s, limit_s = asyncio.get_running_loop().time(), self._limit_s()
        if limit_s is not None:
            for read in [read for read in self._reads if now_s - read.since_s >= limit_s]:
                self._take(read)
                self.expired_count += 1
                read.fail()
        for read in list(self._reads)[:PER_TURN_MAX]:
            if read.gone():
                self._take(read)
                self.gone_count += 1
            elif read.moment:
                self._due.append(read)
            self._to_end(read)
        self._begin()
        self._arm()

    def _to_end(self, read: WaitingRead) -> None:
        if read in self._reads:
            del self._reads[read]
            self._reads[read] = None
