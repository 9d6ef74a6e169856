"""`rackctl firmware flash`: an image onto a board over its serial console (docs/flashing.md)."""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from sled_board.board import Board, board_names, load_board
from sled_board.errors import FlashRefused, ImageError, WrongHardware
from sled_board.flasher import HEALTH_S, After, Before, Choices, checked_image, flash
from sled_board.image import Image, Trust
from sled_board.serial_port import find_port, opened

from rackctl.defaults import Defaults, seconds
from rackctl.errors import RackError
from rackctl.firmware.flash_progress import Progress, failure_shown
from rackctl.firmware.image_files import read_image_file, read_key_set_file
from rackctl.keys import add_root
from rackctl.options import add_option, add_switch, baud_rate
from rackctl.signers import read_public

DESCRIPTION: Final = (
    "Write an image into the slot of a board that is not in use, over its serial console, verify it there and have it"
    " tried. Wrong images are refused before the board is touched. A flash that was cut off goes on when repeated."
)
E = TypeVar("E", bound=Enum)


def add_flash(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl firmware flash`; the image itself and `--json` are added with those of the other actions."""
    parser.description = DESCRIPTION
    which = parser.add_mutually_exclusive_group()
    for flag, metavar, text, other in (
        ("--port", "PORT", "device or URL (socket://, rfc2217://); the only one without it", "port_filter"),
        ("--port-filter", "REGEX", "of the ports' device, description and hardware id", "port"),
    ):
        add_option(
            which, flag, variable=f"RACKCTL_{flag[2:].replace('-', '_').upper()}", kind=str, default=None,
            metavar=metavar, text=text, defaults=defaults, instead_of=(other,),
        )  # fmt: skip
    options: list[tuple[str, str, Any, Any, str, str]] = [
        ("--board", "BOARD", str, None, "NAME", f"{_boards()}, or a .toml file; the image's without it"),
        ("--before", "BEFORE", _choice(Before), Before.PROMPT, "HOW", "prompt: ask for it; wait: for power-on; reset"),
        ("--baud", "BAUD", baud_rate, None, "RATE", "what the board speaks after power-on; its own without it"),
        ("--rate", "RATE", baud_rate, None, "RATE", "baud of the transfer; the fastest of the board without it"),
    ]
    _add_options(parser, options, defaults)
    add_flash_choices(parser, defaults, after=After.RESET)
    parser.set_defaults(command=_flash)


def add_flash_choices(parser: argparse.ArgumentParser, defaults: Defaults, *, after: After) -> None:
    """The options that have nothing to do with how the board is reached."""
    add_root(parser, defaults, "the root key that the board is provisioned with")
    how = "reset; wait: until it is healthy; stay: at the prompt"
    options: list[tuple[str, str, Any, Any, str, str]] = [
        ("--key-set", "KEY_SET", Path, None, "FILE", "a key set that is newer than that of board and image"),
        ("--after", "AFTER", _choice(After), after, "HOW", how),
        ("--prompt-seconds", "PROMPT_SECONDS", seconds, None, "S", "how long to wait for the prompt"),
        ("--health-seconds", "HEALTH_SECONDS", seconds, HEALTH_S, "S", "how long to wait for the report of health"),
    ]
    _add_options(parser, options, defaults)
    for flag, text in (
        ("--skip-flashed", "do nothing where the board has confirmed this very image"),
        ("--dry-run", "check image and board, write nothing"),
        ("--force", "begin anew where the slot state is lost and no slot holds an image; nothing else can be forced"),
        ("--unlocked", "the board is not locked: development keys count"),
    ):
        variable = f"RACKCTL_{flag.lstrip('-').replace('-', '_').upper()}"
        add_switch(parser, flag, variable=variable, text=text, defaults=defaults)


def _add_options(
    parser: argparse.ArgumentParser, options: list[tuple[str, str, Any, Any, str, str]], defaults: Defaults
) -> None:
    for flag, variable, kind, default, metavar, text in options:
        add_option(
            parser, flag, variable=f"RACKCTL_{variable}", kind=kind, default=default, metavar=metavar, text=text,
            defaults=defaults,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FlashJob:
    """What is flashed and how, checked as far as it can be without the board."""

    board: Board
    data: bytes
    trust: Trust
    choices: Choices

    def run(self, url: str, *, as_json: bool) -> None:
        """Flash the board at that port, with progress on standard output; raises what `flash` and `opened` raise."""
        progress = Progress(sys.stdout, time.monotonic, as_json=as_json)
        try:
            asyncio.run(self._flashed(url, progress))
        finally:
            progress.close()

    async def _flashed(self, url: str, progress: Progress) -> None:
        async with opened(url, self.board.console) as line:
            async for event in flash(line, self.board, self.data, self.trust, self.choices):
                progress.show(event)


def flash_job(
    arguments: argparse.Namespace,
    *,
    board: str | None,
    before: Before,
    baud: int | None = None,
    rate: int | None = None,
) -> FlashJob:
    """What the options of `add_flash_choices` ask for; `board` None is the image's. Raises RackError and ImageError
    when no board would take the image, which none has heard of by then."""
    if arguments.root is None:
        raise RackError("flash: say by which root key with --root: without one anybody's image would do")
    trust = Trust(read_public(arguments.root), read_key_set_file(arguments.key_set), locked=not arguments.unlocked)
    data, image = read_image_file(arguments.image)
    described = _board(board, image, baud)
    try:
        checked_image(data, described, trust)
    except (ImageError, FlashRefused) as error:
        raise type(error)(f"{arguments.image}: {error}") from None
    choices = Choices(
        before=before,
        after=arguments.after,
        rate=rate,
        skip_flashed=arguments.skip_flashed,
        force=arguments.force,
        dry_run=arguments.dry_run,
        patience_s=arguments.prompt_seconds,
        health_s=arguments.health_seconds,
    )
    return FlashJob(described, data, trust, choices)


def _flash(arguments: argparse.Namespace) -> int:
    with failure_shown(as_json=arguments.json):
        job = flash_job(
            arguments, board=arguments.board, before=arguments.before, baud=arguments.baud, rate=arguments.rate
        )
        if arguments.port and arguments.port_filter:
            raise RackError("RACKCTL_PORT and RACKCTL_PORT_FILTER exclude each other: give one of them, or --port")
        job.run(arguments.port or find_port(arguments.port_filter), as_json=arguments.json)
    return 0


def _board(name: str | None, image: Image, baud: int | None) -> Board:
    if name is None:
        known = [each for each in image.hardware if each in board_names()]
        if not known:
            raise WrongHardware(f"the image is for {', '.join(image.hardware)}: no board that is described here")
        if len(known) != 1:
            raise WrongHardware(f"the image is for {', '.join(image.hardware)}: say with --board which one it is")
        name = known[0]
    board = load_board(name)
    if baud is None:
        return board
    return board.model_copy(update={"console": board.console.model_copy(update={"baud": baud})})


def _boards() -> str:
    """Their names, with what nobody has tried."""
    known = [load_board(name) for name in board_names()]
    return ", ".join(board.name if board.tested else f"{board.name} (untested on hardware)" for board in known)


def _choice(kind: type[E]) -> Any:
    """A converter to the member of an enum that a word names."""

    def convert(text: str | E) -> E:
        try:
            return kind(text)
        except ValueError:
            raise RackError(f"{text!r} is none of {', '.join(member.value for member in kind)}") from None

    return convert
