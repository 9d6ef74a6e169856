"""`rackctl time`: what time it is for the authority and its sleds, and how the rack leaves a wrong one."""

import argparse
import json
from typing import Any, Final
from uuid import UUID

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.options import add_directory, add_switch, checked_by, whole_number_64
from rackctl.rack import Rack
from rackctl.signing_options import HOW_COMMANDS_SIGN, add_signer, signer_of
from rackctl.table import aligned
from sled_controller.environment import Environment
from sled_controller.errors import CredentialMalformed
from sled_controller.time_statement import ANY_SLED, TimeStatement

OFF_MS_MAX: Final = 60_000
ABOUT: Final = (
    "The rack goes on after most faults of clocks once they are right again. `set` is for what is left: sleds that take"
    " every credential for expired, credentials and promises of a time that is far away."
)


def add_time(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl time ...`."""
    parser.description = ABOUT
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser("show", help="show the authority's clock, issue time, and the time of each sled")
    show.set_defaults(command=_show)
    set_ = actions.add_parser("set", help="the clocks are right again: bring issue time and every sled to them")
    set_.add_argument("--yes", action="store_true", help="do it; without, it is only said what it means")
    set_.set_defaults(command=_set)
    for action in (show, set_):
        add_directory(action, "the rack's directory", defaults)
        add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    statement = actions.add_parser(
        "statement",
        help="print a statement of time for a sled's console, signed by the root key",
        description="For a sled that the authority does not reach: `rackctl console SLED time STATEMENT`. "
        + HOW_COMMANDS_SIGN,
    )
    statement.add_argument(
        "--serial", type=checked_by(whole_number_64), required=True, metavar="N",
        help="above `time_serial` in `status` on the sled's console, and that of `time show`",
    )  # fmt: skip
    statement.add_argument("--sled", type=UUID, default=ANY_SLED, metavar="ID", help="for this sled only [any]")
    statement.add_argument(
        "--at", type=checked_by(whole_number_64), metavar="MS", help="Unix milliseconds [this machine's clock]"
    )
    add_signer(statement, defaults, "--root", "RACKCTL_ROOT", "the root's private key")
    statement.set_defaults(command=_statement)


def _show(arguments: argparse.Namespace) -> int:
    _print(arguments, Rack.find(arguments.dir).api.time())
    return 0


def _set(arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        raise RackError(
            "issue time and the time of every sled would become that of this machine and of the authority's, which"
            " must be right; a new key would sign. Look at `rackctl time show` before. Add --yes to do it"
        )
    _print(arguments, Rack.find(arguments.dir).api.set_time(Environment().clock.wall_ms()))
    return 0


def _statement(arguments: argparse.Namespace) -> int:
    root = signer_of(arguments, "--root")
    if root is None:
        raise RackError("say which root key signs: --root FILE, or --root-command with --root-public")
    at_ms = Environment().clock.wall_ms() if arguments.at is None else arguments.at
    try:
        print(TimeStatement(arguments.serial, at_ms, arguments.sled).sign(root).hex())
    except CredentialMalformed as error:
        raise RackError(f"no such statement: {error}") from None
    return 0


def _print(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    clock_ms = found["clock_ms"]
    rows = [("authority", "-", f"issues {_apart(found['issue_ms'] - clock_ms)}")]
    for sled in found["sleds"]:
        apart = "-" if sled["time_ms"] is None else _apart(sled["time_ms"] - clock_ms)
        note = sled["result"] if sled["result"] != "taken" else "waits for the statement" if sled["pending"] else ""
        rows.append((sled["name"], apart, note))
    print(aligned(("NODE", "AGAINST THE AUTHORITY'S CLOCK", ""), rows))
    print(f"\nlast statement of time: {found['serial'] or 'none'}")


def _apart(ms: int) -> str:
    if abs(ms) <= OFF_MS_MAX:
        return "right"
    days, seconds = divmod(abs(ms) // 1000, 86_400)
    text = f"{days} d {seconds // 3600} h" if days else f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{text} {'ahead' if ms > 0 else 'behind'}"
