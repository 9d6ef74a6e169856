"""One log line for many events of a kind: a flood at a port must not fill the log."""

import asyncio
import logging
from typing import Final

BURST_SECONDS: Final = 1.0
"""Events of this long after the first of a burst are told of together, when it is over."""


class Burst:
    """Events of one kind. `close` tells what was not told yet; it needs a running loop, as `add` does."""

    def __init__(self, log: logging.Logger, event: str, reason: str) -> None:
        self._log = log
        self._event = event
        self._reason = reason
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self) -> None:
        """It happened once more."""
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BURST_SECONDS, self.close)

    def close(self) -> None:
        """End the burst that goes on, if one does."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        count, self._count = self._count, 0
        self._log.warning("event=%s count=%d reason=%s", self._event, count, self._reason)
