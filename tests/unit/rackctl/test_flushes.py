"""The flush checker: what a flush or FUA has promised must be found again, what neither has promised need not."""

import pytest
from rackctl.consistency.flushes import check
from rackctl.consistency.history import ZERO, History, Operation, Violation


def written(history: History, value: int, sent: int, answered: int | None, *, fua: bool = False) -> Operation:
    write = history.write("writer", 7, value, sent, fua=fua)
    write.returned_ns = answered
    return write


def flushed(history: History, sent: int, answered: int | None) -> None:
    history.flush("flusher", sent).returned_ns = answered


def test_a_value_that_was_flushed_is_found_again() -> None:
    history = History()
    written(history, 1, 10, 20)
    flushed(history, 30, 40)
    history.read("reader", 7, 1, 50, 60)
    check(history)


@pytest.mark.parametrize("found", [ZERO, 1])
def test_an_older_value_after_a_flush_is_a_lost_write(found: int) -> None:
    history = History()
    written(history, 1, 1, 2)
    written(history, 2, 10, 20)
    flushed(history, 30, 40)
    history.read("reader", 7, found, 50, 60)
    with pytest.raises(Violation, match="block 7: a flushed write is lost"):
        check(history)


def test_an_older_value_after_a_write_with_fua_is_a_lost_write() -> None:
    history = History()
    written(history, 1, 1, 2)
    written(history, 2, 10, 20, fua=True)
    history.read("reader", 7, 1, 30, 40)
    with pytest.raises(Violation, match="a flushed write is lost"):
        check(history)


def test_what_was_answered_and_never_flushed_may_be_lost() -> None:
    history = History()
    written(history, 1, 1, 2)
    written(history, 2, 10, 20)
    history.read("reader", 7, 1, 50, 60)
    check(history)


@pytest.mark.parametrize("answered", [None, 35], ids=["never answered", "answered after the flush was sent"])
def test_a_flush_promises_nothing_of_writes_that_were_not_answered_when_it_was_sent(answered: int | None) -> None:
    history = History()
    written(history, 1, 10, answered)
    flushed(history, 30, 40)
    history.read("reader", 7, ZERO, 50, 60)
    check(history)


def test_a_flush_that_was_not_answered_promises_nothing() -> None:
    history = History()
    written(history, 1, 10, 20)
    flushed(history, 30, None)
    history.read("reader", 7, ZERO, 50, 60)
    check(history)


def test_a_read_that_began_before_the_flush_was_answered_may_find_either() -> None:
    history = History()
    written(history, 1, 10, 20)
    flushed(history, 30, 40)
    history.read("reader", 7, ZERO, 39, 60)
    check(history)


def test_a_value_whose_write_overlaps_the_flushed_one_may_be_the_newer() -> None:
    history = History()
    written(history, 1, 5, 15)
    written(history, 2, 10, 20)
    flushed(history, 30, 40)
    history.read("reader", 7, 1, 50, 60)
    check(history)


def test_a_zero_that_was_written_later_is_no_lost_write() -> None:
    history = History()
    written(history, 1, 10, 20)
    flushed(history, 30, 40)
    written(history, ZERO, 41, None)
    history.read("reader", 7, ZERO, 50, 60)
    check(history)


def test_the_first_flush_that_covers_a_write_counts_and_not_a_later_slower_one() -> None:
    history = History()
    written(history, 1, 1, 2)
    written(history, 2, 10, 20)
    flushed(history, 21, 90)
    flushed(history, 30, 40)
    history.read("reader", 7, 1, 50, 60)
    with pytest.raises(Violation, match="a flushed write is lost"):
        check(history)
