"""Faults and operator's actions of a simulated rack: what there is, and a plan of them drawn from the seed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final

from head_node.cluster.states import VolumeState

if TYPE_CHECKING:
    from rackctl.simulation.world import World

PRIMARY: Final = "primary"
"""Target of a fault: the primary of some volume, as the record names it when the fault begins."""
ACTOR: Final = "actor"
"""Target of a fault with a step: the node that took it."""
AUTHORITY: Final = "authority"


class Kind(StrEnum):
    """What can go wrong, and what an operator does meanwhile."""

    KILL = "kill"
    POWER_LOSS = "power-loss"
    PAUSE = "pause"
    STOP_IN_TURN = "stop-in-turn"
    RESTART = "restart"
    RACK_POWER_LOSS = "rack-power-loss"
    CUT = "cut"
    SPLIT = "split"
    ISOLATE = "isolate"
    BLIND = "blind"
    REVIVE = "revive"
    SLOW_LINK = "slow-link"
    RESETS = "resets"
    WALL_JUMP = "wall-jump"
    DAY_JUMP = "day-jump"
    BUSY = "busy"
    NO_DESCRIPTORS = "no-descriptors"
    SLOW_LOG = "slow-log"
    LOG_FULL = "log-full"
    LOG_ERROR = "log-error"
    LOG_WIPE = "log-wipe"
    LOG_ROT = "log-rot"
    LOG_SYNC_LOST = "log-sync-lost"
    LOG_UNREADABLE = "log-unreadable"
    LOG_LIES = "log-lies"
    LOG_TAIL_LOST = "log-tail-lost"
    LOG_FILES_FAIL = "log-files-fail"
    LOG_FILES_SLOW = "log-files-slow"
    DRIVE_ERROR = "drive-error"
    DRIVE_SILENT = "drive-silent"
    DRIVE_ROT = "drive-rot"
    DRIVE_MISDIRECTS = "drive-misdirects"
    DRIVE_AWAY = "drive-away"
    DRIVE_LIES = "drive-lies"
    SLEDS_AWAY = "sleds-away"
    SLED_LIES = "sled-lies"
    STORE_UNCERTAIN = "store-uncertain"
    REVOKE = "revoke"
    ROTATE_KEYS = "rotate-keys"
    VOLUME = "volume"
    FREEZE = "freeze"
    RESTORE = "restore"


NOT_YET: Final = frozenset[Kind]()
"""What the code under test does not survive yet: plans leave these out, unless a run is asked for them (`--also`)."""
DRAWN: Final = frozenset(Kind) - NOT_YET
"""The kinds that plans draw."""
DAMAGES_A_SLED: Final = frozenset({Kind.DRIVE_ROT, Kind.DRIVE_MISDIRECTS, Kind.DRIVE_ERROR, Kind.DRIVE_LIES})
"""What a sled holds may be wrong or unreadable for good."""
DAMAGES_A_LOG: Final = frozenset({
    Kind.LOG_ERROR, Kind.LOG_WIPE, Kind.LOG_ROT, Kind.LOG_SYNC_LOST, Kind.LOG_UNREADABLE, Kind.LOG_LIES,
    Kind.LOG_TAIL_LOST,
})  # fmt: skip
"""A head loses what it has promised to keep."""
OPERATORS: Final = frozenset({Kind.REVOKE, Kind.ROTATE_KEYS, Kind.VOLUME, Kind.FREEZE, Kind.RESTORE})
"""Nothing goes wrong by these; what has begun is brought to its end."""


class Suspended(StrEnum):
    """Promises that some faults suspend, and nothing else does."""

    SERVICE = "service within seconds of any one failure"
    REDUNDANCY = "as many copies of a stripe as its geometry says"
    MEMBERSHIP = "all heads in current"
    TIME = "credentials accepted until they end"


_SUSPENDS: Final = {
    Kind.LOG_FULL: {Suspended.SERVICE},
    Kind.LOG_ERROR: {Suspended.MEMBERSHIP},
    Kind.LOG_WIPE: {Suspended.MEMBERSHIP},
    Kind.LOG_ROT: {Suspended.MEMBERSHIP},
    Kind.LOG_SYNC_LOST: {Suspended.MEMBERSHIP},
    Kind.LOG_UNREADABLE: {Suspended.MEMBERSHIP},
    Kind.LOG_LIES: {Suspended.MEMBERSHIP},
    Kind.LOG_TAIL_LOST: {Suspended.MEMBERSHIP, Suspended.SERVICE},
    Kind.LOG_FILES_FAIL: {Suspended.SERVICE},
    Kind.LOG_FILES_SLOW: {Suspended.SERVICE},
    Kind.DRIVE_SILENT: {Suspended.SERVICE},
    Kind.DRIVE_ERROR: {Suspended.REDUNDANCY},
    Kind.DRIVE_ROT: {Suspended.REDUNDANCY},
    Kind.DRIVE_MISDIRECTS: {Suspended.REDUNDANCY},
    Kind.DRIVE_AWAY: {Suspended.REDUNDANCY},
    Kind.DRIVE_LIES: {Suspended.REDUNDANCY},
    Kind.SLEDS_AWAY: {Suspended.REDUNDANCY, Suspended.SERVICE},
    Kind.SLED_LIES: {Suspended.REDUNDANCY},
    Kind.RACK_POWER_LOSS: {Suspended.SERVICE},
    Kind.WALL_JUMP: {Suspended.TIME, Suspended.SERVICE},
    Kind.DAY_JUMP: {Suspended.TIME, Suspended.SERVICE},
    Kind.BUSY: {Suspended.SERVICE},
    Kind.NO_DESCRIPTORS: {Suspended.SERVICE},
    Kind.SLOW_LOG: {Suspended.SERVICE},
    Kind.REVOKE: {Suspended.MEMBERSHIP},
    Kind.FREEZE: {Suspended.SERVICE},
    Kind.RESTORE: {Suspended.SERVICE, Suspended.MEMBERSHIP},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` happens to `targets` (names of nodes, PRIMARY, ACTOR) at `at_s`, or once somebody has taken `step` after
    that, for `seconds`; `number` tells it apart from all others and seeds what it draws."""

    number: int
    at_s: float
    seconds: float
    kind: Kind
    targets: tuple[str, ...]
    step: str | None = None

    def __str__(self) -> str:
        when = "" if self.step is None else f" at {self.step}"
        return f"#{self.number} {self.kind.value}{when} {' '.join(self.targets)} for {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True)
