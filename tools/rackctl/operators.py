"""`rackctl token` and `rackctl audit`: who may work with a rack's authority, and what was done with it.

Both work with an authority that no rack of this machine has, too: by its address, a token's file and its CA.
"""

import argparse
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rackctl.api import OperatorApi
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import read_file
from rackctl.options import add_option, add_switch, checked_by, whole_number
from rackctl.output import say
from rackctl.rack import Rack
from rackctl.table import aligned

ROLES: Final = ("viewer", "operator", "admin")
DAYS: Final = 90
DAY_S: Final = 86_400
TOKEN_VARIABLE: Final = "RACK_TOKEN"
TOKEN_BYTES_MAX: Final = 4096
PAGE: Final = 500


def add_tokens(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl token create|list|revoke`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a token and print it, this once")
    create.add_argument("name", metavar="NAME", help="what it is called in lists and in the audit trail")
    create.add_argument("--role", required=True, choices=ROLES, help="each may also do what those before it may")
    create.add_argument(
        "--days", type=checked_by(_days), default=DAYS, metavar="N", help=f"until it expires; default {DAYS}"
    )
    create.set_defaults(command=_create)
    listing = actions.add_parser("list", help="list the tokens that are good")
    listing.set_defaults(command=_list)
    revoke = actions.add_parser("revoke", help="make a token worthless")
    revoke.add_argument("name", metavar="NAME", help="its name or id")
    revoke.set_defaults(command=_revoke)
    for action in (create, listing, revoke):
        _add_authority(action, defaults)
    for action in (create, listing):
        add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)


def add_audit(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl audit`."""
    parser.add_argument(
        "--after",
        type=checked_by(_from_zero),
        default=0,
        metavar="N",
        help="only lines above this number, as of the last export",
    )
    add_switch(parser, "--json", variable="RACKCTL_JSON", text="an object a line, for an export", defaults=defaults)
    _add_authority(parser, defaults)
    parser.set_defaults(command=_audit)


def _add_authority(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    for flag, variable, kind, metavar, text, others in (
        ("--dir", "RACK_DIR", Path, "DIR", "the rack's directory", ("api",)),
        ("--api", "RACK_API", str, "URL", "the authority's address, for one without a directory here", ()),
        ("--token-file", "RACK_TOKEN_FILE", Path, "FILE", f"with --api: the token; else in {TOKEN_VARIABLE}", ()),
        ("--ca", "RACK_CA", Path, "FILE", "with --api: certificates that it is verified by", ()),
    ):
        add_option(
            parser, flag, variable=variable, kind=kind, default=None, metavar=metavar, text=text, defaults=defaults,
            instead_of=others,
        )  # fmt: skip


def _api_of(arguments: argparse.Namespace) -> OperatorApi:
    """Raises RackError."""
    if arguments.api is None:
        return Rack.find(arguments.dir).api
    token = os.environ.get(TOKEN_VARIABLE, "")
    if arguments.token_file is not None:
        token = read_file(arguments.token_file, TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
    if not token:
        raise RackError(f"no operator token: name its file with --token-file, or put it into {TOKEN_VARIABLE}")
    return OperatorApi(arguments.api, token, ca=arguments.ca)


def _create(arguments: argparse.Namespace) -> int:
    made = _api_of(arguments).create_token(arguments.name, arguments.role, arguments.days * DAY_S)
    print(json.dumps(made, indent=1) if arguments.json else made["token"])
    return 0


def _list(arguments: argparse.Namespace) -> int:
    tokens = _api_of(arguments).tokens()
    if arguments.json:
        print(json.dumps(tokens, indent=1))
    elif tokens:
        rows = [
            (token["name"], token["id"], token["role"], _time(token["expires_ms"]), token["created_by"])
            for token in tokens
        ]
        print(aligned(("TOKEN", "ID", "ROLE", "EXPIRES", "MADE BY"), rows))
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    _api_of(arguments).revoke_token(arguments.name)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    for line in _lines(_api_of(arguments), arguments.after):
        say(json.dumps(line) if arguments.json else _shown(line))
    return 0


def _lines(api: OperatorApi, after: int) -> Iterator[dict[str, Any]]:
    while page := api.audit(after, PAGE):
        yield from page
        after = page[-1]["sequence"]


def _shown(line: dict[str, Any]) -> str:
    """One line of a terminal: details are JSON, so that nothing in them moves the cursor."""
    parts = [str(line["sequence"]), _time(line["time_ms"]), line["actor"], line["source"] or "-", line["action"]]
    parts += [line["target"] or "-", line["result"] or "-"]
    if line["details"]:
        parts.append(json.dumps(line["details"]))
    return "  ".join(parts)


def _time(time_ms: int | None) -> str:
    if time_ms is None:
        return "never"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _days(text: str) -> int:
    days = whole_number(text)
    if days > 366:
        raise RackError("a token lasts a year at most, 366 days")
    return days


def _from_zero(text: str) -> int:
    return 0 if text == "0" else whole_number(text)
