"""The time that credentials and key sets are issued at: the authority's clock, kept from ever being behind the sleds'.

A sled takes max(its clock, the newest issue time it has seen + uptime since) for the time (docs/credentials.md). What
is issued by a clock behind that has expired before it is used, and takeovers stop. So issue time never falls, also when
the clock is set back or the authority starts again, and follows the sleds when they are ahead. Expiry is counted from
issue, so that being ahead of the world costs nothing.
"""

import contextlib
from collections.abc import Collection
from typing import Final

from head_node.authority.errors import AuthorityError
from head_node.authority.ledger import ISSUED_KEY, Ledger
from sled_controller.environment import TIME_MS_MAX as TIME_MAX_MS
from sled_controller.environment import Environment

KEPT_STEP_MS: Final = 30_000
"""How far issue time moves before it is written down again: far below the shortest usual term, rare as a put."""
NS_PER_MS: Final = 1_000_000


class IssueTime:
    """Unix milliseconds that never fall. `load` once before use."""

    def __init__(self, ledger: Ledger, env: Environment) -> None:
        self._ledger = ledger
        self._env = env
        self._base_ms = 0
        self._base_ns = env.clock.boottime_ns()
        self._kept_ms = 0

    async def load(self) -> None:
        """Take up where a former run ended. Raises AuthorityUnavailable."""
        found = await self._ledger.json(ISSUED_KEY)
        if found is not None:
            self._kept_ms = int(found.value["issued_ms"])
            self._raise_to(self._kept_ms)

    def now_ms(self) -> int:
        """What is issued now is issued at this time."""
        self._raise_to(self._env.clock.wall_ms())
        return self._base_ms

    async def stamp(self) -> int:
        """`now_ms`, noted durably from time to time. A note that fails is made with the next one."""
        now_ms = self.now_ms()
        if now_ms >= self._kept_ms + KEPT_STEP_MS:
            with contextlib.suppress(AuthorityError):
                await self._ledger.commit(compare={}, put={ISSUED_KEY: {"issued_ms": now_ms}})
                self._kept_ms = now_ms
        return now_ms

    def state(self, time_ms: int) -> None:
        """An operator has put the clocks right: go on from there, forward or back. The caller keeps it durably."""
        self._base_ms, self._base_ns = time_ms, self._env.clock.boottime_ns()
        self._kept_ms = time_ms

    def follow(self, sled_times_ms: Collection[int], enough: int) -> bool:
        """Move on to a time at which `enough` of these sleds take what is issued; False when that is now already, or
        too few have said theirs. The times of the others count for nothing: a sled's clock may be broken too."""
        if len(sled_times_ms) < enough:
            return False
        wanted_ms = sorted(sled_times_ms)[enough - 1]
        if wanted_ms <= self.now_ms():
            return False
        self._raise_to(wanted_ms)
        return self._base_ms == wanted_ms

    def _raise_to(self, time_ms: int) -> None:
        now_ns = self._env.clock.boottime_ns()
        run_on_ms = self._base_ms + (now_ns - self._base_ns) // NS_PER_MS
        self._base_ms, self._base_ns = max(run_on_ms, time_ms if time_ms <= TIME_MAX_MS else 0), now_ns
