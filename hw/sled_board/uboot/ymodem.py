"""The sending side of YMODEM, one file, without I/O (Chuck Forsberg, X/YMODEM Protocol Reference, 1988).

What U-Boot's `loady` receives: block 0 with name and size, blocks of 1024 bytes with CRC-16, EOT, and an empty block 0.
It differs from the reference in that no C follows the ACK of block 0, and that C stands for NAK everywhere.
"""

import binascii
from enum import Enum, auto
from typing import Final

from sled_board.errors import TransferFailed
from sled_board.uboot.dialogue import SEEN_MAX, Dialogue, line_seconds, shown

SOH, STX, EOT, ACK, NAK, CAN, CRC = 0x01, 0x02, 0x04, 0x06, 0x15, 0x18, ord("C")
SHORT_BYTES: Final = 128
LONG_BYTES: Final = 1024
PAD: Final = 0x1A
TRIES_MAX: Final = 10
"""Times that one block is sent before the line counts as too bad."""
ANSWER_S: Final = 3.0
"""U-Boot gives up on a byte after 2 s and then asks again; this must be longer."""
BLOCKS: Final = 256  # block numbers are a byte


class Phase(Enum):
    """What the receiver is to answer."""

    OPEN = auto()  # the first C
    HEADER = auto()  # ACK of block 0
    DATA = auto()  # ACK of a data block
    EOT = auto()  # ACK of EOT
    NEXT = auto()  # the C that asks for the next file's block 0
    CLOSE = auto()  # ACK of the empty block 0


class Sender(Dialogue):
    """Sends `data` under `name`; `sent_bytes` of it have been acknowledged. Raises TransferFailed.

    `rest` is what the board said after the end, which is no longer YMODEM.
    """

    def __init__(self, name: str, data: bytes, *, baud: int) -> None:
        super().__init__()
        self._data = data
        self._header = _block(0, name.encode("ascii") + b"\0" + str(len(data)).encode() + b"\0", SHORT_BYTES, 0)
        self._patience_s = ANSWER_S + line_seconds(LONG_BYTES + 5, baud)
        self._phase = Phase.OPEN
        self._tries = 0
        self._cancels = 0
        self._last = b""
        self.sent_bytes = 0
        self.rest = b""

    def start(self, now_s: float) -> bytes:
        self.deadline_s = now_s + self._patience_s
        return b""

    def receive(self, data: bytes, now_s: float) -> bytes:
        out = b""
        for position, byte in enumerate(data):
            if self.done:
                self.rest = data[position:]
                break
            self.seen.append(byte)
            del self.seen[:-SEEN_MAX]
            self._cancels = self._cancels + 1 if byte == CAN else 0
            if self._cancels == 2:
                raise TransferFailed(f"the board ended the transfer at byte {self.sent_bytes}; {shown(self.seen)}")
            # Of several answers in one piece the last one counts: the others were to what was sent before.
            out = self._answered(byte, now_s) or out
        return out

    def expire(self, now_s: float) -> bytes:
        return self._again(now_s, "no answer")

    def _answered(self, byte: int, now_s: float) -> bytes:
        expected = CRC if self._phase in (Phase.OPEN, Phase.NEXT) else ACK
        if byte == expected:
            return self._next(now_s)
        return self._again(now_s, "asked for again") if byte in (NAK, CRC) else b""

    def _next(self, now_s: float) -> bytes:
        match self._phase:
            case Phase.OPEN:
                return self._go(Phase.HEADER, self._header, now_s)
            case Phase.HEADER:
                return self._block_at(now_s)
            case Phase.DATA:
                self.sent_bytes = min(self.sent_bytes + LONG_BYTES, len(self._data))
                return self._block_at(now_s)
            case Phase.EOT:
                return self._go(Phase.NEXT, b"", now_s)
            case Phase.NEXT:
                return self._go(Phase.CLOSE, _block(0, b"", SHORT_BYTES, 0), now_s)
            case Phase.CLOSE:
                self.done = True
                return b""

    def _block_at(self, now_s: float) -> bytes:
        if self.sent_bytes == len(self._data):
            return self._go(Phase.EOT, bytes([EOT]), now_s)
        number = self.sent_bytes // LONG_BYTES + 1
        piece = self._data[self.sent_bytes : self.sent_bytes + LONG_BYTES]
        return self._go(Phase.DATA, _block(number % BLOCKS, piece, LONG_BYTES, PAD), now_s)

    def _go(self, phase: Phase, data: bytes, now_s: float) -> bytes:
        self._phase = phase
        self._last = data
        self._tries = 1
        self.deadline_s = now_s + self._patience_s
        self.seen.clear()
        return data

    def _again(self, now_s: float, why: str) -> bytes:
        self._tries += 1
        if self._tries > TRIES_MAX:
            raise TransferFailed(
                f"{why} {TRIES_MAX} times at byte {self.sent_bytes} of {len(self._data)}; {shown(self.seen)};"
                " look at the cable, or try a lower --rate"
            )
        self.deadline_s = now_s + self._patience_s
        return self._last


def _block(number: int, content: bytes, size: int, pad: int) -> bytes:
    body = content.ljust(size, bytes([pad]))
    mark = SOH if size == SHORT_BYTES else STX
    return bytes([mark, number, number ^ 0xFF]) + body + binascii.crc_hqx(body, 0).to_bytes(2, "big")
