"""This terminal as that of a board's console: what is typed goes there as it is, what comes from there is shown."""

import contextlib
import os
import selectors
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final

from rackctl.errors import RackError

LEAVE: Final = b"\x1d"
"""Ctrl-]."""
_PIECE: Final = 4096


def attach(address: tuple[str, int]) -> None:
    """Until Ctrl-], the end of the input, or that of the board. Raises RackError when nobody listens there."""
    try:
        line = socket.create_connection(address, timeout=5)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise RackError(f"no console at {where}: {error.strerror or error}; `rackctl board up` powers it on") from None
    line.settimeout(None)
    typed, shown = sys.stdin.fileno(), sys.stdout.fileno()
    with line, _raw(typed), selectors.DefaultSelector() as waiting:
        waiting.register(typed, selectors.EVENT_READ)
        waiting.register(line, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                data = os.read(typed, _PIECE) if key.fileobj == typed else line.recv(_PIECE)
                if not data:
                    return
                if key.fileobj == typed:
                    before, leave, _ = data.partition(LEAVE)
                    line.sendall(before)
                    if leave:
                        return
                else:
                    os.write(shown, data)


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Every key goes through, Ctrl-C too; nothing is changed where the input is no terminal."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
