"""Logs tell who led, who was fenced off, and where a program lost its way."""

from pathlib import Path

from rackctl.chaos.log_evidence import FencedOff, LogEvidence, read_log, read_logs

VOLUME = "6b0b4f0a-6a5e-4f0e-9d7a-0d4f2b1f6c11"


def serving(epoch: int) -> str:
    return (
        f"2026-01-01 12:00:00,000 level=INFO logger=head_node.cluster.primary event=serving volume={VOLUME} "
        f"epoch={epoch} opnum=1 receipts=6 exposed=False"
    )


def fenced(epoch: int, sled_epoch: int) -> str:
    return f"... event=fenced_off volume={VOLUME} epoch={epoch} sled=7 sled_epoch={sled_epoch}"


def evidence(**logs: list[str]) -> LogEvidence:
    found = LogEvidence()
    for name, lines in logs.items():
        read_log(name, lines, found)
    return found


def test_an_epoch_that_two_heads_served_is_wrong() -> None:
    found = evidence(first=[serving(1), serving(3)], second=[serving(2)])
    assert found.wrong_leaders == []
    assert len(found.leaders) == 3
    found = evidence(first=[serving(1)], second=[serving(1)])
    assert found.wrong_leaders == [f"epoch 1 of volume {VOLUME} was served by first and by second"]


def test_an_epoch_that_one_head_served_in_two_runs_is_wrong() -> None:
    assert evidence(first=[serving(1), "... event=up head=1", serving(1)]).wrong_leaders != []


def test_a_sleds_own_serving_is_not_a_volumes() -> None:
    assert evidence(sled=["INFO event=serving sled=1 name=sled-0 address=127.0.0.1:1 boot=1"]).leaders == {}


def test_a_head_is_fenced_off_by_a_newer_epoch_only() -> None:
    found = evidence(first=[fenced(1, 2)])
    assert found.fenced == [FencedOff("first", 1, 2)]
    assert found.wrong_fences == []
    assert evidence(first=[fenced(2, 2)]).wrong_fences == ["first was fenced off in epoch 2 by 2"]


def test_a_sled_that_could_not_prove_its_fence_is_told() -> None:
    line = f"... event=sled_faulty volume={VOLUME} epoch=1 sled=7 reason=forged"
    assert evidence(first=[line]).wrong_fences == [f"first: {line}"]


def test_a_traceback_is_quoted_with_the_line_before_it() -> None:
    lines = ["fine", "event=volume_broke", "Traceback (most recent call last):", "  File x", "ValueError: no", "fine"]
    (quoted,) = evidence(first=lines).lost
    assert quoted.splitlines()[:2] == ["first: event=volume_broke", "first: Traceback (most recent call last):"]
    assert "first: ValueError: no" in quoted


def test_a_task_whose_exception_nobody_took_is_found() -> None:
    assert len(evidence(first=["Task exception was never retrieved", "coroutine 'x' was never awaited"]).lost) == 2


def test_logs_are_read_by_name_and_one_that_is_not_there_is_empty(tmp_path: Path) -> None:
    (tmp_path / "head").write_text(serving(4) + "\n", encoding="utf-8")
    found = read_logs({"head-0": tmp_path / "head", "head-1": tmp_path / "absent"})
    assert found.leaders == {(VOLUME, 4): ["head-0"]}
    assert found.lines == 1
