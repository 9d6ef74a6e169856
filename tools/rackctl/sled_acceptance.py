"""`rackctl sled accept`: a sled that was put back to an older state serves again when an operator says so."""

import argparse

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.options import add_directory
from rackctl.rack import Rack


def add_sled(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl sled ...`."""
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    accept = actions.add_parser("accept", help="let a sled serve whose boot counter went back")
    accept.add_argument("name", metavar="SLED", help="a sled that `rackctl status` shows as refused, or its id")
    accept.add_argument("--yes", action="store_true", help="do it; without, it is only said what it means")
    add_directory(accept, "the rack's directory", defaults)
    accept.set_defaults(command=_accept)


def _accept(arguments: argparse.Namespace) -> int:
    api, name = Rack.find(arguments.dir).api, arguments.name
    found = [sled for sled in api.nodes()["sleds"] if name in (sled["name"], sled["id"])]
    if not found:
        raise RackError(f"{name} is no sled of the rack: `rackctl status` lists them")
    if not found[0]["refused"]:
        raise RackError(f"{name} is not refused: there is nothing to accept")
    if not arguments.yes:
        raise RackError(
            f"{name} is refused: {found[0]['refused']}. Its drives and its state directory were put back to an older"
            " state. It has forgotten fences: a head that was cut off since may write to it until the volume's primary"
            " has attached again, which it does at once. Blocks on it may be old: reads verify each, and take those of"
            " other sleds. Wait until no other sled is away. Add --yes to do it"
        )
    record = api.accept_sled(found[0]["id"])
    print(f"{record['name']} serves again from its start {record['boot_counter']}")
    return 0
