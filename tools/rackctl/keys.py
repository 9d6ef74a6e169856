"""`rackctl keys`: keys that sign firmware, key sets that name them, secrets of hosts, and a rack's signing keys."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sled_board.errors import WrongSignature
from sled_board.image import FirmwareKey, KeySet, sign_key_set
from sled_board.image.key_set import key_id
from sled_board.image.layout import KEY_SET_MAGIC

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import create_file, read_file, write_file
from rackctl.host_secrets import add_generate
from rackctl.key_requests import add_root_requests
from rackctl.options import add_option, add_switch, checked_by, new_file, whole_number, whole_number_64
from rackctl.rotation import add_rotate
from rackctl.signers import (
    KEY_FILE_BYTES_MAX,
    FileSigner,
    private_pem,
    public_pem,
    read_passphrase,
    read_private,
    read_public,
)
from rackctl.signing_options import HOW_COMMANDS_SIGN, add_passphrase, add_signer, signer_of
from rackctl.table import named

PUBLIC_SUFFIX: Final = ".pub"
ABOUT: Final = (
    "Firmware is signed by keys of a key set; a key set is signed by a root key, which boards are locked to."
    " Make a root key and keep it offline; make the keys that sign images; sign a set of their public keys;"
    " then `rackctl firmware sign` with each of them."
)


def add_keys(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl keys ...`."""
    parser.description = ABOUT
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, text in (
        ("new", "make a key that signs firmware images"),
        ("root", "make a root key, which signs key sets and which boards are locked to"),
    ):
        action = actions.add_parser(
            name, help=text, description=f"{text.capitalize()}: FILE, readable by its owner only, and FILE.pub."
        )
        action.add_argument("file", type=checked_by(new_file), metavar="FILE", help="the private key, PKCS #8 in PEM")
        add_passphrase(action, defaults)
        action.set_defaults(command=_new, root=name == "root")
    _add_sign_set(actions.add_parser("sign-set", help="sign the set of keys that may sign firmware"), defaults)
    show = actions.add_parser("show", help="show what a key file or a key set is")
    show.add_argument("file", type=Path, metavar="FILE", help="a private or public key, or a signed key set")
    add_root(show, defaults, "the root key by which a key set must be signed; not checked without it")
    add_passphrase(show, defaults)
    show.set_defaults(command=_show)
    add_generate(actions)
    add_root_requests(actions, defaults)
    add_rotate(actions, defaults)
    for action in actions.choices.values():
        if action.get_default("command") in (_new, _sign_set, _show):
            add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)


def add_root(parser: argparse.ArgumentParser, defaults: Defaults, text: str) -> None:
    """`--root`, a public key."""
    add_option(
        parser,
        "--root",
        variable="RACKCTL_ROOT_PUBLIC",
        kind=Path,
        default=None,
        metavar="FILE",
        text=f"{text}: the public key, PEM or hex",
        defaults=defaults,
    )