class Mix:
    """How many faults, of which kinds (weights)."""

    name: str
    faults_per_minute: float
    weights: dict[Kind, float]
    among_heads: bool = False
    """Nothing happens to sleds and the authority: what two heads believe of each other is all that is wrong."""
    at_steps: dict[Kind, float] | None = None
    """Kinds of which about as many begin just when somebody takes one of STEPS."""


STEPS: Final = (
    *(state.value for state in (
        VolumeState.SEALED, VolumeState.ATTACHING, VolumeState.LEADING, VolumeState.SERVING, VolumeState.HOLDING,
        VolumeState.STEPPING_DOWN, VolumeState.DELETING,
    )),
    "membership", "resync", "truncation", "checkpoint", "compaction",
)  # fmt: skip
"""States that a volume enters on a head, a change of members that is sent, a full resync that is installed, a log that
is cut, a checkpoint that is written, a compaction that begins."""

_PROCESSES = {Kind.KILL: 4.0, Kind.POWER_LOSS: 3.0, Kind.PAUSE: 5.0, Kind.RESTART: 3.0}
_LINKS = {Kind.CUT: 3.0, Kind.SPLIT: 3.0, Kind.ISOLATE: 3.0, Kind.SLOW_LINK: 1.0, Kind.RESETS: 3.0}
_LEASES = {Kind.BLIND: 4.0, Kind.REVIVE: 4.0, Kind.STOP_IN_TURN: 2.0}
MIXES: Final = (
    Mix("calm", 0, {}),
    Mix("processes", 60, _PROCESSES),
    Mix("network", 60, _LINKS | {Kind.PAUSE: 2.0}),
    Mix("heads", 40, {Kind.CUT: 3.0, Kind.SPLIT: 4.0, Kind.PAUSE: 3.0, Kind.RESETS: 1.0}, among_heads=True),
    Mix("leases", 30, _LEASES | {Kind.CUT: 1.0, Kind.PAUSE: 2.0}),
    Mix("revivals", 20, {Kind.REVIVE: 3.0, Kind.BLIND: 1.0}),
    Mix("takeovers", 40, {Kind.KILL: 2.0, Kind.PAUSE: 2.0, Kind.RESTART: 2.0, Kind.SPLIT: 2.0, Kind.LOG_WIPE: 1.0},
        at_steps={
            Kind.RACK_POWER_LOSS: 3.0, Kind.RESTART: 3.0, Kind.STORE_UNCERTAIN: 3.0, Kind.KILL: 2.0,
            Kind.POWER_LOSS: 1.0, Kind.ISOLATE: 1.0, Kind.PAUSE: 1.0,
        }),
    Mix("drives", 60, {
        Kind.DRIVE_ERROR: 1.0, Kind.DRIVE_SILENT: 1.0, Kind.DRIVE_ROT: 4.0, Kind.DRIVE_MISDIRECTS: 1.0,
        Kind.DRIVE_AWAY: 1.0, Kind.SLED_LIES: 1.0, Kind.DRIVE_LIES: 1.0, Kind.POWER_LOSS: 2.0, Kind.KILL: 1.0,
    }),
    Mix("logs", 40, {
        Kind.SLOW_LOG: 2.0, Kind.LOG_FULL: 2.0, Kind.LOG_ERROR: 2.0, Kind.LOG_WIPE: 2.0, Kind.LOG_ROT: 2.0,
        Kind.LOG_SYNC_LOST: 2.0, Kind.LOG_UNREADABLE: 2.0, Kind.LOG_LIES: 2.0, Kind.LOG_TAIL_LOST: 2.0,
        Kind.KILL: 2.0, Kind.POWER_LOSS: 2.0,
    }),
    Mix("machines", 40, {
        Kind.LOG_FILES_FAIL: 2.0, Kind.LOG_FILES_SLOW: 2.0, Kind.BUSY: 4.0, Kind.NO_DESCRIPTORS: 2.0,
        Kind.DAY_JUMP: 1.0, Kind.LOG_FULL: 1.0, Kind.SLOW_LOG: 1.0, Kind.KILL: 2.0, Kind.CUT: 1.0,
    }),
    Mix("power", 20, {Kind.RACK_POWER_LOSS: 2.0, Kind.POWER_LOSS: 3.0}),
    Mix("resyncs", 40, {
        Kind.SLEDS_AWAY: 4.0, Kind.LOG_WIPE: 2.0, Kind.LOG_ERROR: 1.0, Kind.LOG_ROT: 1.0, Kind.POWER_LOSS: 2.0,
        Kind.KILL: 1.0, Kind.SPLIT: 1.0,
    }),
    Mix("full", 30, {Kind.LOG_FULL: 4.0, Kind.SLOW_LOG: 1.0, Kind.KILL: 1.0, Kind.CUT: 1.0, Kind.DRIVE_AWAY: 0.5}),
    Mix("engines", 40, {Kind.KILL: 2.0, Kind.POWER_LOSS: 2.0, Kind.SPLIT: 2.0, Kind.LOG_WIPE: 1.0, Kind.PAUSE: 1.0},
        at_steps={
            Kind.POWER_LOSS: 4.0, Kind.RACK_POWER_LOSS: 2.0, Kind.KILL: 2.0, Kind.LOG_FULL: 1.0, Kind.LOG_ERROR: 1.0,
            Kind.LOG_FILES_FAIL: 1.0, Kind.RESTART: 1.0, Kind.ISOLATE: 1.0, Kind.SLED_LIES: 1.0, Kind.DRIVE_ROT: 1.0,
        }),
    Mix("operator", 30, {
        Kind.REVOKE: 2.0, Kind.ROTATE_KEYS: 1.0, Kind.VOLUME: 2.0, Kind.FREEZE: 1.0, Kind.RESTART: 2.0,
        Kind.SLED_LIES: 1.0, Kind.KILL: 1.0, Kind.CUT: 1.0, Kind.BLIND: 1.0, Kind.STORE_UNCERTAIN: 1.0,
    }),
    Mix("restores", 60, {Kind.RESTORE: 2.0, Kind.KILL: 2.0, Kind.RESTART: 2.0, Kind.SPLIT: 1.0, Kind.REVIVE: 1.0}),
    Mix("everything", 90, dict.fromkeys(Kind, 1.0) | _PROCESSES | _LINKS | _LEASES),
)  # fmt: skip
SECONDS: Final = ((0.005, 0.3), (0.3, 1.5), (1.5, 6.0))
"""Blips, about a lease's TTL, and long enough for everybody to have gone on."""
_LONG: Final = frozenset({Kind.BLIND, Kind.REVIVE, Kind.RESTORE, Kind.SLEDS_AWAY})
"""What matters here is what others do meanwhile."""
_SLEDS_AWAY_SECONDS: Final = (2.0, 8.0)
"""Long enough for busy clients to fill a log."""


