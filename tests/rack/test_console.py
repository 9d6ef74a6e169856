"""`rackctl console` with the sleds of a running rack: by a program, by a pipe, and at a terminal."""

import json
import os
import pty
import re
import select
import subprocess
import sysconfig
import termios
import time
from pathlib import Path

import pytest
from rackctl.cli import main
from rackctl.rack import Rack
from rackctl.sled_console import console_of

pytestmark = pytest.mark.rack(sleds=2, heads=1)

RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
LIMIT_S = 60.0


def console(rack: Rack, *words: str) -> int:
    return main(["console", "--dir", str(rack.directory), *words])


def test_a_command_gets_its_reply(rack: Rack, capsys: pytest.CaptureFixture[str]) -> None:
    assert console(rack, "sled-0", "status") == 0
    assert "state=serving\n" in capsys.readouterr().out
    assert console(rack, "sled-1", "identity", "--json") == 0
    told = json.loads(capsys.readouterr().out)["values"]
    assert told["name"] == "sled-1"
    assert told["sled_id"] == rack.node("sled-1").id
    assert told["root_key"] == rack.state.root_public_key
    assert told["locked"] == "yes"


def test_options_may_stand_anywhere(rack: Rack, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(rack.directory)
    assert main(["console", "sled-0", "--dir", directory, "log", "--patience", "9", "1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["console", "sled-0", "status", "--dir", directory]) == 0
    assert main(["console", "sled-0", "--dir", directory, "--", "log", "1"]) == 0
    assert main(["console", "sled-0", "log", "--dir", directory, "-1"]) == 2
    assert "sled-0 refuses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "required: SLED|PORT\n"),
        (("sled-0", "status", "--bold"), "unrecognized arguments: --bold"),
        (("sled-0", "status", "--baud", "12345"), "'12345' is no baud rate; take one of 9600, "),
    ],
)
def test_options_that_are_wrong_are_said(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["console", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_log_is_shown(rack: Rack, capsys: pytest.CaptureFixture[str]) -> None:
    assert console(rack, "sled-0", "log", "200") == 0
    assert "event=serving" in capsys.readouterr().out


def test_a_refusal_is_said_with_its_reason(rack: Rack, capsys: pytest.CaptureFixture[str]) -> None:
    assert console(rack, "sled-0", "provision", "name=x", f"root={'cd' * 32}", "network=dhcp") == 2
    assert "sled-0 refuses: root: this sled is locked to" in capsys.readouterr().err
    assert console(rack, "sled-0", "sing") == 2
    assert "there is no command 'sing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("head-0", "status"), "head-0 is no sled"),
        (("sled-9", "status"), "'sled-9' is not in the rack"),
        (("sled-0", "x" * 300), "one line of at most 256"),
        (("sled-0", ""), "the command is empty"),
    ],
)
def test_what_cannot_be_asked_is_said(
    rack: Rack, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert console(rack, *words) == 2
    assert said in capsys.readouterr().err


def test_a_sled_that_was_killed_has_none_and_one_that_is_back_has_one(
    rack: Rack, capsys: pytest.CaptureFixture[str]
) -> None:
    rack.kill("sled-1")
    assert console(rack, "sled-1", "status") == 2
    assert "rackctl node restart sled-1" in capsys.readouterr().err
    rack.restart("sled-1")
    assert console(rack, "sled-1", "status") == 0


def test_a_sled_that_hangs_is_said_to_give_no_answer(rack: Rack, capsys: pytest.CaptureFixture[str]) -> None:
    rack.pause("sled-1")
    try:
        assert console(rack, "sled-1", "status", "--patience", "0.3") == 2
        assert "no prompt of a sled; nothing was received" in capsys.readouterr().err
    finally:
        rack.resume("sled-1")
    assert console(rack, "sled-1", "status") == 0


def test_a_pipe_can_type(rack: Rack) -> None:
    ended = subprocess.run(
        [RACKCTL, "console", "--dir", str(rack.directory), "sled-0"],
        input="status\nidentity\n", capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("state=serving\n")
    assert "\nname=sled-0\n" in ended.stdout


def test_a_file_can_type(rack: Rack, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_text("status\n")
    with typed.open() as file:
        ended = subprocess.run(
            [RACKCTL, "console", str(console_of(rack, "sled-0"))],
            stdin=file, capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "state=serving" in ended.stdout


def test_a_refusal_in_a_pipe_is_its_exit_status_and_the_rest_is_asked_all_the_same(rack: Rack) -> None:
    ended = subprocess.run(
        [RACKCTL, "console", "--dir", str(rack.directory), "sled-0"],
        input="sing\n\nstatus\n", capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr == "rackctl: sled-0 refuses: there is no command 'sing': try help\n"
    assert ended.stdout.startswith("state=serving\n")


def test_without_an_input_there_has_to_be_a_command(rack: Rack) -> None:
    argv = ["sh", "-c", 'exec "$@" <&-', "sh", RACKCTL, "console", "--dir", str(rack.directory), "sled-0"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 2
    assert ended.stderr == "rackctl: console: there is no standard input; give a command\n"


def test_somebody_types_and_leaves_the_terminal_as_it_was(rack: Rack) -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        running = subprocess.Popen(
            [RACKCTL, "console", "--dir", str(rack.directory), "sled-0"], stdin=theirs, stdout=theirs, stderr=theirs
        )
        seen = b""
        deadline = time.monotonic() + LIMIT_S

        def read_until(pattern: bytes) -> None:
            nonlocal seen
            while not re.search(pattern, seen):
                assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
                seen += os.read(ours, 4096)

        # What is typed before the terminal is raw would be its own to echo: ask until the sled does.
        while termios.tcgetattr(theirs)[3] & termios.ICANON:
            assert time.monotonic() < deadline
            assert running.poll() is None
        os.write(ours, b"\x03")
        read_until(rb"\^C\r\nsled> ")
        os.write(ours, b"statux\x7fs\r")
        read_until(rb": ok\r\nsled> ")
        os.write(ours, b"\x1d")
        assert running.wait(timeout=LIMIT_S) == 0
        assert b": state=serving" in seen
        assert termios.tcgetattr(theirs) == before
    finally:
        running.kill()
        running.wait()
        os.close(ours)
        os.close(theirs)
