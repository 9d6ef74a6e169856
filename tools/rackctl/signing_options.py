"""The options that say which key signs: a file, or a command that reaches a key that leaves its hardware never."""

import argparse
from pathlib import Path
from typing import Final

from sled_board.image import Signer

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.options import add_option
from rackctl.signers import CommandSigner, read_passphrase, read_private, read_public

HOW_COMMANDS_SIGN: Final = (
    "A signing command reads the message from its standard input, to the end, and writes the Ed25519 signature, 64 raw"
    " bytes, to its standard output; what it says goes to standard error. Its answer is verified before it is used."
)


def add_passphrase(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`--passphrase-file`."""
    add_option(
        parser,
        "--passphrase-file",
        variable="RACKCTL_PASSPHRASE_FILE",
        kind=Path,
        default=None,
        metavar="FILE",
        text="its first line is the passphrase of the private key",
        defaults=defaults,
    )


def add_signer(parser: argparse.ArgumentParser, defaults: Defaults, flag: str, variable: str, whose: str) -> None:
    """`FLAG`, `FLAG-command` and `FLAG-public`, as `RACKCTL_VARIABLE...` too."""
    name = flag.lstrip("-").replace("-", "_")
    either = parser.add_mutually_exclusive_group()
    for to, suffix, kind, metavar, text, instead_of in (
        (either, "", Path, "FILE", f"{whose}, a file that `rackctl keys` or OpenSSL made", (f"{name}_command",)),
        (either, "-command", str, "COMMAND", "a command that signs with it instead", (name,)),
        (parser, "-public", Path, "FILE", "the public key that the command is to sign with", ()),
    ):
        add_option(
            to,
            flag + suffix,
            variable=variable + suffix.replace("-", "_").upper(),
            kind=kind,
            default=None,
            metavar=metavar,
            text=text,
            defaults=defaults,
            instead_of=instead_of,
        )
    add_passphrase(parser, defaults)


def signer_of(arguments: argparse.Namespace, flag: str) -> Signer | None:
    """The signer that the options of `add_signer` name, None if they name none; raises RackError."""
    name = flag.lstrip("-").replace("-", "_")
    file: Path | None = getattr(arguments, name)
    command: str | None = getattr(arguments, f"{name}_command")
    public: Path | None = getattr(arguments, f"{name}_public")
    if file is not None and command is not None:
        raise RackError(f"{flag} and {flag}-command exclude each other: sign twice if both are to sign")
    if file is not None:
        return read_private(file, read_passphrase(arguments.passphrase_file))
    if command is None:
        return None
    if public is None:
        raise RackError(f"{flag}-command needs {flag}-public: the public key that it is to sign with")
    return CommandSigner(command, read_public(public))