def plan(random: Random, world: "World", start_s: float, end_s: float, drawn: Collection[Kind] = DRAWN) -> list[Fault]:
    """Faults of kinds in `drawn` between two moments, by the luck of `random`."""
    mix = random.choice(MIXES)
    # As many in a long run as in half a minute: what has to happen in between has time to.
    count = round(mix.faults_per_minute / 60 * min(end_s - start_s, 30.0) * random.choice((0.3, 1.0, 2.0)))
    faults = []
    for number in range(count):
        step = random.choice(STEPS) if mix.at_steps and random.random() < 0.5 else None
        weights = mix.weights if step is None or mix.at_steps is None else mix.at_steps
        weights = {kind: weight for kind, weight in weights.items() if kind in drawn}
        kind = random.choices(list(weights), list(weights.values()))[0]
        seconds = random.uniform(*(SECONDS[-1] if kind in _LONG else random.choice(SECONDS)))
        if kind is Kind.SLEDS_AWAY:
            seconds = random.uniform(*_SLEDS_AWAY_SECONDS)
        targets = _targets(random, kind, world, mix) if step is None else _targets_at_step(random, kind, world)
        faults.append(Fault(number, random.uniform(start_s, end_s), seconds, kind, targets, step))
    return sorted(faults, key=lambda fault: fault.at_s)


