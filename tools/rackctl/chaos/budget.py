"""What may be broken at once, so that what is promised stays promised; and which promises the faults suspend.

No loss, no lies and one writer are never suspended: processes die and links break, but nothing that was written is
damaged (the simulator does that). Service is promised while one head or the authority is away, together with as many
sleds as there are parity shards (D1).
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

from rackctl.chaos.plan import ALONE, AUTHORITY, CUTS, PROCESSES, Fault, Kind, Nodes


class Suspended(StrEnum):
    """Promises that some faults suspend."""

    SERVICE = "service within seconds"
    TIME = "requests of heads and credentials accepted"


_SERVES_LESS: Final = frozenset(
    {Kind.WALL_JUMP, Kind.SLOW_LINK, Kind.DISK_FULL, Kind.KILL_ALL, Kind.PAUSE_ALL, Kind.FLOOD}
)
"""One of them alone keeps clients waiting; a flood because the machine that sends it is ours, too."""


class Budget:
    """The injector asks it before each fault and tells it what was done."""

    def __init__(
        self, nodes: Nodes, parity: int, possible: Callable[[Fault], str | None], *, storm: bool,
        lacking: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """`possible` says why this machine does not permit a fault. `lacking` are the sleds that have ever been away:
        stripes written meanwhile lack their shards."""
        self._nodes = nodes
        self._parity = parity
        self._possible = possible
        self._storm = storm
        self._active: list[Fault] = []
        self.lacking = set(lacking)

    def refusal(self, fault: Fault, members: Sequence[str]) -> str | None:
        """Why `fault` must not happen now; `members` are the heads that hold everything. None: it may."""
        impossible = self._possible(fault)
        if impossible is not None:
            return impossible
        for other in self._active:
            if _collide(fault, other):
                return f"{other} is under way"
        if self._storm or fault.kind is Kind.FLOOD:
            return None
        takes_a_head = self._hits(fault, self._nodes.heads) and not self._sleds_of(fault)
        if takes_a_head and set(members) != set(self._nodes.heads):
            return "not every head is a member"
        for other in self._active:
            if self._is_central(fault) and self._is_central(other):
                return f"{other} is under way"
        away = self._away | self._sleds_of(fault)
        if len(away) > self._parity:
            return f"{' '.join(sorted(away))} would be away at once"
        return None

    def begun(self, fault: Fault) -> None:
        """Note a fault."""
        self._active.append(fault)
        self.lacking |= self._sleds_of(fault)

    def ended(self, fault: Fault) -> None:
        """Its cause is gone."""
        self._active.remove(fault)

    @property
    def suspended(self) -> frozenset[Suspended]:
        """What is not promised at this moment."""
        found: set[Suspended] = set()
        if any(fault.kind is Kind.WALL_JUMP for fault in self._active):
            found.add(Suspended.TIME)
        away = self._away
        # A stripe is written with one shard missing at most, which another sled may have to make up for.
        short = len(away) >= self._parity and len(away | self.lacking) > self._parity
        if self._storm or short or any(fault.kind in _SERVES_LESS for fault in self._active):
            found.add(Suspended.SERVICE)
        return frozenset(found)

    @property
    def _away(self) -> set[str]:
        return {sled for fault in self._active for sled in self._sleds_of(fault)}

    def _sleds_of(self, fault: Fault) -> set[str]:
        if fault.kind is Kind.FLOOD:
            return set()  # it stays
        return set(fault.targets or self._nodes.all) & set(self._nodes.sleds)

    def _is_central(self, fault: Fault) -> bool:
        """Whether it takes a head, or the authority that another head needs to succeed it."""
        takes = fault.kind is not Kind.FLOOD and not self._sleds_of(fault)
        return takes and self._hits(fault, (*self._nodes.heads, AUTHORITY))

    def _hits(self, fault: Fault, names: Iterable[str]) -> bool:
        return bool(set(fault.targets or self._nodes.all) & set(names))


def _collide(one: Fault, other: Fault) -> bool:
    """Whether one would undo the other: processes, links, clocks and disks suffer one thing at a time."""
    alike = one.kind in PROCESSES and other.kind in PROCESSES
    both_cut = one.kind in CUTS and other.kind in CUTS
    if one.kind in ALONE and other.kind in ALONE:
        return True  # both would cut the link between the two
    if one.kind is other.kind or alike or both_cut:
        return not one.targets or not other.targets or bool(set(one.targets) & set(other.targets))
    return False
