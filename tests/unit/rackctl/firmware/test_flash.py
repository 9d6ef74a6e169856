"""`rackctl firmware flash` before it reaches a board, and how it shows a flash."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from kit import firmware
from rackctl.cli import main
from rackctl.firmware import flash as module
from rackctl.firmware.flash_progress import Progress
from rackctl.signers import public_pem
from sled_board.flash_events import (
    Activated,
    AtPrompt,
    Chosen,
    Confirmed,
    Event,
    NothingToDo,
    Reported,
    Restarted,
    Sent,
    Verified,
)
from sled_board.slots import Slot, SlotRecord, Slots, SlotState

EVENTS: tuple[Event, ...] = (
    AtPrompt("2023.01", 115200),
    Chosen(Slot.B, Slots(a=SlotRecord(SlotState.CONFIRMED))),
    Sent(0, 4096, 0),
    Sent(1024, 4096, 1024),
    Sent(3072, 4096, 1024),
    Sent(4096, 4096, 1024),
    Sent(4096, 4096, 1024),
    Verified(Slot.B, 0xC0FFEE),
    Activated(Slot.B),
    Restarted(),
    Reported("healthy", (("slot", "b"), ("version", "1.1.0"))),
    Confirmed(Slot.B),
)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root key and images; whoever opens a port fails the test."""
    monkeypatch.chdir(tmp_path)
    Path("root.pub").write_bytes(public_pem(firmware.ROOT.public))
    Path("image").write_bytes(firmware.signed())
    Path("other").write_bytes(firmware.signed(firmware.recipe(hardware=("one", "other"))))
    Path("both").write_bytes(firmware.signed(firmware.recipe(hardware=("macchiatobin", "qemu-virt-arm64"))))
    Path("nothing").write_bytes(firmware.signed(firmware.recipe(payloads={"other": b"data"})))
    Path("unsigned").write_bytes(firmware.signed(keys=(firmware.FIRST,)))
    Path("damaged").write_bytes(firmware.signed()[:-1])
    monkeypatch.setattr(module, "opened", lambda *_: pytest.fail("a port was opened"))


