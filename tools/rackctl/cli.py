"""The command line: `rackctl up`, `down`, `status`, `volume`, `node`, `sled`, `time`, `token`, `audit`, `keys`,
`firmware`, `board`, `console`, `backup`, `run`, `chaos`."""

import argparse
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sled_board.errors import BoardError
from sled_board.printable import escaped

from rackctl import host_secrets, state
from rackctl.api import OperatorApi
from rackctl.backup import add_backup
from rackctl.board.command import add_board
from rackctl.chaos.command import add_chaos
from rackctl.defaults import CONFIG_VARIABLE, KEYS, Defaults, checked, read_defaults, seconds
from rackctl.errors import ApiRefused, RackError
from rackctl.export_options import add_exports, exports_of, exports_text
from rackctl.firmware.command import add_firmware
from rackctl.interrupts import SIGNAL_EXIT, Interrupted, signals_raise, undisturbed
from rackctl.keys import add_keys
from rackctl.operators import add_audit, add_tokens
from rackctl.options import (
    OTHER_STATUSES,
    add_directory,
    add_option,
    add_size,
    add_switch,
    checked_by,
    named_size,
    named_sizes,
    size_of,
    whole_number,
    whole_number_64,
)
from rackctl.output import discard_output, output_escaped
from rackctl.rack import ANY_HOST, Rack, Roles
from rackctl.rack_time import add_time
from rackctl.revocation import add_revoke
from rackctl.sizes import parse_size, show_size
from rackctl.sled_acceptance import add_sled
from rackctl.sled_console import add_console
from rackctl.sled_firmware_options import add_sled_firmware, firmware_of
from rackctl.sled_policy import add_policy, add_sled_actions, policy_of, policy_text
from rackctl.status import status_of
from rackctl.table import aligned, named
from sled_controller.errors import SledError

EXIT_FAILURE: Final = 2
LOOK_SECONDS: Final = 0.2
"""Between two looks whether a signal has come."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; expected failures end here, in one line and status 2."""
    with output_escaped():
        return _run_one(argv)


