"""A file into the board's memory: `loady`, and YMODEM in the midst of its output."""

import re
from typing import Final

from sled_board.board import UBoot
from sled_board.errors import TransferFailed
from sled_board.uboot.command import Command, checked
from sled_board.uboot.dialogue import SEEN_MAX, raise_if_reset, shown
from sled_board.uboot.ymodem import Sender

READY: Final = re.compile(rb"## Ready for binary \(ymodem\)[^\n]*\n")
LOAD_END_S: Final = 10.0
"""From the last block to the prompt: U-Boot waits for whatever may still follow."""


class Load(Command):
    """`data` goes to `address`. `sent_bytes` of it have been acknowledged. Raises what Command and Sender raise."""

    def __init__(self, uboot: UBoot, address: int, data: bytes, *, baud: int) -> None:
        super().__init__(uboot, f"loady 0x{address:x}", baud=baud, patience_s=LOAD_END_S)
        self._sender = Sender("piece", data, baud=baud)
        self._sending = False

    @property
    def sent_bytes(self) -> int:
        """How much the board has acknowledged."""
        return self._sender.sent_bytes

    def receive(self, data: bytes, now_s: float) -> bytes:
        if self._sending and not self._sender.done:
            return self._sent(data, now_s)
        out = super().receive(data, now_s)
        found = READY.search(self.seen) if self.running and not self._sending else None
        if found is None:
            if self.done and not self._sender.done:
                checked(self)
                raise TransferFailed(f"`{self.text}` ended before the transfer; {shown(self.seen)}")
            return out
        self._sending = True
        rest = bytes(self.seen[found.end() :])
        return self._sender.start(now_s) + self._sent(rest, now_s)

    def expire(self, now_s: float) -> bytes:
        if not self._sending or self._sender.done:
            return super().expire(now_s)
        out = self._sender.expire(now_s)
        self.deadline_s = self._sender.deadline_s
        return out

    def _sent(self, data: bytes, now_s: float) -> bytes:
        self.seen += data
        raise_if_reset(self.seen, self._autoboot, f"`{self.text}`")
        del self.seen[:-SEEN_MAX]
        out = self._sender.receive(data, now_s)
        self.deadline_s = self._sender.deadline_s
        if self._sender.done:
            self.seen.clear()
            self.deadline_s = now_s + LOAD_END_S
            out += super().receive(self._sender.rest, now_s) if self._sender.rest else b""
        return out