class Terminal(io.StringIO):
    """A text that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO, *, as_json: bool = False, events: tuple[Event, ...] = EVENTS) -> str:
    """What is shown of the events, one second apart."""
    ticks = iter(range(100))
    progress = Progress(out, lambda: float(next(ticks)), as_json=as_json)
    for event in events:
        progress.show(event)
    progress.close()
    return out.getvalue()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("image",), "say by which root key with --root"),
        (("image", "--root", "nonesuch"), "nonesuch"),
        (("damaged", "--root", "root.pub"), "damaged: "),
        (("unsigned", "--root", "root.pub"), "signed by 1 of"),
        (("nothing", "--root", "root.pub"), "nothing: it has no payload application"),
        (("both", "--root", "root.pub"), "the image is for macchiatobin, qemu-virt-arm64: say with --board"),
        (("other", "--root", "root.pub"), "the image is for one, other: no board that is described here"),
        (
            ("other", "--root", "root.pub", "--board", "macchiatobin"),
            "other: it is for one, other; this board is macchiatobin",
        ),
        (("image", "--root", "root.pub", "--board", "nonesuch"), "no board is named 'nonesuch'; there are"),
        (("image", "--root", "root.pub", "--port-filter", "no such port"), "serial port"),
    ],
)
def test_what_cannot_be_flashed_is_one_line_and_no_port_is_opened(
    argv: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("firmware", "flash", *argv)) == 2
    found = capsys.readouterr()
    assert told in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""
    assert main(("firmware", "flash", *argv, "--json")) == 2
    found = capsys.readouterr()
    event = json.loads(found.out)
    assert event["event"] == "failed"
    assert f"rackctl: {event['why']}\n" == found.err


def test_every_option_has_a_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RACKCTL_ROOT_PUBLIC", "root.pub")
    monkeypatch.setenv("RACKCTL_BOARD", "honeycomb-lx2")
    assert main(("firmware", "flash", "image")) == 2
    assert "this board is honeycomb-lx2" in capsys.readouterr().err
    monkeypatch.setenv("RACKCTL_AFTER", "never")
    assert main(("firmware", "flash", "image")) == 2
    assert "RACKCTL_AFTER: 'never' is none of reset, wait, stay" in capsys.readouterr().err


def test_a_board_s_flash_that_fails_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("board", "flash", "image", "--root", "root.pub", "--board-dir", "nonesuch", "--json")) == 2
    found = capsys.readouterr()
    assert json.loads(found.out)["event"] == "failed"
    assert "nonesuch: holds no board" in found.err


def test_a_failure_that_nobody_reads_is_said_all_the_same() -> None:
    argv = [sys.executable, "-m", "rackctl.cli", "firmware", "flash", "nonesuch", "--root", "root.pub", "--json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (2, "rackctl: nonesuch: cannot be read: No such file or directory\n")


def test_two_variables_that_exclude_each_other_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RACKCTL_PORT", "/dev/nonesuch")
    monkeypatch.setenv("RACKCTL_PORT_FILTER", "usb")
    assert main(("firmware", "flash", "image", "--root", "root.pub")) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_filter_on_the_command_line_goes_before_a_port_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RACKCTL_PORT", "/dev/nonesuch")
    assert main(("firmware", "flash", "image", "--root", "root.pub", "--port-filter", "(")) == 2
    assert "'(' is no regular expression" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(("firmware", "flash", "image", "--port", "p", "--port-filter", "("))
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("firmware", "flash"), ("board", "flash")])
def test_every_option_s_help_names_its_variable_and_what_it_is_without(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main((*command, "--help"))
    helped = " ".join(capsys.readouterr().out.split())
    options = set(re.findall(r"(?<![\w-])--(?!no-|help)[a-z-]+", helped.split("options:")[1]))
    assert options >= {"--root", "--after", "--dry-run", "--json"}
    for option in options - {"--json"}:
        name = {"--root": "ROOT_PUBLIC"}.get(option, option[2:].upper().replace("-", "_"))
        assert f"RACKCTL_{name}" in helped, option
    assert f"RACKCTL_AFTER; default {'wait' if command[0] == 'board' else 'reset'}" in helped


def test_boards_that_nobody_has_tried_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(("firmware", "flash", "--help"))
    helped = " ".join(capsys.readouterr().out.split())
    assert "macchiatobin (untested on hardware), qemu-virt-arm64, or a .toml file" in helped


@pytest.mark.parametrize("option", ["--baud", "--rate"])
def test_what_is_no_rate_is_said_before_anything_is_opened(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(("firmware", "flash", "image", option, "12345"))
    assert "'12345' is no baud rate; take one of 9600" in capsys.readouterr().err


def test_plain_lines_have_rate_and_time_left() -> None:
    lines = shown(io.StringIO()).splitlines()
    assert lines[0] == "U-Boot 2023.01 at 115200 baud"
    assert lines[1] == "slots: a confirmed, b empty; the image goes to b"
    assert "75% 3 of 4 KiB, 1.0 KiB/s, 0:01 left, 1 KiB were there" in lines
    assert lines[-6] == "100% 4 of 4 KiB, 1.0 KiB/s, 0:00 left, 1 KiB were there"
    assert lines[-1] == "slot b: healthy and confirmed"


def test_a_terminal_has_one_line_that_moves_and_is_ended() -> None:
    text = shown(Terminal())
    assert text.count("\r[") == 5
    assert text.count("\n") == len(EVENTS) - 5 + 1
    assert shown(Terminal(), events=EVENTS[:4]).endswith("\n")


def test_programs_get_a_line_of_json_for_each_event() -> None:
    found = [json.loads(line) for line in shown(io.StringIO(), as_json=True).splitlines()]
    assert found[1] == {"event": "chosen", "slot": "b", "before": {"a": "confirmed", "b": "empty"}}
    assert found.count({"event": "sent", "done_bytes": 4096, "total_bytes": 4096, "skipped_bytes": 1024}) == 1
    assert found[-2] == {"event": "reported", "stage": "healthy", "fields": {"slot": "b", "version": "1.1.0"}}
    assert json.loads(shown(io.StringIO(), as_json=True, events=(NothingToDo(Slot.A),))) == {
        "event": "nothing-to-do",
        "slot": "a",
    }
