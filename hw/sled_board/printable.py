"""Text that others wrote, on its way to a terminal, a log or a table: nothing in it acts, and a line stays one line.

A terminal obeys control characters (C0, DEL, C1) and with them ANSI and OSC sequences; marks of direction make text
read as what it is not; line and paragraph separators make one line look like two. All of them are written as JSON
writes them (RFC 8259, 7), so that text that is JSON already stays JSON.
"""

import logging
import sys
from types import TracebackType
from typing import Final, TypeAlias

LOG_FORMAT: Final = "%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"
INDENT: Final = "    "
"""Before each line of a traceback, so that none can be taken for a line of the log."""
LINE_CHARS_MAX: Final = 2000
"""Of a line of the log; what a peer says may be long."""

_BASIC_PLANE_END: Final = 0x10000
_ExceptionInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)  # fmt: skip


def escaped(text: str, kept: str = "") -> str:
    """`text` with every character that is not printable as `\\uXXXX`, but for those in `kept`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else _escape(char) for char in text)


def complain(program: str, error: object) -> None:
    """Say on standard error, in one line, why `program` does not go on."""
    print(f"{program}: {escaped(str(error))}", file=sys.stderr)


class LineFormatter(logging.Formatter):
    """One line for each record whatever its values hold; the lines of a traceback are indented."""

    def __init__(self, form: str = LOG_FORMAT) -> None:
        super().__init__(form)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return escaped(line if len(line) <= LINE_CHARS_MAX else line[:LINE_CHARS_MAX] + "...")

    def formatException(self, ei: _ExceptionInfo) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(stack_info)


def line_handler() -> logging.Handler:
    """What a program logs with, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    return handler


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code < _BASIC_PLANE_END else f"\\U{code:08x}"


def _indented(text: str) -> str:
    return "\n".join(INDENT + escaped(line) for line in text.split("\n"))
