"""A board with nothing left to start: its prompt, and the way back."""

import contextlib
import os
import subprocess
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import firmware
from kit.console import answer, values
from kit.firmware_store import Board, board
from sled_board.console.request import Request
from sled_board.errors import CommandNotDone
from sled_board.slots import Slot, SlotState
from sled_board.stage.choice import Choice

IMAGE = firmware.signed()


@pytest.fixture
def given_up(tmp_path: Path) -> Board:
    """A board that has given up its only image, in slot A."""
    bare = board(tmp_path)
    bare.use(IMAGE)
    bare.store.change(lambda slots: slots.reject(Slot.A))
    return bare


class Recovery:
    """The program on a terminal whose other end is ours."""

    def __init__(self, store: Path) -> None:
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        device = os.ttyname(self.theirs)
        argv = [sys.executable, "-m", "sled_board.console", "--device", device, "--store", str(store)]
        self.process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)

    def ask(self, command: str) -> dict[str, str]:
        return values(answer(self.ours, Request(command, baud=115200, patience_s=20.0)))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@contextlib.contextmanager
def recovery(store: Path) -> Iterator[Recovery]:
    one = Recovery(store)
    try:
        yield one
    finally:
        one.close()


def test_it_shows_where_the_board_is(given_up: Board) -> None:
    with recovery(given_up.path) as console:
        status = console.ask("status")
        assert (status["state"], status["slot_a"].split()[0], status["slot_b"]) == ("recovery", "bad", "empty")
        assert console.ask("identity")["firmware_root_key"] == firmware.ROOT.public.hex()
        slots = console.ask("slots")
        assert slots["image_a"].startswith("verified ")
        assert slots["image_b"].startswith("unusable: ")


def test_an_image_that_was_given_up_is_tried_again(given_up: Board) -> None:
    with recovery(given_up.path) as console:
        assert console.ask("retry a") == {"slot_a": "test", "restarting": "yes"}
        assert console.process.wait(timeout=20) == 85
    chosen = Choice(given_up.store).next(watchdog=False)
    assert chosen is not None
    assert chosen.slot is Slot.A


def test_nothing_is_tried_that_does_not_verify(given_up: Board) -> None:
    given_up.write(Slot.B, IMAGE[:-1] + bytes((IMAGE[-1] ^ 1,)))
    given_up.write(Slot.A, bytes(100))
    before = given_up.slots
    with recovery(given_up.path) as console:
        for slot in "ab":
            with pytest.raises(CommandNotDone):
                console.ask(f"retry {slot}")
        for command in ("retry", "retry c"):
            with pytest.raises(CommandNotDone, match=r"retry a\|b"):
                console.ask(command)
    assert given_up.slots == before
    assert given_up.slots.a.state is SlotState.BAD


def test_an_image_that_was_flashed_meanwhile_is_taken(given_up: Board) -> None:
    given_up.write(Slot.B, IMAGE)
    with recovery(given_up.path) as console:
        assert console.ask("retry b")["slot_b"] == "test"


def test_a_lost_slot_state_is_said(given_up: Board) -> None:
    (given_up.path.parent / "state").write_bytes(b"x" * 8192)
    with recovery(given_up.path) as console:
        assert console.ask("status")["slot_state"].startswith("unreadable: ")
        with pytest.raises(CommandNotDone):
            console.ask("retry a")
        assert console.ask("restart") == {"restarting": "yes"}
        assert console.process.wait(timeout=20) == 85


def test_it_ends_when_told_to_and_when_its_device_goes_away(given_up: Board) -> None:
    with recovery(given_up.path) as console:
        console.ask("status")
        console.process.terminate()
        assert console.process.wait(timeout=20) == 0
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    argv = [sys.executable, "-m", "sled_board.console", "--store", str(given_up.path), "--device", os.ttyname(theirs)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        answer(ours, Request("status", baud=115200, patience_s=20.0))
        os.close(theirs)
        os.close(ours)
        assert process.wait(timeout=20) == 1
    finally:
        process.kill()
        process.wait()


def test_a_device_that_is_none_is_said(given_up: Board) -> None:
    argv = [sys.executable, "-m", "sled_board.console", "--device", "/dev/null", "--store", str(given_up.path)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "sled-recovery: " in ended.stderr
    assert "/dev/null" in ended.stderr
