"""The clocks and the entropy that production gets."""

import time
from pathlib import Path

import pytest

from sled_controller.environment import CLOCK_FAULTS, Environment, FaultyClock, SystemClock


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


def faults(path: Path, ahead_ms: int, too_fast_ppm: int) -> Path:
    path.write_bytes(CLOCK_FAULTS.pack(ahead_ms, too_fast_ppm))
    return path


def test_a_wall_clock_is_as_wrong_as_its_file_says_from_that_moment_on(tmp_path: Path) -> None:
    file = faults(tmp_path / "clock", 0, 0)
    clock = FaultyClock(file)
    before_ms = clock.wall_ms()
    with file.open("r+b") as written:
        written.write(CLOCK_FAULTS.pack(3_600_000, 0))
    assert clock.wall_ms() - before_ms >= 3_600_000
    with file.open("r+b") as written:
        written.write(CLOCK_FAULTS.pack(-3_600_000, 0))
    assert clock.wall_ms() < before_ms


def test_a_boot_clock_runs_too_fast_from_its_start_and_never_jumps(tmp_path: Path) -> None:
    file = faults(tmp_path / "clock", 0, 1_000_000)
    clock = FaultyClock(file)
    begun_ns = SystemClock().boottime_ns()
    with file.open("r+b") as written:
        written.write(CLOCK_FAULTS.pack(0, 0))
    last_ns = clock.boottime_ns()
    while SystemClock().boottime_ns() - begun_ns < 1_000_000:
        now_ns = clock.boottime_ns()
        assert now_ns >= last_ns
        last_ns = now_ns
    true_ns = SystemClock().boottime_ns() - begun_ns
    assert clock.boottime_ns() - begun_ns > true_ns + 1_000_000 // 2


def test_a_program_has_the_machines_own_clocks_unless_a_file_makes_them_wrong(tmp_path: Path) -> None:
    assert type(Environment.of_program(None).clock) is SystemClock
    assert type(Environment.of_program(faults(tmp_path / "clock", 0, 0)).clock) is FaultyClock
    with pytest.raises(OSError, match="absent"):
        Environment.of_program(tmp_path / "absent")
    (tmp_path / "short").write_bytes(b"")
    with pytest.raises(OSError, match="short"):
        Environment.of_program(tmp_path / "short")
