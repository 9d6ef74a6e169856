"""`--firmware` and `--firmware-root`: that the sleds of a new rack run from firmware slots, and from which image."""

import argparse
from pathlib import Path

from sled_board.image import IMAGE_BYTES_MAX

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import read_file
from rackctl.options import add_option
from rackctl.signers import read_public
from rackctl.staged_sleds import HARDWARE, SledFirmware


def add_sled_firmware(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """Both options."""
    for flag, variable, text in (
        ("--firmware", "RACKCTL_FIRMWARE", f"new sleds run from firmware slots: a signed image for {HARDWARE}"),
        ("--firmware-root", "RACKCTL_FIRMWARE_ROOT", "the public root key of firmware, PEM or hex, for --firmware"),
    ):
        add_option(
            parser, flag, variable=variable, kind=Path, default=None, metavar="FILE", text=text, defaults=defaults
        )


def firmware_of(arguments: argparse.Namespace) -> SledFirmware | None:
    """What the options ask for; raises RackError."""
    if arguments.firmware is None:
        return None
    if arguments.firmware_root is None:
        raise RackError("--firmware needs --firmware-root: the public key that signs sets of firmware keys")
    return SledFirmware(read_file(arguments.firmware, IMAGE_BYTES_MAX), read_public(arguments.firmware_root))
