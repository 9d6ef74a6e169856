"""Command line options that can each be given by an environment variable or a file too; the flag is stronger."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sled_board.board import BAUD_RATES

from rackctl.defaults import ENVIRONMENT, Defaults, Given, checked
from rackctl.errors import RackError, SizeInvalid
from rackctl.rack import DEVICE_BYTES_DEFAULT, HEADS_DEFAULT, SLEDS_DEFAULT, RackSize
from rackctl.sizes import parse_size

OTHER_STATUSES: Final = (
    "2 anything else, with one line on standard error that says what is wrong; 128 + N ended by signal N."
)
TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off", "")


def add_option(
    parser: argparse.ArgumentParser,
    flag: str,
    *,
    variable: str,
    kind: Callable[[str], Any],
    default: Any,
    metavar: str,
    text: str,
    defaults: Defaults = ENVIRONMENT,
) -> None:
    """An option with a value. A value from elsewhere is checked like one from the command line."""
    given = defaults.given(variable)
    shown = "" if default is None else f"; default {default}"
    parser.add_argument(
        flag,
        type=checked_by(kind),
        default=default if given is None else checked(kind, given),
        metavar=metavar,
        help=f"{text} [{variable}{shown}]",
    )


def add_switch(
    parser: argparse.ArgumentParser, flag: str, *, variable: str, text: str, defaults: Defaults = ENVIRONMENT
) -> None:
    """An option that is there or not."""
    given = defaults.given(variable) or Given("", variable)
    word = given.text.lower()
    if word not in (*TRUE_WORDS, *FALSE_WORDS):
        raise RackError(f"{given.source}: {given.text!r} is neither yes nor no: write 1 or 0")
    parser.add_argument(
        flag, action=argparse.BooleanOptionalAction, default=word in TRUE_WORDS, help=f"{text} [{variable}]"
    )


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
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not int(text):
        raise RackError(f"{text!r} is not a whole number from 1")
    return int(text)


def whole_number_64(text: str) -> int:
    """A positive decimal number of 64 bits."""
    if not text.isascii() or not text.isdecimal() or len(text) > 20 or not 0 < int(text) < 1 << 64:
        raise RackError(f"{text!r} is not a whole number, 1 to 2^64 - 1")
    return int(text)


def counter(text: str) -> int:
    """A rollback counter, 0 to 2^32 - 1."""
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) >= 1 << 32:
        raise RackError(f"{text!r} is not a rollback counter, 0 to 2^32 - 1")
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
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert
