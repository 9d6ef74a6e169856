"""Secrets by which hosts prove themselves (DH-HMAC-CHAP): make them, give them to a volume, take them away."""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from rackctl.api import OperatorApi
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.options import add_switch
from sled_controller.environment import Entropy, SystemEntropy
from sled_controller.errors import SecretMalformed
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.secret import KEY_BYTES, Secret

STANDARD_INPUT: Final = Path("-")
HASHES: Final = [each.name.lower() for each in HashId]
GROUPS: Final = [each.name.lower() for each in GroupId]


def add_generate(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`rackctl keys gen-dhchap`."""
    generate = actions.add_parser("gen-dhchap", help="print a fresh secret of a host, in the form DHHC-1:hh:base64:")
    generate.add_argument(
        "--hash", choices=["none", *HASHES], default="sha256", help="ties the secret to an NQN; default sha256"
    )
    generate.add_argument(
        "--bytes", type=int, choices=KEY_BYTES, help="length of the key; default that of the hash, 32 without one"
    )
    generate.set_defaults(command=_generate)


def add_secret_actions(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", defaults: Defaults
) -> list[argparse.ArgumentParser]:
    """`rackctl volume hosts secret` and `forget-secret`; the caller adds where the rack is, and sets `command`."""
    give = actions.add_parser("secret", help="have a host prove itself from now on; it is admitted with its secret")
    forget = actions.add_parser("forget-secret", help="believe a host by its name from now on")
    for action in (give, forget):
        action.add_argument("name", metavar="NAME", help="a volume")
        action.add_argument("nqn", metavar="NQN", help="the host's, as in its /etc/nvme/hostnqn")
    give.add_argument(
        "--secret-file", type=Path, metavar="FILE", help="the host's secret, - for standard input; a fresh one without"
    )
    given = give.add_mutually_exclusive_group()
    given.add_argument(
        "--controller-secret-file", type=Path, metavar="FILE", help="the secret by which heads prove themselves to it"
    )
    given.add_argument("--both-ways", action="store_true", help="make a fresh one for the heads too")
    give.add_argument("--hash", choices=HASHES, default=HASHES[0], help=f"the weakest that counts; default {HASHES[0]}")
    give.add_argument(
        "--group", choices=GROUPS, default=GROUPS[1], help=f"the weakest that counts; default {GROUPS[1]}"
    )
    add_switch(give, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    give.set_defaults(act=give_secret)
    forget.set_defaults(act=forget_secret)
    return [give, forget]


def give_secret(api: OperatorApi, arguments: argparse.Namespace, entropy: Entropy | None = None) -> None:
    """Set a host's secret; those that were made here are printed, this once. Raises RackError."""
    entropy = entropy or SystemEntropy()
    made = {}
    secret = _read(arguments.secret_file)
    if secret is None:
        secret = made["secret"] = Secret.generate(entropy).text()
    controller_secret = _read(arguments.controller_secret_file)
    if arguments.both_ways:
        controller_secret = made["controller_secret"] = Secret.generate(entropy).text()
    api.set_host_secret(
        arguments.name, arguments.nqn, secret, controller_secret, hash_floor=arguments.hash, group_floor=arguments.group
    )
    if arguments.json:
        print(json.dumps({"nqn": arguments.nqn, **made}, indent=1))
    elif made:
        flags = {"secret": "--dhchap-secret", "controller_secret": "--dhchap-ctrl-secret"}
        print("# for nvme connect on that host; not shown again")
        print(" ".join(f"{flags[name]} {text}" for name, text in made.items()))


def forget_secret(api: OperatorApi, arguments: argparse.Namespace) -> None:
    """Take a host's secrets away."""
    api.remove_host_secret(arguments.name, arguments.nqn)


def _generate(arguments: argparse.Namespace) -> int:
    transform = None if arguments.hash == "none" else HashId[arguments.hash.upper()]
    print(Secret.generate(SystemEntropy(), transform, arguments.bytes).text())
    return 0


def _read(path: Path | None) -> str | None:
    """The secret in the first line of a file, checked here so that a typing error is told before anything is sent."""
    if path is None:
        return None
    try:
        text = sys.stdin.readline() if path == STANDARD_INPUT else path.read_text(encoding="ascii").split("\n")[0]
        return Secret.parse(text.strip()).text()
    except (OSError, UnicodeDecodeError) as error:
        raise RackError(f"{path}: {error}") from None
    except SecretMalformed as error:
        raise RackError(f"{path}: {error}; `rackctl keys gen-dhchap` makes one") from None
