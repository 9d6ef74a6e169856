"""This terminal as that of a serial console: what is typed goes there as it is, what comes from there is shown."""

import asyncio
import codecs
import contextlib
import os
import selectors
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import Final

from sled_board.board import Console
from sled_board.printable import escaped
from sled_board.serial_port import SerialPort, opened

from rackctl.output import bare

LEAVE: Final = b"\x1d"
"""Ctrl-]."""
QUIET_S: Final = 1.0
"""After the end of the input, for what is still said."""
LAYOUT: Final = "\r\n\t\b\a"
"""What a line editor needs of a terminal. Everything else that acts on one is shown, not obeyed: what a console says is
a board's word."""
_PIECE: Final = 4096


def attach(port: str, console: Console) -> None:
    """Until Ctrl-], the end of the input, or a second after that of an input that is no terminal. Raises
    PortUnavailable, PortLost."""
    # poll(2): epoll takes no regular file for an input.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.PollSelector())) as runner:
        runner.run(_attached(port, console))


async def _attached(port: str, console: Console) -> None:
    async with opened(port, console) as line:
        showing = asyncio.create_task(_show(line))
        typing = asyncio.create_task(_type(line))
        try:
            with _raw(sys.stdin.fileno()):
                await asyncio.wait({showing, typing}, return_when=asyncio.FIRST_COMPLETED)
                if typing.done() and not typing.result():
                    await asyncio.wait({showing}, timeout=QUIET_S)
                if showing.done():
                    showing.result()
        finally:
            for task in (showing, typing):
                task.cancel()
            await asyncio.gather(showing, typing, return_exceptions=True)


async def _show(line: SerialPort) -> None:
    text = codecs.getincrementaldecoder("utf-8")("replace")
    out = bare(sys.stdout)
    while True:
        out.write(escaped(text.decode(await line.read(QUIET_S)), LAYOUT))
        out.flush()


async def _type(line: SerialPort) -> bool:
    """Send what is typed; whether it ended with LEAVE."""
    async for data in _input(sys.stdin.fileno()):
        before, leave, _ = data.partition(LEAVE)
        await line.write(before)
        if leave:
            return True
    return False


async def _input(descriptor: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while True:
        ready = asyncio.Event()
        loop.add_reader(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)
        try:
            data = os.read(descriptor, _PIECE)
        except OSError:  # it was hung up
            return
        if not data:
            return
        yield data


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
        with contextlib.suppress(termios.error):  # it was hung up
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
