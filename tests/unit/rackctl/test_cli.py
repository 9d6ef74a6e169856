"""Expected failures end in one place: one clear message and status 2; help explains every option."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rackctl.cli import build_parser, main
from rackctl.defaults import Defaults
from rackctl.options import named_size, named_sizes


@pytest.fixture(autouse=True)
def _no_rack_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for variable in ("RACK_DIR", "RACKCTL_SLEDS", "RACKCTL_HEADS", "RACKCTL_DETACH"):
        monkeypatch.delenv(variable, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that must fail says."""
    try:
        status: object = main(argv)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return capsys.readouterr().err


def test_without_a_rack_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no rack runs: start one with `rackctl up`" in refusal(capsys, "status")


def test_a_directory_without_a_rack_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"{tmp_path}: holds no rack" in refusal(capsys, "down", "--dir", str(tmp_path))


def test_the_directory_comes_from_the_environment_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RACK_DIR", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in refusal(capsys, "status")


def test_a_rack_is_not_started_among_foreign_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear", encoding="utf-8")
    assert "is not empty and holds no rack" in refusal(capsys, "up", "--dir", str(tmp_path))


@pytest.mark.parametrize(("option", "value"), [("--sleds", "0"), ("--heads", "99"), ("--sleds", "six")])
def test_a_size_that_no_rack_has_is_refused(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert value in refusal(capsys, "up", option, value)


def test_a_wrong_variable_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RACKCTL_SLEDS", "many")
    assert "environment variable RACKCTL_SLEDS: 'many'" in refusal(capsys, "up")


def test_a_wrong_switch_variable_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RACKCTL_DETACH", "perhaps")
    assert "RACKCTL_DETACH: 'perhaps' is neither yes nor no" in refusal(capsys, "up")


def test_run_without_a_command_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rackctl run -- env" in refusal(capsys, "run")


@pytest.mark.parametrize("volume", ["data", ":1GiB", "data:", "data:77", "data:-1", "data:0"])
def test_a_volume_needs_a_name_and_a_size_in_blocks(capsys: pytest.CaptureFixture[str], volume: str) -> None:
    assert "rackctl" in refusal(capsys, "run", "--volume", volume, "--", "true")


def test_volumes_are_read_as_name_and_size() -> None:
    assert named_size("data:1GiB") == ("data", 1 << 30)
    assert named_sizes("a:4k,b:8k") == [("a", 4096), ("b", 8192)]


CTRL_C_WHILE_LOADING = """
import importlib.abc, os, signal, sys

class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "rackctl.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Press())
from rackctl.program import main
main()
"""


def test_ctrl_c_while_it_is_loaded_leaves_no_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", CTRL_C_WHILE_LOADING], capture_output=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("argv", [["keys", "new", "key"], ["keys", "gen-dhchap"]])
def test_an_output_that_is_full_is_one_line(argv: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "rackctl.cli", *argv], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr == "rackctl: No space left on device\n"


def test_without_an_output_an_error_is_still_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    argv = [sys.executable, "-m", "rackctl.cli", "board", "up", "--off", "--board-dir", str(tmp_path / "file")]
    ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *argv], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, f"rackctl: {tmp_path}/file: File exists\n")


def test_an_error_of_the_system_is_one_line_with_its_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refusal(capsys, "board", "up", "--off", "--board-dir", str(tmp_path / "file"))
    assert said == f"rackctl: {tmp_path}/file: File exists\n"


def test_management_hosts_that_cannot_be_used_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "managers"
    path.write_text("[[host]]\n")
    path.chmod(0o600)
    root = tmp_path / "root.pub"
    root.write_text("ab" * 32)
    told = ("board", "provision", "--name", "x", "--root", str(root), "--management-hosts", str(path))
    assert f"{path}: host.0.nqn: Field required" in refusal(capsys, *told)


def test_a_wrong_variable_is_in_the_way_of_its_own_command_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RACKCTL_AFTER", "never")
    monkeypatch.setenv("RACKCTL_FORCE", "maybe")
    assert main(["keys", "gen-dhchap"]) == 0
    assert "variable RACKCTL_" in refusal(capsys, "firmware", "flash", "image")
    monkeypatch.delenv("RACKCTL_AFTER")
    assert "RACKCTL_FORCE: 'maybe' is neither yes nor no" in refusal(capsys, "firmware", "flash", "image")


def test_every_help_has_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in action.choices:
                    yield from walk(action.choices[name])

    parsers = list(walk(build_parser(Defaults({}))))
    assert len(parsers) > 40
    assert [parser.prog for parser in parsers if "Exit status: " not in parser.format_help()] == []


@pytest.mark.parametrize("command", [[], ["up"], ["down"], ["status"], ["run"], ["volume", "create"], ["node", "kill"]])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: rackctl")
    assert not command or command == ["volume"] or "[RACK_DIR]" in " ".join(text.split())
