"""One run: a rack, clients, faults, then rest, and every check. `simulate` is all that most callers need."""

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final
from uuid import UUID

from head_node.export.errors import ExportError
from head_node.export.nbd_client import NbdClient
from head_node.volume.geometry import Geometry
from rackctl.consistency import linearizability
from rackctl.consistency.history import History, Violation
from rackctl.consistency.workload import Client, Programme, Tally, read_all
from rackctl.simulation import rest
from rackctl.simulation.faults import Fault, Injector, Kind, Suspended, plan, suspended
from rackctl.simulation.loop import Process, Stuck
from rackctl.simulation.world import Line, Shape, TimelineHandler, World

VOLUME_NAME: Final = "volume"
LEAD_SECONDS: Final = 0.3
"""Of work before the first fault and after the last."""
CALM_SECONDS: Final = 2.0
"""What silence may still be noticed is noticed by then."""
REST_SECONDS_MAX: Final = 60.0
"""Within this time after the last fault everything must be as it was."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a seed stands for, but its faults."""

    shape: Shape
    seconds: float
    clients: int
    think_s: float
    depth: int

    @classmethod
    def drawn(cls, random: Random) -> "Setting":
        """A setting by luck: two heads or three, wide stripes or narrow ones, a lease short or long, busy or idle."""
        shape = Shape(
            heads=random.choice((2, 2, 3)),
            geometry=random.choice((Geometry(4, 2, 4), Geometry(2, 1, 4), Geometry(2, 2, 8))),
            volume_blocks=random.choice((96, 256)),
            ttl_ms=random.choice((500, 1000, 1000)),
        )
        # Seconds of work, and the mean pause of a client: from a few busy seconds to two quiet minutes.
        seconds, think_s = random.choice(((6.0, 0.01), (12.0, 0.03), (24.0, 0.1), (120.0, 1.0)))
        return cls(shape, seconds, random.randrange(1, 4), think_s, random.choice((1, 2, 4)))


@dataclass(slots=True)
class Report:
    """What became of a run. `failure` is None when every promise was kept."""

    seed: str
    setting: Setting
    faults: Sequence[Fault]
    failure: str | None = None
    digest: int = 0
    virtual_s: float = 0.0
    turns: int = 0
    tally: Tally = field(default_factory=Tally)
    operations: int = 0
    begun: Counter[Kind] = field(default_factory=Counter)
    refused: Counter[Kind] = field(default_factory=Counter)
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    takeovers: int = 0
    writes_watched: int = 0
    nonces_watched: int = 0
    suspended: frozenset[Suspended] = frozenset()
    timeline: Sequence[Line] = ()


def simulate(seed: str, *, faults: Sequence[Fault] | None = None, log_level: int = logging.INFO) -> Report:
    """Run one seed; `faults` replaces the plan that the seed would draw (a shrinker leaves some out).

    The same arguments give the same report, bit for bit.
    """
    setting = Setting.drawn(Random(f"{seed}/setting"))
    world = World(seed, setting.shape)
    run = _Run(world, setting, faults)
    collecting = gc.isenabled()
    gc.collect()  # the last run's world is one large cycle
    gc.disable()  # finalizers would run when the collector likes, not when the seed says
    gc.freeze()
    handler = TimelineHandler(world, log_level)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(log_level)
    quiet = logging.getLogger("httpx")
    quiet.setLevel(logging.WARNING)
    try:
        with world.watchers.installed():
            world.loop.run_until_complete(world.director.spawn(run.main(), name="director"))
            world.alive()
    except (Violation, Stuck, ExportError) as error:
        run.report.failure = f"{type(error).__name__}: {error}"
    finally:
        root.handlers[:] = [logging.NullHandler()]  # the dead have nothing more to say
        world.loop.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        gc.unfreeze()
        if collecting:
            gc.enable()
    return run.finished(handler)


