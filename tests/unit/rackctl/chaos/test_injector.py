"""Faults begin and end in their time, within the budget, and nothing stays broken."""

from dataclasses import dataclass, field
from typing import cast

import pytest
from rackctl.chaos.injector import Injector
from rackctl.chaos.machine import Machine
from rackctl.chaos.plan import MIXES, Fault, Kind, Mix, Nodes, Round
from rackctl.errors import NodeNotRunning
from rackctl.processes import ProcessState
from rackctl.rack import Rack

NODES = Nodes(("head-0", "head-1"), tuple(f"sled-{number}" for number in range(6)))
ONE_BY_ONE = MIXES[0]
STORM = MIXES[-1]


@dataclass
class Time:
    """Moves when somebody sleeps."""

    now_s: float = 1000.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


@dataclass
class FakeNode:
    name: str
    state: ProcessState = ProcessState.RUNNING


@dataclass
class FakeRack:
    """Notes what is done to its nodes, and when."""

    time: Time
    done: list[tuple[float, str, str]] = field(default_factory=list)
    nodes: list[FakeNode] = field(default_factory=lambda: [FakeNode(name) for name in NODES.all])

    @property
    def state(self) -> "FakeRack":
        return self

    def node(self, name: str) -> FakeNode:
        return next(node for node in self.nodes if node.name == name)

    def kill(self, name: str) -> None:
        self._do("kill", name, ProcessState.GONE)

    def terminate(self, name: str) -> None:
        self._do("terminate", name, ProcessState.GONE)

    def pause(self, name: str) -> None:
        self._do("pause", name, ProcessState.PAUSED)

    def resume(self, name: str) -> None:
        self._do("resume", name, ProcessState.RUNNING)

    def begin(self, name: str) -> None:
        self.node(name).state = ProcessState.RUNNING
        self.done.append((self.time.now_s - 1000.0, "begin", name))

    def _do(self, what: str, name: str, after: ProcessState) -> None:
        if self.node(name).state is ProcessState.GONE:
            raise NodeNotRunning(name)
        self.node(name).state = after
        self.done.append((self.time.now_s - 1000.0, what, name))


@dataclass
class FakeMachine:
    """Permits all but cuts."""

    time: Time
    done: list[tuple[float, str, Fault]] = field(default_factory=list)

    def impossible(self, fault: Fault) -> str | None:
        return "no namespaces" if fault.kind is Kind.CUT else None

    def begin(self, fault: Fault) -> None:
        self.done.append((self.time.now_s - 1000.0, "begin", fault))

    def end(self, fault: Fault) -> None:
        self.done.append((self.time.now_s - 1000.0, "end", fault))


class Bench:
    """An injector and what it acts on."""

    def __init__(self) -> None:
        self.time = Time()
        self.rack = FakeRack(self.time)
        self.machine = FakeMachine(self.time)
        self.members: tuple[str, ...] = NODES.heads
        self.notes: list[str] = []
        self.injector = Injector(
            cast(Rack, self.rack), NODES, cast(Machine, self.machine), lambda: self.members,
            lambda who, what: self.notes.append(what), now=self.time.now, sleep=self.time.sleep,
        )  # fmt: skip

    def run(self, *faults: Fault, mix: Mix = ONE_BY_ONE, seconds: float = 30.0) -> None:
        self.injector.run(Round(0, mix, seconds, faults), 2, lambda: True)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def fault(number: int, at_s: float, seconds: float, kind: Kind, *targets: str) -> Fault:
    return Fault(number, at_s, seconds, kind, targets, 0)


def test_each_fault_begins_and_ends_in_its_time(bench: Bench) -> None:
    bench.run(fault(0, 2.0, 3.0, Kind.PAUSE, "head-0"), fault(1, 4.0, 5.0, Kind.KILL, "sled-0"))
    assert [(pytest.approx(at_s), *rest) for at_s, *rest in bench.rack.done] == [
        (2.0, "pause", "head-0"), (4.0, "kill", "sled-0"), (5.0, "resume", "head-0"), (9.0, "begin", "sled-0"),
    ]  # fmt: skip
    assert bench.time.now_s == pytest.approx(1030.0)


