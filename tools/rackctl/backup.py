"""`rackctl backup make|open`: a copy of the authority's store, and how a sealed one becomes a store again."""

import argparse
from pathlib import Path
from typing import Final

from head_node.store.sealed_backup import BackupSealed, is_sealed, opened
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import create_file, read_file
from rackctl.options import add_directory
from rackctl.rack import Rack
from rackctl.signers import read_passphrase, read_private
from rackctl.signing_options import add_passphrase
from rackctl.state import NodeKind
from rackctl.table import named

BACKUP_BYTES_MAX: Final = (2 << 30) - 1
"""What AES-GCM of `cryptography` takes at once."""


def add_backup(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl backup ...`."""
    parser.description = (
        "A backup holds no key that signs. Where the authority has a backup_key_file it is sealed to that key, which"
        " `rackctl keys new` makes; else the secrets of hosts are left out of it."
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    make = actions.add_parser("make", help="have the authority write a copy of its store")
    add_directory(make, "the rack's directory", defaults)
    make.set_defaults(command=_make)
    open_ = actions.add_parser("open", help="turn a backup into a store that an authority starts from")
    open_.add_argument("file", type=Path, metavar="BACKUP", help="a store.backup, sealed or not")
    open_.add_argument("output", type=Path, metavar="STORE", help="a new file, authority.db of a state directory")
    open_.add_argument("--key", type=Path, metavar="FILE", help="the private key that a sealed backup is sealed to")
    add_passphrase(open_, defaults)
    open_.set_defaults(command=_open)


def _make(arguments: argparse.Namespace) -> int:
    rack = Rack.find(arguments.dir)
    made = rack.api.back_up()
    (authority,) = rack.state.of_kind(NodeKind.AUTHORITY)
    sealed_to = made["sealed_to"] or "nobody: it leaves out the secrets of hosts"
    rows = [("backup", str(rack.layout.state_dir(authority) / made["file"])), ("revision", str(made["revision"]))]
    print(named([*rows, ("sealed to", sealed_to)]))
    return 0


def _open(arguments: argparse.Namespace) -> int:
    data = read_file(arguments.file, BACKUP_BYTES_MAX)
    if is_sealed(data):
        if arguments.key is None:
            raise RackError(f"{arguments.file}: is sealed: name the private key that opens it with --key")
        key = read_private(arguments.key, read_passphrase(arguments.passphrase_file)).private
        try:
            data = opened(data, key)
        except BackupSealed as error:
            raise RackError(f"{arguments.file}: {error}") from None
    create_file(arguments.output, data, mode=0o600)
    print(f"{arguments.output}: an authority that starts from it freezes every volume first")
    return 0
