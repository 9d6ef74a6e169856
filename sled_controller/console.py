"""The console of a sled: what it shows of itself, and how it is provisioned and restarted (docs/console.md)."""

import asyncio
import contextlib
import logging
import platform
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from sled_board.console.log_tail import LogTail
from sled_board.console.port import ConsolePort
from sled_board.console.provisioning import USAGE, Provisioning
from sled_board.console.session import Command, ConsoleSession
from sled_board.console.slot_lines import slot_lines
from sled_board.errors import CommandNotDone

from sled_controller.backoff import Backoff
from sled_controller.config import CONSOLE_PTY, SledSettings
from sled_controller.environment import Environment
from sled_controller.errors import CredentialMalformed, CredentialRefused, SledError
from sled_controller.fabric.controller import FIRMWARE
from sled_controller.fabric.refusal import reason_of
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.state_dir import CONSOLE_LINK, StateDirectory
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from sled_controller.time_statement import TimeStatement

log = logging.getLogger(__name__)

PROMPT: Final = "sled"
REOPEN_SECONDS_MAX: Final = 60.0
_NS_PER_S: Final = 1_000_000_000


class SledConsole:
    """The commands of one sled, from before it serves: `identity`, `storage` and `failure` are set once they are known.

    `subsystem` while it serves. `settings` are those that it was started with, without what a console has told it.
    """

    def __init__(
        self, settings: SledSettings, state: StateDirectory, env: Environment, firmware: FirmwareUpdate | None,
        restart: Callable[[], None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._state = state
        self._env = env
        self._firmware = firmware
        self._restart = restart
        self._started_ns = env.clock.boottime_ns()
        self.identity: Identity | None = None
        self.storage: SledStorage | None = None
        self.subsystem: Subsystem | None = None
        self.doing = "starting"
        self.failure = ""
        """Why it does not serve, in words."""

    def session(self, tail: LogTail) -> ConsoleSession:
        """A console that has them all."""
        return ConsoleSession(PROMPT, [
            Command("status", "what it does", self._status),
            Command("identity", "who it is, and whom it believes", self._who),
            tail.command,
            Command("provision", "name, root key for good, and network; it restarts", self._provision, USAGE, 3),
            Command("time", "take a statement of time by the root key, in hex", self._stated, "time HEX", 1),
            Command("restart", "end in good order and start anew", self._restarted),
        ])  # fmt: skip

    def _status(self, words: Sequence[str]) -> Iterable[str]:
        uptime_ns = self._env.clock.boottime_ns() - self._started_ns
        return (
            f"state={self.doing}",
            *([f"reason={self.failure}"] if self.failure else []),
            *self._versions(),
            f"uptime_s={uptime_ns // _NS_PER_S}",
            f"drives={len(self._settings.devices)}",
            f"drives_online={0 if self.storage is None else len(self.storage.online_devices())}",
            f"namespaces={0 if self.storage is None else len(self.storage.namespaces)}",
            *self._kept_beside(),
            *self._times(),
        )

    def _kept_beside(self) -> list[str]:
        """What is wrong with the journal, or with devices that it is ahead of."""
        storage = self.storage
        if storage is None:
            return []
        journal, behind = storage.journal, storage.counters["devices_behind"]
        failure = "" if journal is None else journal.failure
        return [
            *([f"journal=given up: {failure}"] if failure else []),
            *([f"devices_behind={behind}"] if behind else []),
        ]

    def _times(self) -> list[str]:
        if self.subsystem is None:
            return []
        stated = self.subsystem.storage.time
        return [
            f"sled_time_ms={self.subsystem.now_ms()}",
            f"sled_clock={'yes' if self.subsystem.time.has_clock else 'no'}",
            f"time_serial={0 if stated is None else stated.serial}",
        ]

    def _versions(self) -> list[str]:
        if self._firmware is None:
            return [f"version={FIRMWARE}"]
        slots = self._firmware.slots
        if self._firmware.unreadable:
            return [f"version={FIRMWARE}", f"slot_state=unreadable: {self._firmware.unreadable}"]
        version = "" if slots.active is None else slots[slots.active].version
        return [f"version={version or FIRMWARE}", *slot_lines(slots)]

    def _who(self, words: Sequence[str]) -> Iterable[str]:
        kept = self._kept()
        root = self._root(kept)
        identity = self.identity
        about = () if identity is None else (
            f"sled_id={identity.sled_id}",
            f"name={identity.name if kept is None else kept.name}",
            f"public_key={identity.key.public_key().public_bytes_raw().hex()}",
            f"nqn={identity.nqn}",
        )  # fmt: skip
        return (
            *about,
            f"root_key={'none' if root is None else root.hex()}",
            f"locked={'no' if root is None else 'yes'}",
            f"network={self._settings.listen_host if kept is None else kept.network}",
            f"hardware={platform.machine() if self._firmware is None else self._firmware.hardware}",
        )

    def _kept(self) -> Provisioning | None:
        """As it is on the medium: another process may have written it, and a write that failed may be there."""
        try:
            return self._state.provisioning
        except SledError as error:
            raise CommandNotDone(str(error)) from None

    def _root(self, kept: Provisioning | None) -> bytes | None:
        """The root key that it is locked to."""
        told = self._settings.root_public_key if kept is None else kept.root_public.hex()
        return None if told is None else bytes.fromhex(told)

    def _provision(self, words: Sequence[str]) -> Iterable[str]:
        wanted = Provisioning.parse(words)
        kept = self._kept()
        root = self._root(kept)
        if root is not None and wanted.root_public != root:
            raise CommandNotDone(f"root: this sled is locked to {root.hex()} and takes no other")
        if wanted == kept:
            return ("changed=no",)
        if not self._settings.console_network:
            _require_own(wanted.network.address)
        self._require_confirmed()
        try:
            self._state.provision(wanted)
        except OSError as error:
            raise CommandNotDone(
                f"{error.strerror}: it may be kept or not: see `identity`, and look after {self._state.path}"
            ) from None
        root_hex = wanted.root_public.hex()
        log.warning("event=provisioned name=%s root=%s network=%s", wanted.name, root_hex, wanted.network)
        self._restart()
        return ("changed=yes", "restarting=yes")

    def _stated(self, words: Sequence[str]) -> Iterable[str]:
        subsystem = self.subsystem
        if subsystem is None:
            raise CommandNotDone("the sled does not serve yet, and keeps no time")
        try:
            statement = TimeStatement.open(bytes.fromhex(words[0]), subsystem.identity.root_public)
        except (ValueError, IndexError):
            raise CommandNotDone("this is no hexadecimal number: copy the statement again, whole") from None
        except (CredentialMalformed, CredentialRefused) as error:
            raise CommandNotDone(f"not taken: {error}") from None
        refused: list[int] = []
        subsystem.state_time(statement, lambda status, code: refused.append(code or status))
        if any(refused):
            raise CommandNotDone(f"not taken: {reason_of(refused[0])}")
        return (f"time_serial={statement.serial}", f"time_ms={statement.time_ms}")

    def _restarted(self, words: Sequence[str]) -> Iterable[str]:
        self._require_confirmed()
        self._restart()
        return ("restarting=yes",)

    def _require_confirmed(self) -> None:
        if self.failure or self._firmware is None or self._firmware.unreadable or self._firmware.slots.settled:
            return
        raise CommandNotDone("what runs is not confirmed yet, and a restart would be a failed attempt: wait a little")


def _require_own(address: str | None) -> None:
    """A sled that cannot listen would end at every start, and its console with it."""
    if address is None:
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.bind((address, 0))
    except OSError as error:
        raise CommandNotDone(
            f"network: {address}: {error.strerror}: the machine needs the address before the sled can listen on it"
        ) from None


@contextlib.contextmanager
def served(console: SledConsole, settings: SledSettings, tail: LogTail) -> Iterator[bool]:
    """Serve the console that the settings name, if they do, for as long as the block lasts; whether it could be had.

    A device that goes away is opened again when it is back, after pauses that grow.
    """
    if settings.console is None:
        yield False
        return
    keeper = _Keeper(console.session(tail), settings)
    try:
        yield keeper.open()
    finally:
        keeper.close()


class _Keeper:
    def __init__(self, session: ConsoleSession, settings: SledSettings) -> None:
        self._session = session
        self._settings = settings
        self._port: ConsolePort | None = None
        self._again: asyncio.TimerHandle | None = None
        self._backoff = Backoff(None, 1.0, REOPEN_SECONDS_MAX)

    def open(self) -> bool:
        """Whether it is open; if not, it is tried again."""
        settings = self._settings
        try:
            if settings.console == CONSOLE_PTY:
                self._port = ConsolePort.on_pty(self._session, settings.state_dir / CONSOLE_LINK)
            else:
                self._port = ConsolePort.on_device(self._session, settings.console_device, self._lost)
        except OSError as error:
            log.error("event=console_unusable console=%s reason=%s", settings.console, error)
            self._lost()
            return False
        return True

    def _lost(self) -> None:
        self._again = asyncio.get_running_loop().call_later(self._backoff.next_s(), self.open)

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._port is not None:
            self._port.close()
