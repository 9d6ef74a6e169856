"""What may be broken at once, so that a run never breaks more than the rack promises to survive (D1: any one head, any
m sleds of a stripe, the power of everything). What is refused is counted, not forgotten."""

from typing import TYPE_CHECKING

from rackctl.simulation.faults import DAMAGES_A_LOG, DAMAGES_A_SLED, OPERATORS, Fault, Kind

if TYPE_CHECKING:
    from rackctl.simulation.world import World

_EXCLUSIVE = frozenset({Kind.REVOKE, Kind.VOLUME, Kind.FREEZE, Kind.RESTORE})
"""The operator does one of these at a time."""
TERM_MS_MAX = 30_000
"""A frozen volume is recovered after the term of all credentials (F7): a longer one is too long to wait for."""
_OF_ALL_SLEDS = frozenset({Kind.ISOLATE, Kind.BLIND, Kind.REVIVE, Kind.LOG_TAIL_LOST})
"""A head that these cut off may write stripes that lack what it could not reach; or everything loses its power."""


class Budget:
    """`Injector` asks it before each fault and tells it what was done."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._parity = world.shape.geometry.parity_shards
        self._damaged: set[str] = set()
        self._unavailable: set[str] = set()
        self._log_damaged: str | None = None
        self._active: list[Fault] = []

    @property
    def active(self) -> list[Fault]:
        """Faults that have begun and not ended."""
        return list(self._active)

    def refusal(self, fault: Fault) -> str | None:
        """Why `fault` must not happen now. None: it may."""
        if fault.kind in _EXCLUSIVE:
            return self._operator_refusal(fault)
        touched = self._touched(fault)
        sleds = self._sleds_touched(fault)
        if fault.kind in DAMAGES_A_LOG:
            refused = self._log_refusal()
            return "stripes need every sled" if refused is None and not self._may_miss(sleds) else refused
        if self._log_damaged is not None and (touched & self._heads or "authority" in touched):
            if self._whole() and not any(active.kind in DAMAGES_A_LOG for active in self._active):
                self._log_damaged = None
            else:
                return f"{self._log_damaged} has lost its log and is not a member again"
        if touched & (self._heads | {"authority"}) and any(kind is Kind.REVOKE for kind in self._at_work()):
            return "a head is being revoked"
        if fault.kind is Kind.DRIVE_AWAY and self._world.shape.drives_per_sled < 2:
            return "a sled without any drive does not start"
        if fault.kind in DAMAGES_A_SLED and not self._may_damage(sleds):
            return "as much is damaged as a stripe survives"
        if sleds and fault.kind not in DAMAGES_A_SLED and not self._may_miss(sleds):
            return "a stripe written meanwhile would not survive what is damaged already"
        return None

    def begun(self, fault: Fault) -> None:
        """Note a fault."""
        self._active.append(fault)
        sleds = self._sleds_touched(fault)
        if fault.kind in DAMAGES_A_SLED:
            self._damaged |= sleds
        else:
            self._unavailable |= sleds
        if fault.kind in DAMAGES_A_LOG:
            self._log_damaged = fault.targets[0]

    def ended(self, fault: Fault) -> None:
        """Its cause is gone; what it damaged stays damaged."""
        self._active.remove(fault)

    @property
    def _heads(self) -> set[str]:
        return {head.name for head in self._world.heads}

    def _touched(self, fault: Fault) -> set[str]:
        return set(fault.targets) or {node.name for node in self._world.nodes}

    def _sleds_touched(self, fault: Fault) -> set[str]:
        all_sleds = {sled.name for sled in self._world.sleds}
        if fault.kind in OPERATORS:
            return set()
        if fault.kind in _OF_ALL_SLEDS and set(fault.targets) & self._heads:
            return all_sleds
        return self._touched(fault) & all_sleds

    def _may_damage(self, sleds: set[str]) -> bool:
        # A stripe that lacks the shards of absent sleds has at least k + 1, so one more loss is always survived.
        damaged = self._damaged | sleds
        return len(damaged) <= 1 or len(damaged | self._unavailable) <= self._parity

    def _may_miss(self, sleds: set[str]) -> bool:
        return len(self._damaged) <= 1 or len(self._damaged | self._unavailable | sleds) <= self._parity

    def _log_refusal(self) -> str | None:
        """A head may lose its log only while every other has everything, and goes on to be a member."""
        if not self._whole():
            return "not every head is a member"
        nodes = self._heads | {"authority"}
        busy = next((fault for fault in self._active if not fault.targets or nodes & set(fault.targets)), None)
        if busy is not None:
            return f"{busy} is under way"
        return None if self._world.operator.idle else "the operator is at work"

    def _operator_refusal(self, fault: Fault) -> str | None:
        busy = next((active for active in self._active if active.kind in _EXCLUSIVE), None)
        if busy is not None:
            return f"{busy} is under way"
        if fault.kind in (Kind.FREEZE, Kind.RESTORE) and self._world.shape.credential_term_ms > TERM_MS_MAX:
            return "credentials have too long a term"
        if fault.kind is Kind.REVOKE:
            return self._log_refusal()
        return None if self._world.operator.idle else "the operator is at work"

    def _at_work(self) -> list[Kind]:
        return [] if self._world.operator.idle else [fault.kind for fault in self._active]

    def _whole(self) -> bool:
        """Every head is a member; after a log was damaged it also has been filled again, as only a primary can do."""
        records = self._world.records()
        if not all(self._world.redundant(record) for record in records):
            return False
        return self._log_damaged is None or all(self._world.caught_up(record) for record in records)
