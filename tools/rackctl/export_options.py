"""`--nbd` and `--nvme` of `rackctl volume create` and `set`: by what clients reach a volume."""

import argparse
from collections.abc import Mapping
from typing import Any, Final

NBD: Final = ("on", "tls", "off")
SWITCH: Final = ("on", "off")


def add_exports(parser: argparse.ArgumentParser) -> None:
    """Nothing is said unless a flag says it."""
    parser.add_argument(
        "--nbd",
        choices=NBD,
        help="serve it by NBD: to any client as each head allows, over TLS only, or not at all [on]",
    )
    parser.add_argument("--nvme", choices=SWITCH, help="serve it by NVMe/TCP to the hosts on its list [on]")


def exports_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as REST wants it."""
    exports: dict[str, Any] = {}
    if arguments.nbd is not None:
        exports["nbd"] = arguments.nbd
    if arguments.nvme is not None:
        exports["nvme"] = arguments.nvme == "on"
    return exports


def exports_text(record: Mapping[str, Any]) -> str:
    """For people: `nbd nvme`, `nbd(tls)`, `-`."""
    nbd = {"on": ["nbd"], "tls": ["nbd(tls)"]}.get(record.get("nbd", "on"), [])
    return " ".join([*nbd, *(["nvme"] if record.get("nvme", True) else [])]) or "-"
