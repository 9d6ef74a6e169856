"""Standard output that is gone: its reader has left, its disk is full, or its terminal was closed."""

import contextlib
import os
import sys


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
