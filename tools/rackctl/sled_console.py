"""`rackctl console`: a sled's serial console, to type on, or for one command and its reply (docs/console.md)."""

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sled_board.board import Console
from sled_board.console.request import Request
from sled_board.errors import BoardError, CommandNotDone
from sled_board.printable import escaped
from sled_board.serial_port import opened
from sled_board.uboot.dialogue import hold

from rackctl.defaults import Defaults, seconds
from rackctl.errors import NodeNotRunning, RackError
from rackctl.options import add_directory, add_option, add_switch, baud_rate
from rackctl.processes import ProcessState
from rackctl.rack import Rack
from rackctl.state import NodeKind
from rackctl.terminal import attach
from sled_controller.state_dir import CONSOLE_LINK

BAUD: Final = 115200
PATIENCE_S: Final = 6.0


def add_console(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """`rackctl console`."""
    parser.description = (
        "Talk to a sled over its serial console. With a command its reply is printed; without one you type until"
        " Ctrl-], or, where the input is no terminal, each line of it is a command. `help` lists the commands."
    )
    parser.epilog = (
        "After `restart` and `provision` an emulated sled that runs from no firmware slots stays ended: `rackctl node"
        " restart` starts it. Exit status: 0 done; 2 the sled refuses, or nobody answers; 128 + N ended by signal N."
    )
    parser.add_argument(
        "where",
        metavar="SLED|PORT",
        help="a sled of the rack; or a device (/dev/ttyUSB0) or URL (socket://, rfc2217://)",
    )
    parser.add_argument(
        "command_words", nargs="*", default=[], metavar="COMMAND", help="one command and its parameters"
    )
    for flag, variable, kind, default, metavar, text in (
        ("--baud", "RACKCTL_CONSOLE_BAUD", baud_rate, BAUD, "RATE", "bits per second"),
        ("--patience", "RACKCTL_CONSOLE_PATIENCE", seconds, PATIENCE_S, "S", "how long a command may go unanswered"),
    ):
        add_option(
            parser, flag, variable=variable, kind=kind, default=default, metavar=metavar, text=text, defaults=defaults
        )
    add_directory(parser, "the rack's directory; the only running temporary rack without it", defaults)
    add_switch(parser, "--json", variable="RACKCTL_JSON", text="for programs", defaults=defaults)
    parser.set_defaults(command=_console)


def console_of(rack: Rack, name: str) -> Path:
    """Where the console of a running sled is opened; raises NodeUnknown, NodeNotRunning and RackError."""
    node = rack.node(name)
    if node.kind is not NodeKind.SLED:
        raise RackError(f"{name} is no sled: only sleds have a console")
    if node.state is ProcessState.GONE:
        raise NodeNotRunning(f"{name}: its process is gone: `rackctl node restart {name}` starts it again")
    link = rack.layout.state_dir(node) / CONSOLE_LINK
    if not link.exists():
        raise RackError(f"{name} has no console: its log {rack.layout.log(node)} may say why")
    return link


def _console(arguments: argparse.Namespace) -> int:
    where: str = arguments.where
    command: list[str] = arguments.command_words
    if command and not " ".join(command).strip():
        raise RackError("console: the command is empty")
    port = where if "/" in where else str(console_of(Rack.find(arguments.dir), where))
    line = _Line(where, port, Console(baud=arguments.baud), arguments.patience)
    if command:
        _print(arguments, line.ask(" ".join(command)))
        return 0
    if sys.stdin is None:
        raise RackError("console: there is no standard input; give a command")
    if sys.stdin.isatty():
        line.attach()
        return 0
    return _ask_all(arguments, line)


@dataclass(frozen=True, slots=True)
class _Line:
    """Every method raises RackError, which says `where` it was."""

    where: str
    port: str
    console: Console
    patience_s: float

    def ask(self, command: str) -> list[str]:
        """The lines of the reply; raises _Refused too."""
        try:
            return asyncio.run(_asked(self.port, self.console, command, self.patience_s))
        except CommandNotDone as error:
            raise _Refused(f"{self.where} refuses: {error}") from None
        except (BoardError, ValueError) as error:
            raise self._named(error) from None

    def attach(self) -> None:
        """Until the user leaves."""
        try:
            attach(self.port, self.console)
        except BoardError as error:
            raise self._named(error) from None

    def _named(self, error: Exception) -> RackError:
        """With `where` it was, once."""
        return RackError(str(error) if str(error).startswith(self.where) else f"{self.where}: {error}")


class _Refused(RackError):
    """The sled said no, and why."""


def _ask_all(arguments: argparse.Namespace, line: _Line) -> int:
    """Each line of the input is a command; the next one is asked when its reply is there, refused or not."""
    status = 0
    for command in map(str.strip, sys.stdin):
        try:
            if command:
                _print(arguments, line.ask(command))
        except _Refused as error:
            print(f"rackctl: {error}", file=sys.stderr)
            status = 2
    return status


def _print(arguments: argparse.Namespace, lines: list[str]) -> None:
    if arguments.json:
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        print(json.dumps({"lines": lines, "values": values}), flush=True)
    else:
        print("".join(f"{escaped(line)}\n" for line in lines), end="", flush=True)


async def _asked(port: str, console: Console, command: str, patience_s: float) -> list[str]:
    async with opened(port, console) as line:
        request = Request(command, baud=console.baud, patience_s=patience_s)
        await hold(line, request)
        return request.lines
