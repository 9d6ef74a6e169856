"""Which copy of a volume is slow: measured against the other copies and its own past, with hysteresis.

A gray member (one that answers, but late) holds every write up, since each waits for every member. Pure bookkeeping:
times are handed in, in nanoseconds of CLOCK_BOOTTIME.

The delay of a copy in a window is weighted by time: the sum of the squares of its answer times over their sum, which is
how long the answer takes that is owed at a random moment. A member that stands still for 380 of every 420 ms
answers nearly all records within a millisecond, and still costs a depth-1 writer nine tenths of its rate.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import UUID

from head_node.cluster.lease import MS
from head_node.store.records import Member

WINDOW_NS: Final = 1000 * MS
"""What is judged at once: several heartbeats, and longer than any healthy drive's worst sync."""
SLOW_FLOOR_NS: Final = 200 * MS
"""No delay below this is slow, whatever the others do: a busy machine delays any process by tens of milliseconds."""
SLOW_FACTOR: Final = 10
"""A slow copy takes this many times as long as the slowest of the others; drives of one kind differ by two or three."""
PAST_FACTOR: Final = 3
"""And this many times as long as it used to: a copy that was always far away is no worse than when it was added."""
PAST_SHARE: Final = 16
"""Windows over which the past is smoothed."""
SLOW_WINDOWS: Final = 8
"""Slow windows that make a copy slow. A fast one in between takes two of them back, so that a hiccup counts for
nothing, and a copy that is slow for more than two thirds of the time is still found."""
FAST_SHARE: Final = 2
PROBATION_WINDOWS: Final = 20
"""A slow copy must have been fast for so many windows in succession before it counts; each relapse doubles them."""
PROBATION_WINDOWS_MAX: Final = 600
STEADY_WINDOWS: Final = 600
"""After as many windows without a relapse the next probation is the shortest again."""


class DelayMeter:
    """How long it takes to get an answer while one is owed, within the window that is open. Marks rise; an answer to
    one answers all before it. With many outstanding the time between two answers counts, not how long the queue is."""

    __slots__ = ("_newest", "_since_ns", "_squares", "_sum")

    def __init__(self) -> None:
        self._newest = 0
        self._since_ns: int | None = None
        self._sum = 0
        self._squares = 0

    def sent(self, mark: int, now_ns: int) -> None:
        """Something that will be answered was sent."""
        self._newest = mark
        if self._since_ns is None:
            self._since_ns = now_ns

    def answered(self, mark: int, now_ns: int) -> None:
        """Everything up to `mark` is answered."""
        if self._since_ns is not None:
            self.add(now_ns - self._since_ns)
            self._since_ns = now_ns if mark < self._newest else None

    def add(self, delay_ns: int) -> None:
        """An answer that took so long."""
        self._sum += delay_ns
        self._squares += delay_ns * delay_ns

    def close_window(self, now_ns: int) -> int | None:
        """The delay of the window that ends now, None without anything to measure; the next one begins. What is still
        owed counts by its age, again in each window that it outlives."""
        age_ns = 0 if self._since_ns is None else now_ns - self._since_ns
        total, squares = self._sum + age_ns, self._squares + age_ns * age_ns
        self._sum = self._squares = 0
        return squares // total if total else None


@dataclass(slots=True)
class _Copy:
    score: int = 0
    slow: bool = False
    usual_ns: int | None = None
    delay_ns: int | None = None
    fast_windows: int = 0
    probation: int = field(default_factory=lambda: PROBATION_WINDOWS)
    """Windows of the next probation, or of this one."""


