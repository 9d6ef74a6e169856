"""One exchange with the board as a pure object, and the loop that holds it over a line.

A dialogue is told what came and what time it is, and says what to send and until when to wait. It has no clock, port or
task of its own, so that a test plays the board by hand.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Final, Protocol

from sled_board.errors import BoardReset

BITS_A_BYTE: Final = 10  # start, eight data bits, stop
SEEN_MAX: Final = 400
"""Bytes of what was seen that an error shows, from the end."""
MARGIN: Final = 2.0
"""How much longer than the bare line time an exchange may take."""


class Line(Protocol):
    """The line to the board. Every method raises PortLost when it is gone."""

    @property
    def baud(self) -> int:
        """Bits per second that are spoken now."""

    async def read(self, timeout_s: float) -> bytes:
        """What has come, at least one byte; nothing when none came within the time."""

    async def write(self, data: bytes) -> None:
        """Return when all of `data` has been handed over."""

    async def set_baud(self, baud: int) -> None:
        """Speak at another rate from the next byte on."""


class Dialogue(ABC):
    """One exchange. `deadline_s` is on the clock of `now_s`; `done` says that it has come to its good end.

    Every method gives the bytes that are to be sent now, and raises ConsoleError when the exchange has failed.
    """

    def __init__(self) -> None:
        self.deadline_s = 0.0
        self.done = False
        self.seen = bytearray()

    @abstractmethod
    def start(self, now_s: float) -> bytes:
        """Begin."""

    @abstractmethod
    def receive(self, data: bytes, now_s: float) -> bytes:
        """Bytes came."""

    @abstractmethod
    def expire(self, now_s: float) -> bytes:
        """The deadline has passed."""


def line_seconds(count: int, baud: int) -> float:
    """How long `count` bytes may take on a line of that rate."""
    return count * BITS_A_BYTE / baud * MARGIN


def shown(seen: bytes | bytearray) -> str:
    """What was seen, for people: its end, with what cannot be printed escaped, on one line."""
    if not seen:
        return "nothing was received"
    return f'received {"..." if len(seen) > SEEN_MAX else ""}"{printable(seen[-SEEN_MAX:])}"'


def printable(data: bytes | bytearray) -> str:
    """Bytes as text that does nothing to a terminal."""
    return "".join(chr(byte) if 32 <= byte < 127 else _ESCAPES.get(byte, f"\\x{byte:02x}") for byte in data)


def raise_if_reset(seen: bytes | bytearray, autoboot: str, doing: str) -> None:
    """Raise BoardReset when the countdown of a start is in what was seen."""
    if autoboot.encode() in seen:
        raise BoardReset(f"the board started anew during {doing}; look at its power; {shown(seen)}")


async def steps(line: Line, dialogue: Dialogue) -> AsyncIterator[None]:
    """Hold `dialogue` over `line` to its end; gives control back after every step, so that progress can be looked at.

    Raises ConsoleError and PortLost.
    """
    clock = asyncio.get_running_loop().time
    await _send(line, dialogue.start(clock()))
    while not dialogue.done:
        data = await line.read(max(0.0, dialogue.deadline_s - clock()))
        if data:
            await _send(line, dialogue.receive(data, clock()))
        if not dialogue.done and clock() >= dialogue.deadline_s:
            await _send(line, dialogue.expire(clock()))
        yield


async def hold(line: Line, dialogue: Dialogue) -> None:
    """Hold `dialogue` over `line` to its end. Raises ConsoleError and PortLost."""
    async for _ in steps(line, dialogue):
        pass


async def _send(line: Line, data: bytes) -> None:
    if data:
        await line.write(data)


_ESCAPES: Final = {9: "\\t", 10: "\\n", 13: "\\r"}
