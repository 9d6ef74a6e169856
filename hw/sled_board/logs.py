"""The log of a program on a board: to standard error, and its end to the console.

On a board standard error is the UART, which carries a hundred lines a second at best. So a terminal is written to by a
thread, and lines that it is too slow for are left out and counted.
"""

import atexit
import logging
import queue
import sys
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Final

from sled_board.console.log_tail import LogTail
from sled_board.printable import LineFormatter

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
WAITING_MAX: Final = 1000
"""Records that wait for a terminal."""


def begin(level: str, handler: logging.Handler | None = None) -> LogTail:
    """Log from `level` on, to standard error or by another `handler`; returns what keeps the last lines."""
    formatter = LineFormatter(FORMAT)
    to_terminal = handler is None and sys.stderr.isatty()
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    if to_terminal:
        writer = BoundedHandler()
        listener = QueueListener(writer.queue, handler)
        listener.start()
        atexit.register(listener.stop)
        handler = writer
    tail = LogTail(formatter)
    logging.basicConfig(level=level.upper(), handlers=(handler, tail))
    return tail


class BoundedHandler(QueueHandler):
    """Puts records into its `queue`, and says there how many found no place before."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Any] = queue.Queue()
        super().__init__(self._waiting)
        self.setFormatter(LineFormatter("%(message)s"))
        self._left_out = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        if self._waiting.qsize() >= WAITING_MAX:
            self._left_out += 1
            return
        if self._left_out:
            record.msg = f"{record.msg} log_lines_left_out={self._left_out}"
            self._left_out = 0
        self._waiting.put_nowait(record)
