"""What is going to go wrong: rounds of faults drawn from a seed, the same on every machine.

A round is some seconds of load under the faults of one mix; behind it the rack has to come to rest. What a machine does
not permit, and what would break more than the rack promises to survive, is in the plan all the same, and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from rackctl.rack import RackSize

AUTHORITY: Final = "authority"


class Kind(StrEnum):
    """What can go wrong. Unless it says otherwise it happens to one node, for a while."""

    KILL = "kill"
    """SIGKILL, and a start when the time is over."""
    PAUSE = "pause"
    """SIGSTOP, then SIGCONT."""
    TERMINATE = "terminate"
    """SIGTERM, and a start when the time is over."""
    RESTART = "restart"
    """SIGKILL and a start at once."""
    VANISH = "vanish"
    """SIGKILL behind cut links, as when its power fails: what it has sent last is lost, and nobody hears of its end."""
    KILL_ALL = "kill-all"
    """SIGKILL of every node at once."""
    PAUSE_ALL = "pause-all"
    """SIGSTOP of every node at once."""
    CUT = "cut"
    """What the first of two nodes sends does not reach the second."""
    SPLIT = "split"
    """Two nodes do not reach each other."""
    ISOLATE = "isolate"
    """A node reaches nobody and is reached by clients only."""
    REFUSE = "refuse"
    """Two nodes do not reach each other, and a router says so."""
    SLOW_LINK = "slow-link"
    """What is sent to a node comes slowly."""
    WALL_JUMP = "wall-jump"
    """Its wall clock jumps."""
    DISK_FULL = "disk-full"
    """Not a byte more fits on its disk."""
    FLOOD = "flood"
    """Strangers send every port of it what is cheap for them, as fast as it is taken."""


ALONE: Final = frozenset({Kind.ISOLATE, Kind.VANISH})
"""Cut every link of a node."""
CUTS: Final = frozenset({Kind.CUT, Kind.SPLIT, Kind.REFUSE}) | ALONE
"""Happen to links between nodes."""
PAIRS: Final = frozenset({Kind.CUT, Kind.SPLIT, Kind.REFUSE})
"""Happen to two nodes."""
PROCESSES: Final = frozenset(
    {Kind.KILL, Kind.PAUSE, Kind.TERMINATE, Kind.RESTART, Kind.VANISH, Kind.KILL_ALL, Kind.PAUSE_ALL}
)
"""Happen to processes, of which each can suffer one at a time."""

ROUND_SECONDS: Final = 30.0
"""Of faults, before a rest: long enough for faults to meet, short enough for many rests."""
LEAD_SECONDS: Final = 1.0
"""Of work before the first fault of a round."""
JUMPS_MS: Final = (-120_000, -2_000, 2_000, 120_000)
"""Below what a credential's term covers; the longer ones are beyond what the authority accepts of a request."""
SLOW_BYTES_PER_S: Final = (100_000, 1_000_000)
"""Too slow for the load, and hardly fast enough."""
ORDERLY_SECONDS: Final = 3.0
"""What a node has at least to end in good order, before it is started again."""
SECONDS: Final = ((0.05, 0.5), (0.5, 2.0), (2.0, 8.0))
"""Blips, about a lease's TTL, and long enough for everybody to have gone on."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` happens to `targets` from `at_s` of its round on, for `seconds`; `amount` is a jump in milliseconds, or a
    link's bytes per second."""

    number: int
    at_s: float
    seconds: float
    kind: Kind
    targets: tuple[str, ...]
    amount: int = 0

    def __str__(self) -> str:
        amount = f" {self.amount}" if self.amount else ""
        return f"#{self.number} {self.kind.value}{amount} {' '.join(self.targets)} for {self.seconds:.2f} s"


@dataclass(frozen=True, slots=True)
class Mix:
    """How many faults, of which kinds (weights)."""

    name: str
    faults_per_minute: float
    weights: dict[Kind, float]
    storm: bool = False
    """More may be broken at once than the rack promises to serve through; only what is never suspended is promised."""


