"""The reference board: U-Boot of Debian's u-boot-qemu in QEMU, its console on a socket, a file as its storage."""

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
from kit.peers import require
from rackctl import peer_programs
from sled_board.board import Board, load_board

START_S: Final = 20.0


class QemuBoard:
    """One power-on of the board: it waits for the first client of its console. Leaving the block cuts its power."""

    def __init__(self, storage: Path) -> None:
        self._qemu = require("qemu-system-aarch64")
        firmware = peer_programs.UBOOT_ARM64
        if not firmware.exists():
            pytest.skip(peer_programs.missing(firmware.name))
        board = load_board("qemu-virt-arm64")
        if not storage.exists():
            with storage.open("wb") as file:
                file.truncate(board.storage.size)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.board: Board = board
        self.url = f"socket://127.0.0.1:{port}"
        self._log = storage.with_suffix(".qemu.log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._qemu, "-M", "virt", "-cpu", "cortex-a57", "-m", "256", "-display", "none", "-monitor", "none",
                    "-nic", "none", "-bios", str(firmware),
                    "-serial", f"tcp:127.0.0.1:{port},server=on,wait=on,nodelay=on",
                    "-drive", f"if=none,id=storage,format=raw,file={storage}",
                    "-device", "virtio-blk-device,drive=storage",
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        self._wait_until_it_listens(port)

    def cut_power(self) -> None:
        """What was not yet written is lost with it. Once more does nothing."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cut_power()

    def _wait_until_it_listens(self, port: int) -> None:
        # Connecting would make it start: the kernel's table of sockets says so without.
        deadline = time.monotonic() + START_S
        wanted = f"0100007F:{port:04X} 00000000:0000 0A"
        while wanted not in Path("/proc/net/tcp").read_text(encoding="ascii"):
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "QEMU does not listen"
            time.sleep(0.01)
