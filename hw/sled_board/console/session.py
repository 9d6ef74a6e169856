"""One console as a pure object: bytes from the line in, bytes for the line out (docs/console.md).

Each line of a reply begins with `: `, the last one is `: ok`, or `! ` and why not, so that a program finds it between
the messages of a kernel and a log that come over the same line.

A line that echoes, as one does whose far end is open or a modem's, would have the console talk to itself for ever: once
its own prompt comes back it is deaf and mute until Ctrl-C.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sled_board.console.line_input import INTERRUPT, NEW_LINE, Entered, LineInput
from sled_board.errors import BoardError, CommandNotDone
from sled_board.uboot.dialogue import printable

REPLY: Final = ": "
REFUSAL: Final = "! "
DONE: Final = "ok"
TEXT_CHARS_MAX: Final = 400
"""Of a line of a reply; longer ones are cut."""
REPLY_LINES_MAX: Final = 256
REPLY_BYTES_MAX: Final = (REPLY_LINES_MAX + 1) * (len(REPLY) + TEXT_CHARS_MAX + len(NEW_LINE))


@dataclass(frozen=True, slots=True)
class Command:
    """A command and how it is given. `run` is given its words and gives the lines of the reply, `key=value` or text
    that is not `ok`; it raises CommandNotDone, BoardError or OSError when it does nothing.
    """

    name: str
    about: str
    run: Callable[[Sequence[str]], Iterable[str]]
    arguments: str = ""
    words_max: int = 0

    @property
    def usage(self) -> str:
        """The whole line."""
        return f"{self.name} {self.arguments}".strip()


class ConsoleSession:
    """`prompt` without its last `> `. Never raises, and holds one line at most, whatever comes."""

    def __init__(self, prompt: str, commands: Sequence[Command]) -> None:
        self._prompt = f"{prompt}> ".encode("ascii")
        self._input = LineInput()
        self._deaf = False
        told = [Command("help", "what there is to say", self._help), *commands]
        self._commands = {command.name: command for command in told}

    def begin(self) -> bytes:
        """What the console shows first."""
        return NEW_LINE + self._prompt

    def receive(self, data: bytes) -> bytes:
        """Bytes came; at most REPLY_BYTES_MAX and a prompt for each that ends a line."""
        out = bytearray()
        for byte in data:
            if self._deaf and byte != INTERRUPT:
                continue
            echo, entered = self._input.take(byte)
            self._deaf = self._input.reads(self._prompt)
            if self._deaf:
                continue
            out += echo
            if entered is not None:
                out += self._answered(entered) + self._prompt
        return bytes(out)

    def _answered(self, entered: Entered) -> bytes:
        words = entered.text.split()
        if not words and not entered.damage:
            return b""
        if words and words[0][0] in (REPLY[0], REFUSAL[0]):
            return b""  # our own reply, from a line that echoes: an answer would come back too
        try:
            if entered.damage:
                raise CommandNotDone(f"{entered.damage}; type it again")
            lines = list(islice(self._run(words), REPLY_LINES_MAX))
        except (BoardError, OSError) as error:
            return _line(REFUSAL, str(error) or type(error).__name__)
        return b"".join(_line(REPLY, text) for text in (*lines, DONE))

    def _run(self, words: Sequence[str]) -> Iterable[str]:
        name, *arguments = words
        command = self._commands.get(name)
        if command is None:
            raise CommandNotDone(f"there is no command {name[:32]!r}: try help")
        if len(arguments) > command.words_max:
            raise CommandNotDone(f"too many words: {command.usage}")
        return command.run(arguments)

    def _help(self, arguments: Sequence[str]) -> Iterable[str]:
        return (f"{command.usage} = {command.about}" for command in self._commands.values())


def _line(mark: str, text: str) -> bytes:
    return (mark + displayed(text)).encode("ascii") + NEW_LINE


def displayed(text: str) -> str:
    """As one line that does nothing to a terminal."""
    text = text[:TEXT_CHARS_MAX]
    if text.isascii() and text.isprintable():
        return text
    return printable(text.encode("utf-8", "replace"))[:TEXT_CHARS_MAX]
