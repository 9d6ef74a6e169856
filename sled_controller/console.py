"""The console of a sled: what it shows of itself, and how it is provisioned and restarted (docs/console.md)."""

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

from sled_controller.config import CONSOLE_PTY, LOG_FORMAT, SledSettings
from sled_controller.drives import CannotStart
from sled_controller.environment import Environment
from sled_controller.fabric.controller import FIRMWARE
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.state_dir import StateDirectory
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity

log = logging.getLogger(__name__)

PROMPT: Final = "sled"
CONSOLE_LINK: Final = "console"  # in the state directory: leads to the pseudo terminal of an emulated sled
_NS_PER_S: Final = 1_000_000_000


class SledConsole:
    """The commands of one sled. `settings` are those that it runs by; `storage` is None of one that is not provisioned,
    and serves nothing."""

    def __init__(
        self, settings: SledSettings, state: StateDirectory, identity: Identity, env: Environment,
        firmware: FirmwareUpdate | None, restart: Callable[[], None], storage: SledStorage | None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._state = state
        self._identity = identity
        self._env = env
        self._firmware = firmware
        self._restart_now = restart
        self._storage = storage
        self._kept = state.provisioning
        self._started_ns = env.clock.boottime_ns()

    def session(self, tail: LogTail) -> ConsoleSession:
        """A console that has them all."""
        return ConsoleSession(PROMPT, [
            Command("status", "what it does", self._status),
            Command("identity", "who it is, and whom it believes", self._who),
            tail.command,
            Command("provision", "name, root key for good, and network; it restarts", self._provision, USAGE, 3),
            Command("restart", "end in good order and start anew", self._restarted),
        ])  # fmt: skip

    @property
    def _root(self) -> bytes | None:
        """The root key that it is locked to."""
        if self._kept is not None:
            return self._kept.root_public
        told = self._settings.root_public_key
        return None if told is None else bytes.fromhex(told)

    def _status(self, words: Sequence[str]) -> Iterable[str]:
        uptime_ns = self._env.clock.boottime_ns() - self._started_ns
        return (
            f"state={'unprovisioned' if self._storage is None else 'serving'}",
            *self._versions(),
            f"uptime_s={uptime_ns // _NS_PER_S}",
            f"drives={len(self._settings.devices)}",
            f"drives_online={0 if self._storage is None else len(self._storage.online_devices())}",
            f"namespaces={0 if self._storage is None else len(self._storage.namespaces)}",
        )

    def _versions(self) -> list[str]:
        if self._firmware is None:
            return [f"version={FIRMWARE}"]
        slots = self._firmware.slots
        version = "" if slots.active is None else slots[slots.active].version
        return [f"version={version or FIRMWARE}", *slot_lines(slots)]

    def _who(self, words: Sequence[str]) -> Iterable[str]:
        root = self._root
        return (
            f"sled_id={self._identity.sled_id}",
            f"name={self._identity.name if self._kept is None else self._kept.name}",
            f"public_key={self._identity.key.public_key().public_bytes_raw().hex()}",
            f"nqn={self._identity.nqn}",
            f"root_key={'none' if root is None else root.hex()}",
            f"locked={'no' if root is None else 'yes'}",
            f"network={self._settings.listen_host if self._kept is None else self._kept.network}",
            f"hardware={platform.machine() if self._firmware is None else self._firmware.hardware}",
        )

    def _provision(self, words: Sequence[str]) -> Iterable[str]:
        wanted = Provisioning.parse(words)
        root = self._root
        if root is not None and wanted.root_public != root:
            raise CommandNotDone(f"root: this sled is locked to {root.hex()} and takes no other")
        if wanted == self._kept:
            return ("changed=no",)
        if not self._settings.console_network:
            _require_own(wanted.network.address)
        self._require_settled()
        self._state.provision(wanted)
        self._kept = wanted
        root_hex = wanted.root_public.hex()
        log.warning("event=provisioned name=%s root=%s network=%s", wanted.name, root_hex, wanted.network)
        self._restart()
        return ("changed=yes", "restarting=yes")

    def _restarted(self, words: Sequence[str]) -> Iterable[str]:
        self._require_settled()
        self._restart()
        return ("restarting=yes",)

    def _require_settled(self) -> None:
        if self._firmware is not None and not self._firmware.slots.settled:
            raise CommandNotDone("what runs is not confirmed yet, and a restart would be a failed attempt: try again")

    def _restart(self) -> None:
        """After a firmware commit that is under way: that has a restart of its own."""
        if self._firmware is None:
            self._restart_now()
        else:
            self._firmware.reset(lambda status: None)


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
def logged() -> Iterator[LogTail]:
    """The end of this program's log, for as long as the block lasts."""
    tail = LogTail(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(tail)
    try:
        yield tail
    finally:
        logging.getLogger().removeHandler(tail)


@contextlib.contextmanager
def served(
    console: SledConsole, settings: SledSettings, *, needed_by: Callable[[], None] | None = None
) -> Iterator[None]:
    """Serve the console that the settings name, if they do, for as long as the block lasts.

    One that cannot be had, or goes away, keeps no sled from serving its drives. Of a sled that is good for nothing
    without, `needed_by` is called when it goes away; raises CannotStart when such a one cannot have it.
    """
    if settings.console is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            session = console.session(stack.enter_context(logged()))
            if settings.console == CONSOLE_PTY:
                port = ConsolePort.on_pty(session, settings.state_dir / CONSOLE_LINK)
            else:
                port = ConsolePort.on_device(session, settings.console_device, needed_by)
            stack.callback(port.close)
        except OSError as error:
            if needed_by is not None:
                raise CannotStart(f"console: {error}; name a terminal device, or pty") from None
            log.error("event=console_unusable console=%s reason=%s", settings.console, error)
        yield
