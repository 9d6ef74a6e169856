"""Where the costly steps of authentication are carried out: in a thread, in turn by source, half of the time at most.

An exchange takes 0.5 to 11 ms (docs/authentication.md), and a host that has proved nothing yet may ask for one. GMP
lets go of the interpreter while it computes, so the event loop goes on.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import gmpy2

from sled_controller.environment import Environment

WAITING_MAX: Final = 256
WAITING_OF_SOURCE_MAX: Final = 64
"""Of one address: its hosts connect to several volumes at once, a queue after the other."""
NS_PER_S: Final = 1_000_000_000
REST_NS_MAX: Final = 100_000_000
"""After an exchange that seemed to take longer: the machine was suspended in it, or other programs had the cores."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    work: Callable[[], None]
    done: Callable[[bool], None]


class Exchanges:
    """Those of one port. Until `start` they are carried out at once, by whatever asks for them."""

    def __init__(self, env: Environment) -> None:
        self.refused = 0
        self._env = env
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._waiting: dict[str, deque[_Exchange]] = {}
        """By source; the one that waits for longest first."""
        self._count = 0
        self._resting: asyncio.TimerHandle | None = None
        self._working = False

    def start(self) -> None:
        """Use a thread from now on, and the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Nothing more is begun."""
        self._closed = True
        self._waiting.clear()
        if self._resting is not None:
            self._resting.cancel()

    def begin(self, source: str, work: Callable[[], None], done: Callable[[bool], None]) -> None:
        """Carry out `work`, which must not raise, then call `done(True)` in the event loop; `done(False)` at once if
        too many wait, in all or of that source."""
        if self._loop is None:
            work()
            done(True)
            return
        waiting = self._waiting.get(source)
        if self._count >= WAITING_MAX or (waiting is not None and len(waiting) >= WAITING_OF_SOURCE_MAX):
            self.refused += 1
            done(False)
            return
        self._waiting.setdefault(source, deque()).append(_Exchange(work, done))
        self._count += 1
        self._next()

    def _next(self) -> None:
        if self._working or self._resting is not None or not self._waiting or self._loop is None:
            return
        source = next(iter(self._waiting))
        waiting = self._waiting.pop(source)
        exchange = waiting.popleft()
        if waiting:
            self._waiting[source] = waiting  # behind the other sources
        self._count -= 1
        self._working = True
        carried_out = self._env.in_thread(partial(self._carry_out, exchange))
        carried_out.add_done_callback(lambda took: self._carried_out(exchange, took.result()))

    def _carry_out(self, exchange: _Exchange) -> int:
        """In a thread; how many nanoseconds it took."""
        gmpy2.get_context().allow_release_gil = True  # a context of GMP belongs to a thread
        began_ns = self._env.clock.boottime_ns()
        exchange.work()
        return self._env.clock.boottime_ns() - began_ns

    def _carried_out(self, exchange: _Exchange, took_ns: int) -> None:
        assert self._loop is not None
        self._working = False
        if self._closed:
            return
        self._resting = self._loop.call_later(min(took_ns, REST_NS_MAX) / NS_PER_S, self._rested)
        exchange.done(True)

    def _rested(self) -> None:
        self._resting = None
        self._next()
