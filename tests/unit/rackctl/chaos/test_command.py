"""What `rackctl chaos` says before it starts anything."""

from pathlib import Path

import pytest
from rackctl.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that must fail says."""
    try:
        status: object = main(["chaos", *argv])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return capsys.readouterr().err


def test_the_plan_of_a_seed_is_shown_and_nothing_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chaos", "--plan", "--seed", "5", "--minutes", "1"]) == 0
    shown = capsys.readouterr().out
    assert "round 0: " in shown
    assert "round 1: " in shown
    assert "round 2: " not in shown
    assert main(["chaos", "--plan", "--seed", "5", "--minutes", "1"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("argv", [("--heads", "1"), ("--sleds", "5")])
def test_a_rack_that_cannot_lose_anything_is_refused(capsys: pytest.CaptureFixture[str], argv: tuple[str, str]) -> None:
    assert "at least 2 heads and 6 sleds" in refusal(capsys, *argv)


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_a_time_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    assert "no number of minutes" in refusal(capsys, "--minutes", minutes)


def test_a_rack_is_not_kept_among_foreign_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear", encoding="utf-8")
    assert "is no empty directory" in refusal(capsys, "--keep", str(tmp_path))
    assert "is no empty directory" in refusal(capsys, "--keep", str(tmp_path / "letters.txt"))
