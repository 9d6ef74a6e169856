"""fio beside the load: what it finds wrong is told, what it cannot finish proves nothing."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rackctl.chaos.fio import FioBeside

WAIT_SECONDS_MAX = 60.0
Run = Callable[[str], tuple[FioBeside, list[str]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Lets a shell script stand in for fio until it has been started three times; its arguments go to `calls`."""

    def run(script: str) -> tuple[FioBeside, list[str]]:
        fio = tmp_path / "fio"
        fio.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n{script}\n', encoding="utf-8")
        fio.chmod(0o755)
        accused: list[str] = []
        beside = FioBeside(str(fio), ["nbd://one/fio", "nbd://two/fio"], str(tmp_path), accused.append)
        enough = threading.Event()
        for _ in range(int(WAIT_SECONDS_MAX / 0.05)):
            if (tmp_path / "calls").exists() and len((tmp_path / "calls").read_text().splitlines()) > 3:
                break
            enough.wait(0.05)
        beside.close()
        return beside, accused

    return run


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()


def test_a_pass_is_verified_at_once_and_again_before_the_next(run: Run, tmp_path: Path) -> None:
    beside, accused = run("exit 0")
    assert accused == []
    assert beside.passes.verified >= 2
    assert beside.passes.verified_again >= 1
    first, again, second = calls(tmp_path)[:3]
    assert "--uri=nbd://one/fio" in first
    assert "--do_verify=1" in first
    assert "--uri=nbd://two/fio" in again
    assert "--verify_only" in again
    pattern = next(word for word in first.split() if word.startswith("--verify_pattern="))
    assert pattern in again
    assert pattern not in second


def test_a_pass_that_loses_its_head_proves_nothing(run: Run, tmp_path: Path) -> None:
    beside, accused = run("echo Transport endpoint is not connected; exit 1")
    assert accused == []
    assert (beside.passes.verified, beside.passes.verified_again) == (0, 0)
    assert beside.passes.given_up >= 3
    assert not any("--verify_only" in call for call in calls(tmp_path))


@pytest.mark.parametrize("said", ["pattern: verify failed at file chaos.0.0", "verify: bad magic header 7878"])
def test_what_fio_reads_wrong_is_told_with_its_words(run: Run, said: str) -> None:
    _, accused = run(f"echo {said}; exit 1")
    assert accused
    assert said in accused[0]


def test_fio_that_says_the_same_without_end_is_ended(run: Run) -> None:
    beside, accused = run("while :; do echo Transport endpoint is not connected; done")
    assert accused == []
    assert beside.passes.given_up >= 3
