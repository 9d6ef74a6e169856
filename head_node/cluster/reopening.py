"""A volume that failed on a head begins again there, as after a restart, in pauses that double while it fails again.

What was wrong may be over: a disk was full, or lost its bus for a moment. Without this, redundancy would not come back
until the head is restarted, and with it every other volume.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from uuid import UUID

FIRST_SECONDS: Final = 5.0
LONGEST_SECONDS: Final = 600.0
"""A disk that fails each time costs its volume's members a resync so often, and no more."""

log = logging.getLogger(__name__)


class Reopening:
    """When each failed volume is tried again; `begin(volume)` does it."""

    def __init__(self, begin: Callable[[UUID], None]) -> None:
        self._begin = begin
        self._timers: dict[UUID, asyncio.TimerHandle] = {}
        self._pauses: dict[UUID, tuple[float, float]] = {}
        """volume -> (its last pause, when that ended)."""

    def failed(self, volume: UUID) -> None:
        """It has failed, and nothing of it runs any more."""
        if volume in self._timers:
            return
        loop = asyncio.get_running_loop()
        last_s, ended_s = self._pauses.get(volume, (0.0, 0.0))
        held = loop.time() - ended_s > LONGEST_SECONDS
        pause_s = FIRST_SECONDS if not last_s or held else min(2 * last_s, LONGEST_SECONDS)
        self._pauses[volume] = (pause_s, loop.time() + pause_s)
        self._timers[volume] = loop.call_later(pause_s, self._due, volume)
        log.warning("event=volume_begins_again volume=%s in_seconds=%g", volume, pause_s)

    def forget(self, volume: UUID) -> None:
        """It has left this head."""
        self._pauses.pop(volume, None)
        if (timer := self._timers.pop(volume, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Begin nothing any more."""
        for volume in list(self._timers):
            self.forget(volume)

    def _due(self, volume: UUID) -> None:
        del self._timers[volume]
        self._begin(volume)
