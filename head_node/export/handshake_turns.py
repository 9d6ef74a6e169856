"""Costly steps of strangers one by one: their share of the event loop is bounded, and each source gets its turn."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from sled_controller.environment import Clock

LOOP_SHARE: Final = 5
"""All steps together take at most one part in so many of the loop's time."""
STEP_NS_MAX: Final = 5_000_000
"""No step costs more, an RSA key of 4096 bits included: what seems to was spent waiting for a processor."""

Step = Callable[[], None]


class HandshakeTurns:
    """After a step that took T, the next one begins 4 T later, whatever waits; sources (addresses) alternate."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[str, deque[Step]] = {}
        self._next_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, source: str, step: Step) -> None:
        """Call `step` when its turn comes, in a later turn of the loop."""
        self._waiting.setdefault(source, deque()).append(step)
        self._plan()

    def close(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self) -> None:
        if self._timer is None and self._waiting:
            delay_s = max(0, self._next_ns - self._clock.boottime_ns()) / 1e9
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._take_one)

    def _take_one(self) -> None:
        self._timer = None
        source = next(iter(self._waiting))
        steps = self._waiting.pop(source)
        step = steps.popleft()
        if steps:
            self._waiting[source] = steps  # behind the others
        begun_ns = self._clock.boottime_ns()
        try:
            step()
        finally:
            ended_ns = self._clock.boottime_ns()
            self._next_ns = ended_ns + min(ended_ns - begun_ns, STEP_NS_MAX) * (LOOP_SHARE - 1)
            self._plan()
