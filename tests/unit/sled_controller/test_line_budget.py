"""What a log takes of each kind of line, however often a peer causes it."""

import asyncio
import io
import logging

from kit.virtual_time import run_virtual
from sled_board.printable import LineFormatter

from sled_controller.line_budget import (
    FORMATS_MAX,
    KINDS_MAX,
    LINES_BURST,
    QUIET_SECONDS,
    LineBudget,
)


class Log:
    """A logger with a budget, and what it has written. Its records' time is the test's."""

    def __init__(self) -> None:
        self.written = io.StringIO()
        self.now_s = 1000.0
        self.budget = LineBudget()
        self.handler = logging.StreamHandler(self.written)
        self.handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
        self.handler.addFilter(self._stamp)
        self.handler.addFilter(self.budget)
        self.logger = logging.getLogger(f"{__name__}.{id(self)}")
        self.logger.propagate = False
        self.logger.addHandler(self.handler)

    def _stamp(self, record: logging.LogRecord) -> bool:
        record.created = self.now_s
        return True

    @property
    def lines(self) -> list[str]:
        return self.written.getvalue().splitlines()


def test_a_flood_of_a_kind_is_cut_and_counted_whatever_differs_from_line_to_line() -> None:
    log = Log()
    for number in range(10_000):
        log.logger.warning("event=refused controller=%d reason=%s", number, "x" * (number % 7))
    assert len(log.lines) == LINES_BURST
    log.now_s += 1
    log.logger.warning("event=refused controller=%d reason=%s", 1, "the last")
    assert log.lines[-1] == f"WARNING event=refused controller=1 reason=the last lines_left_out={10_000 - LINES_BURST}"


def test_a_flood_that_goes_on_costs_a_line_a_second() -> None:
    log = Log()
    for _ in range(600):
        log.now_s += 0.1
        for _ in range(50):
            log.logger.warning("event=refused")
    assert LINES_BURST + 58 <= len(log.lines) <= LINES_BURST + 62


def test_other_kinds_and_other_volumes_keep_their_lines() -> None:
    log = Log()
    for _ in range(1000):
        log.logger.warning("event=refused code=%s volume=%s", "SIGNATURE", "v1")
    log.logger.warning("event=refused code=%s volume=%s", "SIGNATURE", "v2")
    log.logger.warning("event=fenced_off volume=%s", "v1")
    assert log.lines[LINES_BURST:] == [
        "WARNING event=refused code=SIGNATURE volume=v2",
        "WARNING event=fenced_off volume=v1",
    ]


def test_a_clock_that_jumps_back_stops_no_line_for_good() -> None:
    log = Log()
    for _ in range(LINES_BURST + 1):
        log.logger.warning("event=refused")
    log.now_s -= 1e6
    log.logger.warning("event=refused")
    log.now_s += 2
    log.logger.warning("event=refused")
    assert log.lines[-1] == "WARNING event=refused lines_left_out=2"


def test_kinds_are_bounded_even_where_lines_are_made_up_by_a_peer() -> None:
    log = Log()
    for number in range(3 * max(KINDS_MAX, FORMATS_MAX)):
        log.logger.warning(f"event=made_up by=peer-{number}")
    assert len(log.budget._budgets) <= KINDS_MAX + 1
    assert len(log.budget._volume_at) <= FORMATS_MAX
    assert len(log.lines) <= KINDS_MAX + LINES_BURST


def test_kinds_that_are_quiet_again_make_room() -> None:
    log = Log()
    for number in range(KINDS_MAX):
        log.logger.warning(f"event=made_up by=peer-{number}")
    log.now_s += 10
    for _ in range(LINES_BURST):
        log.logger.warning("event=another")
    assert len(log.budget._budgets) == 1


def test_what_was_left_out_is_told_when_nothing_follows() -> None:
    async def work() -> list[str]:
        log = Log()
        for _ in range(LINES_BURST + 7):
            log.logger.warning("event=refused volume=%s", "v1")
        await asyncio.sleep(QUIET_SECONDS + 1)
        return log.lines

    assert run_virtual(work())[LINES_BURST:] == ["WARNING event=lines_left_out count=7 of='event=refused' volume=v1"]


def test_two_handlers_count_a_record_once() -> None:
    log, other = Log(), io.StringIO()
    second = logging.StreamHandler(other)
    second.addFilter(log.budget)
    log.logger.addHandler(second)
    for _ in range(LINES_BURST):
        log.logger.warning("event=refused")
    assert len(log.lines) == len(other.getvalue().splitlines()) == LINES_BURST
