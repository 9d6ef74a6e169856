"""Whole racks under seeded faults: the seeds that once failed, some dozens more that differ from commit to commit,
and that a seed says everything about its run."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from kit.sources import ROOT
from rackctl.simulation.faults import DRAWN, Fault, plan
from rackctl.simulation.run import Report, simulate
from rackctl.simulation.shrink import kind_of, shrink
from rackctl.simulation.world import Shape, World

KEPT = (Path(__file__).parent / "seeds.txt").read_text(encoding="utf-8").splitlines()
SEEDS_KEPT = [line.split()[0] for line in KEPT if not line.startswith("#")]
CHUNKS, SEEDS_IN_CHUNK = 12, 6


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
