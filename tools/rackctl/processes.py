"""Processes known by pid and start time, so that a reused pid is never signalled."""

import contextlib
import ctypes
import enum
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Position of a field in /proc/PID/stat after the name in parentheses (proc(5): state is 3, ppid 4, session 6,
# num_threads 20, starttime 22).
_STATE: Final = 0
_PARENT: Final = 1
_SESSION: Final = 3
_THREADS: Final = 17
_STARTED: Final = 19
_PR_SET_CHILD_SUBREAPER: Final = 36


class ProcessState(enum.Enum):
    """What the kernel says about a process; a zombie is gone when none of its threads runs any more."""

    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for all time on this boot of the machine: its pid and its start time in clock ticks since boot."""

    pid: int
    started_ticks: int


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of the process that has `pid` now, or None when there is none."""
    fields = _stat_fields(pid)
    return ProcessIdentity(pid, int(fields[_STARTED])) if fields else None


def state_of(process: ProcessIdentity) -> ProcessState:
    """Whether `process` itself, not a later owner of its pid, still runs."""
    fields = _stat_fields(process.pid)
    if not fields or int(fields[_STARTED]) != process.started_ticks:
        return ProcessState.GONE
    if fields[_STATE] in "ZXx":
        # Where only the first thread has ended, the others hold its files and ports for a moment.
        return ProcessState.RUNNING if int(fields[_THREADS]) > 1 else ProcessState.GONE
    return ProcessState.PAUSED if fields[_STATE] in "Tt" else ProcessState.RUNNING


def send(process: ProcessIdentity, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it is gone."""
    with _opened(process) as descriptor:
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        return True


def wait_gone(processes: Iterable[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
    """Wait until all have ended; return those that have not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while left:
        left = [process for process in left if state_of(process) is not ProcessState.GONE]
        remaining_s = deadline - time.monotonic()
        if not left or remaining_s <= 0:
            break
        _wait_any_end(left, remaining_s)
    return left


def adopt_orphans() -> None:
    """Be the parent of whatever our children leave behind from now on, so that `children` finds it (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[ProcessIdentity]:
    """Our living child processes."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _stat_fields(int(entry.name)) if entry.name.isdecimal() else None
        if fields and int(fields[_PARENT]) == os.getpid() and fields[_STATE] not in "ZXx":
            found.append(ProcessIdentity(int(entry.name), int(fields[_STARTED])))
    return found


def session_of(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """The living processes of the session that `leader` leads or led, itself first: it and what it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _stat_fields(int(entry.name)) if entry.name.isdecimal() else None
        if fields and int(fields[_SESSION]) == leader.pid and fields[_STATE] not in "ZXx":
            one = ProcessIdentity(int(entry.name), int(fields[_STARTED]))
            if one.started_ticks >= leader.started_ticks:
                found.append(one)
    return sorted(found, key=lambda one: one != leader)


def resident_bytes(process: ProcessIdentity) -> int:
    """Resident memory of the process in bytes, shared pages included; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
        if state_of(process) is not ProcessState.GONE:
            return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def proportional_bytes(process: ProcessIdentity) -> int:
    """Proportional set size in bytes: shared pages divided among their users; 0 when it cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


@contextlib.contextmanager
def _opened(process: ProcessIdentity) -> Iterator[int | None]:
    """A descriptor that stays bound to the process, opened before its identity is checked."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        yield descriptor if state_of(process) is not ProcessState.GONE else None
    finally:
        os.close(descriptor)


def _wait_any_end(processes: list[ProcessIdentity], timeout_s: float) -> None:
    """Return when one of `processes` ends. A pidfd turns readable then, zombie or not (pidfd_open(2))."""
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        for process in processes:
            descriptor = stack.enter_context(_opened(process))
            if descriptor is None:
                return
            poll.register(descriptor, select.POLLIN)
        poll.poll(timeout_s * 1000)
