"""The commit point of a log once writes stop: batches carry it while writes flow, a note keeps it when they do not.

The last batch's own commit is only known after it was written. Without the note a log that loses its last batch would
look like one that never had it, and a head with such a log could lead and cut what was acknowledged (D1).
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from head_node.volume.identity import PromiseFile

NOTE_SECONDS: Final = 0.1
"""A volume is idle when the commit point has advanced and nothing was written for this long: one sync per idle time."""


class Progress(Protocol):
    """What tells that writes still flow."""

    committed: int

    @property
    def batch_count(self) -> int: ...


class IdleNote:
    """Notes the commit point off the write path. `on_failed`: the promise file cannot be trusted any more."""

    def __init__(
        self,
        promise: PromiseFile,
        progress: Progress,
        epoch_of: Callable[[int], int],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._promise = promise
        self._progress = progress
        self._epoch_of = epoch_of
        self._on_failed = on_failed
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def advanced(self) -> None:
        """The commit point has moved on: note it when nothing follows."""
        if self._timer is None and not self._closed:
            self._arm()

    async def close(self, *, wait: bool) -> None:
        """Note nothing more; `wait` for a note that is under way."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait and self._task is not None:
            await asyncio.wait([self._task])

    def _arm(self) -> None:
        seen = self._progress.committed, self._progress.batch_count
        self._timer = asyncio.get_running_loop().call_later(NOTE_SECONDS, self._look, seen)

    def _look(self, seen: tuple[int, int]) -> None:
        self._timer = None
        if seen != (self._progress.committed, self._progress.batch_count) or self._task is not None:
            self._arm()
        elif seen[0] > self._promise.promise.committed[0]:
            self._task = asyncio.get_running_loop().create_task(self._note(seen[0]))

    async def _note(self, opnum: int) -> None:
        try:
            await self._promise.note_committed(opnum, self._epoch_of(opnum))
        except Exception as error:
            self._on_failed(error)
        finally:
            self._task = None