def _targets_at_step(random: Random, kind: Kind, world: "World") -> tuple[str, ...]:
    if kind is Kind.RACK_POWER_LOSS:
        return ()
    if kind is Kind.STORE_UNCERTAIN:
        return (AUTHORITY,)
    if kind in DAMAGES_A_LOG or kind in (Kind.LOG_FULL, Kind.LOG_FILES_FAIL):
        return (random.choice((ACTOR, PRIMARY)),)
    if kind in (Kind.SLED_LIES, Kind.DRIVE_ROT):
        return (random.choice([sled.name for sled in world.sleds]),)
    return (random.choice((ACTOR, ACTOR, PRIMARY, AUTHORITY)),)


def _targets(random: Random, kind: Kind, world: "World", mix: Mix) -> tuple[str, ...]:
    heads, sleds = [head.name for head in world.heads], [sled.name for sled in world.sleds]
    if kind in (Kind.BLIND, Kind.REVIVE):
        return (PRIMARY,)
    if kind in (Kind.STOP_IN_TURN, Kind.REVOKE):
        return (random.choice((PRIMARY, random.choice(heads))),)
    if mix.among_heads:
        return tuple(random.sample(heads, 1 if kind is Kind.PAUSE else 2))
    if kind in (Kind.RACK_POWER_LOSS, Kind.VOLUME):
        return ()
    if kind in (Kind.BUSY, Kind.NO_DESCRIPTORS):
        return (random.choice((PRIMARY, PRIMARY, random.choice(heads), random.choice(sleds), AUTHORITY)),)
    if kind is Kind.DAY_JUMP:
        return (random.choice((PRIMARY, random.choice(heads))),)
    if kind in (Kind.STORE_UNCERTAIN, Kind.ROTATE_KEYS, Kind.FREEZE, Kind.RESTORE):
        return (AUTHORITY,)
    if kind in (Kind.CUT, Kind.SPLIT, Kind.SLOW_LINK, Kind.RESETS):
        one = random.choice(heads)
        other = random.choice([name for name in (*heads, *heads, *sleds, AUTHORITY) if name != one])
        return (one, other) if random.random() < 0.5 else (other, one)
    if kind is Kind.SLEDS_AWAY:
        return tuple(random.sample(sleds, world.shape.geometry.parity_shards))
    if kind.value.startswith("drive") or kind is Kind.SLED_LIES:
        return (random.choice(sleds),)
    if kind.value.startswith("log") or kind is Kind.SLOW_LOG:
        return (random.choice(heads),)
    # Heads are where most of the protocol is; there are more sleds.
    return (random.choice(random.choice(([PRIMARY], heads, sleds, [AUTHORITY]))),)


def suspended(faults: Sequence[Fault]) -> frozenset[Suspended]:
    """What a run with these faults does not promise. No loss, no lies and one writer are promised always."""
    overlapping = any(
        one is not other and one.at_s <= other.at_s < one.at_s + one.seconds for one in faults for other in faults
    )
    found = {promise for fault in faults for promise in _SUSPENDS.get(fault.kind, ())}
    return frozenset(found | ({Suspended.SERVICE} if overlapping else set()))
