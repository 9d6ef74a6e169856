"""The emulated board in tests: built from what can be had here, and its console read from power-on."""

import re
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
from kit import firmware
from kit.console import answer
from kit.sources import ROOT
from rackctl.board.base import BaseSystem, base_system
from rackctl.board.machine import BOARD, Machine
from rackctl.board.packages import Missing, program
from rackctl.board.provision import Provisioning, provision
from rackctl.cli import main
from rackctl.firmware.source import Source
from rackctl.firmware.wheels import PYTHON
from rackctl.peer_programs import UBOOT_ARM64, missing
from sled_board.board import load_board
from sled_board.console.request import Request
from sled_board.image import read_image, sign_image
from sled_board.network import Network

CACHE: Final = ROOT / ".cache/board"
DRIVE_BYTES: Final = 64 << 20
REPLY_SECONDS_MAX: Final = 60.0
SAID_SECONDS_MAX: Final = 240.0
"""An emulated processor takes half a minute from power-on to a confirmed firmware, on a machine with nothing to do."""


def base_or_skip() -> BaseSystem:
    """The base system, with all that starts it; skips the test with the reason when something can't be had."""
    if sys.version_info[:2] != PYTHON:
        pytest.skip("base systems are built with their Python, 3.11")
    try:
        for name in ("qemu-system-aarch64", "mkfs.ext4"):
            program(name)
        if not UBOOT_ARM64.exists():
            raise Missing(missing(UBOOT_ARM64.name))
        return base_system(load_board(BOARD), Source.open(ROOT), CACHE)
    except Missing as error:
        pytest.skip(f"no emulated board: {error}")


def built_image(folder: Path) -> bytes:
    """Firmware of this checkout, signed by the tests' keys."""
    path = folder / "image"
    assert main(("firmware", "build", "--hardware", BOARD, str(path))) == 0
    data = sign_image(read_image(path.read_bytes()), None, firmware.key_set())
    for key in (firmware.FIRST, firmware.SECOND):
        data = sign_image(read_image(data), key)
    return data


def provisioned(folder: Path, base: BaseSystem, image: bytes | None) -> Machine:
    """A board that is off, locked to the tests' root key for firmware; the rack's root key it is not told."""
    machine = Machine.create(folder, 2, DRIVE_BYTES)
    wanted = Provisioning("board-0", Network(), firmware.ROOT.public, True, None, image)
    with machine.powered_off():
        machine.keep_identity(provision(machine.storage, machine.board, base, wanted))
    return machine


class PoweredOn:
    """A board that runs until the block ends; `said` is all that it has said on its console in that time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.said = ""

    def __enter__(self) -> Self:
        self._machine.power_on(hold=True)
        self._line = socket.create_connection(self._machine.console_address)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._machine.power_off()
        self._line.close()

    def ask(self, command: str) -> list[str]:
        """The lines of the reply of what has the console; raises CommandNotDone and BoardSilent."""
        return answer(self._line.fileno(), Request(command, baud=115200, patience_s=REPLY_SECONDS_MAX))

    def wait(self, *patterns: str) -> None:
        """Until it has said something like each of these, in this order, since the last wait."""
        begun, deadline = len(self.said), time.monotonic() + SAID_SECONDS_MAX
        for pattern in patterns:
            while (found := re.search(pattern, self.said[begun:])) is None:
                self._line.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    data = self._line.recv(65536)
                except TimeoutError:
                    data = b""
                assert data, f"the board has not said {pattern!r} but:\n{self.said[-6000:]}"
                self.said += data.decode("utf-8", "replace")
            begun += found.end()
