"""The last lines of a program's log, kept for its console."""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from sled_board.console.session import Command, displayed
from sled_board.errors import CommandNotDone

LINES_KEPT: Final = 200
LINES_SHOWN: Final = 20


class LogTail(logging.Handler):
    """Keeps LINES_KEPT lines, as a console displays them.

    Further lines of one record, such as those of a traceback, begin with a space; a record's first one with what the
    formatter puts there.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            first, *others = self.format(record).splitlines() or [""]
        except Exception:  # as every handler: what cannot be formatted is said on standard error
            self.handleError(record)
            return
        self._lines.extend(map(displayed, (first, *(f" {line}" for line in others))))

    def last(self, count: int) -> list[str]:
        """The last `count` lines, oldest first."""
        return list(self._lines)[-count:]

    @property
    def command(self) -> Command:
        """`log [N]`."""
        return Command("log", f"the last lines of the log, up to {LINES_KEPT}", self._show, "[N]", 1)

    def _show(self, arguments: Sequence[str]) -> Iterable[str]:
        text = arguments[0] if arguments else str(LINES_SHOWN)
        if not text.isascii() or not text.isdecimal() or len(text) > 9 or not int(text):
            raise CommandNotDone(f"{text[:32]!r} is no number of lines: log [N]")
        return self.last(int(text))
