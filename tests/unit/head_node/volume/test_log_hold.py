"""The log is held for members that catch up, within a bound, and clients are slowed smoothly meanwhile."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from head_node.volume.log_hold import CREDIT_BYTES_MAX, FLOOR_BYTES_PER_S, NS_PER_S, LogHold

A, B = UUID(int=1), UUID(int=2)
MIB = 1 << 20


def throttled() -> LogHold:
    hold = LogHold(100 * MIB)
    hold.keep(A, 7)
    assert not hold.measured(51 * MIB)
    assert hold.throttled
    return hold


def test_the_oldest_need_of_all_counts_until_it_is_over() -> None:
    hold = LogHold(MIB)
    assert hold.oldest is None
    hold.keep(A, 7)
    hold.keep(B, 3)
    assert hold.oldest == 3
    assert hold.release(B)
    assert not hold.release(B)
    assert hold.oldest == 7


def test_clients_are_not_slowed_before_half_of_the_bound_is_used() -> None:
    hold = LogHold(100 * MIB)
    hold.keep(A, 7)
    assert not hold.measured(50 * MIB)
    hold.spent(1000 * MIB)
    assert hold.admits()


@given(st.lists(st.tuples(st.integers(0, MIB), st.integers(4096, MIB)), max_size=60))
def test_a_member_gains_on_clients_that_write_as_much_as_they_may(steps: list[tuple[int, int]]) -> None:
    hold, taken, written = throttled(), 0, 0
    for piece, length in steps:
        taken += piece
        hold.keep(A, 8, piece)
        while hold.admits():
            hold.spent(length)
            written += length
    assert written <= taken // 2 + MIB, "not more than half, but for one write that was under way"


def test_clients_get_a_floor_and_save_nothing_up() -> None:
    hold = throttled()
    assert not hold.admits()
    hold.passed(NS_PER_S // 10)
    assert hold.admits()
    hold.spent(FLOOR_BYTES_PER_S // 10)
    assert not hold.admits()
    hold.passed(3600 * NS_PER_S)
    hold.spent(CREDIT_BYTES_MAX)
    assert not hold.admits()


def test_only_the_slowest_member_gives_credit() -> None:
    hold = throttled()
    hold.keep(B, 3)
    hold.keep(A, 9, MIB)
    assert not hold.admits()
    hold.keep(B, 4, MIB)
    assert hold.admits()


def test_clients_are_slowed_until_the_last_member_has_caught_up_or_lost_its_hold() -> None:
    hold = throttled()
    hold.keep(B, 8)
    assert not hold.measured(1 * MIB), "hysteresis: near the end clients would take the lead again"
    assert hold.throttled
    hold.release(A)
    assert hold.throttled
    hold.release(B)
    assert not hold.throttled
    hold = throttled()
    assert hold.measured(101 * MIB)
    assert (hold.oldest, hold.throttled, hold.given_up_count) == (None, False, 1)
    assert not hold.measured(1000 * MIB)
