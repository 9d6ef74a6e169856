"""A process is known by pid and start time; whoever has the pid later is somebody else."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rackctl.processes import (
    ProcessIdentity,
    ProcessState,
    children,
    identify,
    resident_bytes,
    send,
    session_of,
    state_of,
    wait_gone,
)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits for its standard input to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def identity(child: "subprocess.Popen[bytes]") -> ProcessIdentity:
    found = identify(child.pid)
    assert found is not None
    return found


def test_a_living_process_runs(child: "subprocess.Popen[bytes]") -> None:
    assert state_of(identity(child)) is ProcessState.RUNNING
    assert resident_bytes(identity(child)) > 0


def test_a_stopped_process_is_paused_until_it_is_continued(child: "subprocess.Popen[bytes]") -> None:
    process = identity(child)
    assert send(process, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert state_of(process) is ProcessState.PAUSED
    assert send(process, signal.SIGCONT)
    os.waitid(os.P_PID, child.pid, os.WCONTINUED)
    assert state_of(process) is ProcessState.RUNNING


def test_what_a_process_has_started_is_of_its_session_and_stays_so_without_it() -> None:
    starts_another = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", starts_another], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        process = identity(leader)
        first, other = session_of(process)
        assert first == process
        leader.kill()
        leader.wait()
        assert session_of(process) == [other]
        assert send(other, signal.SIGKILL)
        assert wait_gone([other], timeout_s=10) == []


def test_a_killed_process_is_gone_before_its_parent_has_reaped_it(child: "subprocess.Popen[bytes]") -> None:
    process = identity(child)
    assert send(process, signal.SIGKILL)
    assert wait_gone([process], timeout_s=10) == []
    assert state_of(process) is ProcessState.GONE
    assert child.returncode is None
    assert resident_bytes(process) == 0


def test_a_process_whose_first_thread_has_ended_is_not_gone_while_another_runs() -> None:
    program = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        process = identify(child.pid)
        assert process is not None
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            os.sched_yield()
        assert state_of(process) is ProcessState.RUNNING
        assert wait_gone([process], 0.05) == [process]
        child.kill()
        assert wait_gone([process], 5) == []


def test_a_later_owner_of_the_pid_is_not_signalled(child: "subprocess.Popen[bytes]") -> None:
    predecessor = dataclasses.replace(identity(child), started_ticks=identity(child).started_ticks - 1)
    assert state_of(predecessor) is ProcessState.GONE
    assert not send(predecessor, signal.SIGKILL)
    assert child.poll() is None


def test_waiting_ends_with_those_that_stay(child: "subprocess.Popen[bytes]") -> None:
    assert wait_gone([identity(child)], timeout_s=0.01) == [identity(child)]


def test_a_pid_that_nobody_has_has_no_identity(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    assert identify(child.pid) is None


def test_a_child_is_found_as_long_as_it_lives(child: "subprocess.Popen[bytes]") -> None:
    process = identity(child)
    assert process in children()
    child.kill()
    wait_gone([process], timeout_s=10)
    assert process not in children()


def test_what_a_child_leaves_behind_is_found_once_orphans_are_adopted() -> None:
    program = """
import os, signal, subprocess, sys
from rackctl.processes import adopt_orphans, children
adopt_orphans()
leave = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
orphan = int(subprocess.run([sys.executable, "-c", leave], stdout=subprocess.PIPE, text=True).stdout)
print([process.pid for process in children()] == [orphan])
os.kill(orphan, signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ended.stdout == "True\n", ended.stderr
