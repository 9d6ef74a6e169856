"""Every parser of bytes from outside takes any: the corpus, and a short campaign that differs from commit to commit."""

import subprocess
from pathlib import Path
from random import Random

import pytest
from fuzz import consoles, files, round_trips, targets
from fuzz.fuzzer import Crash, Fuzzer, Target
from kit.sources import ROOT

TARGETS = (*targets.TARGETS, *files.TARGETS, *round_trips.TARGETS, *consoles.TARGETS)
CORPUS = Path(__file__).parent / "corpus"


def corpus_of(target: Target) -> list[bytes]:
    """Valid inputs, and those that once reached something new or were too much."""
    return [*target.seeds(), *(path.read_bytes() for path in sorted((CORPUS / target.name).glob("*.bin")))]


def seed_of_commit() -> str:
    try:
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return told.stdout.strip()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))
def test_nothing_from_outside_is_too_much(target: Target) -> None:
    fuzzer = Fuzzer(target, Random(f"{seed_of_commit()}/{target.name}"))
    fuzzer.start(corpus_of(target))
    for _ in range(target.executions):
        fuzzer.step()
    assert fuzzer.lines, "nothing of ours was executed"


@pytest.mark.parametrize("target", [target for target in TARGETS if target.reseal], ids=lambda target: str(target.name))
def test_what_is_sealed_again_is_what_it_was(target: Target) -> None:
    assert target.reseal is not None
    for seed in target.seeds():
        assert target.reseal(seed) == seed


def test_the_fuzzer_finds_what_lies_behind_two_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(data: bytes) -> None:
        if data[:1] == b"P":
            found = data[1:2]
            if found == b"A":
                raise IndexError("found")

    monkeypatch.setattr("fuzz.fuzzer.PACKAGES", (__file__,))
    fuzzer = Fuzzer(Target("made-up", run, (), lambda: [b"xx"]), Random(1))
    fuzzer.start([b"xx"])

    def search() -> None:
        for _ in range(100_000):
            fuzzer.step()

    with pytest.raises(Crash, match="found"):
        search()
