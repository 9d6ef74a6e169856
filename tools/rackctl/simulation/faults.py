"""Faults of a simulated rack: a plan drawn from the seed, and a budget that keeps what is promised promised.

A fault begins, lasts, and ends; what it needs to be admitted depends on what is broken at that moment, so that a run
never breaks more than the rack promises to survive (D1: any one head, any m sleds of a stripe, the power of
everything). What is refused is counted, not forgotten.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Final

from rackctl.simulation.nodes import HeadNode, Node, SledNode
from spdk_bindings.faults import Operation, Rule
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from rackctl.simulation.world import World


class Kind(StrEnum):
    """What can go wrong."""

    KILL = "kill"
    POWER_LOSS = "power-loss"
    PAUSE = "pause"
    RACK_POWER_LOSS = "rack-power-loss"
    CUT = "cut"
    SPLIT = "split"
    ISOLATE = "isolate"
    SLOW_LINK = "slow-link"
    RESETS = "resets"
    WALL_JUMP = "wall-jump"
    SLOW_LOG = "slow-log"
    LOG_FULL = "log-full"
    LOG_ERROR = "log-error"
    LOG_WIPE = "log-wipe"
    LOG_ROT = "log-rot"
    DRIVE_ERROR = "drive-error"
    DRIVE_SILENT = "drive-silent"
    DRIVE_ROT = "drive-rot"
    DRIVE_MISDIRECTS = "drive-misdirects"
    STORE_UNCERTAIN = "store-uncertain"


DAMAGES_A_SLED: Final = frozenset({Kind.DRIVE_ROT, Kind.DRIVE_MISDIRECTS, Kind.DRIVE_ERROR})
"""What a sled holds may be wrong or unreadable for good."""
DAMAGES_A_LOG: Final = frozenset({Kind.LOG_ERROR, Kind.LOG_WIPE, Kind.LOG_ROT})
"""A head loses what it has promised to keep."""


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
    Kind.DRIVE_SILENT: {Suspended.SERVICE},
    Kind.DRIVE_ERROR: {Suspended.REDUNDANCY},
    Kind.DRIVE_ROT: {Suspended.REDUNDANCY},
    Kind.DRIVE_MISDIRECTS: {Suspended.REDUNDANCY},
    Kind.RACK_POWER_LOSS: {Suspended.SERVICE},
    Kind.WALL_JUMP: {Suspended.TIME, Suspended.SERVICE},
    Kind.SLOW_LOG: {Suspended.SERVICE},
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind` happens to `targets` (names of nodes) at `at_s` for `seconds`; `number` tells it apart from all others
    and seeds what it draws."""

    number: int
    at_s: float
    seconds: float
    kind: Kind
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"#{self.number} {self.kind.value} {' '.join(self.targets)} for {self.seconds:.3f} s"


@dataclass(frozen=True, slots=True)
class Mix:
    """How many faults, of which kinds (weights)."""

    name: str
    faults_per_minute: float
    weights: dict[Kind, float]
    among_heads: bool = False
    """Nothing happens to sleds and the authority: what two heads believe of each other is all that is wrong."""


