"""QEMU as a board: `virt` with U-Boot from Debian, a virtio disk as the board's storage, NVMe drives in PCIe slots."""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sled_board.board import Board, load_board
from sled_board.durable import open_new, open_own

from rackctl import peer_programs
from rackctl.board.packages import Missing, program
from rackctl.board.provision import NVME_PORT
from rackctl.errors import RackError
from rackctl.files import write_file
from rackctl.launch import log_tail
from rackctl.peer_programs import UBOOT_ARM64
from rackctl.ports import HOST, PortReservations
from rackctl.processes import ProcessIdentity, ProcessState, identify, send, state_of, wait_gone
from rackctl.state import check_own, make_own

BOARD: Final = "qemu-virt-arm64"
DRIVES_MAX: Final = 8
DRIVE_BYTES_MIN: Final = 16 << 20
MEMORY_MIB: Final = 1024
EARLY_END_S: Final = 0.5
"""Within which QEMU ends when it cannot use what it was given."""
END_SECONDS_MAX: Final = 10.0
_STATE: Final = "board.json"


@dataclass(slots=True)
class _Kept:
    """What is remembered between commands."""

    drives: int
    console_port: int
    nvme_port: int
    process: ProcessIdentity | None = None
    identity: dict[str, Any] | None = None


class Machine:
    """A board in a folder: `storage.img`, `drive-N.img`, `console.log` with all that it ever said on its console.

    Make one with `Machine.create`, or open one that is there.
    """

    def __init__(self, folder: Path) -> None:
        """Raises RackError when the folder holds no board."""
        self.folder = folder.absolute()
        self.board: Board = load_board(BOARD)
        self._kept = self._load()

    @classmethod
    def create(cls, folder: Path, drives: int, drive_bytes: int) -> "Machine":
        """A bare board: nothing on its storage, and blank drives. Raises RackError."""
        if not 1 <= drives <= DRIVES_MAX:
            raise RackError(f"{drives} drives: an emulated board has from 1 to {DRIVES_MAX}")
        if drive_bytes < DRIVE_BYTES_MIN or drive_bytes % 4096:
            raise RackError(f"{drive_bytes} drive bytes: need a multiple of 4096, at least {DRIVE_BYTES_MIN}")
        if cls.is_in(folder):
            raise RackError(f"{folder}: holds a board already")
        make_own(folder)
        ports = PortReservations()
        kept = _Kept(drives, ports.take(), ports.take())
        ports.release()
        for path, size in ((folder / "storage.img", load_board(BOARD).storage.size), *(
            (folder / f"drive-{index}.img", drive_bytes) for index in range(drives)
        )):  # fmt: skip
            with os.fdopen(open_new(path), "wb") as file:
                file.truncate(size)
        _save(folder, kept)
        return cls(folder)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder holds a board."""
        return (folder / _STATE).exists()

    @property
    def storage(self) -> Path:
        """What the base system, the slots and the identity lie on."""
        return self.folder / "storage.img"

    @property
    def console_log(self) -> Path:
        """All that was said on the console, whoever listened."""
        return self.folder / "console.log"

    @property
    def console_url(self) -> str:
        """The serial console, for one client at a time, as pyserial has it."""
        return f"socket://{HOST}:{self._kept.console_port}"

    @property
    def console_address(self) -> tuple[str, int]:
        """The same as an address."""
        return HOST, self._kept.console_port

    @property
    def nvme_address(self) -> tuple[str, int]:
        """Where heads on this machine reach the sled."""
        return HOST, self._kept.nvme_port

    @property
    def identity(self) -> dict[str, Any] | None:
        """The sled's, as its `identity.json` says; None before it is provisioned."""
        return self._kept.identity

    @property
    def capacity_blocks(self) -> int:
        """Of its drives together, in blocks of 4096 bytes."""
        return sum(path.stat().st_size // 4096 for path in self._drives())

    @property
    def runs(self) -> bool:
        """Whether it is powered on."""
        process = self._kept.process
        return process is not None and state_of(process) is not ProcessState.GONE

    def keep_identity(self, identity: dict[str, Any]) -> None:
        """Remember who it was made."""
        self._kept.identity = identity
        _save(self.folder, self._kept)

    @contextlib.contextmanager
    def powered_off(self) -> Iterator[None]:
        """Nobody powers it on in the block. Raises RackError when it runs."""
        with self._locked():
            if self.runs:
                raise RackError(f"{self.folder}: the board is on; `rackctl board down` first")
            yield

    def power_on(self, *, hold: bool = False) -> None:
        """Start it; with `hold` its processor stands still until somebody opens the console. Raises RackError."""
        if not UBOOT_ARM64.exists():
            raise Missing(peer_programs.missing(UBOOT_ARM64.name))
        with self.powered_off(), _listener(*self.console_address) as console:
            log_file = open_own(self.folder / "qemu.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(log_file, "ab") as log:
                child = subprocess.Popen(
                    [program("qemu-system-aarch64"), *self._arguments(console.fileno(), hold=hold)],
                    pass_fds=(console.fileno(),), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self._kept.process = identify(child.pid)
            _save(self.folder, self._kept)
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = child.wait(EARLY_END_S)
                raise RackError(f"QEMU ended at once, with status {status}{log_tail(self.folder / 'qemu.log')}")

    def power_off(self) -> None:
        """Cut its power, whatever it is doing: what it had not flushed to its drives is kept all the same."""
        with self._locked():
            process = self._kept.process
            if process is not None:
                send(process, signal.SIGKILL)
                if wait_gone([process], END_SECONDS_MAX):
                    raise RackError(f"pid {process.pid} is still there {END_SECONDS_MAX:g} s after SIGKILL")
            self._kept.process = None
            _save(self.folder, self._kept)

    def _arguments(self, console: int, *, hold: bool) -> Iterator[str]:
        yield from ("-nodefaults", "-no-user-config", "-display", "none", "-machine", "virt,gic-version=3")
        yield from ("-accel", "tcg,thread=multi", "-cpu", "cortex-a72", "-smp", "2", "-m", str(MEMORY_MIB))
        yield from ("-bios", str(UBOOT_ARM64), "-device", "virtio-rng-pci")
        yield from ("-blockdev", f"driver=file,node-name=storage,filename={self.storage}")
        yield from ("-device", f"virtio-blk-pci,drive=storage,physical_block_size={self.board.storage.erase_bytes}")
        for index, path in enumerate(self._drives()):
            yield from ("-blockdev", f"driver=file,node-name=drive{index},filename={path}")
            blocks = "logical_block_size=4096,physical_block_size=4096"
            yield from ("-device", f"nvme,drive=drive{index},serial=DRIVE{index},{blocks}")
        forward = f"hostfwd=tcp:{HOST}:{self._kept.nvme_port}-:{NVME_PORT}"
        yield from ("-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net,romfile=")
        served = f"fd={console},server=on,wait={'on' if hold else 'off'},nodelay=on"
        yield from ("-chardev", f"socket,id=console,{served},logfile={self.console_log},logappend=on")
        yield from ("-serial", "chardev:console")

    def _drives(self) -> list[Path]:
        return [self.folder / f"drive-{index}.img" for index in range(self._kept.drives)]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        check_own(self.folder)
        with os.fdopen(open_own(self.folder / "board.lock", os.O_RDWR | os.O_CREAT), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._kept = self._load()
            yield

    def _load(self) -> _Kept:
        path = self.folder / _STATE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            process = values.pop("process")
            return _Kept(**values, process=None if process is None else ProcessIdentity(**process))
        except FileNotFoundError:
            raise RackError(f"{self.folder}: holds no board: make one with `rackctl board up`") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RackError(f"{path}: cannot be read as a board's state ({error}): remove the folder") from None


def _save(folder: Path, kept: _Kept) -> None:
    write_file(folder / _STATE, json.dumps(dataclasses.asdict(kept), indent=1).encode())


@contextlib.contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """QEMU inherits it, so that whoever connects is served from the first moment on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise RackError(f"the console's port {host}:{port} is not free: {error.strerror}") from None
        listening.listen(1)
        yield listening
