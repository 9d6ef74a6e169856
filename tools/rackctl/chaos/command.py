"""The options of `rackctl chaos`, and what becomes of its report and directory."""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Final

from rackctl.chaos.plan import Nodes, draw
from rackctl.chaos.report import Report
from rackctl.chaos.run import Setting, run
from rackctl.chaos.seclusion import seclude
from rackctl.consistency.history_file import HistoryFile
from rackctl.defaults import Defaults
from rackctl.errors import RackError
from rackctl.files import write_file
from rackctl.interrupts import undisturbed
from rackctl.options import add_size, size_of
from rackctl.state import make_own

MINUTES_DEFAULT: Final = 5.0
HEADS_MIN: Final = 2
SLEDS_MIN: Final = 6
EXIT_BROKEN: Final = 1


def add_chaos(parser: argparse.ArgumentParser, defaults: Defaults) -> None:
    """The options of the command."""
    add_size(parser, defaults)
    parser.add_argument(
        "--minutes", type=_minutes, default=MINUTES_DEFAULT, metavar="N",
        help=f"minutes under faults, rests not counted; default {MINUTES_DEFAULT:g}",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws the plan and the load; default 0")
    parser.add_argument(
        "--fio", action=argparse.BooleanOptionalAction, default=True, help="fio beside our own clients, if installed"
    )
    parser.add_argument("--plan", action="store_true", help="show the plan of the seed and do nothing")
    parser.add_argument(
        "--namespaces", action=argparse.BooleanOptionalAction, default=True,
        help="each node in a network namespace, where the machine permits that; proxies cut links otherwise",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there as text too")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write it there as JUnit XML")
    parser.add_argument(
        "--history", type=Path, metavar="FILE",
        help="write what clients did and saw there, one JSON line per operation (docs/testing.md)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the rack there; without it only one that broke a promise stays"
    )
    parser.set_defaults(command=_chaos)


def _chaos(arguments: argparse.Namespace) -> int:
    """Exit status 0 only if every promise was kept, 1 if one was broken."""
    size = size_of(arguments)
    size.check()
    if size.heads < HEADS_MIN or size.sleds < SLEDS_MIN:
        raise RackError(f"chaos: needs at least {HEADS_MIN} heads and {SLEDS_MIN} sleds, so that one may fail")
    if arguments.plan:
        print(plan_as_text(arguments.seed, arguments.minutes, Nodes.of(size)), flush=True)
        return 0
    keep: Path | None = arguments.keep.absolute() if arguments.keep else None
    if keep is not None and keep.exists() and not (keep.is_dir() and not any(keep.iterdir())):
        raise RackError(f"{keep}: is no empty directory: choose another one to keep the rack in")
    denied = seclude(["-m", "rackctl.cli", *arguments.words]) if arguments.namespaces else "--no-namespaces was given"
    history = _begin_history(arguments.history)
    directory = keep or Path(tempfile.mkdtemp(prefix="palisade-chaos-"))
    make_own(directory)
    done: Report | None = None
    try:
        setting = Setting(
            arguments.seed, arguments.minutes, size, directory, denied, keep is not None, arguments.fio, history
        )
        done = run(setting, lambda line: print(line, flush=True))
    finally:
        if keep is None and (done is None or done.all_held):
            undisturbed(lambda: shutil.rmtree(directory, ignore_errors=True))
    if directory.exists():
        done.directory = str(directory)
    print("\n" + done.summary(), end="", flush=True)
    for path, content in ((arguments.report, done.as_text()), (arguments.junit, done.as_junit())):
        if path is not None:
            write_file(path, content.encode())
    return 0 if done.all_held else EXIT_BROKEN


def plan_as_text(seed: int, minutes: float, nodes: Nodes) -> str:
    """What the seed draws, on every machine."""
    lines = [f"seed {seed}, {minutes:g} minutes under faults"]
    for one in draw(seed, minutes, nodes):
        lines.append(f"round {one.number}: {one.mix.name}, {one.seconds:g} s")
        lines += [f"  {fault.at_s:6.2f} s  {fault}" for fault in one.faults]
    return "\n".join(lines)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes from 0.1 on")
    return value


def _begin_history(path: Path | None) -> HistoryFile | None:
    try:
        return None if path is None else HistoryFile(path)
    except OSError as error:
        raise RackError(f"{path}: cannot be written: {error.strerror}; choose another file") from None
