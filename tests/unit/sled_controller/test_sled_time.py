"""Sled time never runs below the newest signed issue time."""

from kit.host import NOW_MS, FixedClock

from sled_controller.sled_time import SledTime


def test_a_clock_that_is_right_is_believed() -> None:
    assert SledTime(FixedClock(), 0).now_ms() == NOW_MS


def test_a_clock_set_back_stays_at_the_kept_time_plus_uptime() -> None:
    clock = FixedClock(now_ms=5)
    time = SledTime(clock, NOW_MS)
    clock.boot_ns += 3_000_000_000
    assert time.now_ms() == NOW_MS + 3000


def test_an_issue_time_moves_it_forward_and_never_back() -> None:
    clock = FixedClock(now_ms=5)
    time = SledTime(clock, 100)
    clock.boot_ns += 7_000_000
    assert time.learn(1000)
    assert not time.learn(900)
    assert time.newest_issued_ms == 1000
    clock.boot_ns += 2_000_000
    assert time.now_ms() == 1002


def test_an_issue_time_below_the_uptime_reached_does_not_take_time_back() -> None:
    clock = FixedClock(now_ms=5)
    time = SledTime(clock, 100)
    clock.boot_ns += 1_000_000_000
    assert time.learn(200)
    assert time.now_ms() == 1100
