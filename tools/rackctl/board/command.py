"""`rackctl board up|provision|flash|join|console|down|base`: the emulated board from a bare one to a sled of a rack."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from sled_board import network
from sled_board.board import load_board
from sled_board.errors import BoardError, PortUnavailable
from sled_board.flasher import After, Before
from sled_board.image import IMAGE_BYTES_MAX
from sled_board.network import Network

from rackctl import state
from rackctl.board.base import BaseSystem, base_system
from rackctl.board.machine import BOARD, Machine
from rackctl.board.provision import Provisioning, provision
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import read_file
from rackctl.firmware.flash import DESCRIPTION, add_flash_choices, flash_job
from rackctl.firmware.flash_progress import failure_shown
from rackctl.firmware.source import Source
from rackctl.keys import add_root
from rackctl.options import add_directory, add_option, add_switch, whole_number
from rackctl.rack import Rack
from rackctl.signers import read_public
from rackctl.sizes import parse_size
from rackctl.table import named
from rackctl.terminal import attach
from sled_controller.firmware.management import ManagementHosts

ABOUT: Final = (
    "A board on this machine: QEMU's arm64 `virt` with Debian's U-Boot, storage for firmware and NVMe drives."
    " `up` makes a bare one and powers it on; `provision` gives a bare one its base system, the root key that it is"
    " locked to, and a name; `flash` gives it firmware over its console; `join` makes it a sled of a"
    " rack (docs/board.md)."
)
CHECKOUT: Final = Path(__file__).parents[3]
FOLDER: Final = Path("board")
DRIVES: Final = 2
DRIVE_BYTES: Final = 1 << 30
MANAGEMENT_BYTES_MAX: Final = 1 << 16
NETWORK: Final = "10.0.2.15/24,10.0.2.2"
"""What QEMU's user network has for its guest."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")