_ONE_BY_ONE = {Kind.KILL: 3.0, Kind.PAUSE: 5.0, Kind.TERMINATE: 2.0, Kind.RESTART: 2.0, Kind.VANISH: 3.0}
_ALL = {Kind.KILL_ALL: 2.0, Kind.PAUSE_ALL: 1.0}
_LINKS = {Kind.CUT: 3.0, Kind.SPLIT: 3.0, Kind.ISOLATE: 3.0, Kind.REFUSE: 2.0, Kind.SLOW_LINK: 1.0}
_OTHERS = {Kind.WALL_JUMP: 1.0, Kind.DISK_FULL: 2.0, Kind.FLOOD: 2.0}
MIXES: Final = (
    Mix("processes", 20, _ONE_BY_ONE),
    Mix("network", 20, _LINKS),
    Mix("everything", 24, _ONE_BY_ONE | _LINKS | _OTHERS),
    Mix("clocks and disks", 20, _OTHERS | {Kind.KILL: 1.0, Kind.PAUSE: 1.0}),
    Mix("storm of processes", 40, _ONE_BY_ONE | _ALL, storm=True),
    Mix("power", 12, _ALL | {Kind.KILL: 1.0}, storm=True),
    Mix("storm", 50, _ONE_BY_ONE | _LINKS | _OTHERS | _ALL, storm=True),
)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The names of what can be hit."""

    heads: tuple[str, ...]
    sleds: tuple[str, ...]

    @classmethod
    def of(cls, size: RackSize) -> "Nodes":
        """Those that a rack of that size has."""
        return cls(
            tuple(f"head-{number}" for number in range(size.heads)),
            tuple(f"sled-{number}" for number in range(size.sleds)),
        )

    @property
    def all(self) -> tuple[str, ...]:
        """Every node."""
        return (AUTHORITY, *self.sleds, *self.heads)


@dataclass(frozen=True, slots=True)
class Round:
    """`seconds` of load, and what happens meanwhile."""

    number: int
    mix: Mix
    seconds: float
    faults: tuple[Fault, ...]


def draw(seed: int, minutes: float, nodes: Nodes) -> list[Round]:
    """The rounds of a run of so many minutes under faults; a longer run begins like a shorter one."""
    left_s = minutes * 60
    rounds: list[Round] = []
    while left_s > 0.5:
        rounds.append(_round(seed, len(rounds), min(left_s, ROUND_SECONDS), nodes))
        left_s -= ROUND_SECONDS
    return rounds


def _round(seed: int, number: int, seconds: float, nodes: Nodes) -> Round:
    random = Random(f"{seed}/{number}")
    mix = random.choice(MIXES)
    count = max(1, round(mix.faults_per_minute / 60 * ROUND_SECONDS * random.choice((0.5, 1.0, 1.5))))
    drawn = [_fault(random, mix, nodes) for _ in range(count)]
    within = sorted((fault for fault in drawn if fault.at_s < seconds), key=lambda fault: fault.at_s)
    faults = tuple(
        Fault(number, fault.at_s, fault.seconds, fault.kind, fault.targets, fault.amount)
        for number, fault in enumerate(within)
    )
    return Round(number, mix, seconds, faults)


def _fault(random: Random, mix: Mix, nodes: Nodes) -> Fault:
    kind = random.choices(list(mix.weights), list(mix.weights.values()))[0]
    at_s, seconds = random.uniform(LEAD_SECONDS, ROUND_SECONDS), random.uniform(*random.choice(SECONDS))
    if kind is Kind.TERMINATE:
        seconds += ORDERLY_SECONDS
    amount = random.choice(JUMPS_MS if kind is Kind.WALL_JUMP else SLOW_BYTES_PER_S if kind is Kind.SLOW_LINK else (0,))
    return Fault(0, at_s, seconds, kind, _targets(random, kind, nodes), amount)


def _targets(random: Random, kind: Kind, nodes: Nodes) -> tuple[str, ...]:
    if kind in (Kind.KILL_ALL, Kind.PAUSE_ALL):
        return ()
    # Heads are where most of the protocol is; there are more sleds.
    head = random.choice(nodes.heads)
    if kind is Kind.DISK_FULL:
        return (random.choice((head, AUTHORITY)),)
    if kind in PAIRS:
        others = [name for name in (*nodes.heads, *nodes.heads, *nodes.sleds, AUTHORITY) if name != head]
        pair = (head, random.choice(others))
        return pair if random.random() < 0.5 else pair[::-1]
    groups: Sequence[Sequence[str]] = (nodes.heads, nodes.heads, nodes.sleds, [AUTHORITY])
    return (random.choice(random.choice(groups)),)
