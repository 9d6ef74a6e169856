"""A stage over a store in a directory, on virtual time, with applications that do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from kit import firmware
from kit.firmware_store import Board, board
from rackctl.simulation.loop import SimulationLoop
from sled_board.image import Image
from sled_board.stage.application import Child
from sled_board.stage.choice import Choice
from sled_board.stage.notices import Notice
from sled_board.stage.stage import Stage, Timing
from sled_board.stage.watchdog import Watchdog

TIMING = Timing(start_s=60.0, check_s=5.0)
OLD = firmware.signed()
NEW = firmware.signed(firmware.recipe(version="1.5.0"))


class FakeChild:
    """An application; `play` is what it does, and its exit status is what that returns."""

    def __init__(self, play: "Play") -> None:
        self.notices: asyncio.Queue[Notice] = asyncio.Queue()
        self.ended_gently = False
        self._task = asyncio.ensure_future(play(self))

    async def wait(self) -> int:
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                return -9
            raise

    async def end(self, *, gently: bool) -> None:
        if not self._task.done():
            self.ended_gently = gently
            self._task.cancel()
            await asyncio.wait((self._task,))

    # --- what a play does

    def ready(self) -> None:
        self.notices.put_nowait(Notice(ready=True))

    async def healthy(self, seconds: float) -> None:
        """Say so every second."""
        for _ in range(round(seconds)):
            self.notices.put_nowait(Notice(healthy=True))
            await asyncio.sleep(1)


Play = Callable[[FakeChild], Awaitable[int]]


async def healthy(child: FakeChild) -> int:
    """Ready after two seconds, and well for a minute; then it asks to be started anew."""
    await asyncio.sleep(2)
    child.ready()
    await child.healthy(60)
    return 85


async def crashing(child: FakeChild) -> int:
    """Ends before it is ready."""
    await asyncio.sleep(1)
    return 1


async def never_ready(child: FakeChild) -> int:
    """Starts for ever."""
    await asyncio.sleep(10_000)
    return 0


async def silent(child: FakeChild) -> int:
    """Is ready and says nothing more: it hangs."""
    child.ready()
    await asyncio.sleep(10_000)
    return 0


class FakeLauncher:
    """Starts the plays by the image's version, in turn; the last one again and again."""

    def __init__(self, plays: dict[str, list[Play]]) -> None:
        self._plays = plays
        self.children: list[tuple[str, FakeChild]] = []

    @property
    def versions(self) -> list[str]:
        """What was started, in order."""
        return [version for version, _ in self.children]

    @asynccontextmanager
    async def launched(self, image: Image) -> AsyncIterator[Child]:
        plays = self._plays[image.version]
        child = FakeChild(plays.pop(0) if len(plays) > 1 else plays[0])
        self.children.append((image.version, child))
        try:
            yield child
        finally:
            await child.end(gently=False)


class ResettingWatchdog(Watchdog):
    """A hardware watchdog that ended the last run, or did not; it is petted in memory."""

    def __init__(self, *, has_reset: bool = False) -> None:
        super().__init__(None)
        self.petted = 0
        self._has_reset = has_reset

    @property
    def has_reset_the_board(self) -> bool:
        return self._has_reset

    def pet(self) -> None:
        self.petted += 1


class StageBench:
    """A board whose slot A runs `OLD`. `plays` are by version."""

    def __init__(self, folder: Path) -> None:
        self.board: Board = board(folder)
        self.board.use(OLD)
        self.lines: list[str] = []
        self.watchdog = ResettingWatchdog()
        self.launcher = FakeLauncher({})

    def run(self, plays: dict[str, list[Play]], *, starts: int = 1, seconds: float = 1000.0) -> int | None:
        """Run a stage until it ends, has made so many starts that then go on for a while, or so long; its status, None
        where it was stopped."""
        loop = SimulationLoop(Random(0))
        self.launcher = FakeLauncher(plays)

        async def whole() -> int | None:
            stop = asyncio.Event()
            stage = Stage(
                Choice(self.board.store), self.launcher, stop, watchdog=self.watchdog, report=self.lines.append,
                timing=TIMING,
            )  # fmt: skip
            running = asyncio.ensure_future(stage.run())
            until = loop.time() + seconds
            while not running.done() and loop.time() < until and len(self.launcher.children) < starts:
                await asyncio.wait((running,), timeout=0.5)
            await asyncio.wait((running,), timeout=30)
            if running.done():
                return running.result()
            stop.set()
            assert await running == 0
            return None

        try:
            return loop.run_until_complete(whole())
        finally:
            loop.close()

    @property
    def events(self) -> list[str]:
        """The first words of what was reported, each with its slot."""
        return [" ".join(line.split()[:2]).replace("event=", "").replace("slot=", "") for line in self.lines]
