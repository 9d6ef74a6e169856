"""The console script `sled-controller`: one sled over file-backed devices, until SIGTERM or SIGINT."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from sled_controller.config import PROG, SledSettings
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric.target_server import TargetServer
from sled_controller.settings import load
from sled_controller.state_dir import StateDirectory
from sled_controller.storage.errors import StorageError
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Subsystem
from spdk_bindings.device import BLOCK_BYTES, Device
from spdk_bindings.emulator import FileDevice

log = logging.getLogger(__name__)


class CannotStart(SledError):
    """No usable device, or no address to listen on; the text names it and the remedy."""


def open_devices(paths: Sequence[Path], device_bytes: int | None, has_served: bool) -> tuple[list[Device], bool]:
    """The devices that can be opened, and whether one of them was made just now; raises CannotStart.

    One that cannot be opened is left out with an error in the log: the others are still worth serving. Of a sled that
    `has_served` at least one is there, or nobody knows the fences that it has promised to keep (F2).
    """
    if has_served and not any(path.exists() for path in paths):
        raise CannotStart(
            f"none of the devices {', '.join(map(str, paths))} is there any more; bring them back, or enrol this sled "
            "as a new one with an empty state_dir"
        )
    devices: list[Device] = []
    created = False
    for path in paths:
        try:
            if device_bytes is not None and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                devices.append(FileDevice.create(path, device_bytes // BLOCK_BYTES))
                created = True
            else:
                devices.append(FileDevice(path))
            log.info("event=device_opened path=%s serial=%s", path, devices[-1].serial)
        except BlockingIOError:
            for device in devices:
                device.close()
            raise CannotStart(f"device {path}: another process has it open; stop that one first") from None
        except (OSError, ValueError) as error:
            log.error("event=device_unusable path=%s reason=%r", path, str(error))
    if not devices:
        raise CannotStart(
            f"none of the devices {', '.join(map(str, paths))} can be opened; make them, or set device_bytes"
        )
    return devices, created


async def serve(settings: SledSettings, env: Environment, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; raises SledError, StorageError or OSError when it cannot begin."""
    state = StateDirectory(settings.state_dir)
    identity = state.identity(settings.name, bytes.fromhex(settings.root_public_key), env)
    devices, created = open_devices(settings.devices, settings.device_bytes, state.has_served)
    may_format = settings.device_bytes is not None and (created or not state.has_served)
    storage = await SledStorage.open(devices, sled_id=identity.sled_id, env=env, format=may_format)
    try:
        advertised = None if settings.advertise_host is None else str(settings.advertise_host)
        subsystem = Subsystem(identity, storage, env, asyncio.get_running_loop().call_later, advertised)
        server = TargetServer(subsystem, settings.connections_max)
        try:
            host, port = await server.start(settings.listen_host, settings.listen_port)
        except OSError as error:
            where = f"{settings.listen_host}:{settings.listen_port}"
            reason = error.strerror or error
            raise CannotStart(f"cannot listen on {where}: {reason}; choose another listen_port") from None
        try:
            state.endpoints(host, port)
            log.info(
                "event=serving sled=%s name=%s address=%s:%d boot=%d devices=%d namespaces=%d",
                identity.sled_id, identity.name, host, port, storage.boot_counter, len(storage.online_devices()),
                len(storage.namespaces),
            )  # fmt: skip
            await stop.wait()
            log.info("event=stopping sled=%s", identity.sled_id)
        finally:
            await server.close()
    finally:
        storage.close()


async def _run(settings: SledSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, Environment.of_program(settings.clock_faults), stop)


def main(argv: Sequence[str] | None = None) -> None:
    """Run until told to stop; exit status 1 when it cannot start, 2 for wrong settings."""
    settings = load(SledSettings, PROG, argv)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        uvloop.run(_run(settings))
    except (SledError, StorageError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
