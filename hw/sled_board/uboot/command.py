"""A command at U-Boot's prompt: typed, its echo compared before it is run, its output, and its status by a marker.

The line is sent without its end first. Only when the board has echoed exactly that does the carriage return follow:
what was damaged on its way is thrown away and typed again, never run.
"""

import re
from itertools import count
from typing import Final

from sled_board.board import UBoot
from sled_board.errors import BoardSilent, CommandRefused, ConsoleError
from sled_board.uboot.dialogue import Dialogue, line_seconds, printable, raise_if_reset, shown
from sled_board.uboot.prompt import ends_with_prompt

TYPED_MAX: Final = 3
"""How often a command is typed before the line counts as too bad."""
ECHO_S: Final = 2.0
ABANDON: Final = b"\x03"
LINE_BYTES_MAX: Final = 250
"""U-Boot's smallest CONFIG_SYS_CBSIZE is 256."""
OUTPUT_BYTES_MAX: Final = 1 << 18
_numbers: Final = count(1)


class Command(Dialogue):
    """`text` is run; then `output` is what it printed and `status` is U-Boot's `$?`.

    `patience_s` is for the run and counts from the last byte that came. Raises BoardSilent, BoardReset, ConsoleError.
    """

    def __init__(self, uboot: UBoot, text: str, *, baud: int, patience_s: float = 5.0) -> None:
        super().__init__()
        self.text = text
        self.output = ""
        self.status = -1
        number = next(_numbers)
        self._typed = f"{text}; echo @{number}:$?@".encode()
        if len(self._typed) > LINE_BYTES_MAX:
            raise ValueError(f"{len(self._typed)} bytes are more than U-Boot takes in a line: {text}")
        self._marker = re.compile(rf"@{number}:(\d+)@\r*\n".encode())
        self._prompt = uboot.prompt.encode()
        self._autoboot = uboot.autoboot
        self._echo_s = ECHO_S + line_seconds(len(self._typed), baud)
        self._patience_s = patience_s
        self._times = 0
        self._abandoned = False
        self.running = False
        """It has been echoed, and sent off."""

    def start(self, now_s: float) -> bytes:
        return self._type(now_s)

    def receive(self, data: bytes, now_s: float) -> bytes:
        self.seen += data
        raise_if_reset(self.seen, self._autoboot, f"`{self.text}`")
        if self.running:
            return self._running(data, now_s)
        if self._abandoned:
            return self._type(now_s) if ends_with_prompt(self.seen, self._prompt) else b""
        if bytes(self.seen) == self._typed:
            self.running = True
            self.seen.clear()
            self.deadline_s = now_s + self._patience_s
            return b"\r"
        return b"" if self._typed.startswith(bytes(self.seen)) else self._abandon(now_s)

    def expire(self, now_s: float) -> bytes:
        if self.running:
            raise BoardSilent(f"`{self.text}` did not end within {self._patience_s:g} s; {shown(self.seen)}")
        if self._abandoned:
            self._times += 1
            return self._abandon(now_s)
        if self.seen:
            return self._abandon(now_s)
        raise BoardSilent(f"`{self.text}` was not echoed: {shown(self.seen)}; is something else at the other end?")

    def _running(self, data: bytes, now_s: float) -> bytes:
        self.deadline_s = now_s + self._patience_s
        if len(self.seen) > OUTPUT_BYTES_MAX:
            raise ConsoleError(f"`{self.text}` printed more than {OUTPUT_BYTES_MAX} bytes; {shown(self.seen)}")
        found = self._marker.search(self.seen)
        if found is not None and ends_with_prompt(self.seen, self._prompt):
            self.output = self.seen[: found.start()].decode("ascii", "replace").replace("\r", "").strip("\n")
            self.status = int(found[1])
            self.done = True
        return b""

    def _type(self, now_s: float) -> bytes:
        self._times += 1
        self._abandoned = False
        self.seen.clear()
        self.deadline_s = now_s + self._echo_s
        return self._typed

    def _abandon(self, now_s: float) -> bytes:
        if self._times >= TYPED_MAX:
            raise ConsoleError(
                f"`{self.text}` came back damaged {self._times} times, and was not run: {shown(self.seen)};"
                " look at the cable, or try a lower --rate"
            )
        self._abandoned = True
        self.deadline_s = now_s + self._echo_s
        return ABANDON


def checked(command: Command) -> str:
    """The output of a command that has ended; raises CommandRefused unless its status is 0."""
    if command.status != 0:
        raise CommandRefused(f"`{command.text}` ended with status {command.status}: {_one_line(command.output)}")
    return command.output


def _one_line(output: str) -> str:
    said = " / ".join(part.strip() for part in output.splitlines() if part.strip())
    return printable(said.encode("ascii", "replace")) or "it said nothing"
