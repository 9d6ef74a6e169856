"""The end of a log on the console."""

import logging

import pytest
from sled_board.console.log_tail import LINES_KEPT, LINES_SHOWN, LogTail
from sled_board.console.session import TEXT_CHARS_MAX
from sled_board.errors import CommandNotDone


def tail_of(*messages: str) -> LogTail:
    tail = LogTail(logging.Formatter("INFO %(message)s"))
    for message in messages:
        tail.handle(logging.LogRecord("test", logging.INFO, __file__, 1, message, (), None))
    return tail


def test_the_last_lines_are_kept_and_no_more() -> None:
    tail = tail_of(*(f"line {number}" for number in range(3 * LINES_KEPT)))
    assert len(tail.last(10 * LINES_KEPT)) == LINES_KEPT
    assert tail.last(2) == [f"INFO line {3 * LINES_KEPT - 2}", f"INFO line {3 * LINES_KEPT - 1}"]


def test_a_record_of_several_lines_takes_several_and_none_is_longer_than_a_reply() -> None:
    tail = tail_of("one\ntwo\n" + "x" * 1000)
    assert tail.last(3) == ["INFO one", " two", " " + "x" * (TEXT_CHARS_MAX - 1)]


def test_the_command_shows_as_many_as_are_asked_for() -> None:
    command = tail_of(*map(str, range(100))).command
    assert list(command.run(["3"])) == ["INFO 97", "INFO 98", "INFO 99"]
    assert len(list(command.run([]))) == LINES_SHOWN


@pytest.mark.parametrize("count", ["0", "-1", "many", "9" * 5000, "\u0663"])
def test_no_other_count_is_taken(count: str) -> None:
    with pytest.raises(CommandNotDone, match="log"):
        tail_of("x").command.run([count])
