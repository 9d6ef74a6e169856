"""A console on a terminal device: a board's UART, or a pseudo terminal for an emulated sled; served by the event loop.

Nothing is read while output waits: so a console never waits for anybody, holds one read's replies at most, and a flood
of commands is as fast as the line.
"""

import asyncio
import contextlib
import logging
import os
import termios
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sled_board.console.line_input import NEW_LINE
from sled_board.console.session import ConsoleSession

log = logging.getLogger(__name__)

READ_BYTES: Final = 8
"""At a time, so that commands leave the event loop to others between them."""
WRITE_BYTES: Final = 256
"""At a time: what a log writes to the same device, and waits for, finds place in its buffer."""
_INPUT_FLAGS, _OUTPUT_FLAGS, _LOCAL_FLAGS, _CONTROLS = 0, 1, 3, 6


class ConsolePort:
    """Serves `session` until `close`. Make one with `on_device` or `on_pty`; the running event loop is the one."""

    def __init__(
        self, session: ConsoleSession, descriptor: int, *, far: int | None = None, link: Path | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._descriptor = descriptor
        self._far = far
        self._link = link
        self._before: list[Any] | None = None if far is not None else termios.tcgetattr(descriptor)
        self._waiting = bytearray()
        self._writing = False
        self._closed = False
        self._adds_return = False
        if far is None:
            self._adds_return = _make_input_raw(descriptor)
        self._loop.add_reader(descriptor, self._read)
        self._write(session.begin())

    @classmethod
    def on_device(cls, session: ConsoleSession, path: Path, lost: Callable[[], None] | None = None) -> "ConsolePort":
        """On a terminal device, whose speed and output stay as they are; `lost` is called if it goes away. Raises
        OSError, which names it."""
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return cls(session, descriptor, lost=lost)
        except termios.error as error:
            os.close(descriptor)
            raise OSError(error.args[0], f"is no terminal device: {error.args[1]}", str(path)) from None

    @classmethod
    def on_pty(cls, session: ConsoleSession, link: Path) -> "ConsolePort":
        """On a new pseudo terminal; `link` is made to point to where somebody opens it. Raises OSError."""
        near, far = os.openpty()
        try:
            os.set_blocking(near, False)
            tty.setraw(far)
            fresh = link.with_name(link.name + ".new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(os.ttyname(far))
            fresh.replace(link)
            # The far end stays open here too: it is there, and as it was set, when nobody else has it open.
            return cls(session, near, far=far, link=link)
        except BaseException:
            os.close(near)
            os.close(far)
            raise

    def close(self) -> None:
        """Give the terminal back as it was; safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)
        os.close(self._descriptor)
        if self._far is not None:
            os.close(self._far)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if not data:
            self._lose("it was hung up")
            return
        if self._far is not None:
            _make_silent(self._far)
        self._write(self._session.receive(data))

    def _write(self, data: bytes) -> None:
        """With nothing waiting."""
        self._waiting += data.replace(NEW_LINE, b"\n") if self._adds_return else data
        self._flush()

    def _flush(self) -> None:
        try:
            del self._waiting[: os.write(self._descriptor, self._waiting[:WRITE_BYTES])]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if bool(self._waiting) == self._writing:
            return
        self._writing = bool(self._waiting)
        if self._writing:
            self._loop.remove_reader(self._descriptor)
            self._loop.add_writer(self._descriptor, self._flush)
        else:
            self._loop.remove_writer(self._descriptor)
            self._loop.add_reader(self._descriptor, self._read)

    def _lose(self, reason: str) -> None:
        log.error("event=console_lost reason=%r", reason)
        self.close()
        if self._lost is not None:
            self._lost()


def _make_input_raw(descriptor: int) -> bool:
    """Every byte comes as it is and nothing is echoed. Output, which kernel and log share, stays as it is; returns
    whether it puts a CR before each LF."""
    attributes = termios.tcgetattr(descriptor)
    attributes[_INPUT_FLAGS] &= ~(
        termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        | termios.ICRNL | termios.IXON
    )  # fmt: skip
    attributes[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    attributes[_CONTROLS][termios.VMIN], attributes[_CONTROLS][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    adds_return = termios.OPOST | termios.ONLCR
    return bool(attributes[_OUTPUT_FLAGS] & adds_return == adds_return)


def _make_silent(far: int) -> None:
    """Whoever has it open may have set it to echo what comes: we would then talk to ourselves."""
    attributes = termios.tcgetattr(far)
    if attributes[_LOCAL_FLAGS] & (termios.ECHO | termios.ECHONL):
        tty.setraw(far)
