"""Which copy of a volume is slow: measured, judged, removed, and taken back (D1 keeps the last word)."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cluster import BLOCK, KitHead, Rack, until, with_rack

from head_node.cluster import pace
from head_node.cluster.lease import MS
from head_node.cluster.pace import (
    PROBATION_WINDOWS,
    PROBATION_WINDOWS_MAX,
    SLOW_FLOOR_NS,
    SLOW_WINDOWS,
    STEADY_WINDOWS,
    WINDOW_NS,
    DelayMeter,
    PaceJudge,
    VolumePace,
)
from head_node.store.records import Member

A, B, C = UUID(int=100), UUID(int=101), UUID(int=102)
FAST, SLOW = 1 * MS, 400 * MS


def windows(judge: PaceJudge, count: int, **delays: int | None) -> list[list[UUID]]:
    """Judge the same window `count` times; A, B, C by name."""
    named = {{"A": A, "B": B, "C": C}[name]: delay for name, delay in delays.items()}
    return [judge.judge(named) for _ in range(count)]


def test_a_member_that_is_slow_beside_a_fast_primary_is_found_and_only_after_a_while() -> None:
    judge = PaceJudge()
    changes = windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW)
    assert changes == [[]] * (SLOW_WINDOWS - 1) + [[B]]
    assert judge.slow(B)
    assert not judge.slow(A)


def test_copies_that_are_all_slow_are_all_kept() -> None:
    judge = PaceJudge()
    windows(judge, 100, A=SLOW, B=SLOW * 2, C=SLOW * 5)
    assert not any(map(judge.slow, (A, B, C)))


def test_of_two_slow_members_beside_a_fast_primary_none_is_a_measure_for_the_other() -> None:
    judge = PaceJudge()
    windows(judge, 100, A=FAST, B=SLOW, C=SLOW * 2)
    assert not judge.slow(B)
    assert not judge.slow(C)


def test_a_copy_that_is_slow_already_is_no_measure_for_the_others() -> None:
    judge = PaceJudge()
    windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW, C=FAST)
    windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW, C=SLOW)
    assert judge.slow(B)
    assert judge.slow(C)


def test_hiccups_count_for_nothing() -> None:
    judge = PaceJudge()
    for _ in range(200):
        windows(judge, SLOW_WINDOWS - 2, A=FAST, B=20 * SLOW)
        windows(judge, 4, A=FAST, B=FAST)
    assert not judge.slow(B)


def test_a_member_that_is_slow_three_seconds_of_four_is_found() -> None:
    judge = PaceJudge()
    for _ in range(10):
        windows(judge, 3, A=FAST, B=SLOW)
        windows(judge, 1, A=FAST, B=FAST)
    assert judge.slow(B)


@given(st.lists(st.tuples(st.integers(0, SLOW_FLOOR_NS - 1), st.integers(0, SLOW_FLOOR_NS - 1)), max_size=50))
def test_nothing_below_the_floor_is_slow(delays: list[tuple[int, int]]) -> None:
    judge = PaceJudge()
    for one, other in delays:
        assert judge.judge({A: one, B: other}) == []


@given(st.lists(st.tuples(*[st.none() | st.integers(0, 10**11)] * 3), max_size=80))
def test_d1_there_is_always_a_copy_that_is_not_slow(delays: list[tuple[int | None, int | None, int | None]]) -> None:
    judge = PaceJudge()
    for one, other, third in delays * 3:
        judge.judge({A: one, B: other, C: third})
        assert not all(map(judge.slow, (A, B, C)))


def test_a_copy_that_was_always_far_away_is_no_worse_than_its_past() -> None:
    judge = PaceJudge()
    windows(judge, 100, A=FAST, B=190 * MS)
    windows(judge, 100, A=FAST, B=500 * MS)
    assert not judge.slow(B)
    windows(judge, SLOW_WINDOWS, A=FAST, B=600 * MS)
    assert judge.slow(B)


def test_a_slow_copy_must_be_fast_for_a_while_and_each_relapse_doubles_it() -> None:
    judge = PaceJudge()
    for relapse in range(8):
        windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW)
        assert judge.slow(B)
        needed = min(PROBATION_WINDOWS * 2**relapse, PROBATION_WINDOWS_MAX)
        windows(judge, needed - 1, A=FAST, B=FAST)
        windows(judge, 1, A=FAST, B=SLOW)
        assert windows(judge, needed, A=FAST, B=FAST) == [[]] * (needed - 1) + [[B]]
        assert not judge.slow(B)
    windows(judge, STEADY_WINDOWS, A=FAST, B=FAST)
    windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW)
    windows(judge, PROBATION_WINDOWS, A=FAST, B=FAST)
    assert not judge.slow(B), "what was steady for long starts with the shortest probation again"


def test_a_copy_that_is_not_measured_keeps_its_verdict() -> None:
    judge = PaceJudge()
    windows(judge, SLOW_WINDOWS, A=FAST, B=SLOW)
    windows(judge, 10 * PROBATION_WINDOWS, A=FAST, B=None)
    windows(judge, 10 * PROBATION_WINDOWS, A=FAST)
    assert judge.slow(B)


def stop_and_go(meter: DelayMeter, seconds: int, stopped_ms: int, running_ms: int) -> list[int | None]:
    """A depth-1 writer beside a member that stands still for a part of each period: the delay of each window."""
    now_ns, closed, mark = 0, [], 0
    period, running = (stopped_ms + running_ms) * MS, running_ms * MS
    for window in range(1, seconds + 1):
        while now_ns < window * WINDOW_NS:
            mark += 1
            meter.sent(mark, now_ns)
            now_ns += MS // 2
            if now_ns % period >= running:
                now_ns += period - now_ns % period
            meter.answered(mark, now_ns)
        closed.append(meter.close_window(now_ns))
    return closed


def test_a_member_that_stands_still_for_380_of_420_ms_is_measured_slow_though_most_records_are_fast() -> None:
    delays = stop_and_go(DelayMeter(), 20, 380, 40)
    assert all(delay is not None and delay > 300 * MS for delay in delays)


def test_short_stalls_are_not_measured_slow() -> None:
    delays = stop_and_go(DelayMeter(), 20, 100, 900)
    assert all(delay is not None and delay < SLOW_FLOOR_NS for delay in delays)


def test_a_disk_with_one_sync_in_29_tenths_of_a_second_is_slow_in_every_window() -> None:
    meter, closed = DelayMeter(), []
    for tenth in range(1, 300):
        meter.sent(tenth, tenth * 100 * MS)
        if tenth % 29 == 0:
            meter.answered(tenth - 1, tenth * 100 * MS)
        if tenth % 10 == 0:
            closed.append(meter.close_window(tenth * 100 * MS))
    assert all(delay is not None and delay >= SLOW_FLOOR_NS for delay in closed), "also while nothing is answered"


def test_a_deep_queue_is_not_slowness() -> None:
    meter = DelayMeter()
    for millisecond in range(3000):
        meter.sent(millisecond, millisecond * MS)
        if millisecond >= 1000:
            meter.answered(millisecond - 1000, millisecond * MS)  # a second behind, and as fast as the writer
        if millisecond == 1500:
            meter.close_window(millisecond * MS)
    assert meter.close_window(3000 * MS) == 1 * MS


def test_a_window_without_anything_to_measure_says_nothing() -> None:
    meter = DelayMeter()
    meter.sent(1, 0)
    meter.answered(1, FAST)
    assert meter.close_window(WINDOW_NS) == FAST
    assert meter.close_window(2 * WINDOW_NS) is None


@dataclass
class Fake:
    """A member's link."""

    member: Member = field(default_factory=lambda: Member(B, UUID(int=1)))
    caught_up: bool = True
    records_pace: DelayMeter = field(default_factory=DelayMeter)
    heartbeats_pace: DelayMeter = field(default_factory=DelayMeter)


