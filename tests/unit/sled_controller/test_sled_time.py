"""Sled time is right as soon as the clocks are, whatever a wrong one has said, and never what expired while off."""

import pytest
from kit.host import NOW_MS, FixedClock

from sled_controller.environment import TIME_MS_MAX
from sled_controller.sled_time import HOLD_MS, LEAD_MS_MAX, OFF_MS_MAX, RELEASED_MS, SledTime

MINUTE, DAY, YEAR = 60_000, 86_400_000, 365 * 86_400_000
WRONG_MS = [NOW_MS + YEAR, NOW_MS + DAY, NOW_MS - DAY, 0, 5, -1, TIME_MS_MAX - 1, 1 << 63, (1 << 64) - 1]
"""What a clock or an issue time may say: ahead, behind, 1970 and before, the year 9999, near the ends of 64 bits."""


def later(clock: FixedClock, milliseconds: int) -> None:
    clock.now_ms += milliseconds
    clock.boot_ns += milliseconds * 1_000_000


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


@pytest.mark.parametrize("issued_ms", WRONG_MS)
def test_expiry_what_is_learnt_is_bounded_by_the_sleds_own_clock(issued_ms: int) -> None:
    clock = FixedClock()
    time = SledTime(clock, NOW_MS - MINUTE)
    for _ in range(100):  # many heads attach: the bound is no ladder
        time.learn(issued_ms)
        time.to_keep_ms()
    assert NOW_MS <= time.now_ms() <= NOW_MS + LEAD_MS_MAX
    assert time.to_keep_ms() <= NOW_MS + LEAD_MS_MAX


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("wrong_ms", WRONG_MS)
def test_expiry_does_not_outlive_the_repair_of_the_clocks(wrong_ms: int, restarts: bool) -> None:
    """Every clock is wrong together for some time, the sled restarts meanwhile or does not, and all are put right."""
    clock = FixedClock()
    time = SledTime(clock, NOW_MS - DAY)
    for _ in range(60):
        clock.now_ms = wrong_ms
        clock.boot_ns += 1_000_000_000
        time.learn(wrong_ms)
        kept_ms = time.to_keep_ms()
        if restarts:
            time = SledTime(clock, kept_ms)
    clock.now_ms = NOW_MS + 60_000
    after = NOW_MS + 60_000
    slack = 62 * LEAD_MS_MAX if restarts else LEAD_MS_MAX
    assert after <= time.now_ms() <= after + slack
    time.learn(after)
    assert after <= time.now_ms() <= after + slack
    assert SledTime(clock, time.to_keep_ms()).now_ms() <= after + slack


def test_expiry_a_clock_that_jumps_ahead_while_the_sled_runs_is_followed_only_as_long_as_it_is() -> None:
    clock = FixedClock()
    time = SledTime(clock, NOW_MS - MINUTE)
    clock.now_ms += DAY
    assert time.now_ms() == NOW_MS + DAY
    clock.now_ms -= DAY
    assert time.now_ms() == NOW_MS


def test_expiry_a_clock_that_is_stuck_falls_behind_uptime_and_is_left() -> None:
    clock = FixedClock()
    time = SledTime(clock, NOW_MS)
    clock.boot_ns += DAY * 1_000_000
    assert time.now_ms() == NOW_MS + DAY
    assert not time.has_clock


def test_expiry_a_lead_is_kept_durably_when_it_has_lasted() -> None:
    clock = FixedClock()
    time = SledTime(clock, NOW_MS - 7 * DAY)  # off for a week, with a battery
    assert time.to_keep_ms() == NOW_MS - 7 * DAY + LEAD_MS_MAX
    for _ in range(HOLD_MS // MINUTE):
        assert time.to_keep_ms() < NOW_MS - 6 * DAY
        later(clock, MINUTE)
    assert time.to_keep_ms() == clock.now_ms


def test_expiry_a_lead_that_came_and_went_is_kept_at_its_lowest() -> None:
    clock = FixedClock()
    time = SledTime(clock, NOW_MS - 7 * DAY)
    clock.now_ms += YEAR
    for _ in range(HOLD_MS // MINUTE // 2):
        time.to_keep_ms()
        later(clock, MINUTE)
    clock.now_ms -= YEAR
    for _ in range(HOLD_MS // MINUTE // 2 + 1):
        time.to_keep_ms()
        later(clock, MINUTE)
    assert time.to_keep_ms() <= clock.now_ms


def test_expiry_a_sled_without_a_battery_clock_is_unsure_of_what_was_issued_before_it_was_off() -> None:
    before = SledTime(FixedClock(), NOW_MS - DAY)
    before.learn(NOW_MS)
    kept_ms = FixedClock().now_ms
    clock = FixedClock(now_ms=0, boot_ns=0)  # a week later
    time = SledTime(clock, kept_ms)
    assert not time.has_clock
    assert time.unsure_of(NOW_MS)
    assert time.unsure_of(NOW_MS - 5 * MINUTE)
    week_ms = NOW_MS + 7 * DAY
    assert not time.unsure_of(week_ms)
    time.learn(week_ms)
    assert time.now_ms() == week_ms
    assert not time.unsure_of(NOW_MS), "now it is judged by its expiry"
    assert time.to_keep_ms() == week_ms


def test_expiry_a_sled_with_a_clock_is_sure_of_what_was_issued_before() -> None:
    assert not SledTime(FixedClock(), NOW_MS).unsure_of(NOW_MS - MINUTE)
    assert not SledTime(FixedClock(now_ms=0), 0).unsure_of(5), "a new sled has nothing to be older than"


@pytest.mark.parametrize("issued_ms", [NOW_MS + OFF_MS_MAX + MINUTE, TIME_MS_MAX, 1 << 63, (1 << 64) - 1])
def test_expiry_a_sled_without_a_clock_believes_no_time_that_it_cannot_have_been_off_for(issued_ms: int) -> None:
    time = SledTime(FixedClock(now_ms=0), NOW_MS)
    time.learn(issued_ms)
    assert time.now_ms() == NOW_MS
    new = SledTime(FixedClock(now_ms=0), 0)
    assert not new.learn(RELEASED_MS + OFF_MS_MAX + 1)


@pytest.mark.parametrize("wrong_ms", WRONG_MS)
def test_expiry_a_statement_of_time_brings_a_sled_back_from_any_time(wrong_ms: int) -> None:
    clock = FixedClock()
    clock.now_ms = wrong_ms
    time = SledTime(clock, max(0, min(wrong_ms, TIME_MS_MAX)))
    time.learn(wrong_ms)
    ahead_ms = time.rtc_ahead_of(NOW_MS)
    time.state(NOW_MS, ahead_ms)
    assert time.now_ms() == NOW_MS
    assert time.to_keep_ms() == NOW_MS
    time.learn(NOW_MS + YEAR)
    again = SledTime(clock, NOW_MS, rtc_ahead_ms=ahead_ms)
    assert again.now_ms() == NOW_MS, "a clock that stays wrong is known to be by the next start, too"
    clock.now_ms = NOW_MS + 1
    assert SledTime(clock, NOW_MS, rtc_ahead_ms=ahead_ms).now_ms() >= NOW_MS
