"""When what could not be done at a sled is tried again: at once where a head reaches the sled, else rarely."""

from collections.abc import Collection, Hashable
from typing import Final
from uuid import UUID

from head_node.authority.reports import Reports
from sled_controller.environment import Environment

LOOK_S: Final = 5.0
"""Between two looks at what is still to be done."""
LOOK_NS: Final = int(LOOK_S * 1_000_000_000)
RETRY_NS: Final = 60 * 1_000_000_000
"""Between two tries at a sled that no head reaches. One that a head reaches is tried at once, and if it refuses (a
drive of it is offline) after pauses that double."""
REFUSED_RETRY_NS_MAX: Final = 30 * 60 * 1_000_000_000
"""Longer than a usual term: each try signs a credential, which puts off when the volume's fences are forgotten."""


class SledRetries:
    """Of intentions that are kept elsewhere; what is kept here is lost with the process, and then all are due."""

    def __init__(self, reports: Reports, env: Environment) -> None:
        self._reports = reports
        self._env = env
        self._tried_ns: dict[tuple[Hashable, UUID], int] = {}
        self._refused: dict[tuple[Hashable, UUID], int] = {}
        """Tries in a row that a sled which a head reaches has refused."""

    def keep_only(self, intentions: Collection[Hashable]) -> None:
        """Forget what is known of others than these."""
        self._tried_ns = {key: at for key, at in self._tried_ns.items() if key[0] in intentions}
        self._refused = {key: count for key, count in self._refused.items() if key[0] in intentions}

    def due(self, intention: Hashable, sled: UUID) -> bool:
        """Whether it should be tried at the sled now."""
        key = (intention, sled)
        if (tried_ns := self._tried_ns.get(key)) is None:
            return True
        pause_ns = RETRY_NS
        if self._reports.sled_reachable(sled) is True:
            refused = self._refused.get(key, 0)
            pause_ns = min(LOOK_NS << min(refused, 16), REFUSED_RETRY_NS_MAX) if refused else 0
        else:
            self._refused.pop(key, None)  # it may come back with what it lacked
        return self._env.clock.boottime_ns() >= tried_ns + pause_ns

    def begun(self, intention: Hashable, sled: UUID) -> None:
        """It is tried at the sled now."""
        self._tried_ns[intention, sled] = self._env.clock.boottime_ns()

    def failed(self, intention: Hashable, sled: UUID) -> None:
        """It could not be done there."""
        if self._reports.sled_reachable(sled) is True:
            self._refused[intention, sled] = self._refused.get((intention, sled), 0) + 1
