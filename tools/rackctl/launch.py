"""Starts the programs of a rack as processes and waits until each says where it listens."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sled_board.durable import open_own
from sled_board.printable import escaped

from rackctl.defaults import ENVIRONMENT, checked, seconds
from rackctl.errors import NodeFailed
from rackctl.processes import ProcessIdentity, identify
from sled_controller.state_dir import CONSOLE_LINK

READY_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.005
_LOG_TAIL_LINES: Final = 8
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Command:
    """How to start one node: its argument vector, what to add to the environment, and its directories."""

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    state_dir: Path
    log: Path

    @property
    def endpoints(self) -> Path:
        """Where the program says where it listens."""
        return self.state_dir / "endpoints.json"


@dataclass(frozen=True, slots=True)
class Started:
    """A process that has been started and may not be ready yet."""

    command: Command
    child: "subprocess.Popen[bytes]"
    process: ProcessIdentity


def start(command: Command, *, leashed: bool) -> Started:
    """Start a program in a session of its own, so that a Ctrl-C on the terminal is ours to handle.

    `leashed`: the kernel kills it when this process ends, however that happens. That follows the thread that starts
    it (prctl(2), PR_SET_PDEATHSIG), so only the main thread leashes. Raises NodeFailed.
    """
    command.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    command.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    command.endpoints.unlink(missing_ok=True)
    # One that was killed has left it: it may lead to another sled's by now.
    (command.state_dir / CONSOLE_LINK).unlink(missing_ok=True)
    on_leash = leashed and threading.current_thread() is threading.main_thread()
    with os.fdopen(open_own(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
        try:
            child = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **command.environ},
                preexec_fn=_leash() if on_leash else None,
            )
        except OSError as error:
            raise NodeFailed(f"{command.name}: {command.argv[0]} cannot be started: {error.strerror}") from None
    process = identify(child.pid)
    if process is None:
        raise NodeFailed(f"{command.name}: ended at once{log_tail(command.log)}")
    return Started(command, child, process)


def await_ready(started: Sequence[Started], timeout_s: float | None = None) -> dict[str, dict[str, Any]]:
    """Wait until every program has written its `endpoints.json`; return them by node name. Raises NodeFailed.

    Without `timeout_s` it is what RACKCTL_TIMEOUT says, or READY_TIMEOUT_S.
    """
    if timeout_s is None:
        given = ENVIRONMENT.given("RACKCTL_TIMEOUT")
        timeout_s = READY_TIMEOUT_S if given is None else checked(seconds, given)
    deadline = time.monotonic() + timeout_s
    ready: dict[str, dict[str, Any]] = {}
    while True:
        for one in started:
            if one.command.name in ready:
                continue
            endpoints = _read_endpoints(one)
            if endpoints is not None:
                ready[one.command.name] = endpoints
            elif one.child.poll() is not None:
                raise NodeFailed(
                    f"{one.command.name}: ended with status {one.child.returncode} before it was ready"
                    f"{log_tail(one.command.log)}"
                )
        if len(ready) == len(started):
            return ready
        if time.monotonic() > deadline:
            late = [one for one in started if one.command.name not in ready]
            names = ", ".join(one.command.name for one in late)
            raise NodeFailed(f"{names}: not ready within {timeout_s:g} s{log_tail(late[0].command.log)}")
        time.sleep(_POLL_S)


def log_tail(path: Path) -> str:
    """The end of a log, indented, to go below an error's first line."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        if lines:
            return "; its log ends with:\n" + "\n".join("    " + escaped(line) for line in lines)
    return f"; see {path}"


def _read_endpoints(one: Started) -> dict[str, Any] | None:
    try:
        endpoints = json.loads(one.command.endpoints.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(endpoints, dict) or not isinstance(endpoints.get("pid"), int):
        return None
    try:
        # The program itself, or what it has started: a sled's stage starts the sled.
        return endpoints if os.getsid(endpoints["pid"]) == one.process.pid else None
    except (OSError, OverflowError):
        return None


def _leash() -> Callable[[], None]:
    """What the child runs before the program: everything is looked up beforehand, it only makes the call."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def tie_to_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    return tie_to_parent
