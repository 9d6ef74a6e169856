"""Makes the faults of a round happen to a rack when it is their time, and mends everything behind them."""

import contextlib
import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from rackctl.chaos.budget import Budget, Suspended
from rackctl.chaos.machine import Machine
from rackctl.chaos.plan import CUTS, PROCESSES, Fault, Kind, Nodes, Round
from rackctl.errors import NodeNotRunning
from rackctl.processes import ProcessState
from rackctl.rack import Rack

TURN_SECONDS: Final = 0.1
"""How often the injector looks up from waiting."""


class Injector:
    """Everything happens in the thread that calls `run`, so that what it starts ends with this program."""

    def __init__(
        self, rack: Rack, nodes: Nodes, machine: Machine, members: Callable[[], Sequence[str]],
        note: Callable[[str, str], None], now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """`note` is called with who and what for each line of the timeline."""
        self._rack = rack
        self._nodes = nodes
        self._machine = machine
        self._members = members
        self._note = note
        self._now = now
        self._sleep = sleep
        self._lacking: set[str] = set()
        self.begun: Counter[Kind] = Counter()
        self.refused: Counter[Kind] = Counter()
        self.impossible: Counter[Kind] = Counter()
        self.suspended: set[Suspended] = set()
        self.quiet: list[tuple[float, float]] = []
        """When no service was promised: from and to, in seconds of the monotonic clock."""

    def run(self, one: Round, parity: int, go_on: Callable[[], bool]) -> None:
        """Let the round's faults begin and end in their time, as long as `go_on` says so; then mend what is left."""
        budget = Budget(self._nodes, parity, self._machine.impossible, storm=one.mix.storm, lacking=self._lacking)
        begun_s = watched_s = self._now()
        due: list[tuple[float, int, bool, Fault]] = [(fault.at_s, fault.number, False, fault) for fault in one.faults]
        heapq.heapify(due)
        active: list[Fault] = []
        while go_on():
            now_s = self._now()
            self._promise(budget, watched_s, now_s)
            watched_s, passed_s = now_s, now_s - begun_s
            if passed_s >= one.seconds:
                break
            next_s = due[0][0] if due else one.seconds
            if next_s > passed_s:
                self._sleep(min(TURN_SECONDS, next_s - passed_s, one.seconds - passed_s))
                continue
            _, _, ends, fault = heapq.heappop(due)
            if ends:
                self._end(fault, budget)
                active.remove(fault)
            elif self._begin(fault, budget):
                active.append(fault)
                heapq.heappush(due, (self._now() - begun_s + fault.seconds, fault.number, True, fault))
        for fault in active:
            self._end(fault, budget)
        self._promise(budget, watched_s, self._now())
        self._lacking = budget.lacking
        self._note("director", "mends everything")

    def start_dead(self) -> list[str]:
        """Start every node whose process is gone, as an operator would; the names of those."""
        dead = [node.name for node in self._rack.state.nodes if node.state is ProcessState.GONE]
        for name in dead:
            self._start(name)
        return dead

    def _promise(self, budget: Budget, from_s: float, to_s: float) -> None:
        self.suspended |= budget.suspended
        if Suspended.SERVICE in budget.suspended:
            if self.quiet and self.quiet[-1][1] >= from_s:
                self.quiet[-1] = (self.quiet[-1][0], to_s)
            else:
                self.quiet.append((from_s, to_s))

    def _begin(self, fault: Fault, budget: Budget) -> bool:
        if self._machine.impossible(fault) is not None:
            self.impossible[fault.kind] += 1
            return False
        refusal = budget.refusal(fault, self._members())
        if refusal is not None:
            self.refused[fault.kind] += 1
            self._note("fault", f"{fault} not admitted: {refusal}")
            return False
        self.begun[fault.kind] += 1
        budget.begun(fault)
        self.suspended |= budget.suspended
        self._note("fault", f"{fault} begins")
        if _is_of_the_machine(fault):
            self._machine.begin(fault)
        if fault.kind in PROCESSES:
            for name in fault.targets or self._nodes.all:
                self._strike(fault.kind, name)
        return True

    def _end(self, fault: Fault, budget: Budget) -> None:
        if _is_of_the_machine(fault):
            self._machine.end(fault)
        if fault.kind in (Kind.PAUSE, Kind.PAUSE_ALL):
            for name in fault.targets or self._nodes.all:
                with contextlib.suppress(NodeNotRunning):
                    self._rack.resume(name)
        elif fault.kind in PROCESSES:
            for name in fault.targets or self._nodes.all:
                if fault.kind is not Kind.RESTART:
                    self._start(name)
        budget.ended(fault)
        self._note("fault", f"{fault} ends")

    def _strike(self, kind: Kind, name: str) -> None:
        # Whoever has ended by itself is not there to suffer; the log says why it has.
        with contextlib.suppress(NodeNotRunning):
            if kind in (Kind.PAUSE, Kind.PAUSE_ALL):
                self._rack.pause(name)
            elif kind is Kind.TERMINATE:
                self._rack.terminate(name)
            else:
                self._rack.kill(name)
                if kind is Kind.RESTART:
                    self._start(name)

    def _start(self, name: str) -> None:
        if self._rack.node(name).state is not ProcessState.GONE:
            self._note("fault", f"{name} has not ended and is killed")
            self._rack.kill(name)
        self._rack.begin(name)


def _is_of_the_machine(fault: Fault) -> bool:
    """Whether it needs more than a signal."""
    return fault.kind in CUTS or fault.kind not in PROCESSES
