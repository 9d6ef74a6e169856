"""Standard output: text from elsewhere that must not act on a terminal, and what is done when it is gone (its reader
has left, its disk is full, or its terminal was closed)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO, cast

from sled_board.printable import escaped

LAYOUT: Final = "\n\t"
"""What our own text consists of besides printable characters."""


class EscapingStream:
    """A text stream on which nothing but `LAYOUT` acts. What is not text goes to `bare`."""

    def __init__(self, bare: TextIO) -> None:
        self.bare = bare

    def write(self, text: str) -> int:
        self.bare.write(escaped(text, LAYOUT))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


@contextlib.contextmanager
def output_escaped() -> Iterator[None]:
    """Until the block ends whatever is printed is escaped: names, addresses, reasons, logs and events of a rack are
    written by its nodes, and one of them may be in wrong hands."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_escaping, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def bare(stream: TextIO) -> TextIO:
    """Where own control sequences may be written to."""
    return stream.bare if isinstance(stream, EscapingStream) else stream


def discard_output() -> None:
    """Nothing more is printed: what waits to be written would fail again when the interpreter ends."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def say(line: str) -> None:
    """Print a line at once, if there is still somewhere to print it to; what is done is more important."""
    try:
        print(line, flush=True)
    except UnicodeError:
        print(line.encode("ascii", "backslashreplace").decode("ascii"), flush=True)
    except OSError:
        discard_output()


def _escaping(stream: TextIO | None) -> TextIO:
    return cast(TextIO, stream if stream is None else EscapingStream(stream))
