"""The console script `sled-controller`: one sled over its devices, until SIGTERM or SIGINT; or `probe`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from sled_controller import probe
from sled_controller.config import PROG, SledSettings
from sled_controller.drives import CannotStart, open_devices
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric.target_server import TargetServer
from sled_controller.settings import load
from sled_controller.state_dir import StateDirectory
from sled_controller.storage.errors import StorageError
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Subsystem

log = logging.getLogger(__name__)


async def serve(settings: SledSettings, env: Environment, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; raises SledError, StorageError or OSError when it cannot begin."""
    state = StateDirectory(settings.state_dir)
    identity = state.identity(settings.name, bytes.fromhex(settings.root_public_key), env)
    devices, created = await open_devices(settings, state.has_served)
    wanted = settings.device_bytes is not None or settings.format_blank
    may_format = wanted and (created or not state.has_served)
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
    """Run until told to stop, or list drives; exit status 1 when it cannot start, 2 for wrong settings."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["probe"]:
        probe.main(arguments[1:])
        return
    settings = load(SledSettings, PROG, arguments)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    try:
        uvloop.run(_run(settings))
    except (SledError, StorageError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
