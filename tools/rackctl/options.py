"""Command line options that can each be given by an environment variable or a file too; the flag is stronger."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self

from sled_board.board import BAUD_RATES

from rackctl.defaults import ENVIRONMENT, Defaults, Given
from rackctl.errors import RackError, SizeInvalid
from rackctl.rack import DEVICE_BYTES_DEFAULT, HEADS_DEFAULT, SLEDS_DEFAULT, RackSize
from rackctl.sizes import parse_size

OTHER_STATUSES: Final = (
    "2 anything else, with one line on standard error that says what is wrong; 128 + N ended by signal N."
)
DIGITS_MAX: Final = 20
TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off", "")


class _FromElsewhere(str):
    """A default that a variable or a file gives. argparse converts a default that is text when the command is the one
    that is called: what is wrong there is in nobody else's way."""

    source: str

    @classmethod
    def of(cls, given: Given) -> Self:
        """The text, which knows where it came from."""
        text = cls(given.text)
        text.source = given.source
        return text


class _InsteadOf(argparse.Action):
    """An option that is stronger than what a variable says of `others`, which are options for the same thing."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, others: Sequence[str], **more: Any) -> None:
        super().__init__(option_strings, dest, **more)
        self._others = others

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
        setattr(namespace, self.dest, values)
        for other in self._others:
            setattr(namespace, other, None)


def add_option(
    parser: argparse._ActionsContainer,
    flag: str,
    *,
    variable: str,
    kind: Callable[[str], Any],
    default: Any,
    metavar: str,
    text: str,
    defaults: Defaults = ENVIRONMENT,
    instead_of: Sequence[str] = (),
) -> None:
    """An option with a value. A value from elsewhere is checked like one from the command line.

    `instead_of` are attributes of options that this one replaces: a flag is stronger than a variable of theirs.
    """
    given = defaults.given(variable)
    shown = "" if default is None else f"; default {default}"
    more: dict[str, Any] = {"action": _InsteadOf, "others": instead_of} if instead_of else {}
    parser.add_argument(
        flag,
        type=checked_by(kind),
        default=default if given is None else _FromElsewhere.of(given),
        metavar=metavar,
        help=f"{text} [{variable}{shown}]",
        **more,
    )


def add_switch(
    parser: argparse.ArgumentParser, flag: str, *, variable: str, text: str, defaults: Defaults = ENVIRONMENT
) -> None:
    """An option that is there or not."""
    given = defaults.given(variable)
    action = parser.add_argument(
        flag,
        action=argparse.BooleanOptionalAction,
        default=False if given is None else _FromElsewhere.of(given),
        help=f"{text} [{variable}]",
    )
    action.type = checked_by(_yes_or_no)


def _yes_or_no(text: str) -> bool:
    word = text.lower()
    if word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise RackError(f"{text!r} is neither yes nor no: write 1 or 0")
    return word in TRUE_WORDS


def add_directory(parser: argparse.ArgumentParser, text: str, defaults: Defaults = ENVIRONMENT) -> None:
    """`--dir`, whose variable `rackctl run` sets for its command."""
    add_option(
        parser, "--dir", variable="RACK_DIR", kind=Path, default=None, metavar="DIR", text=text, defaults=defaults
    )


def add_size(parser: argparse.ArgumentParser, defaults: Defaults = ENVIRONMENT) -> None:
    """The options that make a RackSize."""
    for flag, variable, kind, default, metavar, text in (
        ("--sleds", "RACKCTL_SLEDS", whole_number, SLEDS_DEFAULT, "N", "number of sleds"),
        ("--heads", "RACKCTL_HEADS", whole_number, HEADS_DEFAULT, "N", "number of heads"),
        ("--device-size", "RACKCTL_DEVICE_SIZE", parse_size, DEVICE_BYTES_DEFAULT, "SIZE", "bytes of a sled's device"),
    ):
        add_option(
            parser, flag, variable=variable, kind=kind, default=default, metavar=metavar, text=text, defaults=defaults
        )


def size_of(arguments: argparse.Namespace) -> RackSize:
    """The size that the options of `add_size` ask for."""
    return RackSize(arguments.sleds, arguments.heads, arguments.device_size)


def whole_number(text: str) -> int:
    """A positive decimal number."""
    return _number(text, 1, 10**9, "a whole number from 1")


def whole_number_64(text: str) -> int:
    """A positive decimal number of 64 bits."""
    return _number(text, 1, 1 << 64, "a whole number, 1 to 2^64 - 1")


def counter(text: str) -> int:
    """A rollback counter, 0 to 2^32 - 1."""
    return _number(text, 0, 1 << 32, "a rollback counter, 0 to 2^32 - 1")


def _number(text: str, low: int, end: int, what: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > DIGITS_MAX or not low <= int(text) < end:
        raise RackError(f"{text!r} is not {what}")
    return int(text)


def new_file(text: str) -> Path:
    """Where a file is to go: no folder."""
    if not Path(text).name or Path(text).is_dir():
        raise RackError(f"{text!r} names no file")
    return Path(text)


def baud_rate(text: str) -> int:
    """Bits per second, of those that serial ports know."""
    rate = whole_number(text)
    if rate not in BAUD_RATES:
        raise RackError(f"{text!r} is no baud rate; take one of {', '.join(map(str, BAUD_RATES))}")
    return rate


def named_size(text: str) -> tuple[str, int]:
    """`NAME:SIZE` of a volume."""
    name, colon, size = text.rpartition(":")
    if not colon or not name:
        raise SizeInvalid(f"{text!r} is not a volume: write NAME:SIZE, for example data:1GiB")
    return name, parse_size(size)


def named_sizes(text: str) -> list[tuple[str, int]]:
    """Several of them, separated by commas."""
    return [named_size(part) for part in text.split(",") if part]


def checked_by(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """`kind` as argparse's `type`: that shows the text of an ArgumentTypeError, of any other error only its name."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except (RackError, ValueError) as error:
            if isinstance(text, _FromElsewhere):
                raise RackError(f"{text.source}: {error}") from None
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
