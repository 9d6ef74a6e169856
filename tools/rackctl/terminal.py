"""This terminal as that of a serial console: what is typed goes there as it is, what comes from there is shown."""

import asyncio
import contextlib
import os
import selectors
import sys
import termios
import tty
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final, TypeVar

from sled_board.board import Console
from sled_board.serial_port import SerialPort, opened

T = TypeVar("T")

LEAVE: Final = b"\x1d"
"""Ctrl-]."""
QUIET_S: Final = 0.5
"""After the end of an input that is no terminal: when no more comes, everything was answered."""
_PIECE: Final = 4096


def attach(port: str, console: Console) -> None:
    """Until Ctrl-], or until nothing comes any more after the end of the input. Raises PortUnavailable, PortLost."""
    run(_attached(port, console))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop that waits by poll(2): epoll takes no regular file for an input."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.PollSelector())) as runner:
        return runner.run(work)


async def _attached(port: str, console: Console) -> None:
    async with opened(port, console) as line:
        ended = asyncio.Event()
        showing = asyncio.create_task(_show(line, ended))
        typing = asyncio.create_task(_type(line))
        try:
            with _raw(sys.stdin.fileno()):
                await asyncio.wait({showing, typing}, return_when=asyncio.FIRST_COMPLETED)
                if typing.done() and typing.result():
                    return
                ended.set()
                await showing
        finally:
            for task in (showing, typing):
                task.cancel()
            await asyncio.gather(showing, typing, return_exceptions=True)


async def _show(line: SerialPort, ended: asyncio.Event) -> None:
    while (data := await line.read(QUIET_S)) or not ended.is_set():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


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
        data = os.read(descriptor, _PIECE)
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
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