_PROCESSES = {Kind.KILL: 4.0, Kind.POWER_LOSS: 3.0, Kind.PAUSE: 5.0}
_LINKS = {Kind.CUT: 3.0, Kind.SPLIT: 3.0, Kind.ISOLATE: 3.0, Kind.SLOW_LINK: 1.0, Kind.RESETS: 3.0}
MIXES: Final = (
    Mix("calm", 0, {}),
    Mix("processes", 60, _PROCESSES),
    Mix("network", 60, _LINKS | {Kind.PAUSE: 2.0}),
    Mix("heads", 40, {Kind.CUT: 3.0, Kind.SPLIT: 4.0, Kind.PAUSE: 3.0, Kind.RESETS: 1.0}, among_heads=True),
    Mix("drives", 60, {
        Kind.DRIVE_ERROR: 1.0, Kind.DRIVE_SILENT: 1.0, Kind.DRIVE_ROT: 4.0, Kind.DRIVE_MISDIRECTS: 1.0,
        Kind.POWER_LOSS: 2.0, Kind.KILL: 1.0,
    }),
    Mix("logs", 40, {
        Kind.SLOW_LOG: 2.0, Kind.LOG_FULL: 1.0, Kind.LOG_ERROR: 2.0, Kind.LOG_WIPE: 2.0, Kind.LOG_ROT: 2.0,
        Kind.KILL: 2.0, Kind.POWER_LOSS: 2.0,
    }),
    Mix("power", 20, {Kind.RACK_POWER_LOSS: 2.0, Kind.POWER_LOSS: 3.0}),
    Mix("everything", 90, dict.fromkeys(Kind, 1.0) | _PROCESSES | _LINKS),
)  # fmt: skip
SECONDS: Final = ((0.005, 0.3), (0.3, 1.5), (1.5, 6.0))
"""Blips, about a lease's TTL, and long enough for everybody to have gone on."""


def plan(random: Random, world: "World", start_s: float, end_s: float) -> list[Fault]:
    """Faults between two moments, by the luck of `random`."""
    mix = random.choice(MIXES)
    # As many in a long run as in half a minute: what has to happen in between has time to.
    count = round(mix.faults_per_minute / 60 * min(end_s - start_s, 30.0) * random.choice((0.3, 1.0, 2.0)))
    kinds, weights = list(mix.weights), list(mix.weights.values())
    faults = []
    for number in range(count):
        kind = random.choices(kinds, weights)[0]
        seconds = random.uniform(*random.choice(SECONDS))
        faults.append(Fault(number, random.uniform(start_s, end_s), seconds, kind, _targets(random, kind, world, mix)))
    return sorted(faults, key=lambda fault: fault.at_s)


def _targets(random: Random, kind: Kind, world: "World", mix: Mix) -> tuple[str, ...]:
    heads, sleds = [head.name for head in world.heads], [sled.name for sled in world.sleds]
    if mix.among_heads:
        return tuple(random.sample(heads, 1 if kind is Kind.PAUSE else 2))
    if kind is Kind.RACK_POWER_LOSS:
        return ()
    if kind is Kind.STORE_UNCERTAIN:
        return ("authority",)
    if kind in (Kind.CUT, Kind.SPLIT, Kind.SLOW_LINK, Kind.RESETS):
        one = random.choice(heads)
        other = random.choice([name for name in (*heads, *heads, *sleds, "authority") if name != one])
        return (one, other) if random.random() < 0.5 else (other, one)
    if kind.value.startswith("drive"):
        return (random.choice(sleds),)
    if kind.value.startswith("log") or kind is Kind.SLOW_LOG:
        return (random.choice(heads),)
    # Heads are where most of the protocol is; there are more sleds.
    return (random.choice(random.choice((heads, heads, sleds, ["authority"]))),)


def suspended(faults: Sequence[Fault]) -> frozenset[Suspended]:
    """What a run with these faults does not promise. No loss, no lies and one writer are promised always."""
    overlapping = any(
        one is not other and one.at_s <= other.at_s < one.at_s + one.seconds for one in faults for other in faults
    )
    found = {promise for fault in faults for promise in _SUSPENDS.get(fault.kind, ())}
    return frozenset(found | ({Suspended.SERVICE} if overlapping else set()))


