"""`rackctl keys rotate`: another key for signing credentials, and in a hurry instead of the former ones."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from rackctl.defaults import Defaults
from rackctl.options import add_directory
from rackctl.rack import Rack

TAKEN: Final = "taken"


def add_rotate(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", defaults: Defaults) -> None:
    """`rackctl keys rotate`."""
    rotate = actions.add_parser("rotate", help="have a running rack sign credentials with another key")
    rotate.description = (
        "Publish another key that signs credentials. It signs after the publication time; the former keys leave the key"
        " set when all that they have signed is over. With --now they leave it at once: do that when one may be stolen."
    )
    rotate.add_argument(
        "--now", action="store_true", help="take the former keys out of the key set now, on all sleds, within seconds"
    )
    add_directory(rotate, "the rack's directory", defaults)
    rotate.set_defaults(command=_rotate)


def _rotate(arguments: argparse.Namespace) -> int:
    rack = Rack.find(arguments.dir)
    answer = rack.api.rotate_keys(now=arguments.now)
    names = {sled["id"]: sled["name"] for sled in rack.api.nodes()["sleds"]}
    print("\n".join(told(answer, names)))
    return 0


def told(answer: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """The lines for people. `names` of sleds by id."""
    key_ids = [key["key_id"] for key in answer["keys"]]
    lines = [f"key set {answer['version']}: {'keys' if key_ids[1:] else 'key'} {', '.join(map(str, key_ids))}"]
    taken = [sled for sled, result in answer["sleds"].items() if result == TAKEN]
    if answer["sleds"]:
        lines.append(f"{len(taken)} of {len(answer['sleds'])} sleds have it")
    lines += [
        f"{names.get(sled, sled)} has not: {result}; it is tried again, and refuses what the new key signs until then"
        for sled, result in sorted(answer["sleds"].items())
        if result != TAKEN
    ]
    return lines
