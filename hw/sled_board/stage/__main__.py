"""`python3 -m sled_board.stage --store FILE --run DIR -- OPTIONS`: run the firmware of a board with these options.

Ends with 0 when told to stop by SIGTERM or SIGINT, with 86 when no slot can be started (recovery), with 2 for wrong
options. Lines on standard output that begin with `stage:` are for whoever reads the console.
"""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

from sled_board import logs
from sled_board.errors import BoardError
from sled_board.firmware_store import FirmwareStore
from sled_board.printable import complain, escaped
from sled_board.stage.application import PythonLauncher
from sled_board.stage.choice import Choice
from sled_board.stage.stage import Stage, Timing
from sled_board.stage.watchdog import Watchdog

PROG = "sled-stage"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    arguments = _parser().parse_args(argv)
    logs.begin("INFO")
    try:
        status = asyncio.run(_run(arguments))
    except (BoardError, OSError) as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description="Start the firmware of a board out of its slots.")
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help="TOML file of the firmware store")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="where the application is unpacked")
    parser.add_argument("--watchdog", type=Path, metavar="DEVICE", help="the board's hardware watchdog")
    parser.add_argument(
        "--prepare", type=Path, metavar="PROGRAM", help="run before each start of a firmware; whatever comes of it, the"
        " firmware is started",
    )  # fmt: skip
    usual = Timing()
    for flag, default, text in (
        ("--start-seconds", usual.start_s, "from the start of a firmware until it is ready"),
        ("--check-seconds", usual.check_s, "the length of a health check"),
    ):
        parser.add_argument(flag, type=float, default=default, metavar="S", help=f"{text}; default {default:g}")
    parser.add_argument("options", nargs="*", metavar="OPTIONS", help="of the firmware, after --")
    return parser


def _report(line: str) -> None:
    print(f"stage: {escaped(line)}", flush=True)


async def _run(arguments: argparse.Namespace) -> int:
    timing = Timing(arguments.start_seconds, arguments.check_seconds)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watchdog = Watchdog(arguments.watchdog)
    try:
        stage = Stage(
            Choice(FirmwareStore.open(arguments.store)),
            PythonLauncher(arguments.run, arguments.options, timing.check_s, arguments.prepare),
            stop, watchdog=watchdog, report=_report, timing=timing,
        )  # fmt: skip
        return await stage.run()
    finally:
        watchdog.close()


if __name__ == "__main__":
    main()
