"""A column with a time limit: one that leaves a command unanswered for too long is left alone until it answers.

The association to its sled may be alive, so may other drives there; only this column is away meanwhile. A write that
is given up may still be carried out (F3): its slot waits for the answer, or for the end of the attach.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from head_node.volume.columns import Column
from head_node.volume.errors import ColumnHangs
from spdk_bindings.device import Buffer

LATE_SECONDS: Final = 0.5
"""A timer that fires so much later says that this process was away: what was answered meanwhile is in a socket."""

LateAnswer = Callable[["WatchedColumn", int, BaseException | None], None]


class WatchedColumn:
    """One attach of a column, as `Column`. `available` is False while a command is overdue.

    `on_changed(column)` is called when it begins to hang and when it has answered; `on_late(column, lba, error)` when a
    write ends that was given up before.
    """

    def __init__(
        self, inner: Column, seconds_max: float, on_changed: Callable[["WatchedColumn"], None], on_late: LateAnswer
    ) -> None:
        self.inner = inner
        self.blocks = inner.blocks
        self.hangs = False
        self._seconds_max = seconds_max
        self._on_changed = on_changed
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._present_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unanswered: dict[asyncio.Future[None] | asyncio.Future[Buffer], float] = {}
        """When each command was given to the column, oldest first."""
        self._writes: dict[asyncio.Future[None], asyncio.Future[None]] = {}
        """The column's future -> the caller's."""

    @property
    def available(self) -> bool:
        return not self.hangs and self.inner.available

    def write(self, lba: int, buffers: Sequence[Buffer], *, fua: bool) -> asyncio.Future[None]:
        """Like `Column.write`; fails with ColumnHangs when the answer takes too long, and may be carried out still."""
        asked = self.inner.write(lba, buffers, fua=fua)
        told: asyncio.Future[None] = self._loop.create_future()
        self._writes[asked] = told
        self._unanswered[asked] = self._loop.time()
        self._watch()
        asked.add_done_callback(lambda future: self._written(lba, future))
        return told

    def read(self, lba: int, blocks: int) -> asyncio.Future[Buffer]:
        """Like `Column.read`; it is the reader who looks elsewhere when it takes too long."""
        asked = self.inner.read(lba, blocks)
        self._unanswered[asked] = self._loop.time()
        if self._timer is None:
            self._watch()
        asked.add_done_callback(self._read)
        return asked

    def _watch(self) -> None:
        if self._timer is None and not self.hangs:
            self._timer = self._loop.call_later(self._seconds_max, self._look)

    def _oldest_s(self) -> float | None:
        """Since when the oldest command is unanswered, as far as this process was there to see it."""
        for since_s in self._unanswered.values():
            return max(since_s, self._present_s)
        return None

    def _look(self) -> None:
        timer, self._timer = self._timer, None
        now_s, oldest_s = self._loop.time(), self._oldest_s()
        if oldest_s is None:
            return
        if timer is not None and now_s > timer.when() + LATE_SECONDS:
            self._present_s = oldest_s = now_s
        if now_s < oldest_s + self._seconds_max:
            self._timer = self._loop.call_at(oldest_s + self._seconds_max, self._look)
            return
        self.hangs = True
        for told in self._writes.values():
            if not told.done():
                told.set_exception(ColumnHangs(f"a command is unanswered for {now_s - oldest_s:.1f} s"))
        self._on_changed(self)

    def _written(self, lba: int, asked: asyncio.Future[None]) -> None:
        told = self._writes.pop(asked)
        error = asyncio.CancelledError() if asked.cancelled() else asked.exception()
        if not told.done():
            if error is None:
                told.set_result(None)
            else:
                told.set_exception(error)
        else:
            # After whoever was told of the failure has heard of it.
            self._loop.call_soon(self._on_late, self, lba, error)
        self._answered(asked)

    def _read(self, asked: asyncio.Future[Buffer]) -> None:
        if not asked.cancelled():
            asked.exception()  # a reader that has enough without this one asks no more what became of it
        self._answered(asked)

    def _answered(self, asked: asyncio.Future[None] | asyncio.Future[Buffer]) -> None:
        del self._unanswered[asked]
        if not self.hangs:
            return
        oldest_s = self._oldest_s()
        if oldest_s is None or self._loop.time() < oldest_s + self._seconds_max:
            self.hangs = False
            if oldest_s is not None:
                self._timer = self._loop.call_at(oldest_s + self._seconds_max, self._look)
            self._on_changed(self)


def hanging(columns: Sequence[Column | None]) -> list[int]:
    """Which of the columns do not answer."""
    return [index for index, column in enumerate(columns) if isinstance(column, WatchedColumn) and column.hangs]
