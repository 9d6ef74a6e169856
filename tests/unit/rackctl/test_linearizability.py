"""The checkers of histories agree with a brute force, and see what is wrong."""

import itertools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rackctl.consistency.history import ZERO, History, Kind, Operation, Violation, content, value_of
from rackctl.consistency.linearizability import check, check_search, check_zones

Told = list[tuple[str, int, int, int | None]]


def brute_force(operations: Sequence[Operation]) -> bool:
    """Whether some order, with or without each open write, explains every read."""
    closed = [op for op in operations if op.returned_ns is not None]
    opened = [op for op in operations if op.returned_ns is None]
    return any(
        explains(order)
        for count in range(len(opened) + 1)
        for chosen in itertools.combinations(opened, count)
        for order in itertools.permutations([*closed, *chosen])
    )


def explains(order: Sequence[Operation]) -> bool:
    value = ZERO
    for at, operation in enumerate(order):
        if operation.kind is Kind.WRITE:
            value = operation.value
        elif operation.value != value:
            return False
        if any(later.returned_ns is not None and later.returned_ns < operation.invoked_ns for later in order[at + 1 :]):
            return False
    return True


@st.composite
def histories(draw: st.DrawFn, zeroes: bool) -> list[Operation]:
    """Up to six operations at distinct moments."""
    count = draw(st.integers(1, 6))
    moments = draw(st.permutations(range(2 * count)))
    operations = []
    for number in range(count):
        begin, end = sorted(moments[2 * number : 2 * number + 2])
        if draw(st.booleans()):
            value = ZERO if zeroes and draw(st.booleans()) else number + 1
            returned = end if value == ZERO or draw(st.integers(0, 3)) else None
            operations.append(Operation("w", Kind.WRITE, 0, value, begin, returned))
        else:
            operations.append(Operation("r", Kind.READ, 0, draw(st.integers(0, 3)), begin, end))
    return operations


def passes(checker: Callable[[int, Sequence[Operation]], None], operations: Sequence[Operation]) -> bool:
    try:
        checker(0, operations)
    except Violation:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(histories(zeroes=False))
def test_all_checkers_agree_where_values_are_unique(operations: list[Operation]) -> None:
    expected = brute_force(operations)
    assert passes(check_zones, operations) == expected
    assert passes(check_search, operations) == expected


@settings(max_examples=300, deadline=None)
@given(histories(zeroes=True))
def test_the_search_agrees_where_zeroes_are_written(operations: list[Operation]) -> None:
    assert passes(check_search, operations) == brute_force(operations)


def history_of(told: Told) -> History:
    """A history of block 0 from (kind, value, invoked, returned)."""
    history = History()
    for kind, value, invoked, returned in told:
        history.blocks[0].append(Operation("c", Kind(kind), 0, value, invoked, returned))
    return history


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([("write", 1, 0, 1), ("read", 0, 2, 3)], id="a lost acknowledged write"),
        pytest.param([("write", 1, 0, 1), ("write", 2, 2, 3), ("read", 1, 4, 5)], id="a stale read"),
        pytest.param([("read", 7, 0, 1)], id="a value from nowhere"),
        pytest.param([("read", 1, 0, 1), ("write", 1, 2, 3)], id="a value before it was written"),
        pytest.param([("write", 1, 0, None), ("read", 1, 1, 2), ("read", 0, 3, 4)], id="a dirty read"),
        pytest.param([("write", 1, 0, 1), ("write", 0, 2, 3), ("read", 1, 4, 5)], id="a trim undone"),
    ],
)
def test_what_is_wrong_is_seen(told: Told) -> None:
    with pytest.raises(Violation):
        check(history_of(told))


@pytest.mark.parametrize(
    "told",
    [
        pytest.param([("write", 1, 0, None), ("read", 0, 5, 6), ("read", 1, 7, 8)], id="an open write later"),
        pytest.param([("write", 1, 0, None), ("read", 0, 5, 6)], id="an open write never"),
        pytest.param([("write", 1, 0, 9), ("write", 2, 1, 8), ("read", 2, 2, 3), ("read", 1, 4, 5)], id="overlap"),
        pytest.param([("write", 0, 0, None), ("write", 1, 1, 2), ("read", 0, 3, 4)], id="an open trim later"),
    ],
)
def test_what_is_right_passes(told: Told) -> None:
    check(history_of(told))


def test_blocks_say_what_they_are() -> None:
    assert value_of(content(5, 9), 9) == 5
    assert value_of(bytes(4096), 9) == ZERO
    with pytest.raises(Violation, match="misplaced"):
        value_of(content(5, 9), 10)
    with pytest.raises(Violation, match="torn"):
        value_of(content(5, 9)[:2048] + content(6, 9)[2048:], 9)
    rotten = bytearray(content(5, 9))
    rotten[4000] ^= 1
    with pytest.raises(Violation, match="nowhere"):
        value_of(rotten, 9)
