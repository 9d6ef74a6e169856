"""What somebody types, byte by byte: what to echo, and each line when it has ended.

Return, line feed, or both end a line; backspace and delete take a character back, Ctrl-U all of them, Ctrl-C gives the
line up. Escape sequences, such as those of arrow keys, are passed over.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

LINE_CHARS_MAX: Final = 256
INTERRUPT: Final = 0x03
"""Ctrl-C."""
BELL: Final = b"\a"
NEW_LINE: Final = b"\r\n"
GIVEN_UP: Final = b"^C"
"""The echo of Ctrl-C, before a new line."""

_BACKSPACE, _LINE_FEED, _RETURN, _KILL, _ESCAPE, _DELETE = 0x08, 0x0A, 0x0D, 0x15, 0x1B, 0x7F
_ERASE: Final = b"\b \b"
_SPACE, _TILDE = 0x20, 0x7E


@dataclass(frozen=True, slots=True)
class Entered:
    """A line that has ended. `damage` says in words why it is not to be taken at its word; nothing if it may be."""

    text: str
    damage: str = ""


class _Sequence(Enum):
    NONE = auto()
    BEGUN = auto()  # ESC came
    INSIDE = auto()  # ESC and [ or O: it goes on to a final byte (ECMA-48, 5.4)


class LineInput:
    """Holds at most one line of LINE_CHARS_MAX characters."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._damage = ""
        self._after_return = False
        self._sequence = _Sequence.NONE

    def reads(self, text: bytes) -> bool:
        """Whether this is what the line has so far."""
        return self._line == text

    def take(self, byte: int) -> tuple[bytes, Entered | None]:
        """One byte: what to echo, and the line that it has ended, if it has."""
        after_return, self._after_return = self._after_return, byte == _RETURN
        if byte == _LINE_FEED and after_return:
            return b"", None
        if byte in (_RETURN, _LINE_FEED):
            return NEW_LINE, self._end()
        if byte == INTERRUPT:
            self._end()
            return GIVEN_UP + NEW_LINE, Entered("")
        if self._is_of_sequence(byte):
            return b"", None
        if _SPACE <= byte <= _TILDE:
            return self._add(byte), None
        return self._control(byte), None

    def _end(self) -> Entered:
        entered = Entered(self._line.decode("ascii"), self._damage)
        self._line.clear()
        self._damage = ""
        self._sequence = _Sequence.NONE
        return entered

    def _add(self, byte: int) -> bytes:
        if len(self._line) == LINE_CHARS_MAX:
            self._damage = f"the line has more than {LINE_CHARS_MAX} characters"
            return BELL
        self._line.append(byte)
        return bytes((byte,))

    def _control(self, byte: int) -> bytes:
        if byte in (_BACKSPACE, _DELETE) and self._line:
            self._line.pop()
            return _ERASE
        if byte == _KILL:
            erased = _ERASE * len(self._line)
            self._line.clear()
            self._damage = ""
            return erased
        if byte not in (_BACKSPACE, _DELETE, BELL[0]):
            self._damage = "the line came with bytes that are no text: it is noisy, or its speed is another"
        return b""

    def _is_of_sequence(self, byte: int) -> bool:
        if byte == _ESCAPE:
            self._sequence = _Sequence.BEGUN
            return True
        if self._sequence is _Sequence.NONE:
            return False
        begins = self._sequence is _Sequence.BEGUN and byte in b"[O"
        goes_on = self._sequence is _Sequence.INSIDE and 0x20 <= byte < 0x40
        self._sequence = _Sequence.INSIDE if begins or goes_on else _Sequence.NONE
        return True
