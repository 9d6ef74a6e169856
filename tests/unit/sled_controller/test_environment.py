"""The clocks and the entropy that production gets."""

import time

import pytest

from sled_controller.environment import Environment


def test_f7_the_clock_of_leases_counts_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime_ns", {time.CLOCK_BOOTTIME: 7_000}.__getitem__)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 3_000)
    assert Environment().clock.boottime_ns() == 7_000


def test_the_clock_is_read_when_asked() -> None:
    clock = Environment().clock
    first = clock.boottime_ns()
    while clock.boottime_ns() == first:
        pass
    assert clock.boottime_ns() > first


def test_entropy_does_not_repeat() -> None:
    entropy = Environment().entropy
    assert len({entropy.bytes(16) for _ in range(8)}) == 8