def _run_one(argv: Sequence[str] | None) -> int:
    try:
        with signals_raise():
            given = sys.argv[1:] if argv is None else argv
            arguments = _parsed(build_parser(read_defaults(given)), given)
            command: Callable[[argparse.Namespace], int] = arguments.command
            status = command(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
            return status
    except (RackError, BoardError, SledError) as error:
        print(f"rackctl: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except Interrupted as interrupted:
        return SIGNAL_EXIT + interrupted.number
    except BrokenPipeError:
        discard_output()
        return EXIT_FAILURE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"rackctl: {where}{error.strerror or error}", file=sys.stderr)
        discard_output()
        return EXIT_FAILURE


def _parsed(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """The options, where those of `rackctl console` may stand between the words of its command too: argparse leaves the
    words behind such an option over. Behind `--` nothing is an option."""
    arguments, left = parser.parse_known_args(given, argparse.Namespace(words=list(given)))
    dashes = left.index("--") if "--" in left else len(left)
    words = [*left[:dashes], *left[dashes + 1 :]]
    if "command_words" in arguments and not any(re.match(r"-(?!\d+$)", word) for word in left[:dashes]):
        arguments.command_words = [*arguments.command_words, *words]
    elif left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def build_parser(defaults: Defaults) -> argparse.ArgumentParser:
    """All commands with their options; `defaults` are what no flag says."""
    parser = argparse.ArgumentParser(
        prog="rackctl", description="An emulated rack on this machine: start it, look at it, break it."
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"TOML file of settings ({', '.join(KEYS)}); comes first [{CONFIG_VARIABLE}]"
    )
    timeout = defaults.given("RACKCTL_TIMEOUT")
    parser.set_defaults(volumes_given=defaults.given("RACKCTL_VOLUME"))
    if timeout is not None:
        checked(seconds, timeout)
        os.environ["RACKCTL_TIMEOUT"] = timeout.text  # where the launcher looks, in a command inside a rack too
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start a rack and keep it until Ctrl-C")
    add_size(up, defaults)
    add_sled_firmware(up, defaults)
    add_directory(up, "where it keeps everything; a temporary folder, removed afterwards, without it", defaults)
    add_switch(
        up,
        "--detach",
        variable="RACKCTL_DETACH",
        text="return when it is up; `rackctl down` ends it",
        defaults=defaults,
    )
    up.set_defaults(command=_up)

    down = commands.add_parser("down", help="stop a rack")
    add_directory(down, "the rack's directory; the only running temporary rack without it", defaults)
    down.set_defaults(command=_down)

    status = commands.add_parser("status", help="show nodes, volumes, roles, epochs and fences")
    add_directory(status, "the rack's directory", defaults)
    add_switch(status, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    status.set_defaults(command=_status)

    _add_volume(commands.add_parser("volume", help="create, list, show, delete and recover volumes"), defaults)
    _add_node(commands.add_parser("node", help="kill, pause, resume, restart and revoke nodes"), defaults)
    add_tokens(commands.add_parser("token", help="create, list and revoke tokens of operators"), defaults)
    add_audit(commands.add_parser("audit", help="show what was changed, by whom and from where"), defaults)
    add_keys(commands.add_parser("keys", help="keys for firmware, secrets for hosts, rotation"), defaults)
    add_firmware(commands.add_parser("firmware", help="build, sign, verify, flash and roll out images"), defaults)

    add_sled(commands.add_parser("sled", help="accept a sled that was put back to an older state"), defaults)
    add_time(commands.add_parser("time", help="show what time it is for the rack; repair it"), defaults)
    add_backup(commands.add_parser("backup", help="copies of the authority's store, and how to open them"), defaults)
    add_console(commands.add_parser("console", help="talk to a sled over its serial console"), defaults)
    add_board(commands.add_parser("board", help="an emulated board: power, provisioning, console"), defaults)

    run = commands.add_parser("run", help="start a rack, run a command in it, tear all down, return its exit status")
    add_size(run, defaults)
    add_sled_firmware(run, defaults)
    add_directory(run, "where it keeps everything; a temporary folder, removed afterwards, without it", defaults)
    run.add_argument(
        "--volume",
        type=named_size,
        action="append",
        metavar="NAME:SIZE",
        help="create a volume first; may be repeated [RACKCTL_VOLUME, separated by commas]",
    )
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD...", help="the command and its arguments")
    run.epilog = f"Exit status: the command's; {OTHER_STATUSES}"
    run.set_defaults(command=_run)

    add_chaos(
        commands.add_parser("chaos", help="attack a rack of its own under load, and check what it promises"), defaults
    )
    _tell_statuses(parser)
    return parser


def _tell_statuses(parser: argparse.ArgumentParser) -> None:
    """At the end of every help that says nothing of its own."""
    parser.epilog = parser.epilog or f"Exit status: 0 done; {OTHER_STATUSES}"
    for action in parser._actions:  # there is no other way to them
        if isinstance(action, argparse._SubParsersAction):
            for name in action.choices:
                _tell_statuses(action.choices[name])


def _add_volume(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a volume and wait until it is served")
    create.add_argument("name", metavar="NAME")
    create.add_argument("size", metavar="SIZE", type=parse_size, help="for example 1GiB")
    create.add_argument(
        "--host", action="append", metavar="NQN",
        help="a host that may connect by NVMe/TCP; may be repeated; any host of this machine without it",
    )  # fmt: skip
    add_option(
        create,
        "--min-members",
        variable="RACKCTL_MIN_MEMBERS",
        kind=whole_number,
        default=1,
        metavar="N",
        text="stop the volume, instead of showing it as exposed, while fewer heads hold it",
        defaults=defaults,
    )
    add_exports(create)
    add_policy(create)
    create.set_defaults(command=_volume_create)
    listing = actions.add_parser("list", help="list all volumes")
    listing.set_defaults(command=_volume_list)
    show = actions.add_parser("show", help="show a volume's record")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(command=_volume_show)
    delete = actions.add_parser("delete", help="delete a volume and wait until it is gone")
    delete.add_argument("name", metavar="NAME")
    delete.set_defaults(command=_volume_delete)
    connect = actions.add_parser("connect-info", help="show how clients connect to a volume")
    connect.add_argument("name", metavar="NAME")
    connect.set_defaults(command=_volume_connect_info)
    changes = _add_hosts(actions.add_parser("hosts", help="say which hosts may connect by NVMe/TCP"), defaults)
    sleds = add_sled_actions(actions, defaults)
    for action in sleds:
        action.set_defaults(command=_act)
    recover = actions.add_parser("recover", help="set a frozen volume going again")
    recover.set_defaults(command=_volume_recover)
    force = actions.add_parser("force-takeover", help="go on from the log of a head that is no member, losing writes")
    force.add_argument("--head", required=True, metavar="HEAD", help="the head that is to go on")
    force.set_defaults(command=_volume_force)
    for action in (recover, force):
        action.add_argument("name", metavar="NAME")
        action.add_argument(
            "--epoch",
            type=checked_by(whole_number_64),
            required=action is recover,
            metavar="E",
            help="the highest epoch seen on any sled or log" + ("" if action is recover else " [the record's]"),
        )
        action.add_argument("--yes", action="store_true", help="do it; without, it is only said what it means")
    for action in (create, listing, show, delete, connect, recover, force, *changes, *sleds):
        add_directory(action, "the rack's directory", defaults)
    for action in (create, listing, show, connect):
        add_switch(action, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)


def _add_hosts(parser: argparse.ArgumentParser, defaults: Defaults) -> list[argparse.ArgumentParser]:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    made = []
    for name, method, text in (
        (
            "list",
            None,
            "list the hosts that may connect, `*` for any, and how they prove themselves",
        ),
        ("add", OperatorApi.admit_host, "let a host connect, `*` for any"),
        ("remove", OperatorApi.expel_host, "take a host off the list and end its connections"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME", help="a volume")
        if method is not None:
            action.add_argument("nqn", metavar="NQN", help="the host's, as in its /etc/nvme/hostnqn")
        action.set_defaults(command=_volume_hosts, method=method)
        made.append(action)
    for action in host_secrets.add_secret_actions(actions, defaults):
        action.set_defaults(command=_volume_host_secret)
        made.append(action)
    return made


def _add_node(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, method, text in (
        ("kill", Rack.kill, "SIGKILL: as if its power were cut"),
        ("pause", Rack.pause, "SIGSTOP: as if it hung"),
        ("resume", Rack.resume, "SIGCONT: it goes on, unaware of the time in between"),
        ("restart", Rack.restart, "end it if it runs and start it with the same state and ports"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("name", metavar="NAME", help="a node that `rackctl status` lists")
        add_directory(action, "the rack's directory", defaults)
        action.set_defaults(command=_node, method=method)
    revoke = add_revoke(actions, defaults)
    add_directory(revoke, "the rack's directory", defaults)
    revoke.set_defaults(command=_act)


def _up(arguments: argparse.Namespace) -> int:
    firmware = firmware_of(arguments)
    rack = Rack.create(arguments.dir, size_of(arguments), owner=not arguments.detach, firmware=firmware)
    try:
        print(status_of(rack).as_text(), flush=True)
        if arguments.detach:
            print(f"\nexport RACK_DIR={shlex.quote(str(rack.directory))}", flush=True)
            return 0
        print("\nCtrl-C takes it down", flush=True)
        while True:
            # Not signal.pause: a signal just before it would be noticed with the next one only.
            time.sleep(LOOK_SECONDS)
    finally:
        if not arguments.detach:
            undisturbed(rack.stop)


def _down(arguments: argparse.Namespace) -> int:
    undisturbed(_rack(arguments).stop)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    found = status_of(_rack(arguments))
    print(json.dumps(found.as_json(), indent=1) if arguments.json else found.as_text())
    return 0


def _volume_create(arguments: argparse.Namespace) -> int:
    rack = _rack(arguments)
    record = rack.create_volume(
        arguments.name,
        arguments.size,
        hosts=arguments.host or (ANY_HOST,),
        min_members=arguments.min_members,
        policy=exports_of(arguments) | policy_of(arguments),
    )
    if arguments.json:
        print(json.dumps(record, indent=1))
    else:
        where = next(iter(rack.paths(arguments.name).nbd_uris), f"exports {exports_text(record)}")
        print(f"volume {arguments.name} of {show_size(arguments.size)}: {where}")
    return 0


def _volume_list(arguments: argparse.Namespace) -> int:
    volumes = _rack(arguments).api.volumes()
    if arguments.json:
        print(json.dumps(volumes, indent=1))
    elif volumes:
        rows = [
            (volume["name"], show_size(volume["size_bytes"]), volume["state"], volume["epoch"]) for volume in volumes
        ]
        print(aligned(("VOLUME", "SIZE", "STATE", "EPOCH"), rows))
    return 0


def _volume_show(arguments: argparse.Namespace) -> int:
    rack = _rack(arguments)
    record = rack.api.volume(arguments.name)
    if arguments.json:
        print(json.dumps(record, indent=1))
        return 0
    roles = rack.roles(arguments.name)
    names = {sled["id"]: sled["name"] for sled in rack.api.nodes()["sleds"]}
    paths = rack.paths(arguments.name)
    rows = [
        ("id", record["volume"]),
        ("size", show_size(record["size_bytes"])),
        ("state", record["state"]),
        ("epoch", record["epoch"]),
        ("primary", roles.primary or "-"),
        ("secondary", " ".join(roles.secondaries) or "-"),
        ("members", record["health"]["stopped"] or ("exposed" if record["health"]["exposed"] else "enough")),
        ("sleds", policy_text(record)),
        ("columns", " ".join(f"{names[column['sled']]}/{column['nsid']}" for column in record["columns"])),
        ("exports", exports_text(record)),
        ("nbd", " ".join(paths.nbd_uris) or "-"),
        ("nvme", " ".join(f"{host}:{port}" for host, port in paths.nvme) or "-"),
        ("hosts", " ".join(record["hosts"]) or "- (nobody by NVMe/TCP)"),
    ]
    print(named(rows, 10))
    return 0


def _volume_connect_info(arguments: argparse.Namespace) -> int:
    paths = _rack(arguments).paths(arguments.name)
    print(json.dumps(paths.as_json(), indent=1) if arguments.json else paths.as_text())
    return 0


def _volume_hosts(arguments: argparse.Namespace) -> int:
    api = _rack(arguments).api
    if arguments.method is None:
        hosts = api.hosts(arguments.name)
    else:
        hosts = arguments.method(api, arguments.name, arguments.nqn)
    print("".join(f"{escaped(host)}\n" for host in hosts), end="")
    return 0


def _volume_host_secret(arguments: argparse.Namespace) -> int:
    arguments.act(_rack(arguments).api, arguments)
    return 0


def _act(arguments: argparse.Namespace) -> int:
    arguments.act(_rack(arguments), arguments)
    return 0


def _volume_delete(arguments: argparse.Namespace) -> int:
    _rack(arguments).delete_volume(arguments.name)
    return 0


def _volume_recover(arguments: argparse.Namespace) -> int:
    rack, name = _rack(arguments), arguments.name
    record = rack.api.volume(name)
    if not arguments.yes:
        raise RackError(
            f"volume {name} is {record['state']}: {record['frozen_because'] or 'it needs no recovery'}. It would go on"
            f" above epoch {arguments.epoch} with the members of its record, once every credential's term is over."
            " Compare the record with sleds and heads before: what was written in an epoch that it does not know may be"
            " lost. Add --yes to do it"
        )
    _wait_term(rack, name)
    rack.api.recover_volume(record["volume"], arguments.epoch, may_lose=False)
    return _tell_served(rack, name)


def _volume_force(arguments: argparse.Namespace) -> int:
    rack, name, head = _rack(arguments), arguments.name, arguments.head
    record = rack.api.volume(name)
    if not arguments.yes:
        try:
            rack.api.recover_volume(record["volume"], arguments.epoch or record["epoch"], head, may_lose=False)
        except ApiRefused as refused:
            if refused.kind != "may-lose":
                raise
            raise RackError(f"{refused}. Add --yes to do it") from None
    record = rack.api.freeze_volume(record["volume"])
    _wait_term(rack, name)
    rack.api.recover_volume(record["volume"], arguments.epoch or record["epoch"], head, may_lose=True)
    return _tell_served(rack, name)


def _wait_term(rack: Rack, name: str) -> None:
    left_ms = rack.api.volume(name)["recover_wait_ms"]
    if left_ms:
        print(f"waiting {left_ms / 1000:.0f} s: a head may serve with its credential until then", file=sys.stderr)
    rack.wait_recoverable(name)


def _tell_served(rack: Rack, name: str) -> int:
    roles = rack.wait_served(name)
    print(f"volume {name} is served by {roles.primary} in epoch {roles.epoch}")
    return 0


def _node(arguments: argparse.Namespace) -> int:
    arguments.method(_rack(arguments), arguments.name)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise RackError("run: no command given: write it behind --, for example `rackctl run -- env`")
    volumes = arguments.volume or (checked(named_sizes, arguments.volumes_given) if arguments.volumes_given else [])
    rack = Rack.create(arguments.dir, size_of(arguments), firmware=firmware_of(arguments))
    try:
        for name, size_bytes in volumes:
            rack.create_volume(name, size_bytes)
        return _run_command(argv, {**os.environ, **captive_environment(rack, [name for name, _ in volumes])})
    finally:
        undisturbed(rack.stop)


def captive_environment(rack: Rack, volumes: Sequence[str]) -> dict[str, str]:
    """What a command inside a rack finds in its environment. Roles and address are those of the first volume.

    `RACK_NBD_URI` leads to its primary, `RACK_NBD_URIS` to every head, the primary first; `RACK_NVME_ADDRESSES` are the
    heads' for `RACK_NVME_NQN` in the same order; PATH finds this `rackctl`.
    """
    now = rack.state
    found = {"RACK_DIR": str(rack.directory), "RACK_API": now.api_url, "RACK_TOKEN": now.token}
    if rack.authority_ca is not None:
        found["RACK_CA"] = str(rack.authority_ca)
    found["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    if volumes:
        heads = len(now.of_kind(state.NodeKind.HEAD))
        roles = rack.wait_members(volumes[0], min(2, heads))
        uris = _uris(rack, volumes[0], roles)
        found |= {
            "RACK_NBD_URI": uris[0],
            "RACK_NBD_URIS": " ".join(uris),
            "RACK_PRIMARY": roles.primary or "",
            "RACK_SECONDARY": " ".join(roles.secondaries),
        }
        paths = rack.paths(volumes[0])
        found |= {
            "RACK_NVME_NQN": paths.nqn,
            "RACK_NVME_ADDRESSES": " ".join(f"{host}:{port}" for host, port in paths.nvme),
        }
    return found


def _uris(rack: Rack, volume: str, roles: Roles) -> list[str]:
    heads = [node.name for node in rack.state.of_kind(state.NodeKind.HEAD)]
    return [rack.nbd_uri(volume, head) for head in sorted(heads, key=lambda name: name != roles.primary)]


def _run_command(argv: Sequence[str], environ: dict[str, str]) -> int:
    try:
        child = subprocess.Popen(argv, env=environ)
    except OSError as error:
        raise RackError(f"run: {argv[0]}: {error.strerror}") from None
    try:
        status = child.wait()
    except Interrupted as interrupted:
        child.send_signal(interrupted.number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
        child.kill()
        child.wait()
        raise
    return status if status >= 0 else SIGNAL_EXIT - status


def _rack(arguments: argparse.Namespace) -> Rack:
    """The rack that is meant."""
    return Rack.find(arguments.dir)


if __name__ == "__main__":
    raise SystemExit(main())
