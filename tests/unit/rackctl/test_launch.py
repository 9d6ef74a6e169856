"""A program is ready when it says where it listens, and its failure comes with the end of its log."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rackctl.errors import NodeFailed
from rackctl.launch import Command, Started, await_ready, start
from rackctl.processes import send, session_of

READY = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], "new").write_text(json.dumps({"pid": os.getpid(), "nbd": ["127.0.0.1", 7]}))
os.replace(Path(sys.argv[1], "new"), Path(sys.argv[1], "endpoints.json"))
sys.stdin.close()
import signal
signal.pause()
"""
FAILING = "print('the disk is on fire', flush=True); raise SystemExit(3)"
SILENT = "import signal; signal.pause()"


@pytest.fixture
def started() -> Iterator[list[Started]]:
    """Everything put in here is killed afterwards."""
    running: list[Started] = []
    yield running
    for one in running:
        one.child.kill()
        one.child.wait()


def command(tmp_path: Path, program: str) -> Command:
    state_dir = tmp_path / "state"
    return Command("node-0", [sys.executable, "-c", program, str(state_dir)], {}, state_dir, tmp_path / "logs" / "node")


def test_a_program_is_ready_with_its_endpoints(tmp_path: Path, started: list[Started]) -> None:
    started.append(start(command(tmp_path, READY), leashed=True))
    assert await_ready(started)["node-0"]["nbd"] == ["127.0.0.1", 7]


def test_a_program_may_start_the_one_that_listens(tmp_path: Path, started: list[Started]) -> None:
    starts_it = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {READY!r}, sys.argv[1]])"
    started.append(start(command(tmp_path, starts_it), leashed=True))
    assert await_ready(started)["node-0"]["nbd"] == ["127.0.0.1", 7]
    for process in session_of(started[0].process):
        send(process, signal.SIGKILL)


def test_endpoints_of_a_former_run_do_not_count(tmp_path: Path, started: list[Started]) -> None:
    silent = command(tmp_path, SILENT)
    silent.state_dir.mkdir()
    silent.endpoints.write_text('{"pid": 1}', encoding="utf-8")
    started.append(start(silent, leashed=True))
    with pytest.raises(NodeFailed, match="node-0: not ready within"):
        await_ready(started, timeout_s=0.05)


def test_a_program_that_fails_is_quoted(tmp_path: Path, started: list[Started]) -> None:
    started.append(start(command(tmp_path, FAILING), leashed=True))
    with pytest.raises(NodeFailed, match=r"(?s)ended with status 3.*the disk is on fire"):
        await_ready(started)


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    absent = Command("node-0", [str(tmp_path / "absent")], {}, tmp_path / "state", tmp_path / "log")
    with pytest.raises(NodeFailed, match="absent cannot be started: No such file"):
        start(absent, leashed=False)
