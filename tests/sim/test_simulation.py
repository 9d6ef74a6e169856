"""Whole racks under seeded faults: the seeds that once failed, those that together reach everything, a dozen that
differ from commit to commit; and that a seed says everything about its run."""

import itertools
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from kit.sources import ROOT
from rackctl.simulation.branches import branches
from rackctl.simulation.coverage import Coverage, choose, everything, wanted
from rackctl.simulation.faults import DRAWN, Fault, plan
from rackctl.simulation.holes import OPEN, RARE
from rackctl.simulation.run import Report, simulate
from rackctl.simulation.shrink import kind_of, shrink
from rackctl.simulation.unreached import UNREACHED, matches
from rackctl.simulation.world import Shape, World

from head_node.volume.overlay import Overlay


def seeds_in(name: str) -> list[str]:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if not line.startswith("#")]


SEEDS_KEPT = seeds_in("seeds.txt")
SEEDS_CHOSEN = seeds_in("coverage.txt")
CHUNKS, SEEDS_IN_CHUNK = 3, 4
REACHED_MIN = 0.95
"""Of all that chosen seeds are to reach: each change of the code moves some of them elsewhere."""


def first_seed() -> int:
    """Other seeds for each commit, the same ones for everybody who looks at that commit."""
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(told.stdout[:7], 16)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_promise_is_kept_under_the_faults_of_this_commits_seeds(chunk: int) -> None:
    begin = first_seed() + chunk * SEEDS_IN_CHUNK
    for seed in range(begin, begin + SEEDS_IN_CHUNK):
        report = simulate(str(seed))
        assert report.failure is None, f"make sim SEED={seed}: {report.failure}"


def test_the_chosen_seeds_reach_what_a_simulated_rack_can_reach() -> None:
    coverage = Coverage()
    for seed in SEEDS_CHOSEN:
        report = simulate(seed)
        assert report.failure is None, f"make sim SEED={seed}: {report.failure}"
        coverage.add(report)
    again = "choose seeds again (make sim ARGS='--choose tests/sim/coverage.txt'), or find out why none reaches"
    assert len(coverage.holes) <= (1 - REACHED_MIN) * len(wanted()), "\n".join((again, *coverage.holes))


def test_what_no_rack_reaches_is_named_with_a_reason_and_exists() -> None:
    names = everything()
    stale = [
        known
        for known in (*OPEN, *RARE, *itertools.chain.from_iterable(UNREACHED.values()))
        if not any(matches(known, name) for name in names)
    ]
    assert not stale


def test_branches_are_counted_only_while_a_run_lasts() -> None:
    code = Overlay.take.__code__
    with branches().counted():
        assert Overlay.take.__code__ is not code
        Overlay().take(1)
    assert Overlay.take.__code__ is code
    taken = [name for name, hit in zip(branches().names, branches().taken, strict=True) if hit]
    assert taken == ["volume.overlay Overlay.__init__: called", "volume.overlay Overlay.take: called"]


def test_few_cheap_seeds_are_chosen_that_reach_as_much_as_all() -> None:
    one, other, *_ = wanted()
    found = {"dear": {one, other}, "cheap": {one, other}, "poor": {one}}
    cost_s = {"dear": 20.0, "cheap": 2.0, "poor": 2.0}
    assert choose(found, cost_s, times=1) == ["cheap"]
    assert choose(found, cost_s, times=2) == ["cheap", "poor", "dear"]


@pytest.mark.parametrize("seed", SEEDS_KEPT)
def test_seeds_that_once_failed(seed: str) -> None:
    report = simulate(seed)
    assert report.failure is None, f"make sim SEED={seed}: {report.failure}"


@pytest.mark.parametrize("seed", ["5", "8"])
def test_one_seed_is_one_run_bit_for_bit(seed: str) -> None:
    one, other = simulate(seed), simulate(seed)
    assert one.begun
    assert [str(line) for line in one.timeline] == [str(line) for line in other.timeline]
    assert (one.digest, one.turns, one.nonces_watched) == (other.digest, other.turns, other.nonces_watched)


def test_every_kind_of_fault_is_planned() -> None:
    world = World("plans", Shape())
    planned = {fault.kind for seed in range(400) for fault in plan(world.stream(str(seed)), world, 1.0, 13.0)}
    world.loop.close()
    assert planned == DRAWN


def test_a_failure_is_shrunk_to_the_faults_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate("5")
    needed = {whole.faults[0].number, whole.faults[-1].number}

    def fails_with_both(seed: str, *, faults: Sequence[Fault]) -> Report:
        given = {fault.number for fault in faults}
        return replace(whole, faults=faults, failure="Violation: at 3.2 s" if needed <= given else None)

    monkeypatch.setattr("rackctl.simulation.shrink.simulate", fails_with_both)
    whole.failure = "Violation: at 1.5 s"
    assert {fault.number for fault in shrink(whole, lambda line: None).faults} == needed


def test_failures_are_compared_without_their_numbers() -> None:
    assert kind_of("Stuck: not after 60.0 s") == kind_of("Stuck: not after 59.5 s")
    assert kind_of("Stuck: not after 60.0 s") != kind_of("Violation: leaked sockets: 3")
