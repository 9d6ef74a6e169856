"""A program's side: one command on a sled's console, and its reply out of whatever else comes over the line."""

import re
from typing import Final

from sled_board.console.line_input import LINE_CHARS_MAX
from sled_board.console.session import DONE, REFUSAL, REPLY, REPLY_BYTES_MAX
from sled_board.errors import BoardSilent, CommandNotDone
from sled_board.uboot.dialogue import Dialogue, line_seconds, shown

GIVE_UP: Final = b"\x03"
TRIES_MAX: Final = 3
"""Ctrl-C is typed so often before nobody is there."""
HEARD_BYTES_MAX: Final = 4 * REPLY_BYTES_MAX
"""Of a reply and of what comes between; whoever says more is no sled."""
_READY: Final = re.compile(rb"\^C\r\n(?:[^\r\n]*\r?\n)*?[a-z]+> ")


class Request(Dialogue):
    """`lines` is the reply when it is done. Ctrl-C comes first: its echo tells where earlier replies end.

    Raises CommandNotDone when the sled refuses, BoardSilent when it does not answer, and ValueError for what is no
    line.
    """

    def __init__(self, command: str, *, baud: int, patience_s: float) -> None:
        super().__init__()
        if not command.isprintable() or not command.isascii() or len(command) > LINE_CHARS_MAX:
            raise ValueError(f"a command is one line of at most {LINE_CHARS_MAX} printable ASCII characters")
        self._command = command.encode() + b"\r"
        self._patience_s = patience_s + line_seconds(REPLY_BYTES_MAX, baud) / TRIES_MAX
        self._heard = 0
        self._tries = 0
        self._asked = False
        self._unread = bytearray()
        self.lines: list[str] = []

    def start(self, now_s: float) -> bytes:
        return self._give_up(now_s)

    def receive(self, data: bytes, now_s: float) -> bytes:
        self._heard += len(data)
        if self._heard > HEARD_BYTES_MAX:
            raise BoardSilent(f"no end of it after {self._heard} bytes; {shown(self.seen)}")
        self.seen += data
        self._unread += data
        if not self._asked:
            ready = _READY.search(self._unread)
            if ready is None:
                return b""
            del self._unread[: ready.end()]
            self._asked = True
            self.deadline_s = now_s + self._patience_s
            return self._command
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        for line in lines:
            self._take(line.decode("ascii", "replace").removesuffix("\r"))
        return b""

    def expire(self, now_s: float) -> bytes:
        if self._asked:
            what = "the reply does not end" if self.lines else "no reply"
            raise BoardSilent(f"{what}; {shown(self.seen)}; ask again, or look at it without a command")
        if self._tries == TRIES_MAX:
            raise BoardSilent(f"no prompt of a sled; {shown(self.seen)}; is it on, and is the speed right?")
        return self._give_up(now_s)

    def _give_up(self, now_s: float) -> bytes:
        self._tries += 1
        self.deadline_s = now_s + self._patience_s / TRIES_MAX
        return GIVE_UP

    def _take(self, line: str) -> None:
        if self.done:
            return
        if line == REPLY + DONE:
            self.done = True
        elif line.startswith(REPLY):
            self.lines.append(line.removeprefix(REPLY))
        elif line.startswith(REFUSAL):
            raise CommandNotDone(line.removeprefix(REFUSAL))
