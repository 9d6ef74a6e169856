"""`rackctl firmware flash`: an image onto a board over its serial console (docs/flashing.md)."""

import argparse
import asyncio
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from sled_board.board import Board, board_names, load_board
from sled_board.errors import DamagedImage, WrongHardware
from sled_board.flasher import HEALTH_S, After, Before, Choices, checked_image, flash
from sled_board.image import IMAGE_BYTES_MAX, Image, Trust, read_image
from sled_board.image.layout import KEY_SET_BYTES
from sled_board.serial_port import find_port, opened

from rackctl.defaults import Defaults, seconds
from rackctl.errors import RackError
from rackctl.files import read_file
from rackctl.firmware.flash_progress import Progress
from rackctl.keys import add_root
from rackctl.options import add_option, add_switch, whole_number
from rackctl.signers import read_public

DESCRIPTION: Final = (
    "Write an image into the slot of a board that is not in use, over its serial console, verify it there and have it"
    " tried. Wrong images are refused before the board is touched. A flash that was cut off goes on when repeated."
)
E = TypeVar("E", bound=Enum)


def add_flash(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl firmware flash`; the image itself and `--json` are added with those of the other actions."""
    parser.description = DESCRIPTION
    add_root(parser, defaults, "the root key that the board is provisioned with")
    options: list[tuple[str, str, Any, Any, str, str]] = [
        ("--key-set", "KEY_SET", Path, None, "FILE", "a key set that is newer than that of board and image"),
        ("--board", "BOARD", str, None, "NAME", f"{', '.join(board_names())}, or a .toml file; the image's without it"),
        ("--port", "PORT", str, None, "PORT", "device or URL (socket://, rfc2217://); the only one without it"),
        ("--port-filter", "PORT_FILTER", str, None, "REGEX", "of the ports' device, description and hardware id"),
        ("--before", "BEFORE", _choice(Before), Before.PROMPT, "HOW", "prompt: ask for it; wait: for power-on; reset"),
        (
            "--after",
            "AFTER",
            _choice(After),
            After.RESET,
            "HOW",
            "reset; wait: until it is healthy; stay: at the prompt",
        ),
        ("--baud", "BAUD", whole_number, None, "RATE", "what the board speaks after power-on; its own without it"),
        ("--rate", "RATE", whole_number, None, "RATE", "baud of the transfer; the fastest of the board without it"),
        ("--prompt-seconds", "PROMPT_SECONDS", seconds, None, "S", "how long to wait for the prompt"),
        ("--health-seconds", "HEALTH_SECONDS", seconds, HEALTH_S, "S", "how long to wait for the report of health"),
    ]
    for flag, variable, kind, default, metavar, text in options:
        add_option(
            parser, flag, variable=f"RACKCTL_{variable}", kind=kind, default=default, metavar=metavar, text=text,
            defaults=defaults,
        )  # fmt: skip
    for flag, text in (
        ("--skip-flashed", "do nothing where the board has confirmed this very image"),
        ("--dry-run", "check image and board, write nothing"),
        ("--force", "begin anew where the board's slot state is lost; nothing else can be forced"),
        ("--unlocked", "the board is not locked: development keys count"),
    ):
        variable = f"RACKCTL_{flag.lstrip('-').replace('-', '_').upper()}"
        add_switch(parser, flag, variable=variable, text=text, defaults=defaults)
    parser.set_defaults(command=_flash)


def _flash(arguments: argparse.Namespace) -> int:
    if arguments.root is None:
        raise RackError("flash: say by which root key with --root: without one anybody's image would do")
    key_set = None if arguments.key_set is None else read_file(arguments.key_set, KEY_SET_BYTES)
    trust = Trust(read_public(arguments.root), key_set, locked=not arguments.unlocked)
    data = read_file(arguments.image, IMAGE_BYTES_MAX)
    try:
        image = read_image(data)
    except DamagedImage as error:
        raise DamagedImage(f"{arguments.image}: {error}") from None
    board = _board(arguments, image)
    checked_image(data, board, trust)
    choices = Choices(
        before=arguments.before,
        after=arguments.after,
        rate=arguments.rate,
        skip_flashed=arguments.skip_flashed,
        force=arguments.force,
        dry_run=arguments.dry_run,
        patience_s=arguments.prompt_seconds,
        health_s=arguments.health_seconds,
    )
    url = arguments.port or find_port(arguments.port_filter)
    progress = Progress(sys.stdout, time.monotonic, as_json=arguments.json)
    try:
        asyncio.run(_run(url, board, data, trust, choices, progress))
    finally:
        progress.close()
    return 0


async def _run(url: str, board: Board, data: bytes, trust: Trust, choices: Choices, progress: Progress) -> None:
    async with opened(url, board.console) as line:
        async for event in flash(line, board, data, trust, choices):
            progress.show(event)


def _board(arguments: argparse.Namespace, image: Image) -> Board:
    name: str | None = arguments.board
    if name is None:
        known = [each for each in image.hardware if each in board_names()]
        if len(known) != 1:
            raise WrongHardware(f"the image is for {', '.join(image.hardware)}: say with --board which one it is")
        name = known[0]
    board = load_board(name)
    if arguments.baud is None:
        return board
    return board.model_copy(update={"console": board.console.model_copy(update={"baud": arguments.baud})})


def _choice(kind: type[E]) -> Any:
    """A converter to the member of an enum that a word names."""

    def convert(text: str | E) -> E:
        try:
            return kind(text)
        except ValueError:
            raise RackError(f"{text!r} is none of {', '.join(member.value for member in kind)}") from None

    return convert
