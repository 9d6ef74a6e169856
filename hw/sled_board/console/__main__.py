"""`python3 -m sled_board.console --device TTY --store FILE`: the recovery prompt of a board's base system.

For when the stage has found nothing to start. Ends with 85 when the stage is to be run again, with 0 when told to stop
by SIGTERM or SIGINT, with 1 when the device cannot be had or goes away, with 2 for wrong options.
"""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sled_board import logs
from sled_board.console.log_tail import LogTail
from sled_board.console.port import ConsolePort
from sled_board.console.recovery import RecoveryConsole
from sled_board.errors import BoardError
from sled_board.firmware_store import FirmwareStore
from sled_board.printable import complain
from sled_board.stage.notices import RESTART_AFTER_S, RESTART_STATUS

PROG: Final = "sled-recovery"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog=PROG, description="A prompt on a board that has nothing left to start.")
    parser.add_argument("--device", type=Path, required=True, metavar="TTY", help="the terminal device of the console")
    parser.add_argument("--store", type=Path, required=True, metavar="FILE", help="TOML file of the firmware store")
    arguments = parser.parse_args(argv)
    tail = logs.begin("INFO")
    try:
        status = asyncio.run(_run(FirmwareStore.open(arguments.store), arguments.device, tail))
    except (BoardError, OSError) as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    raise SystemExit(status)


async def _run(store: FirmwareStore, device: Path, tail: LogTail) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    def restart() -> None:
        loop.call_later(RESTART_AFTER_S, end, RESTART_STATUS)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    recovery = RecoveryConsole(store, restart)
    port = ConsolePort.on_device(recovery.session(tail), device, lost=lambda: end(1))
    try:
        return await ended
    finally:
        port.close()


if __name__ == "__main__":
    main()
