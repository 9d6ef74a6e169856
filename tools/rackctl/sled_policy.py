"""`rackctl volume set`, `unreadable`, `declare-lost`: a volume's policies, and the sleds that it lacks."""

import argparse
import json
from typing import Any, Final

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.export_options import add_exports, exports_of, exports_text
from rackctl.options import add_switch, checked_by, whole_number, whole_number_64
from rackctl.rack import Rack, wait_until
from rackctl.table import aligned

FOREVER: Final = "forever"
DECLARE_SECONDS_MAX: Final = 60.0
"""How long `declare-lost` waits for the primary; the request stays if it takes longer."""


def read_wait(text: str) -> int | None:
    """Seconds, or `forever`."""
    return None if text == FOREVER else whole_number(text)


def add_policy(parser: argparse.ArgumentParser) -> None:
    """What a volume does while sleds are away; nothing is said unless a flag says it."""
    parser.add_argument(
        "--exposed-stripes",
        choices=("allow", "refuse"),
        help="with only k sleds left: write stripes that would not survive one more, or let writes wait [allow]",
    )
    parser.add_argument(
        "--read-wait",
        type=checked_by(read_wait),
        default=argparse.SUPPRESS,
        metavar="SECONDS",
        help=f"how long a read waits for sleds that are away before it fails, or {FOREVER} [{FOREVER}]",
    )


def policy_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as REST wants it."""
    policy: dict[str, Any] = {}
    if arguments.exposed_stripes is not None:
        policy["exposed_stripes"] = arguments.exposed_stripes == "allow"
    if "read_wait" in arguments:
        policy["read_wait_s"] = arguments.read_wait
    return policy


def policy_text(record: dict[str, Any]) -> str:
    """For people."""
    wait_s = record["read_wait_s"]
    stripes = "exposed stripes allowed" if record["exposed_stripes"] else "no exposed stripes"
    return f"{stripes}; reads wait {FOREVER if wait_s is None else f'{wait_s} s'}"


def add_sled_actions(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", defaults: Defaults
) -> list[argparse.ArgumentParser]:
    """The caller adds where the rack is, and calls `act(rack, arguments)`."""
    change = actions.add_parser("set", help="say by what clients reach a volume, and what it does without some sleds")
    add_exports(change)
    add_policy(change)
    unreadable = actions.add_parser("unreadable", help="list blocks that cannot be read from any sleds")
    add_switch(unreadable, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    lost = actions.add_parser("declare-lost", help="give up blocks that cannot be read, so that they hold nothing up")
    lost.add_argument("--first", type=checked_by(whole_number_64), required=True, metavar="N", help="the first block")
    lost.add_argument("--blocks", type=checked_by(whole_number), required=True, metavar="N", help="how many")
    lost.add_argument(
        "--sleds-away", action="store_true", help="also what only sleds that are away have: they never come back"
    )
    lost.add_argument("--yes", action="store_true", help="do it; without, it is only said what it means")
    for action, act in ((change, _set), (unreadable, _unreadable), (lost, _declare_lost)):
        action.add_argument("name", metavar="NAME", help="a volume")
        action.set_defaults(act=act)
    return [change, unreadable, lost]


def _set(rack: Rack, arguments: argparse.Namespace) -> None:
    policy = exports_of(arguments) | policy_of(arguments)
    if not policy:
        raise RackError("nothing to set: give --nbd, --nvme, --exposed-stripes or --read-wait")
    record = rack.api.set_policy(arguments.name, policy)
    print(f"exports: {exports_text(record)}; {policy_text(record)}")


def _unreadable(rack: Rack, arguments: argparse.Namespace) -> None:
    found = rack.api.unreadable(arguments.name)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    if found["ranges"]:
        print(aligned(("FIRST BLOCK", "BLOCKS"), [(one["first"], one["blocks"]) for one in found["ranges"]]))
    more = " at least" if found["more"] else ""
    print(f"{more.strip()} {found['blocks']} blocks cannot be read; {found['lost']} are declared lost".strip())


def _declare_lost(rack: Rack, arguments: argparse.Namespace) -> None:
    name, first, blocks = arguments.name, arguments.first, arguments.blocks
    if not arguments.yes:
        away = " and sleds that are away are given up for them" if arguments.sleds_away else ""
        raise RackError(
            f"blocks {first} to {first + blocks - 1} of volume {name} would be read once more{away}; those that cannot"
            " be read are errors from then on, until they are written. What can be read stays. Add --yes to do it"
        )
    wanted = {"first": first, "blocks": blocks, "sleds_away": arguments.sleds_away}
    before = max((event["sequence"] for event in rack.api.events()), default=0)
    volume = rack.api.declare_lost(name, first, blocks, sleds_away=arguments.sleds_away)["volume"]

    def done() -> dict[str, Any] | None:
        if wanted in rack.api.volume(name)["lost"]:
            return None
        events = [event for event in rack.api.events(before) if event["kind"] == "blocks-lost"]
        return next((event for event in reversed(events) if event["volume"] == volume), None)

    what = f"the primary of volume {name} to declare blocks lost (it goes on trying)"
    event = wait_until(done, what, DECLARE_SECONDS_MAX)
    print(f"{event['lost']} blocks are lost, {event['readable']} can be read, {event['away']} may come back")
