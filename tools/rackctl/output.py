"""Standard output that is gone: its reader has left, or its disk is full."""

import contextlib
import os
import sys


def discard_output() -> None:
    """Nothing more is printed: what waits to be written would fail again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
