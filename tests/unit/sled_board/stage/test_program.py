"""The stage as a program: a real application is started, confirmed, ended with it, and replaced when it fails."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import firmware
from kit.applications import WELL, packed
from kit.firmware_store import Board, board
from sled_board.slots import Slot, SlotState
from sled_board.stage import application

GONE_SECONDS_MAX = 20.0


def image(version: str, main: str) -> bytes:
    return firmware.signed(firmware.recipe(version=version, payloads={"application": packed(main)}))


@pytest.fixture
def made(tmp_path: Path) -> Board:
    made = board(tmp_path)
    made.install(Slot.A, image("1.4.0", WELL))
    return made


@contextmanager
def running(made: Board, *more: str) -> Iterator["subprocess.Popen[str]"]:
    folder = made.path.parent / "run"
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "sled_board.stage", "--store", str(made.path), "--run", str(folder)),
        *("--check-seconds", "0.3", "--start-seconds", "20", *more, "--", "--of", "the sled"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    """What it prints up to the line with `words`."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if words in line:
            return lines
    raise AssertionError(f"it ended without a line with {words!r}: {lines}")


def test_an_application_is_started_confirmed_and_ended_with_the_stage(made: Board) -> None:
    with running(made) as process:
        lines = read_until(process, "event=healthy")
        assert [line.split()[1] for line in lines if line.startswith("stage:")] == ["event=starting", "event=healthy"]
        assert any(line.endswith(" --of the sled") for line in lines)
        assert made.slots[Slot.A].state is SlotState.CONFIRMED
        process.send_signal(signal.SIGTERM)
        read_until(process, "application ends in good order")
        assert process.wait(30) == 0


def script(folder: Path, text: str) -> str:
    path = folder / "prepare"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_is_prepared_before_each_start(made: Board, tmp_path: Path) -> None:
    made.install(Slot.A, image("1.4.1", "import sys; print('application', flush=True); sys.exit(85)"))
    with running(made, "--prepare", script(tmp_path, "echo prepared")) as process:
        for _ in range(2):
            lines = read_until(process, "application")
            assert [line for line in lines if line in ("prepared", "application")] == ["prepared", "application"]


@pytest.mark.parametrize("text", ["exit 3", "exec sleep 60", None])
def test_a_machine_that_cannot_be_prepared_is_started_all_the_same(
    made: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    monkeypatch.setattr(application, "PREPARE_SECONDS_MAX", 0.2)
    program = tmp_path / "nothing" if text is None else Path(script(tmp_path, text))
    launcher = application.PythonLauncher(tmp_path / "run", [], 1.0, program)

    async def started() -> None:
        async with launcher.launched(made.store.verified(Slot.A, made.slots)) as child:
            assert (await child.notices.get()).ready

    asyncio.run(started())
    assert "event=not_prepared" in caplog.text


def test_an_application_does_not_outlive_a_stage_that_is_killed(made: Board) -> None:
    with running(made) as process:
        (line,) = [line for line in read_until(process, "application ") if line.startswith("application ")]
        child = int(line.split()[1])
        process.kill()
        process.wait()
        deadline = time.monotonic() + GONE_SECONDS_MAX
        while alive(child):
            assert time.monotonic() < deadline, "the application is still there"
            time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_an_image_that_does_not_start_is_rolled_back(made: Board) -> None:
    made.store.change(lambda slots: slots.start()[0].confirm(Slot.A))
    made.install(Slot.B, image("1.5.0", "raise SystemExit(3)"))
    made.store.change(lambda slots: slots.start()[0])
    made.store.change(lambda slots: slots.start()[0])  # two of its three attempts are gone
    with running(made) as process:
        lines = read_until(process, "event=healthy")
        events = [line.split()[1:3] for line in lines if line.startswith("stage:")]
        assert events == [
            ["event=starting", "slot=b"], ["event=ended", "slot=b"], ["event=starting", "slot=a"],
            ["event=healthy", "slot=a"],
        ]  # fmt: skip
    assert made.slots[Slot.B].state is SlotState.BAD


def test_with_nothing_to_start_it_ends_with_its_own_status(tmp_path: Path) -> None:
    with running(board(tmp_path)) as process:
        assert process.wait(30) == 86


def test_a_store_that_is_not_described_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sled_board.stage", "--store", str(tmp_path / "none"), "--run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ)
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
