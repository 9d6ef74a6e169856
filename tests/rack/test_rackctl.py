"""The command line with a real rack: captive runs, detached racks, interruption; nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from rackctl.processes import ProcessIdentity, ProcessState, identify, state_of, wait_gone
from rackctl.state import load

RACKCTL = str(Path(sysconfig.get_path("scripts")) / "rackctl")
SMALL = ("--sleds", "6", "--heads", "2")


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary folder is the test's."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RACK")}
    yield {**clean, "TMPDIR": str(folder)}
    for process in leftovers(folder):
        os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(folder)


def leftovers(folder: Path) -> list[ProcessIdentity]:
    """Living processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                named = str(folder).encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            process = identify(int(entry.name))
            if named and process and state_of(process) is not ProcessState.GONE:
                found.append(process)
    return found


def rackctl(environ: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RACKCTL, *arguments], env=environ, capture_output=True, text=True, timeout=90)


def test_a_captive_command_finds_the_rack_and_leaves_nothing(environ: dict[str, str]) -> None:
    program = """
import json, os, subprocess, sys
status = json.loads(subprocess.run(["rackctl", "status", "--json"], stdout=subprocess.PIPE, check=True).stdout)
json.dump({"status": status, "environ": {k: v for k, v in os.environ.items() if k.startswith("RACK_")}}, sys.stdout)
sys.exit(7)
"""
    environ = {**environ, "PATH": f"{Path(RACKCTL).parent}:{environ['PATH']}"}
    ended = rackctl(environ, "run", *SMALL, "--volume", "data:32MiB", "--", sys.executable, "-c", program)
    assert ended.returncode == 7, ended.stderr
    found = json.loads(ended.stdout)
    given, status = found["environ"], found["status"]
    assert set(given) >= {"RACK_DIR", "RACK_API", "RACK_TOKEN", "RACK_NBD_URI", "RACK_PRIMARY", "RACK_SECONDARY"}
    (volume,) = status["volumes"]
    assert (volume["name"], volume["epoch"], volume["exposed"]) == ("data", 1, False)
    assert (volume["primary"], volume["secondaries"]) == (given["RACK_PRIMARY"], [given["RACK_SECONDARY"]])
    assert [node["state"] for node in status["nodes"]] == ["running"] * 9
    assert given["RACK_NBD_URI"].endswith("/data")
    assert not Path(given["RACK_DIR"]).exists()
    assert leftovers(Path(environ["TMPDIR"])) == []


def test_a_detached_rack_is_found_used_and_taken_down(environ: dict[str, str]) -> None:
    assert rackctl(environ, "up", *SMALL, "--detach").returncode == 0
    created = rackctl(environ, "volume", "create", "data", "32MiB")
    assert created.returncode == 0, created.stderr
    assert "nbd://127.0.0.1:" in created.stdout
    assert rackctl(environ, "node", "kill", "sled-3").returncode == 0
    again = rackctl(environ, "node", "pause", "sled-3")
    assert again.returncode == 2
    assert "rackctl node restart sled-3" in again.stderr
    (shown,) = [line for line in rackctl(environ, "status").stdout.splitlines() if line.startswith("sled-3")]
    assert "gone" in shown
    assert rackctl(environ, "node", "restart", "sled-3").returncode == 0
    assert "data" in rackctl(environ, "volume", "list").stdout
    assert "head-" in rackctl(environ, "volume", "show", "data").stdout
    assert rackctl(environ, "volume", "show", "date").returncode == 2
    assert rackctl(environ, "volume", "delete", "data").returncode == 0
    assert rackctl(environ, "down").returncode == 0
    assert leftovers(Path(environ["TMPDIR"])) == []
    assert list(Path(environ["TMPDIR"]).iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rack_cleans_up(environ: dict[str, str], number: signal.Signals) -> None:
    with subprocess.Popen([RACKCTL, "up", *SMALL], env=environ, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "Ctrl-C" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(number)
        assert running.wait(timeout=30) == 128 + number
    assert leftovers(Path(environ["TMPDIR"])) == []
    assert list(Path(environ["TMPDIR"]).iterdir()) == []


def test_no_process_outlives_a_killed_rackctl(environ: dict[str, str], tmp_path: Path) -> None:
    directory = tmp_path / "tmp" / "rack"
    argv = [RACKCTL, "up", *SMALL, "--dir", str(directory)]
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        while "Ctrl-C" not in running.stdout.readline():
            assert running.poll() is None
        processes = [node.process for node in load(directory).nodes if node.process]
        running.kill()
    assert len(processes) == 9
    assert wait_gone(processes, timeout_s=10) == []


def test_a_command_that_is_not_there_is_named(environ: dict[str, str]) -> None:
    ended = rackctl(environ, "run", *SMALL, "--", "/no/such/command")
    assert ended.returncode == 2
    assert "/no/such/command: No such file" in ended.stderr
    assert leftovers(Path(environ["TMPDIR"])) == []
