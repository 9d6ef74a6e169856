"""One run of a seed, and what became of it. `simulate` is all that most callers need."""

import gc
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from head_node.export.errors import ExportError
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import SEGMENT_BYTES_MIN, Limits
from rackctl.consistency.history import History, Violation
from rackctl.consistency.workload import Tally
from rackctl.simulation.branches import branches
from rackctl.simulation.costs import costing
from rackctl.simulation.director import BEGIN_S, Director
from rackctl.simulation.faults import DRAWN, Fault, Kind, Suspended, plan, suspended
from rackctl.simulation.loop import Stuck
from rackctl.simulation.nodes import DRIFT_BOUND, DRIFT_MAX
from rackctl.simulation.situations import Situation, Situations
from rackctl.simulation.tenants import Habits
from rackctl.simulation.world import Line, Shape, TimelineHandler, World


@dataclass(frozen=True, slots=True)
class Setting:
    """What a seed stands for, but its faults."""

    shape: Shape
    seconds: float
    clients: int
    """Of all volumes, but at least one of each."""
    habits: Habits

    @classmethod
    def drawn(cls, random: Random) -> "Setting":
        """A setting by luck: two heads or three, wide stripes or narrow ones, a lease short or long, busy or idle, and
        logs, caches and columns so small that they fill up within seconds, or larger ones."""
        # Seconds of work, and the mean pause of a client: from a few busy seconds to two quiet minutes.
        seconds, think_s = random.choice(((6.0, 0.01), (6.0, 0.01), (12.0, 0.03), (24.0, 0.1), (120.0, 1.0)))
        heads, heads_per_volume = random.choice(((2, 2), (2, 2), (3, 3), (3, 2)))
        shape = Shape(
            heads=heads,
            heads_per_volume=heads_per_volume,
            geometry=random.choice((Geometry(4, 2, 4), Geometry(2, 1, 4), Geometry(2, 2, 8))),
            # What many volumes do to each other shows within seconds, and minutes of them are dear.
            volumes=random.choice((1, 1, 2, 4) if seconds < 60 else (1, 1, 2)),
            volume_blocks=random.choice((96, 96, 256)),
            drives_per_sled=random.choice((1, 1, 2)),
            ttl_ms=random.choice((500, 1000, 1000)),
            credential_term_ms=random.choice((20_000, 600_000)),
            head_drift=random.choice((DRIFT_MAX, DRIFT_MAX, DRIFT_BOUND)),
            limits=_limits(random),
            spare_slots=random.choice((12, 12, 20, 64)),
        )
        habits = Habits(random.choice((1, 2, 4)), think_s, blocks_max=random.choice((8, 24)))
        return cls(shape, seconds, random.randrange(1, 4), habits)


def _limits(random: Random) -> Limits:
    smallest = SEGMENT_BYTES_MIN
    segment_bytes, segments = random.choice(((smallest, 4), (smallest, 6), (2 << 20, 5), (4 << 20, 4)))
    return Limits(
        segment_bytes=segment_bytes,
        log_bytes_max=segment_bytes * segments,
        overlay_bytes_max=random.choice((48 * BLOCK_BYTES, 128 << 20)),
        unanswered_bytes_max=random.choice((16 * BLOCK_BYTES, 32 << 20)),
        held_log_bytes_max=segment_bytes * segments,
    )


@dataclass(slots=True)
class Report:
    """What became of a run. `failure` is None when every promise was kept."""

    seed: str
    setting: Setting
    faults: Sequence[Fault]
    failure: str | None = None
    digest: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    turns: int = 0
    tally: Tally = field(default_factory=Tally)
    operations: int = 0
    begun: Counter[Kind] = field(default_factory=Counter)
    refused: Counter[Kind] = field(default_factory=Counter)
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    takeovers: int = 0
    answers_watched: int = 0
    writes_watched: int = 0
    nonces_watched: int = 0
    taken: bytes = b""
    """One byte for each of `branches().names`: 1 when the run took that branch."""
    situations: Counter[Situation] = field(default_factory=Counter)
    suspended: frozenset[Suspended] = frozenset()
    timeline: Sequence[Line] = ()
    histories: Mapping[str, History] = field(default_factory=dict)
    """What clients did and saw, by volume."""


def simulate(
    seed: str,
    *,
    faults: Sequence[Fault] | None = None,
    also: Collection[Kind] = (),
    log_level: int = logging.INFO,
) -> Report:
    """Run one seed; `faults` replaces the plan that the seed would draw (a shrinker leaves some out), `also` are kinds
    that it may draw beside those of `faults.DRAWN`.

    The same arguments give the same report, bit for bit.
    """
    setting = Setting.drawn(Random(f"{seed}/setting"))
    world = World(seed, setting.shape)
    end_s = BEGIN_S + setting.seconds
    drawn = DRAWN | set(also)
    planned = plan(world.stream("faults"), world, BEGIN_S, end_s, drawn) if faults is None else faults
    report = Report(seed, setting, planned, suspended=suspended(planned))
    situations = Situations()
    director = Director(world, setting.seconds, setting.clients, setting.habits, planned, report.tally, drawn)
    begun_s = time.process_time()
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
        with setting.shape.sized(), world.watchers.installed(), situations.watched(), costing(), branches().counted():
            world.loop.run_until_complete(world.director.spawn(director.main(), name="director"))
            world.alive()
    except (Violation, Stuck, ExportError) as error:
        report.failure = f"{type(error).__name__}: {error}"
    finally:
        root.handlers[:] = [logging.NullHandler()]  # the dead have nothing more to say
        world.loop.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        gc.unfreeze()
        if collecting:
            gc.enable()
    report.cpu_s = time.process_time() - begun_s
    _fill_in(report, world, director, situations)
    return report


def _fill_in(report: Report, world: World, director: Director, situations: Situations) -> None:
    watchers = world.watchers
    report.digest, report.virtual_s, report.turns = world.digest, world.loop.time(), world.loop.turns
    report.operations = director.tenants.operations
    report.begun, report.refused = director.injector.begun, director.injector.refused
    report.transitions = watchers.transitions
    report.takeovers = watchers.epochs.led_total
    report.answers_watched = watchers.answers.answers_total
    report.writes_watched = watchers.fences.writes_total
    report.nonces_watched = watchers.nonces.nonces_total
    report.taken = bytes(branches().taken)
    report.situations = situations.seen
    report.timeline = world.timeline
    tenants = director.tenants
    report.histories = {tenant.name: tenant.history for tenant in (*tenants.live, *tenants.gone)}