class _Run:
    """The director's work."""

    def __init__(self, world: World, setting: Setting, faults: Sequence[Fault] | None) -> None:
        self._world = world
        self._setting = setting
        self._history = History()
        self._injector: Injector | None = None
        begin_s, end_s = 1.0, 1.0 + setting.seconds
        self._faults = plan(world.stream("faults"), world, begin_s, end_s) if faults is None else list(faults)
        self.report = Report(world.seed, setting, self._faults, suspended=suspended(self._faults))

    async def main(self) -> None:
        """Build up, work under faults, mend, rest, check, tear down."""
        world, loop = self._world, self._world.loop
        await world.start()
        volume = (await world.create_volume(VOLUME_NAME)).volume
        self._injector = injector = Injector(world, lambda: world.members(volume))
        injector.schedule(self._faults)
        stop = asyncio.Event()
        clients = [self._client(number, stop) for number in range(self._setting.clients)]
        end_s = 1.0 + self._setting.seconds + LEAD_SECONDS
        await world.until(lambda: loop.time() >= end_s or any(map(asyncio.Task.done, clients)), 600, "the work is done")
        world.note("director", "mends everything")
        injector.mend()
        await self._rest(volume)
        stop.set()
        await world.until(lambda: all(map(asyncio.Task.done, clients)), 60, "the clients have ended")
        for client in clients:
            client.result()
        await self._read_through_each(volume)
        rest.check_rack(world, volume)
        await world.stop()
        await asyncio.sleep(1.0)
        rest.check_nothing_left(world)
        linearizability.check(self._history)

    def finished(self, handler: TimelineHandler) -> Report:
        """The report, filled in."""
        report, world = self.report, self._world
        report.digest, report.virtual_s, report.turns = world.digest, world.loop.time(), world.loop.turns
        report.operations = self._history.operations
        report.transitions = handler.transitions
        report.takeovers = world.watchers.epochs.led_total
        report.writes_watched = world.watchers.fences.writes_total
        report.nonces_watched = world.watchers.nonces.nonces_total
        report.timeline = world.timeline
        if self._injector is not None:
            report.begun, report.refused = self._injector.begun, self._injector.refused
        return report

    def _client(self, number: int, stop: asyncio.Event) -> "asyncio.Task[None]":
        world, setting = self._world, self._setting
        blocks = setting.shape.volume_blocks
        programme = Programme(
            f"client-{number}", range(blocks * 3 // 4), range(blocks * 3 // 4, blocks), setting.depth, setting.think_s
        )
        process = Process(world.loop, f"10.0.4.{number + 1}", programme.name)
        client = Client(
            programme, self._history, self._connect, world.stream(programme.name), lambda: world.loop.now_ns,
            self.report.tally, self._accuse,
        )  # fmt: skip
        return process.spawn(client.run(stop), name=programme.name)

    async def _connect(self) -> NbdClient:
        return await NbdClient.connect([head.nbd_address for head in self._world.heads], VOLUME_NAME)

    def _accuse(self, error: Exception) -> None:
        self._world.accuse(error if isinstance(error, Violation) else Violation(repr(error)))

    async def _rest(self, volume: UUID) -> None:
        """Wait until every head is a member again, one serves, and nobody has changed that for a while."""
        world = self._world
        version, since_s = 0, 0.0

        def restored() -> bool:
            nonlocal version, since_s
            rest.restart_failed(world)
            record = world.record(volume)
            whole = (
                rest.serving(world, volume) is not None
                and len(world.members(volume)) == len(world.heads)
                and all(sled.subsystem is not None for sled in world.sleds)
            )
            if not whole or record.version != version:
                version, since_s = record.version, world.loop.time()
            return world.loop.time() - since_s > CALM_SECONDS

        await world.until(restored, REST_SECONDS_MAX, "redundancy and service are restored")

    async def _read_through_each(self, volume: UUID) -> None:
        """Read everything from each primary in turn, killing one after the other: every member has everything."""
        world = self._world
        for number in range(len(world.heads)):
            primary = rest.serving(world, volume)
            assert primary is not None
            async with asyncio.timeout(REST_SECONDS_MAX):
                nbd = await NbdClient.connect([primary.nbd_address], VOLUME_NAME)
                await read_all(
                    nbd, self._setting.shape.volume_blocks, f"reader-{number}", self._history,
                    lambda: world.loop.now_ns,
                )  # fmt: skip
                await nbd.close()
            if number + 1 < len(world.heads):
                world.note("director", f"kills {primary.name}, which was read")
                primary.kill()
                await world.until(
                    lambda old=primary: rest.serving(world, volume) not in (None, old),  # type: ignore[misc]
                    REST_SECONDS_MAX, "another head serves",
                )  # fmt: skip
                primary.start()
                await self._rest(volume)
