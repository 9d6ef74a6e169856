"""The console script `sled-controller`: one sled over its devices, until SIGTERM or SIGINT; or `probe`."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import uvloop
from sled_board import logs
from sled_board.console.log_tail import LogTail
from sled_board.errors import BoardError
from sled_board.firmware_store import FirmwareStore
from sled_board.flash_thread import FlashThread
from sled_board.slots import Slots, SlotState
from sled_board.stage.notices import RESTART_AFTER_S, RESTART_STATUS

from sled_controller import console, probe, program_log
from sled_controller.attach import CallLater
from sled_controller.config import PROG, SledSettings
from sled_controller.console import SledConsole
from sled_controller.descriptors import of_program
from sled_controller.drives import CannotStart, open_devices
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric.target_server import TargetServer
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.health import HealthReport
from sled_controller.printable import complain
from sled_controller.provisioning import provisioned
from sled_controller.settings import load
from sled_controller.state_dir import JOURNAL_FILE, StateDirectory
from sled_controller.storage.errors import StorageError
from sled_controller.storage.journal import SledJournal, Submit
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.storage.timed_device import TimedDevice
from sled_controller.subsystem import Identity, Subsystem

log = logging.getLogger(__name__)

START_ERRORS: Final = (SledError, StorageError, BoardError, OSError)

FAILED_STAYS_S: Final = 30.0
"""How long a sled on a board that cannot start stays on its console before it tries again."""
KEEP_TIME_S: Final = 60.0
"""How often the time is noted: what a start without a clock to go by begins with."""
FOLLOW_S: Final = 2.0
"""How often the slot state is looked at until the stage has confirmed what runs."""


class Stop:
    """Why and when a sled ends."""

    def __init__(self, call_later: CallLater) -> None:
        self.asked = asyncio.Event()
        self.restarts = False
        self._call_later = call_later

    def restart(self) -> None:
        """End a little later, to be started anew."""
        log.info("event=restart_asked")
        self.restarts = True
        self._call_later(RESTART_AFTER_S, self.asked.set)


async def serve(settings: SledSettings, env: Environment, stop: Stop, tail: LogTail) -> None:
    """Serve until `stop` is asked; raises SledError, StorageError, BoardError or OSError when it cannot begin."""
    state = StateDirectory(settings.state_dir)
    flash, keeper = FlashThread(), FlashThread()
    with contextlib.ExitStack() as stack:
        stack.callback(flash.close)
        stack.callback(keeper.close)
        firmware = _firmware(settings, flash, stop)
        if firmware is not None:
            stack.callback(_Follower(firmware).close)
        shown = SledConsole(settings, state, env, firmware, stop.restart)
        has_console = stack.enter_context(console.served(shown, settings, tail))
        try:
            in_force = provisioned(settings, state.provisioning)
            if in_force.root_public_key is None and not has_console:
                raise CannotStart("console: cannot be had, and there is no root_public_key without it; name a terminal")
            await _serve(in_force, state, env, firmware, shown, stop, keeper.submit)
        except START_ERRORS as error:
            if firmware is None or not has_console:
                raise
            shown.doing, shown.failure = "failed", str(error)
            log.error("event=cannot_start reason=%s", error)
            await _stay(firmware.slots, stop)
            if not stop.asked.is_set():
                raise


async def _serve(
    settings: SledSettings, state: StateDirectory, env: Environment, firmware: FirmwareUpdate | None,
    shown: SledConsole, stop: Stop, keep: Submit,
) -> None:  # fmt: skip
    root = settings.root_public_key
    shown.identity = identity = state.identity(settings.name, b"" if root is None else bytes.fromhex(root), env)
    if root is None:
        await _await_provisioning(identity, shown, stop)
        return
    journal = SledJournal(state.path / JOURNAL_FILE, identity.sled_id, keep)
    journal.read()
    if journal.missing and state.has_served:
        log.warning("event=journal_missing file=%s", state.path / JOURNAL_FILE)
    devices, created = await open_devices(settings, state.has_served)
    wanted = settings.device_bytes is not None or settings.format_blank
    may_format = wanted and (created or not state.has_served)
    timed = [TimedDevice(device, settings.device_timeout_s) for device in devices]
    storage = await SledStorage.open(timed, sled_id=identity.sled_id, env=env, format=may_format, journal=journal)
    for device in timed:
        device.on_unresponsive = storage.unresponsive
    try:
        advertised = None if settings.advertise_host is None else str(settings.advertise_host)
        call_later = asyncio.get_running_loop().call_later
        managers = None if settings.management_hosts is None else ManagementHosts.read(settings.management_hosts)
        subsystem = Subsystem(
            identity, storage, env, call_later, advertised, firmware=firmware, managers=managers,
            associations_max=settings.connections_max // 2,  # a head opens two connections
            kato_s_max=settings.kato_max_s,
        )  # fmt: skip
        descriptors = of_program(asyncio.get_running_loop().time)
        server = TargetServer(
            subsystem, settings.connections_max, descriptors=descriptors, silence_s=settings.peer_silence_s
        )
        try:
            host, port = await server.start(settings.listen_host, settings.listen_port)
        except OSError as error:
            where = f"{settings.listen_host}:{settings.listen_port}"
            reason = error.strerror or error
            raise CannotStart(
                f"cannot listen on {where}: {reason}; choose another listen_port, or the address of this machine"
            ) from None
        try:
            state.endpoints(host, port)
            shown.storage, shown.subsystem, shown.doing = storage, subsystem, "serving"
            log.info(
                "event=serving sled=%s name=%s address=%s:%d boot=%d devices=%d namespaces=%d",
                identity.sled_id, identity.name, host, port, storage.boot_counter, len(storage.online_devices()),
                len(storage.namespaces),
            )  # fmt: skip
            time_keeper = _TimeKeeper(subsystem, call_later)
            HealthReport(os.environ, call_later, lambda: _what_is_wrong(storage)).begin()
            await stop.asked.wait()
            log.info("event=stopping sled=%s", identity.sled_id)
            time_keeper.close()
        finally:
            shown.storage = shown.subsystem = None
            await server.close()
    finally:
        storage.close()


async def _await_provisioning(identity: Identity, shown: SledConsole, stop: Stop) -> None:
    """Nothing listens on the network, and no drive is touched: there is only the console."""
    shown.doing = "unprovisioned"
    log.info("event=unprovisioned sled=%s", identity.sled_id)
    HealthReport(os.environ, asyncio.get_running_loop().call_later, lambda: "").begin()
    await stop.asked.wait()


async def _stay(slots: Slots, stop: Stop) -> None:
    """On the console for a while, where somebody may look and put the network right.

    What was confirmed once has not failed for being what it is: it asks to be started anew, which costs it no attempt.
    What is in test has to show that it can start, and gives way at once where there is something else to start.
    """
    active = slots.active
    confirmed = active is not None and slots[active].state is SlotState.CONFIRMED
    if active is not None and not confirmed and slots.has_other(active):
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAILED_STAYS_S):
            await stop.asked.wait()
            return
    if confirmed:
        stop.restarts = True
        stop.asked.set()


class _Follower:
    """Looks at the slot state until it is settled: the stage does not say when it has confirmed what runs."""

    def __init__(self, firmware: FirmwareUpdate) -> None:
        self._firmware = firmware
        self._look()

    def _look(self) -> None:
        self._next = asyncio.get_running_loop().call_later(FOLLOW_S, self._look)
        if self._firmware.slots.settled:
            self._next.cancel()

    def close(self) -> None:
        self._next.cancel()


class _TimeKeeper:
    """Notes sled time while no head brings an issue time."""

    def __init__(self, subsystem: Subsystem, call_later: CallLater) -> None:
        self._subsystem = subsystem
        self._call_later = call_later
        self._next = call_later(KEEP_TIME_S, self._keep)

    def _keep(self) -> None:
        self._subsystem.keep_time()
        self._next = self._call_later(KEEP_TIME_S, self._keep)

    def close(self) -> None:
        self._next.cancel()


def _what_is_wrong(storage: SledStorage) -> str:
    """With one drive left a sled serves; with none it is no use, whatever its firmware."""
    return "" if storage.online_devices() else "no drive is online"


def _firmware(settings: SledSettings, flash: FlashThread, stop: Stop) -> FirmwareUpdate | None:
    if settings.firmware_store is None:
        return None
    return FirmwareUpdate(FirmwareStore.open(settings.firmware_store), flash.submit, stop.restart)


async def _run(settings: SledSettings, tail: LogTail) -> bool:
    """Whether it is to be started anew."""
    loop = asyncio.get_running_loop()
    stop = Stop(loop.call_later)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.asked.set)
    await serve(settings, Environment.of_program(settings.clock_faults), stop, tail)
    return stop.restarts


def main(argv: Sequence[str] | None = None) -> None:
    """Run until told to stop, or list drives; exit status 1 when it cannot start, 2 for wrong settings, and
    `RESTART_STATUS` when it was asked to be started anew."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["probe"]:
        probe.main(arguments[1:])
        return
    settings = load(SledSettings, PROG, arguments)
    handler = None if settings.log_file is None else program_log.handler_of(settings, PROG)
    tail = logs.begin(settings.log_level, handler)
    program_log.bound_lines()
    try:
        restarts = uvloop.run(_run(settings, tail))
    except START_ERRORS as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    if restarts:
        raise SystemExit(RESTART_STATUS)