class Budget:
    """What may be broken at once. `Injector` asks it before each fault and tells it what was done."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._parity = world.shape.geometry.parity_shards
        self._damaged: set[str] = set()
        self._unavailable: set[str] = set()
        self._log_damaged: str | None = None
        self._active: list[Fault] = []

    def refusal(self, fault: Fault, members: Sequence[str]) -> str | None:
        """Why `fault` must not happen now; `members` are the heads in `current`. None: it may."""
        touched = set(fault.targets) or {node.name for node in self._world.nodes}
        if fault.kind in DAMAGES_A_LOG:
            return self._log_refusal(fault.targets[0], members)
        heads = {head.name for head in self._world.heads}
        if self._log_damaged is not None and (touched & heads or "authority" in touched):
            if self._restored(members):
                self._log_damaged = None
            else:
                return f"{self._log_damaged} has lost its log and is not a member again"
        sleds = touched & {sled.name for sled in self._world.sleds}
        if fault.kind in DAMAGES_A_SLED and not self._may_damage(sleds):
            return "as much is damaged as a stripe survives"
        if sleds and fault.kind not in DAMAGES_A_SLED and not self._may_miss(sleds):
            return "a stripe written meanwhile would not survive what is damaged already"
        return None

    def begun(self, fault: Fault) -> None:
        """Note a fault."""
        self._active.append(fault)
        touched = set(fault.targets) or {node.name for node in self._world.nodes}
        sleds = touched & {sled.name for sled in self._world.sleds}
        if fault.kind in DAMAGES_A_SLED:
            self._damaged |= sleds
        else:
            self._unavailable |= sleds
        if fault.kind in DAMAGES_A_LOG:
            self._log_damaged = fault.targets[0]

    def ended(self, fault: Fault) -> None:
        """Its cause is gone; what it damaged stays damaged."""
        self._active.remove(fault)

    def _may_damage(self, sleds: set[str]) -> bool:
        # A stripe that lacks the shards of absent sleds has at least k + 1, so one more loss is always survived.
        damaged = self._damaged | sleds
        return len(damaged) <= 1 or len(damaged | self._unavailable) <= self._parity

    def _may_miss(self, sleds: set[str]) -> bool:
        return len(self._damaged) <= 1 or len(self._damaged | self._unavailable | sleds) <= self._parity

    def _log_refusal(self, head: str, members: Sequence[str]) -> str | None:
        if self._log_damaged is not None and not self._restored(members):
            return f"{self._log_damaged} has lost its log and is not a member again"
        if not self._restored(members):
            return "not every head is a member"
        nodes = {node.name for node in (*self._world.heads, self._world.authority)}
        busy = next((fault for fault in self._active if not fault.targets or nodes & set(fault.targets)), None)
        return None if busy is None else f"{busy} is under way"

    def _restored(self, members: Sequence[str]) -> bool:
        return set(members) == {head.name for head in self._world.heads}


class Injector:
    """Makes faults happen to a world, and mends everything at the end."""

    def __init__(self, world: "World", members: Callable[[], Sequence[str]]) -> None:
        self._world = world
        self._members = members
        self._budget = Budget(world)
        self._nodes: dict[str, Node] = {node.name: node for node in world.nodes}
        self.begun: Counter[Kind] = Counter()
        self.refused: Counter[Kind] = Counter()
        self._due: list[asyncio.TimerHandle] = []

    def schedule(self, faults: Sequence[Fault]) -> None:
        """Let each begin in its time."""
        loop = self._world.loop
        for fault in faults:
            self._due.append(loop.call_at(fault.at_s, self._begin, fault))

    def mend(self) -> None:
        """End whatever is going on: links, clocks, disks, processes; drives stay damaged, and nothing more begins."""
        for handle in self._due:
            handle.cancel()
        world = self._world
        for one in world.nodes:
            for other in world.nodes:
                world.network.heal(one.address, other.address)
        for node in world.nodes:
            node.clock.wall_offset_ms = 0
            node.resume()
        for sled in world.sleds:
            sled.death.revive()
            sled.errors.rules.clear()
        for head in world.heads:
            self._mend_log(head)
        for node in world.nodes:
            node.start()

    def _begin(self, fault: Fault) -> None:
        reason = self._budget.refusal(fault, self._members())
        if reason is not None:
            self.refused[fault.kind] += 1
            self._world.note("fault", f"{fault} not admitted: {reason}")
            return
        self.begun[fault.kind] += 1
        self._budget.begun(fault)
        self._world.note("fault", f"{fault} begins")
        random = self._world.stream(f"fault {fault.number}")
        _BEGIN[fault.kind](self, fault, random)
        self._due.append(self._world.loop.call_later(fault.seconds, self._end, fault))

    def _end(self, fault: Fault) -> None:
        self._budget.ended(fault)
        self._world.note("fault", f"{fault} ends")
        end = _END.get(fault.kind)
        if end is not None:
            end(self, fault)

    # what each kind does

    def _targets(self, fault: Fault) -> list[Node]:
        return [self._nodes[name] for name in fault.targets] or self._world.nodes

    def _kill(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.kill()

    def _cut_power(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.power_cut()

    def _start(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.start()

    def _pause(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.pause()

    def _resume(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.resume()

    def _pairs(self, fault: Fault) -> list[tuple[str, str]]:
        one = self._nodes[fault.targets[0]].address
        if fault.kind is Kind.ISOLATE:
            others = [node.address for node in self._world.nodes if node.address != one]
        else:
            others = [self._nodes[fault.targets[1]].address]
        there = [(one, other) for other in others]
        if fault.kind in (Kind.CUT, Kind.SLOW_LINK):
            return there
        return there + [(other, one) for one, other in there]

    def _cut(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            self._world.network.cut(source, target)

    def _slow(self, fault: Fault, random: Random) -> None:
        for source, target in self._pairs(fault):
            link = self._world.network.link(source, target)
            link.slowness, link.bytes_per_s = random.choice((10.0, 100.0, 1000.0)), random.choice((1e9, 1e7, 1e6))

    def _heal(self, fault: Fault) -> None:
        for source, target in self._pairs(fault):
            self._world.network.heal(source, target)

    def _reset_connections(self, fault: Fault, random: Random) -> None:
        pair = {self._nodes[name].address for name in fault.targets}
        for endpoint in list(self._world.network.endpoints):
            if {endpoint.node, endpoint.peer_address[0]} == pair and random.random() < 0.7:
                endpoint.break_connection()

    def _jump(self, fault: Fault, random: Random) -> None:
        for node in self._targets(fault):
            node.clock.wall_offset_ms += random.choice((-120_000, -2_000, 2_000, 120_000))

    def _unjump(self, fault: Fault) -> None:
        for node in self._targets(fault):
            node.clock.wall_offset_ms = 0

    def _slow_log(self, fault: Fault, random: Random) -> None:
        self._head(fault).sync_slowness = random.choice((10.0, 300.0, 3000.0))

    def _fill_log(self, fault: Fault, random: Random) -> None:
        disk = self._head(fault).disk
        disk.capacity_bytes = disk.used_bytes()

    def _fail_log(self, fault: Fault, random: Random) -> None:
        self._head(fault).disk.fail_commits = True

    def _wipe_log(self, fault: Fault, random: Random) -> None:
        head = self._head(fault)
        head.kill()
        head.disk.files.clear()

    def _rot_log(self, fault: Fault, random: Random) -> None:
        head = self._head(fault)
        head.kill()
        written = [content for _, content in sorted(head.disk.files.items()) if any(content.durable[:4096])]
        if written:
            content = random.choice(written)
            used = min(len(content.durable), 1 << 20)
            for _ in range(random.choice((1, 20))):
                content.durable[random.randrange(used)] ^= 1 << random.randrange(8)

    def _mend_head(self, fault: Fault) -> None:
        head = self._head(fault)
        self._mend_log(head)
        if fault.kind is Kind.LOG_ERROR:
            head.kill()
        head.start()

    def _mend_log(self, head: HeadNode) -> None:
        head.sync_slowness = 1.0
        head.disk.capacity_bytes = 1 << 40
        head.disk.fail_commits = False

    def _fail_drive(self, fault: Fault, random: Random) -> None:
        status = random.choice((Status.UNRECOVERED_READ_ERROR, Status.INTERNAL_ERROR))
        first = random.randrange(self._sled(fault).medium.block_count)
        self._sled(fault).errors.rules.append(Rule(int(status), first, random.choice((1, 64, 4096)), (Operation.READ,)))

    def _mend_drive(self, fault: Fault) -> None:
        self._sled(fault).errors.rules.clear()

    def _silence_drive(self, fault: Fault, random: Random) -> None:
        self._sled(fault).death.die(silent=True)

    def _revive_drive(self, fault: Fault) -> None:
        sled = self._sled(fault)
        sled.death.revive()
        sled.kill()  # a controller that waits for what never completes is restarted by its operator
        sled.start()

    def _rot_drive(self, fault: Fault, random: Random) -> None:
        sled = self._sled(fault)
        written = sled.data_blocks()
        for lba in random.sample(written, min(len(written), random.choice((1, 8, 200)))):
            sled.rot.rot(lba, random.randrange(4096), 1 << random.randrange(8))

    def _misdirect(self, fault: Fault, random: Random) -> None:
        sled = self._sled(fault)
        written = sled.data_blocks()
        for lba in random.sample(written, min(len(written), 4)):
            sled.misdirected.misdirect(lba, random.choice(written))

    def _lose_commit(self, fault: Fault, random: Random) -> None:
        self._world.authority.store.lose = random.choice(("before", "after"))

    def _head(self, fault: Fault) -> HeadNode:
        node = self._nodes[fault.targets[0]]
        assert isinstance(node, HeadNode)
        return node

    def _sled(self, fault: Fault) -> SledNode:
        node = self._nodes[fault.targets[0]]
        assert isinstance(node, SledNode)
        return node


_BEGIN: Final[dict[Kind, Callable[[Injector, Fault, Random], None]]] = {
    Kind.KILL: Injector._kill,
    Kind.POWER_LOSS: Injector._cut_power,
    Kind.PAUSE: Injector._pause,
    Kind.RACK_POWER_LOSS: Injector._cut_power,
    Kind.CUT: Injector._cut,
    Kind.SPLIT: Injector._cut,
    Kind.ISOLATE: Injector._cut,
    Kind.SLOW_LINK: Injector._slow,
    Kind.RESETS: Injector._reset_connections,
    Kind.WALL_JUMP: Injector._jump,
    Kind.SLOW_LOG: Injector._slow_log,
    Kind.LOG_FULL: Injector._fill_log,
    Kind.LOG_ERROR: Injector._fail_log,
    Kind.LOG_WIPE: Injector._wipe_log,
    Kind.LOG_ROT: Injector._rot_log,
    Kind.DRIVE_ERROR: Injector._fail_drive,
    Kind.DRIVE_SILENT: Injector._silence_drive,
    Kind.DRIVE_ROT: Injector._rot_drive,
    Kind.DRIVE_MISDIRECTS: Injector._misdirect,
    Kind.STORE_UNCERTAIN: Injector._lose_commit,
}

_END: Final[dict[Kind, Callable[[Injector, Fault], None]]] = {
    Kind.KILL: Injector._start,
    Kind.POWER_LOSS: Injector._start,
    Kind.PAUSE: Injector._resume,
    Kind.RACK_POWER_LOSS: Injector._start,
    Kind.CUT: Injector._heal,
    Kind.SPLIT: Injector._heal,
    Kind.ISOLATE: Injector._heal,
    Kind.SLOW_LINK: Injector._heal,
    Kind.WALL_JUMP: Injector._unjump,
    Kind.SLOW_LOG: Injector._mend_head,
    Kind.LOG_FULL: Injector._mend_head,
    Kind.LOG_ERROR: Injector._mend_head,
    Kind.LOG_WIPE: Injector._mend_head,
    Kind.LOG_ROT: Injector._mend_head,
    Kind.DRIVE_ERROR: Injector._mend_drive,
    Kind.DRIVE_SILENT: Injector._revive_drive,
}
