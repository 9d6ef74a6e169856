"""`rackctl node revoke`: put a head out of the rack, and say on which sleds it is fenced off."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.options import add_switch
from rackctl.rack import Rack
from rackctl.table import aligned

FENCED: Final = "fenced"


def add_revoke(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", defaults: Defaults
) -> argparse.ArgumentParser:
    """The caller adds where the rack is, and calls `act(rack, arguments)`."""
    revoke = actions.add_parser("revoke", help="put a head out of the rack for good, and fence it off on its sleds")
    revoke.add_argument("name", metavar="HEAD", help="name or id of a head")
    revoke.add_argument("--yes", action="store_true", help="do it; without, it is only said what it means")
    add_switch(revoke, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    revoke.set_defaults(act=_revoke)
    return revoke


def _revoke(rack: Rack, arguments: argparse.Namespace) -> None:
    name = arguments.name
    if not arguments.yes:
        raise RackError(
            f"{name} would leave the rack for good: its volumes go on with other heads in new epochs, its clients are"
            " disconnected, and it could join again only with another identity. Add --yes to do it"
        )
    done = rack.api.revoke_head(name)
    if arguments.json:
        print(json.dumps(done, indent=1))
        return
    sleds = {sled["id"]: sled["name"] for sled in rack.api.nodes()["sleds"]}
    volumes = {volume["volume"]: volume["name"] for volume in rack.api.volumes()}
    print(told(done, sleds, volumes))


def told(done: Mapping[str, Any], sleds: Mapping[str, str], volumes: Mapping[str, str]) -> str:
    """The answer to a revocation, for people."""
    lines = [f"{done['head']['name']} is revoked"]
    orphans = [volumes.get(volume, volume) for volume in done["orphaned"]]
    if orphans:
        lines.append(f"no member is left of {', '.join(orphans)}")
    rows = [
        (volumes.get(volume, volume), sleds.get(sled, sled), result)
        for volume, results in done["fences"].items()
        for sled, result in results.items()
    ]
    if rows:
        lines.append(aligned(("VOLUME", "SLED", "FENCE"), sorted(rows)))
    else:
        lines.append("it holds no credential that has not expired: nothing is to be fenced")
    waiting = sum(result != FENCED for _, _, result in rows)
    if waiting:
        lines.append(f"{waiting} are tried until they are fenced; `rackctl status` shows which are not")
    return "\n".join(lines)


def unfenced_rows(
    unfenced: Sequence[Mapping[str, Any]], names: Mapping[str, str], volumes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What `rackctl status` shows of sleds that are still to be fenced, by head and volume."""
    return [
        {
            "head": names.get(entry["head"], entry["head"]),
            "volume": volumes.get(entry["volume"], entry["volume"]),
            "epoch": entry["epoch"],
            "sleds": [names.get(sled, sled) for sled in entry["sleds"]],
        }
        for entry in unfenced
    ]
