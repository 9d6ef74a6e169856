"""How many files and sockets this process may have open at once, and how much of that is left.

Every program raises its soft limit to the hard one when it starts. What takes descriptors then asks first whether there
are some, and is refused with a reason: at the limit itself a log, a lock or a link would fail at random.
"""

import logging
import os
import resource
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

LIMIT_MAX: Final = 1 << 20
"""Where there is no hard limit: what Linux allows a process unless it is told otherwise (fs.nr_open)."""
RESERVE: Final = 64
"""Kept for what is open already and needs another one: a segment, a checkpoint, a link, a page of status. An
eighth of the limit where that is less."""
COUNT_SECONDS: Final = 0.1
"""An answer counts for so long; what was granted in between is added."""


class Descriptors:
    """Counts against a limit. `seconds` is any clock that goes on, `count_open` how many are open now."""

    def __init__(
        self, limit: int, seconds: Callable[[], float], count_open: Callable[[], int],
        limit_now: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        """`limit_now` says what the limit is where an operator may change it meanwhile (prlimit)."""
        self.limit = limit
        self._limit_now = limit_now
        self._seconds = seconds
        self._count_open = count_open
        self._counted_at = float("-inf")
        self._open = 0

    @property
    def open(self) -> int:
        """How many are open, as counted lately."""
        now = self._seconds()
        if now - self._counted_at >= COUNT_SECONDS:
            self._counted_at = now
            self._open = self._count_open()
            if self._limit_now is not None:
                self.limit = self._limit_now()
        return self._open

    @property
    def left(self) -> int:
        """How many may still be taken."""
        used = self.open  # which looks at the limit, too
        return max(0, self.limit - min(RESERVE, self.limit // 8) - used)

    @property
    def short(self) -> bool:
        """Whether only the reserve is left: nothing more is to be let in."""
        return not self.left

    def take(self, count: int) -> bool:
        """Whether so many may be opened now, without touching the reserve."""
        if count > self.left:
            return False
        self._open += count
        return True


UNLIMITED: Final = Descriptors(LIMIT_MAX, lambda: 0.0, lambda: 0)
"""For what runs in one process with others, as in the simulator."""


def raise_limit() -> int:
    """Raise the soft limit of this process to the hard one; returns it. Call it once, when a program starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = LIMIT_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as error:
            log.warning("event=descriptors_not_raised soft=%d hard=%d error=%s", soft, hard, error)
            return soft
        soft = wanted
    log.info("event=descriptors limit=%d open=%d", soft_limit(), count_open())
    return soft_limit()


def soft_limit() -> int:
    """How many this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LIMIT_MAX if soft == resource.RLIM_INFINITY else soft


def count_open() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def of_program(seconds: Callable[[], float]) -> Descriptors:
    """Those of this process, its limit raised."""
    return Descriptors(raise_limit(), seconds, count_open, soft_limit)


def memory_bytes() -> int:
    """What this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