def ticks(volume: VolumePace, seconds: int, step_ms: int = 150) -> Iterator[int]:
    """Times at which the primary's heartbeat comes."""
    yield from range(step_ms * MS, seconds * 1000 * MS, step_ms * MS)


def run_pace(fake: Fake, current: set[UUID], late: Callable[[int], int] = lambda now_ns: now_ns) -> VolumePace:
    """Twenty seconds in which the member owes one record, and makes nothing durable."""
    volume = VolumePace(A, 150, 0)
    fake.records_pace.sent(1, 0)
    for now_ns in ticks(volume, 20):
        volume.tick(late(now_ns), [fake], current, owes=True)
    return volume


def test_a_member_that_owes_is_slow_and_one_that_only_catches_up_is_not() -> None:
    assert run_pace(Fake(), {A, B}).slow(B)
    assert not run_pace(Fake(caught_up=False), {A}).slow(B)
    assert run_pace(Fake(caught_up=False), {A, B}).slow(B)


def test_a_primary_that_stands_still_itself_blames_none() -> None:
    assert not run_pace(Fake(), {A, B}, late=lambda now_ns: now_ns // (3000 * MS) * 3000 * MS).slow(B)


def test_a_primary_whose_own_log_is_slow_is_the_slow_one_and_one_without_room_is_not() -> None:
    for owes in (True, False):
        volume, fake = VolumePace(A, 150, 0), Fake()
        volume.own_log.sent(1, 0)
        for now_ns in ticks(volume, 20):
            fake.heartbeats_pace.sent(now_ns, now_ns)
            fake.heartbeats_pace.answered(now_ns, now_ns + FAST)
            volume.tick(now_ns, [fake], {A, B}, owes)
        assert volume.slow_heads() == ([A] if owes else [])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in a hundredth of the time."""
    monkeypatch.setattr(pace, "WINDOW_NS", 100 * MS)
    monkeypatch.setattr(pace, "SLOW_FLOOR_NS", 40 * MS)
    monkeypatch.setattr(pace, "SLOW_FACTOR", 2)
    monkeypatch.setattr(pace, "SLOW_WINDOWS", 2)
    monkeypatch.setattr(pace, "PROBATION_WINDOWS", 2)


class GrayDisk:
    """A log disk each of whose commits takes 80 ms longer, until it is well again."""

    def __init__(self, head: KitHead) -> None:
        self._disk = head.disk
        head.disk.gate = self._later

    def _later(self, finish: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(0.08, finish)

    def heal(self) -> None:
        self._disk.gate = None


async def write_on(head: KitHead, condition: Callable[[], bool]) -> int:
    """Write block after block until the condition holds; returns how many were acknowledged."""
    count = 0
    while not condition():
        if head.serving:
            writing = asyncio.ensure_future(head.write(count % 64, bytes([count % 256]) * BLOCK))
            await until(lambda writing=writing: writing.done() or not head.serving)  # type: ignore[misc]
            count += writing.done()
        else:
            await asyncio.sleep(0.001)
    return count


def test_d1_a_member_with_a_gray_disk_is_removed_shown_and_taken_back(quick: None) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        disk = GrayDisk(second)
        await write_on(first, lambda: not rack.is_member(second))
        assert rack.record.exposed
        assert first.controller.status()["slow"] == [str(second.id)]
        assert second.controller.status()["following"], "it goes on following, or it could never be seen to be fast"
        disk.heal()
        await write_on(first, lambda: rack.is_member(second))
        assert first.controller.status()["slow"] == []
        kinds = [event["kind"] for report in first.api.reports for event in report["events"]]
        assert "member-slow" in kinds

    with_rack(scenario)


def test_d1_a_slow_member_is_kept_where_the_policy_needs_it(quick: None) -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        await rack.start()
        first, second = rack.heads[:2]
        await until(lambda: first.serving and rack.is_member(second))
        GrayDisk(second)
        await write_on(first, lambda: bool(first.controller.status()["slow"]))
        count = 0
        while count < 3:
            count += await first.write(0, bytes(BLOCK)) == 0
        assert rack.is_member(second)

    with_rack(scenario)


def test_a_primary_with_a_gray_disk_hands_over_to_a_member_and_is_removed_until_it_is_well(quick: None) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        disk = GrayDisk(first)
        await write_on(first, lambda: second.serving)
        assert first.controller.status()["last_end"] == "handed over"
        assert "slow" in first.controller.status()["reason"]
        await write_on(second, lambda: not rack.is_member(first))
        disk.heal()
        await until(lambda: rack.is_member(first))
        assert rack.record.epoch == 2

    with_rack(scenario)


def test_heads_that_are_all_slow_keep_each_other(quick: None) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        GrayDisk(first)
        GrayDisk(second)
        windows_end_ns = first.clock.boottime_ns() + 12 * pace.WINDOW_NS
        await write_on(first, lambda: first.clock.boottime_ns() >= windows_end_ns)
        assert rack.is_member(second)
        assert rack.record.epoch == 1

    with_rack(scenario)