def test_what_is_left_at_the_end_is_mended(bench: Bench) -> None:
    bench.run(
        fault(0, 2.0, 90.0, Kind.PAUSE, "head-0"), fault(1, 3.0, 90.0, Kind.KILL, "sled-0"),
        fault(2, 4.0, 90.0, Kind.WALL_JUMP, "sled-1"), seconds=10.0,
    )  # fmt: skip
    assert {node.state for node in bench.rack.nodes} == {ProcessState.RUNNING}
    assert [(what, one.number) for _, what, one in bench.machine.done] == [("begin", 2), ("end", 2)]


def test_what_is_over_the_budget_or_not_possible_is_counted_and_not_done(bench: Bench) -> None:
    bench.run(
        fault(0, 2.0, 5.0, Kind.KILL, "head-0"), fault(1, 3.0, 5.0, Kind.KILL, "head-1"),
        fault(2, 4.0, 5.0, Kind.CUT, "sled-0", "head-0"),
    )  # fmt: skip
    assert [(what, name) for _, what, name in bench.rack.done] == [("kill", "head-0"), ("begin", "head-0")]
    assert bench.machine.done == []
    injector = bench.injector
    assert (injector.begun, injector.refused, injector.impossible) == (
        {Kind.KILL: 1}, {Kind.KILL: 1}, {Kind.CUT: 1},
    )  # fmt: skip


def test_a_restart_starts_at_once_and_not_again(bench: Bench) -> None:
    bench.run(fault(0, 2.0, 3.0, Kind.RESTART, "head-0"))
    assert [(what, name) for _, what, name in bench.rack.done] == [("kill", "head-0"), ("begin", "head-0")]


def test_a_node_vanishes_behind_cut_links_and_comes_back_when_they_are_mended(bench: Bench) -> None:
    order: list[str] = []
    kill, begin = bench.rack.kill, bench.rack.begin
    bench.rack.kill = lambda name: (order.append("kill"), kill(name))  # type: ignore[method-assign,assignment,func-returns-value]
    bench.rack.begin = lambda name: (order.append("begin"), begin(name))  # type: ignore[method-assign,assignment,func-returns-value]
    bench.machine.begin = lambda fault: order.append("cut")  # type: ignore[method-assign]
    bench.machine.end = lambda fault: order.append("mend")  # type: ignore[method-assign]
    bench.run(fault(0, 2.0, 3.0, Kind.VANISH, "head-0"))
    assert order == ["cut", "kill", "mend", "begin"]


def test_all_nodes_are_struck_at_once_in_a_storm(bench: Bench) -> None:
    bench.run(fault(0, 2.0, 3.0, Kind.KILL_ALL), mix=STORM)
    assert [name for _, what, name in bench.rack.done if what == "kill"] == list(NODES.all)
    assert [name for _, what, name in bench.rack.done if what == "begin"] == list(NODES.all)


def test_whoever_does_not_end_in_good_order_is_killed_before_it_is_started_again(bench: Bench) -> None:
    bench.rack.terminate = lambda name: None  # type: ignore[method-assign]
    bench.run(fault(0, 2.0, 3.0, Kind.TERMINATE, "head-0"))
    assert [(what, name) for _, what, name in bench.rack.done] == [("kill", "head-0"), ("begin", "head-0")]
    assert "head-0 has not ended and is killed" in bench.notes


def test_who_has_ended_by_itself_suffers_nothing_and_is_started_afterwards(bench: Bench) -> None:
    bench.rack.node("sled-0").state = ProcessState.GONE
    bench.run(fault(0, 2.0, 1.0, Kind.PAUSE, "sled-0"))
    assert bench.rack.done == []
    assert bench.injector.start_dead() == ["sled-0"]
    assert bench.rack.node("sled-0").state is ProcessState.RUNNING


def test_no_service_is_promised_while_a_fault_suspends_it(bench: Bench) -> None:
    bench.run(fault(0, 2.0, 3.0, Kind.WALL_JUMP, "head-0"), fault(1, 10.0, 2.0, Kind.WALL_JUMP, "head-1"))
    first, second = bench.injector.quiet
    assert first[0] == pytest.approx(1002.0, abs=0.2)
    assert first[1] == pytest.approx(1005.0, abs=0.2)
    assert second == (pytest.approx(1010.0, abs=0.2), pytest.approx(1012.0, abs=0.2))


def test_a_storm_promises_no_service_from_beginning_to_end(bench: Bench) -> None:
    bench.run(mix=STORM, seconds=10.0)
    ((from_s, to_s),) = bench.injector.quiet
    assert (from_s, to_s) == (1000.0, pytest.approx(1010.0))
