"""A sled says that it is ready, and that it is well while it is; where nobody listens it says nothing."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.target import ManualTimers

from sled_controller.health import HealthReport


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        yield receiver


def heard(listener: socket.socket) -> list[str]:
    said = []
    try:
        while True:
            said.append(listener.recv(4096).decode())
    except BlockingIOError:
        return said


def test_it_is_ready_and_then_healthy_twice_an_interval(listener: socket.socket) -> None:
    timers, wrong = ManualTimers(), [""]
    environ = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "3000000"}
    HealthReport(environ, timers.call_later, lambda: wrong[0]).begin()
    assert heard(listener) == ["READY=1", "WATCHDOG=1\nSTATUS=healthy"]
    assert [timer.delay_s for timer in timers.waiting] == [1.5]
    timers.fire()
    assert heard(listener) == ["WATCHDOG=1\nSTATUS=healthy"]
    wrong[0] = "no drive is online"
    timers.fire()
    assert heard(listener) == ["STATUS=no drive is online"]
    wrong[0] = ""
    timers.fire()
    assert heard(listener) == ["WATCHDOG=1\nSTATUS=healthy"]


def test_without_an_interval_it_only_says_that_it_is_ready(listener: socket.socket) -> None:
    timers = ManualTimers()
    HealthReport({"NOTIFY_SOCKET": listener.getsockname()}, timers.call_later, lambda: "").begin()
    assert heard(listener) == ["READY=1"]
    assert timers.waiting == []


def test_an_abstract_address_is_one(tmp_path: Path) -> None:
    name = f"@palisade-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind("\0" + name[1:])
        HealthReport({"NOTIFY_SOCKET": name}, ManualTimers().call_later, lambda: "").begin()
        assert heard(receiver) == ["READY=1"]


def test_where_nobody_listens_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    timers = ManualTimers()
    environ = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1000000"}
    HealthReport(environ, timers.call_later, lambda: "").begin()
    timers.fire()
    assert caplog.text.count("event=health_unheard") == 1
    silent = ManualTimers()
    HealthReport({}, silent.call_later, lambda: "").begin()
    assert silent.waiting == []