@dataclass(slots=True)
class PaceJudge:
    """Judges the copies of one volume window by window. A copy is slow only beside others that are not."""

    copies: dict[UUID, _Copy] = field(default_factory=dict)

    def judge(self, delays: Mapping[UUID, int | None]) -> list[UUID]:
        """Take the delays of one window, of all copies that are linked; returns those whose verdict has changed.

        A copy that was not measured keeps its verdict and its standing."""
        measured = {head: delay for head, delay in delays.items() if delay is not None}
        reference = {head: self._slowest_of_others(head, measured) for head in measured}
        return [head for head, delay in measured.items() if self._judge_one(head, delay, reference[head])]

    def slow(self, head: UUID) -> bool:
        """Whether this copy holds the volume up, and its probation is not over."""
        copy = self.copies.get(head)
        return copy is not None and copy.slow

    def delays_ms(self) -> dict[UUID, int]:
        """The delay of each copy in the newest window in which it was measured."""
        return {head: copy.delay_ns // MS for head, copy in self.copies.items() if copy.delay_ns is not None}

    def _slowest_of_others(self, head: UUID, measured: Mapping[UUID, int]) -> int | None:
        """None without another copy to compare with. One that is slow already is no measure."""
        others = [delay for other, delay in measured.items() if other != head and not self.slow(other)]
        return max(others, default=None)

    def _judge_one(self, head: UUID, delay_ns: int, reference_ns: int | None) -> bool:
        copy = self.copies.setdefault(head, _Copy())
        copy.delay_ns = delay_ns
        slow = (
            reference_ns is not None
            and delay_ns >= SLOW_FLOOR_NS
            and delay_ns >= SLOW_FACTOR * reference_ns
            and delay_ns >= PAST_FACTOR * (copy.usual_ns or 0)
        )
        if slow:
            copy.score, copy.fast_windows = min(copy.score + 1, SLOW_WINDOWS), 0
        else:
            copy.score, copy.fast_windows = max(copy.score - FAST_SHARE, 0), copy.fast_windows + 1
            if not copy.slow and delay_ns < SLOW_FLOOR_NS:
                usual = delay_ns if copy.usual_ns is None else copy.usual_ns
                copy.usual_ns = usual + (delay_ns - usual) // PAST_SHARE
        if not copy.slow and copy.score == SLOW_WINDOWS:
            copy.slow = True
            return True
        if copy.slow and copy.fast_windows >= copy.probation:
            copy.slow, copy.score = False, 0
            copy.probation = min(copy.probation * 2, PROBATION_WINDOWS_MAX)
            return True
        if not copy.slow and copy.fast_windows >= STEADY_WINDOWS:
            copy.probation = PROBATION_WINDOWS
        return False


class MeasuredMember(Protocol):
    """What the primary's end of a member's link measures."""

    member: Member
    records_pace: DelayMeter
    heartbeats_pace: DelayMeter

    @property
    def caught_up(self) -> bool: ...


class VolumePace:
    """The pace of every copy of one volume, as its primary sees it in one epoch. `tick` comes with each heartbeat."""

    def __init__(self, own: UUID, heartbeat_ms: int, now_ns: int) -> None:
        self._own = own
        self._heartbeat_ns = heartbeat_ms * MS
        self._judge = PaceJudge()
        self._ticked_ns = self._opened_ns = now_ns
        self.own_log = DelayMeter()
        """Fed with what the primary appends and what its own disk makes durable."""
        self._own_loop = DelayMeter()

    def slow(self, head: UUID) -> bool:
        """Whether the copy on `head` holds the volume up, or did so lately."""
        return self._judge.slow(head)

    def slow_heads(self) -> list[UUID]:
        return sorted(head for head in self._judge.copies if self._judge.slow(head))

    def delay_ms(self, head: UUID) -> int:
        """The newest measured delay of a copy."""
        return self._judge.delays_ms()[head]

    def status(self) -> dict[str, Any]:
        """For status reports: which copies are slow, and the newest delay of each."""
        slow = [str(head) for head in self.slow_heads()]
        delays = {str(head): delay for head, delay in self._judge.delays_ms().items()}
        return {"slow": slow, "slow_copies": len(slow), "members_delay_ms": delays}

    def tick(self, now_ns: int, members: Iterable[MeasuredMember], current: Container[UUID], owes: bool) -> list[UUID]:
        """Judge the window if it is over; returns the heads whose verdict has changed. `owes`: the primary's own log
        has something to make durable and room for it."""
        self._own_loop.add(max(0, now_ns - self._ticked_ns - self._heartbeat_ns))
        self._ticked_ns = now_ns
        length_ns = now_ns - self._opened_ns
        if length_ns < WINDOW_NS:
            return []
        self._opened_ns = now_ns
        log_ns = self.own_log.close_window(now_ns)
        # One that turns in time and owes nothing is as fast as can be: there is always something to compare with.
        own_ns = _longer(log_ns if owes else None, self._own_loop.close_window(now_ns)) or 0
        delays: dict[UUID, int | None] = {self._own: own_ns}
        for member in members:
            head = member.member.head
            records_ns = member.records_pace.close_window(now_ns)
            # One that catches up is fed as fast as it can take it: that measures its link, not its health.
            counts = head in current or member.caught_up
            delays[head] = _longer(records_ns if counts else None, member.heartbeats_pace.close_window(now_ns))
        if length_ns >= 2 * WINDOW_NS:
            return []  # this process stood still itself: nothing in the window says anything about the others
        return self._judge.judge(delays)


NO_PACE: Final[dict[str, Any]] = {"slow": [], "slow_copies": 0, "members_delay_ms": {}}
"""The same of a head that is not primary."""


def _longer(one: int | None, other: int | None) -> int | None:
    return max((delay for delay in (one, other) if delay is not None), default=None)