def _add_sign_set(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.description = "Write a key set, signed by the root key. " + HOW_COMMANDS_SIGN
    parser.add_argument("output", type=Path, metavar="FILE", help="where the signed set goes; replaced if it is there")
    parser.add_argument(
        "--version",
        type=checked_by(whole_number_64),
        required=True,
        metavar="N",
        help="boards keep the set with the highest: one more than that of the set before",
    )
    parser.add_argument(
        "--threshold",
        type=checked_by(whole_number),
        required=True,
        metavar="M",
        help="how many of the keys must sign an image",
    )
    for flag, text in (("--key", "a key"), ("--development-key", "a key that does not count on locked boards")):
        parser.add_argument(
            flag,
            type=Path,
            action="append",
            default=[],
            metavar="FILE",
            help=f"public key of {text}, PEM or hex; may be repeated",
        )
    add_signer(parser, defaults, "--root", "RACKCTL_ROOT", "the root's private key")
    parser.set_defaults(command=_sign_set)


def _new(arguments: argparse.Namespace) -> int:
    signer = FileSigner(Ed25519PrivateKey.generate())
    passphrase = read_passphrase(arguments.passphrase_file)
    beside = arguments.file.with_name(arguments.file.name + PUBLIC_SUFFIX)
    if beside.exists():
        raise RackError(f"{beside}: is there already, and is not overwritten: choose another name")
    create_file(arguments.file, private_pem(signer.private, passphrase), mode=0o600)
    try:
        write_file(beside, public_pem(signer.public))
    except RackError:
        arguments.file.unlink(missing_ok=True)  # nobody has used it yet, and it would be in the way of the next try
        raise
    files = {"private": str(arguments.file), "public_file": str(beside)}
    _print(
        arguments, _key_facts(signer.public) | files, _key_rows(signer.public, private=arguments.file, beside=beside)
    )
    return 0


def _sign_set(arguments: argparse.Namespace) -> int:
    root = signer_of(arguments, "--root")
    if root is None:
        raise RackError("say which root key signs: --root FILE, or --root-command with --root-public")
    keys = [FirmwareKey(read_public(path)) for path in arguments.key]
    keys += [FirmwareKey(read_public(path), development=True) for path in arguments.development_key]
    key_set = KeySet(arguments.version, arguments.threshold, tuple(keys))
    write_file(arguments.output, sign_key_set(key_set, root))
    signed_by = key_id(root.public).hex()
    _print(arguments, set_facts(key_set) | {"root": signed_by}, set_rows(key_set, f"root key {signed_by}"))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    data = read_file(arguments.file, KEY_FILE_BYTES_MAX)
    if data.startswith(KEY_SET_MAGIC):
        _show_set(arguments, data)
    elif b"PRIVATE KEY" in data:
        public = read_private(arguments.file, read_passphrase(arguments.passphrase_file)).public
        _print(arguments, {"kind": "private"} | _key_facts(public), [("private key", "Ed25519"), *_key_rows(public)])
    else:
        public = read_public(arguments.file)
        _print(arguments, {"kind": "public"} | _key_facts(public), [("public key", "Ed25519"), *_key_rows(public)])
    return 0


def _show_set(arguments: argparse.Namespace, data: bytes) -> None:
    try:
        if arguments.root is None:
            key_set, signed_by, root = KeySet.parse(data), "not checked: name the root key with --root", None
        else:
            public = read_public(arguments.root)
            key_set, root = KeySet.open(data, public), key_id(public).hex()
            signed_by = f"root key {root}"
    except WrongSignature as error:
        raise RackError(f"{arguments.file}: {error}") from None
    _print(arguments, {"kind": "key-set"} | set_facts(key_set) | {"root": root}, set_rows(key_set, signed_by))


def set_facts(key_set: KeySet) -> dict[str, Any]:
    """A key set for programs."""
    keys = [_key_facts(key.public) | {"development": key.development} for key in key_set.keys]
    return {"version": key_set.version, "threshold": key_set.threshold, "keys": keys}


def set_rows(key_set: KeySet, signed_by: str) -> list[tuple[str, str]]:
    """A key set for people."""
    rows = [
        ("key set", f"version {key_set.version}, {key_set.threshold} of {len(key_set.keys)} must sign"),
        ("signed by", signed_by),
    ]
    for key in key_set.keys:
        rows.append(("key", f"{key.id.hex()}{' (development)' if key.development else ''}"))
    return rows


def _key_facts(public: bytes) -> dict[str, Any]:
    return {"id": key_id(public).hex(), "public": public.hex()}


def _key_rows(public: bytes, private: Path | None = None, beside: Path | None = None) -> list[tuple[str, str]]:
    rows = [("key id", key_id(public).hex()), ("public", public.hex())]
    if private is not None:
        rows += [("private in", f"{private} (keep it secret)"), ("public in", str(beside))]
    return rows


def _print(arguments: argparse.Namespace, facts: dict[str, Any], rows: Sequence[tuple[str, str]]) -> None:
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        print(named(rows))