def add_board(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl board ...`."""
    parser.description = ABOUT
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    up = actions.add_parser("up", help="power a board on; a bare one is made where there is none")
    _add_up(up, defaults)
    make = actions.add_parser("provision", help="write the base system, root key and name onto a bare board")
    _add_provision(make, defaults)
    flash = actions.add_parser("flash", help="cut its power and flash it over its serial console from power-on")
    flash.add_argument("image", type=Path, metavar="IMAGE", help="the image, a file")
    flash.description = f"{DESCRIPTION} Its power is cut for that, and by a dry run too."
    add_flash_choices(flash, defaults, after=After.WAIT)
    flash.set_defaults(command=_flash)
    join = actions.add_parser("join", help="make a provisioned board a sled of a running rack")
    add_directory(join, "the rack's directory; the only running temporary rack without it", defaults)
    join.set_defaults(command=_join)
    console = actions.add_parser("console", help="talk to a board over its serial console; Ctrl-] leaves it")
    console.set_defaults(command=_console)
    down = actions.add_parser("down", help="cut a board's power")
    down.set_defaults(command=_down)
    for action in (up, make, flash, join, console, down):
        add_option(
            action,
            "--board-dir",
            variable="RACKCTL_BOARD_DIR",
            kind=Path,
            default=FOLDER,
            metavar="DIR",
            text="the board's folder",
            defaults=defaults,
        )
    base = actions.add_parser("base", help="build the base system ahead of `provision`")
    base.set_defaults(command=_base)
    for action in (make, base):
        _add_sources(action, defaults)
    for action in (up, make, flash, base):
        add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)


def _add_up(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    for flag, variable, kind, default, metavar, text in (
        ("--drives", "RACKCTL_BOARD_DRIVES", whole_number, DRIVES, "N", "NVMe drives of a new board"),
        ("--drive-size", "RACKCTL_BOARD_DRIVE_SIZE", parse_size, DRIVE_BYTES, "SIZE", "bytes of each"),
    ):
        add_option(
            parser, flag, variable=variable, kind=kind, default=default, metavar=metavar, text=text, defaults=defaults
        )
    parser.add_argument("--off", action="store_true", help="only make it: it has to be off while it is provisioned")
    parser.add_argument(
        "--hold", action="store_true", help="hold its processor until somebody opens the console, so that nothing of"
        " its start is missed",
    )  # fmt: skip
    parser.set_defaults(command=_up)


def _add_provision(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    parser.description = "Write a bare board that is off. It is locked to the root key from then on."
    parser.add_argument("--name", required=True, type=_name, metavar="NAME", help="the sled's name")
    add_root(parser, defaults, "the root key that signs sets of firmware keys (`rackctl keys root`)")
    add_directory(parser, "the rack that it is for: its root key signs the keys that heads come with", defaults)
    parser.add_argument(
        "--rack-root", type=_key, metavar="HEX", help="that root's public key instead, 64 digits; with neither the sled"
        " waits to be given it on its console",
    )  # fmt: skip
    add_option(
        parser,
        "--network",
        variable="RACKCTL_BOARD_NETWORK",
        kind=Network.parse,
        default=Network.parse(NETWORK),
        metavar=network.USAGE,
        text="its address",
        defaults=defaults,
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="its first firmware; flash it later without it")
    parser.add_argument(
        "--management-hosts", type=Path, metavar="FILE", help="TOML of the hosts that may update its firmware"
    )
    add_switch(parser, "--unlocked", variable="RACKCTL_UNLOCKED", text="let development keys count", defaults=defaults)
    parser.set_defaults(command=_provision)


def _add_sources(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    for flag, variable, default, text in (
        ("--source", "RACKCTL_SOURCE", CHECKOUT, "the checkout whose stage the base system runs"),
        ("--cache", "RACKCTL_BOARD_CACHE", CHECKOUT / ".cache/board", "where packages and base systems are kept"),
    ):
        add_option(
            parser, flag, variable=variable, kind=Path, default=default, metavar="DIR", text=text, defaults=defaults
        )


def _up(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.board_dir
    machine = Machine(folder) if Machine.is_in(folder) else None
    machine = machine or Machine.create(folder, arguments.drives, arguments.drive_size)
    if not arguments.off and not machine.runs:
        machine.power_on(hold=arguments.hold)
    facts = {
        "board": BOARD, "on": machine.runs, "provisioned": machine.identity is not None,
        "console": machine.console_url, "console_log": str(machine.console_log),
        "nvme": f"{machine.nvme_address[0]}:{machine.nvme_address[1]}",
    }  # fmt: skip
    _print(arguments, facts)
    return 0


def _provision(arguments: argparse.Namespace) -> int:
    if arguments.root is None:
        raise RackError("provision: name the root key that the board is to be locked to with --root")
    rack_root: bytes | None = arguments.rack_root
    if rack_root is None and arguments.dir is not None:
        rack_root = bytes.fromhex(state.load(arguments.dir).root_public_key)
    managers: Path | None = arguments.management_hosts
    image: Path | None = arguments.image
    wanted = Provisioning(
        arguments.name, arguments.network, read_public(arguments.root), not arguments.unlocked, rack_root,
        None if image is None else read_file(image, IMAGE_BYTES_MAX),
        None if managers is None else _management_hosts(managers),
    )  # fmt: skip
    machine = Machine(arguments.board_dir)
    base = _built(arguments)
    with machine.powered_off():
        identity = provision(machine.storage, machine.board, base, wanted)
        machine.keep_identity(identity)
    _print(arguments, {key: identity[key] for key in ("name", "id", "public_key", "nqn")})
    return 0


def _management_hosts(path: Path) -> bytes:
    """The file, if a sled can use it: the board is provisioned once."""
    data = read_file(path, MANAGEMENT_BYTES_MAX)
    ManagementHosts.parse(data, str(path))
    return data


def _flash(arguments: argparse.Namespace) -> int:
    with failure_shown(as_json=arguments.json):
        machine = Machine(arguments.board_dir)
        job = flash_job(arguments, board=BOARD, before=Before.WAIT)
        machine.power_off()
        machine.power_on(hold=True)
        try:
            job.run(machine.console_url, as_json=arguments.json)
        except PortUnavailable:  # nobody has let its processor go
            machine.power_off()
            machine.power_on()
            raise
    return 0


def _join(arguments: argparse.Namespace) -> int:
    machine = Machine(arguments.board_dir)
    if machine.identity is None:
        raise RackError(f"{machine.folder}: is not provisioned: `rackctl board provision` says who it is")
    with Rack.find(arguments.dir).connect() as api:
        api.enrol_sled(machine.identity, *machine.nvme_address, machine.capacity_blocks)
    return 0


def _console(arguments: argparse.Namespace) -> int:
    machine = Machine(arguments.board_dir)
    if not machine.runs:
        raise RackError(f"{machine.folder}: is off: `rackctl board up` powers it on")
    if sys.stdin is None:
        raise RackError("board console: there is no standard input to type on")
    try:
        attach(machine.console_url, machine.board.console)
    except BoardError as error:
        raise RackError(str(error)) from None
    return 0


def _down(arguments: argparse.Namespace) -> int:
    Machine(arguments.board_dir).power_off()
    return 0


def _base(arguments: argparse.Namespace) -> int:
    built = _built(arguments)
    _print(arguments, {"kernel": str(built.kernel), "initramfs": str(built.initramfs)})
    return 0


def _built(arguments: argparse.Namespace) -> BaseSystem:
    return base_system(load_board(BOARD), Source.open(arguments.source), arguments.cache)


def _print(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        print(named((key.replace("_", " "), _words(value)) for key, value in facts.items()))


def _words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: at most 63 letters, digits and hyphens")
    return text


def _key(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError("is not 64 hexadecimal digits")
    return bytes.fromhex(text)
