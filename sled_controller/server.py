"""The console script `sled-controller`: one sled over its devices, until SIGTERM or SIGINT; or `probe`."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

import uvloop
from sled_board.errors import BoardError
from sled_board.firmware_store import FirmwareStore
from sled_board.flash_thread import FlashThread
from sled_board.stage.notices import RESTART_STATUS

from sled_controller import console, probe
from sled_controller.attach import CallLater
from sled_controller.config import LOG_FORMAT, PROG, SledSettings
from sled_controller.console import SledConsole
from sled_controller.drives import CannotStart, open_devices
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric.target_server import TargetServer
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.health import HealthReport
from sled_controller.provisioning import provisioned
from sled_controller.settings import load
from sled_controller.state_dir import StateDirectory
from sled_controller.storage.errors import StorageError
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Subsystem

log = logging.getLogger(__name__)


RESTART_AFTER_S: Final = 0.5
"""From a command that asks for the restart to it: its answer is to reach the host."""


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


async def serve(settings: SledSettings, env: Environment, stop: Stop) -> None:
    """Serve until `stop` is asked; raises SledError, StorageError, BoardError or OSError when it cannot begin."""
    state = StateDirectory(settings.state_dir)
    settings = provisioned(settings, state.provisioning)
    flash = FlashThread()
    try:
        firmware = _firmware(settings, flash, stop)
        if settings.root_public_key is None:
            await _await_provisioning(settings, state, env, firmware, stop)
        else:
            await _serve_drives(settings, bytes.fromhex(settings.root_public_key), state, env, firmware, stop)
    finally:
        flash.close()


async def _serve_drives(
    settings: SledSettings, root: bytes, state: StateDirectory, env: Environment, firmware: FirmwareUpdate | None,
    stop: Stop,
) -> None:  # fmt: skip
    identity = state.identity(settings.name, root, env)
    devices, created = await open_devices(settings, state.has_served)
    wanted = settings.device_bytes is not None or settings.format_blank
    may_format = wanted and (created or not state.has_served)
    storage = await SledStorage.open(devices, sled_id=identity.sled_id, env=env, format=may_format)
    try:
        advertised = None if settings.advertise_host is None else str(settings.advertise_host)
        call_later = asyncio.get_running_loop().call_later
        managers = None if settings.management_hosts is None else ManagementHosts.read(settings.management_hosts)
        subsystem = Subsystem(
            identity, storage, env, call_later, advertised, firmware=firmware, managers=managers
        )  # fmt: skip
        server = TargetServer(subsystem, settings.connections_max)
        try:
            host, port = await server.start(settings.listen_host, settings.listen_port)
        except OSError as error:
            where = f"{settings.listen_host}:{settings.listen_port}"
            reason = error.strerror or error
            raise CannotStart(f"cannot listen on {where}: {reason}; choose another listen_port") from None
        shown = SledConsole(settings, state, identity, env, firmware, stop.restart, storage)
        try:
            with console.served(shown, settings):
                state.endpoints(host, port)
                log.info(
                    "event=serving sled=%s name=%s address=%s:%d boot=%d devices=%d namespaces=%d",
                    identity.sled_id, identity.name, host, port, storage.boot_counter, len(storage.online_devices()),
                    len(storage.namespaces),
                )  # fmt: skip
                HealthReport(os.environ, call_later, lambda: _what_is_wrong(storage)).begin()
                await stop.asked.wait()
                log.info("event=stopping sled=%s", identity.sled_id)
        finally:
            await server.close()
    finally:
        storage.close()


async def _await_provisioning(
    settings: SledSettings, state: StateDirectory, env: Environment, firmware: FirmwareUpdate | None, stop: Stop
) -> None:
    """Nothing listens on the network, and no drive is touched: there is only the console."""
    identity = state.identity(settings.name, b"", env)
    shown = SledConsole(settings, state, identity, env, firmware, stop.restart, None)
    with console.served(shown, settings, needed_by=stop.restart):
        log.info("event=unprovisioned sled=%s console=%s", identity.sled_id, settings.console)
        HealthReport(os.environ, asyncio.get_running_loop().call_later, lambda: "").begin()
        await stop.asked.wait()


def _what_is_wrong(storage: SledStorage) -> str:
    """With one drive left a sled serves; with none it is no use, whatever its firmware."""
    return "" if storage.online_devices() else "no drive is online"


def _firmware(settings: SledSettings, flash: FlashThread, stop: Stop) -> FirmwareUpdate | None:
    if settings.firmware_store is None:
        return None
    return FirmwareUpdate(FirmwareStore.open(settings.firmware_store), flash.submit, stop.restart)


async def _run(settings: SledSettings) -> bool:
    """Whether it is to be started anew."""
    loop = asyncio.get_running_loop()
    stop = Stop(loop.call_later)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.asked.set)
    await serve(settings, Environment.of_program(settings.clock_faults), stop)
    return stop.restarts


def main(argv: Sequence[str] | None = None) -> None:
    """Run until told to stop, or list drives; exit status 1 when it cannot start, 2 for wrong settings, and
    `RESTART_STATUS` when it was asked to be started anew."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["probe"]:
        probe.main(arguments[1:])
        return
    settings = load(SledSettings, PROG, arguments)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT, stream=sys.stderr)
    try:
        restarts = uvloop.run(_run(settings))
    except (SledError, StorageError, BoardError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if restarts:
        raise SystemExit(RESTART_STATUS)
