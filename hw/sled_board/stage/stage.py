"""The stage: start what `choice` names, watch its health, confirm it or go on to the next one.

A *health check* is one interval in which the application has said once that it is well. Each change of importance is
one line of `report`, which a board's console shows (docs/firmware-slots.md).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeVar

from sled_board.errors import ImageError
from sled_board.stage.application import Child, Launcher
from sled_board.stage.choice import Choice, Chosen
from sled_board.stage.notices import RESTART_STATUS, Notice
from sled_board.stage.watchdog import Watchdog

log = logging.getLogger(__name__)
T = TypeVar("T")

RECOVERY_STATUS: Final = 86
"""With which the stage ends when there is nothing left to start."""
CHECKS_FAILED_MAX: Final = 3
CHECKS_TO_CONFIRM: Final = 2
PAUSE_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """`start_s`: from the start to READY; `check_s`: the length of a health check."""

    start_s: float = 60.0
    check_s: float = 5.0


class End(Enum):
    """How a start ended."""

    ASKED = auto()  # the application wants to be started anew
    STOPPED = auto()  # the stage was told to stop
    FAILED = auto()  # it ended, or was not ready in time: the attempt is counted
    UNHEALTHY = auto()  # it was ready, and then failed its health checks


class Stage:
    """`stop` ends it in good order; `report` is given lines for people and for whoever reads the console."""

    def __init__(
        self, choice: Choice, launcher: Launcher, stop: asyncio.Event, *, watchdog: Watchdog,
        report: Callable[[str], None], timing: Timing | None = None,
    ) -> None:  # fmt: skip
        self._choice = choice
        self._launcher = launcher
        self._stop = stop
        self._watchdog = watchdog
        self._report = report
        self._timing = timing or Timing()

    async def run(self) -> int:
        """Until told to stop (0) or nothing is left (RECOVERY_STATUS)."""
        reset = self._watchdog.has_reset_the_board
        failures = 0
        while not self._stop.is_set():
            self._watchdog.pet()
            chosen = self._choice.next(watchdog=reset)
            self._watchdog.pet()
            reset = False
            if chosen is None:
                self._say("recovery")
                return RECOVERY_STATUS
            end = await self._started(chosen)
            if end in (End.ASKED, End.STOPPED):
                self._choice.ended_in_order(chosen)
            failures = failures + 1 if end in (End.FAILED, End.UNHEALTHY) else 0
            if failures:
                await self._pause(min(2.0 ** (failures - 1), PAUSE_SECONDS_MAX))
        return 0

    async def _started(self, chosen: Chosen) -> End:
        record = self._choice.slots[chosen.slot]
        self._say("starting", chosen, f"state={record.state.value} attempts_left={record.attempts_left}")
        try:
            async with contextlib.AsyncExitStack() as stack:
                launched = stack.enter_async_context(self._launcher.launched(chosen.image))
                return await self._watched(chosen, await self._petting(launched))
        except (ImageError, OSError) as error:
            self._say("not_started", chosen, f"reason={error}")
            return End.FAILED

    async def _watched(self, chosen: Chosen, child: Child) -> End:
        ended = asyncio.ensure_future(child.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        health = _Health(self._timing, asyncio.get_running_loop().time())
        try:
            while True:
                notice = asyncio.ensure_future(child.notices.get())
                left_s = health.due_s - asyncio.get_running_loop().time()
                done, _ = await asyncio.wait(
                    (ended, stopped, notice), timeout=max(0.0, min(left_s, self._timing.check_s)),
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                self._watchdog.pet()
                if notice in done:
                    health.take(notice.result(), asyncio.get_running_loop().time())
                else:
                    notice.cancel()
                if ended in done:
                    return self._ended(chosen, ended.result())
                if stopped in done:
                    await self._petting(child.end(gently=True))
                    return End.STOPPED
                end = self._checked(chosen, health)
                if end is not None:
                    return end
        finally:
            for future in (ended, stopped, notice):
                future.cancel()

    async def _petting(self, work: Awaitable[T]) -> T:
        """The result of something that takes its time."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._watchdog.pet()
                await asyncio.wait((task,), timeout=self._timing.check_s)
        finally:
            task.cancel()
        return task.result()

    def _ended(self, chosen: Chosen, status: int) -> End:
        if status == RESTART_STATUS:
            self._say("restarting", chosen)
            return End.ASKED
        self._say("ended", chosen, f"status={status}")
        return End.FAILED

    def _checked(self, chosen: Chosen, health: "_Health") -> End | None:
        now_s = asyncio.get_running_loop().time()
        if now_s < health.due_s:
            return None
        if not health.ready:
            self._say("not_ready", chosen, f"seconds={self._timing.start_s:g} status={health.status!r}")
            return End.FAILED
        health.check(now_s)
        if health.failed >= CHECKS_FAILED_MAX:
            self._say("unhealthy", chosen, f"checks={health.failed} status={health.status!r}")
            self._choice.unhealthy(chosen, f"{health.failed} health checks failed")
            return End.UNHEALTHY
        if health.passed == CHECKS_TO_CONFIRM and not health.confirmed:
            health.confirmed = True
            self._choice.healthy(chosen)
            self._say("healthy", chosen)
        return None

    async def _pause(self, seconds: float) -> None:
        """A child that fails at once must not keep the board busy with that."""
        until = asyncio.get_running_loop().time() + seconds
        while not self._stop.is_set() and (left_s := until - asyncio.get_running_loop().time()) > 0:
            self._watchdog.pet()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, self._timing.check_s)):
                    await self._stop.wait()

    def _say(self, event: str, chosen: Chosen | None = None, more: str = "") -> None:
        words = [f"event={event}"]
        if chosen is not None:
            words += [f"slot={chosen.slot.value}", f"version={chosen.image.version}", f"image={chosen.image.id}"]
        self._report(" ".join([*words, *([more] if more else [])]))


class _Health:
    """What is known of the application in this start. `due_s` is when it is looked at next, in loop time."""

    def __init__(self, timing: Timing, now_s: float) -> None:
        self._timing = timing
        self._heard = False
        self.ready = False
        self.confirmed = False
        self.passed = 0
        self.failed = 0
        self.status = ""
        self.due_s = now_s + timing.start_s

    def take(self, notice: Notice, now_s: float) -> None:
        """A datagram."""
        self.status = notice.status or self.status
        self._heard = self._heard or notice.healthy
        if notice.ready and not self.ready:
            self.ready = True
            self.due_s = now_s + self._timing.check_s

    def check(self, now_s: float) -> None:
        """A health check is over. The next one is whole, however late this one was."""
        self.passed, self.failed = (self.passed + 1, 0) if self._heard else (0, self.failed + 1)
        self._heard = False
        self.due_s = now_s + self._timing.check_s
