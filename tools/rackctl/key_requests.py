"""`rackctl keys request|sign-request|install`: what a root key signs that is not where the authority runs.

The request goes to where the root key is, the signatures come back; private keys stay where they are. What is signed is
read first and shown: a root key signs key sets and reply keys of this rack, whatever an authority in wrong hands asks.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sled_board.image import Signer
from sled_board.image.signing import checked_signature

from head_node.authority import reply_certificate
from head_node.authority.reply_certificate import CertificateRefused, ReplyCertificate
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import read_file, write_file
from rackctl.options import add_directory
from rackctl.rack import Rack
from rackctl.signing_options import HOW_COMMANDS_SIGN, add_signer, signer_of
from rackctl.table import named
from sled_controller import keyset
from sled_controller.errors import KeySetRefused
from sled_controller.keyset import KeySet

FORMAT: Final = "palisade root request 1"
REQUEST_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """One thing that the root key is asked to sign, read and found to be what it says."""

    kind: str
    domain: bytes
    body: bytes
    facts: tuple[tuple[str, str], ...]


def add_root_requests(actions: Any, defaults: Defaults) -> None:
    """The three verbs, and the one that makes a new reply key."""
    request = actions.add_parser("request", help="write what waits for a root key that is away into a file")
    request.add_argument("file", type=Path, metavar="FILE", help="take it to where the root key is")
    request.set_defaults(command=_request)
    sign = actions.add_parser("sign-request", help="show what is in such a file, and sign it with the root key")
    sign.description = "Show what a request asks the root key to sign, and add the signatures. " + HOW_COMMANDS_SIGN
    sign.add_argument("file", type=Path, metavar="FILE", help="that `rackctl keys request` wrote; gets the signatures")
    add_signer(sign, defaults, "--root", "RACKCTL_ROOT", "the root's private key")
    sign.set_defaults(command=_sign)
    install = actions.add_parser("install", help="put in place what the root key has signed")
    install.add_argument("file", type=Path, metavar="FILE", help="that `rackctl keys sign-request` has signed")
    install.set_defaults(command=_install)
    reply = actions.add_parser("rotate-reply", help="make a new key that signs the authority's replies to heads")
    reply.set_defaults(command=_rotate_reply)
    for action in (request, install, reply):
        add_directory(action, "the rack's directory", defaults)


def read_asked(entry: Any) -> Asked:
    """What one entry of a request asks for; raises RackError when it is not what a root key signs."""
    try:
        kind, domain, body = str(entry["kind"]), bytes.fromhex(entry["domain"]), bytes.fromhex(entry["body"])
    except (KeyError, TypeError, ValueError):
        raise RackError("the request is damaged: make it again with `rackctl keys request`") from None
    try:
        if kind == "key-set" and domain == keyset.SIGNING_DOMAIN:
            return Asked(kind, domain, body, _of_key_set(KeySet.parse(body)))
        if kind == "reply-key" and domain == reply_certificate.SIGNING_DOMAIN:
            return Asked(kind, domain, body, _of_certificate(ReplyCertificate.parse(body)))
    except (KeySetRefused, CertificateRefused) as error:
        raise RackError(f"the request is for a {kind}, but its content is none: {error}") from None
    raise RackError(f"the request is for {kind!r:.40}, which is nothing that a root key signs")


def _of_key_set(found: KeySet) -> tuple[tuple[str, str], ...]:
    keys = ((f"key {key_id}", public.hex()) for key_id, public in found.keys.items())
    return (("key set", f"version {found.version}"), ("issued", _date(found.issued_ms)), *keys)


def _of_certificate(found: ReplyCertificate) -> tuple[tuple[str, str], ...]:
    until = f"{_date(found.issued_ms)} to {_date(found.expires_ms)}"
    return (("reply key", f"number {found.number}"), ("from", until), ("key", found.public.hex()))


def _date(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms, which is no date"


def _request(arguments: argparse.Namespace) -> int:
    found = Rack.find(arguments.dir).api.root_requests()
    if not found["requests"]:
        raise RackError("nothing waits for the root key: rotate the keys first if you want new ones")
    write_file(arguments.file, json.dumps({"format": FORMAT} | found, indent=1).encode() + b"\n")
    for entry in found["requests"]:
        print(named(read_asked(entry).facts))
    print(f"{arguments.file}: `rackctl keys sign-request` signs it where the root key is")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    root = signer_of(arguments, "--root")
    if root is None:
        raise RackError("say which root key signs: --root FILE, or --root-command with --root-public")
    data = _read(arguments.file)
    if data["root_public_key"] != root.public.hex():
        raise RackError(f"{arguments.file}: is for root key {data['root_public_key']!r:.80}, not for this one")
    signed = sign_all([read_asked(entry) for entry in data["requests"]], root)
    write_file(arguments.file, json.dumps(data | {"requests": signed}, indent=1).encode() + b"\n")
    print(f"{arguments.file}: signed; `rackctl keys install` puts it in place")
    return 0


def sign_all(asked: Sequence[Asked], root: Signer) -> list[dict[str, str]]:
    """Show and sign each of them; raises SigningFailed."""
    signed = []
    for one in asked:
        print(named(one.facts))
        signature = checked_signature(root, one.domain + one.body)
        entry = {"kind": one.kind, "domain": one.domain.hex(), "body": one.body.hex()}
        signed.append(entry | {"signature": signature.hex()})
    return signed


def _install(arguments: argparse.Namespace) -> int:
    data = _read(arguments.file)
    api = Rack.find(arguments.dir).api
    for entry in data["requests"]:
        asked = read_asked(entry)
        signature = entry.get("signature")
        if not isinstance(signature, str):
            raise RackError(f"{arguments.file}: has no signatures yet: `rackctl keys sign-request {arguments.file}`")
        api.install_root_signature(asked.kind, asked.body.hex(), signature)
        print(named(asked.facts[:1]) + ": installed")
    return 0


def _rotate_reply(arguments: argparse.Namespace) -> int:
    made = Rack.find(arguments.dir).api.rotate_reply_key()["reply_key"]
    print(named([("reply key", f"number {made['number']}, until {_date(made['expires_ms'])}")]))
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_file(path, REQUEST_BYTES_MAX))
        if data["format"] == FORMAT and isinstance(data["requests"], list) and isinstance(data["root_public_key"], str):
            return dict(data)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise RackError(f"{path}: is no request for a root key: `rackctl keys request` makes one")
