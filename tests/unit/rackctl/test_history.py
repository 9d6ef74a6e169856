"""A history keeps what later operations depend on, and clients count what they wait for."""

import pytest
from rackctl.consistency.history import ZERO, History, Kind, Violation
from rackctl.consistency.linearizability import check
from rackctl.consistency.workload import STALL_SECONDS, Tally

LBA = 7


def written(history: History, value: int, begin: int, end: int | None) -> None:
    history.write("writer", LBA, value, begin).returned_ns = end


def a_history() -> History:
    """Values 1 and 2 are written and read; 3 is never answered."""
    history = History()
    written(history, 1, 10, 20)
    history.read("reader", LBA, 1, 21, 22)
    written(history, 2, 30, 40)
    written(history, 3, 50, None)
    history.read("reader", LBA, 2, 60, 61)
    return history


def test_what_was_overwritten_is_forgotten_and_counted() -> None:
    history = a_history()
    history.forget()
    assert [(operation.kind, operation.value) for operation in history.blocks[LBA]] == [
        (Kind.WRITE, 2), (Kind.WRITE, 3), (Kind.READ, 2),
    ]  # fmt: skip
    assert (history.forgotten, history.operations) == (2, 3)
    check(history)


@pytest.mark.parametrize("value", [2, 3])
def test_what_may_be_there_still_may_be_read_later(value: int) -> None:
    history = a_history()
    history.forget()
    history.read("reader", LBA, value, 70, 71)
    check(history)


@pytest.mark.parametrize("value", [ZERO, 1])
def test_what_was_overwritten_before_may_not(value: int) -> None:
    history = a_history()
    history.forget()
    history.read("reader", LBA, value, 70, 71)
    with pytest.raises(Violation):
        check(history)


def test_an_unanswered_write_that_was_read_and_overwritten_takes_effect_no_more() -> None:
    history = a_history()
    history.read("reader", LBA, 3, 62, 63)
    written(history, 4, 64, 65)
    history.read("reader", LBA, 4, 66, 67)
    history.forget()
    history.read("reader", LBA, 3, 70, 71)
    with pytest.raises(Violation):
        check(history)


def test_a_block_that_was_zeroed_is_zero_from_then_on() -> None:
    history = a_history()
    written(history, ZERO, 62, 63)
    history.read("reader", LBA, ZERO, 64, 65)
    history.forget()
    history.read("reader", LBA, ZERO, 70, 71)
    check(history)
    history.read("reader", LBA, 2, 72, 73)
    with pytest.raises(Violation):
        check(history)


def test_a_block_that_nobody_has_read_keeps_everything() -> None:
    history = History()
    written(history, 1, 10, 20)
    history.forget()
    assert history.operations == 1


def test_a_long_wait_for_anybodys_answer_is_a_stall() -> None:
    tally = Tally()
    tally.look(10.0)
    tally.answer(10.1)
    tally.answer(10.1 + STALL_SECONDS)
    tally.answer(10.2 + STALL_SECONDS)
    assert tally.stalls == [(10.1, 10.1 + STALL_SECONDS)]
    tally.look(20.0)
    assert tally.stalls[1] == (10.2 + STALL_SECONDS, 20.0)
    assert tally.answered == 3


def test_nobody_waits_while_nobody_asks() -> None:
    tally = Tally()
    tally.answer(10.0)
    tally.pause()
    tally.look(99.0)
    tally.answer(99.1)
    assert tally.stalls == []
