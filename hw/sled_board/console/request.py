"""A program's side: one command on a sled's console, and its reply out of whatever else comes over the line."""

import re
from typing import Final

from sled_board.console.line_input import LINE_CHARS_MAX
from sled_board.console.session import DONE, REFUSAL, REPLY, REPLY_BYTES_MAX
from sled_board.errors import BoardSilent, CommandNotDone
from sled_board.uboot.dialogue import Dialogue, line_seconds, shown

GIVE_UP: Final = b"\x03"
TRIES_MAX: Final = 3
"""Ctrl-C is typed so often before nobody is there, and so often is the command when its echo is another."""
HEARD_BYTES_MAX: Final = 4 * REPLY_BYTES_MAX
"""Of a reply and of what comes between; whoever says more is no sled."""
_PROMPT: Final = re.compile(rb"[a-z]+> ")
_PIECE: Final = 1024
"""Longer than any line of ours: more is not kept of a line that has not ended."""


class Request(Dialogue):
    """`lines` is the reply when it is done.

    Ctrl-C comes first: its echo tells where earlier replies end. The command is ended by CR once all of it was echoed,
    so that a sled does not take anything else for it. Time runs from what came last.

    Raises CommandNotDone when the sled refuses, BoardSilent when it does not answer, and ValueError for what is no
    line.
    """

    def __init__(self, command: str, *, baud: int, patience_s: float) -> None:
        super().__init__()
        if not command.isprintable() or not command.isascii() or len(command) > LINE_CHARS_MAX:
            raise ValueError(f"a command is one line of at most {LINE_CHARS_MAX} printable ASCII characters")
        self._command = command.encode()
        self._patience_s = patience_s + line_seconds(_PIECE, baud)
        self._heard = 0
        self._tries = 0
        self._given_up = False  # our Ctrl-C has come back
        self._typed = False
        self._asked = False
        self._unread = b""
        self.lines: list[str] = []

    def start(self, now_s: float) -> bytes:
        return self._give_up(now_s)

    def receive(self, data: bytes, now_s: float) -> bytes:
        self._heard += len(data)
        if self._heard > HEARD_BYTES_MAX:
            raise BoardSilent(f"no end of it after {self._heard} bytes; {shown(self.seen)}")
        self.seen += data
        *lines, rest = (self._unread + data).split(b"\n")
        self._unread = rest[-_PIECE:]
        for line in lines:
            self._take(line.rstrip(b"\r").decode("ascii", "replace"))
        self.deadline_s = now_s + (self._patience_s if self._asked else self._patience_s / TRIES_MAX)
        if not self._typed and self._given_up and _PROMPT.fullmatch(rest):
            self._typed = True
            return self._command
        if self._typed and not self._asked and rest.endswith(self._command):
            self._asked = True
            self.deadline_s = now_s + self._patience_s
            return b"\r"
        return b""

    def expire(self, now_s: float) -> bytes:
        if self._asked:
            what = "the reply does not end" if self.lines else "no reply"
            raise BoardSilent(f"{what}; {shown(self.seen)}; ask again, or look at it without a command")
        if self._tries == TRIES_MAX:
            what = "the command does not come back as it was sent" if self._typed else "no prompt of a sled"
            raise BoardSilent(f"{what}; {shown(self.seen)}; is it on, and is the speed right?")
        return self._give_up(now_s)

    def _give_up(self, now_s: float) -> bytes:
        self._tries += 1
        self._given_up = self._typed = False
        self.deadline_s = now_s + self._patience_s / TRIES_MAX
        return GIVE_UP

    def _take(self, line: str) -> None:
        if not self._asked:
            self._given_up = self._given_up or line.endswith("^C")
        elif not self.done and line == REPLY + DONE:
            self.done = True
        elif not self.done and line.startswith(REPLY):
            self.lines.append(line.removeprefix(REPLY))
        elif not self.done and line.startswith(REFUSAL):
            raise CommandNotDone(line.removeprefix(REFUSAL))
