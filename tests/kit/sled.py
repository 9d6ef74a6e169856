"""A real sled in this process: memory drives, storage, subsystem and NVMe/TCP server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from kit import host

from sled_controller.environment import Environment
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.target_server import TargetServer
from sled_controller.firmware.management import ManagementHosts
from sled_controller.firmware.update import FirmwareUpdate
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.device import Device
from spdk_bindings.emulator import MemoryDevice

DEVICE_BLOCKS = 16384


@dataclass
class Sled:
    """A running sled and how to reach it."""

    subsystem: Subsystem
    server: TargetServer
    host: str
    port: int

    async def has_hosts(self, count: int) -> None:
        """Wait until so many hosts are connected: one that leaves is seen to be gone a little later."""
        while len(self.subsystem.hosts) != count:  # noqa: ASYNC110 (the condition is state, no event marks it)
            await asyncio.sleep(0.01)

    def client(
        self, *, head: int = host.HEAD_KEY, head_id: UUID = host.HEAD,
        key_set: Callable[[], bytes | None] | None = None, **settings: float,
    ) -> SledClient:  # fmt: skip
        """An association of the head with that key, not opened yet."""
        return SledClient(
            host=self.host, port=self.port, sled_id=host.SLED, sled_public=host.public_key(host.SLED_KEY),
            head_key=host.private_key(head), head_id=head_id, env=Environment(host.FixedClock()),
            key_set=key_set or (lambda: host.key_set().sign(host.private_key(host.ROOT))), **settings,  # type: ignore[arg-type]
        )  # fmt: skip


@asynccontextmanager
async def running_sled(
    *devices: Device, advertised_host: str | None = None, firmware: FirmwareUpdate | None = None,
    managers: ManagementHosts | None = None,
) -> AsyncIterator[Sled]:  # fmt: skip
    """A sled that serves until the block ends, over `devices` or one memory drive of 64 MiB."""
    env = Environment(host.FixedClock())
    identity = Identity(host.SLED, host.private_key(host.SLED_KEY), host.public_key(host.ROOT))
    storage = await SledStorage.open(devices or (MemoryDevice(DEVICE_BLOCKS),), sled_id=host.SLED, env=env, format=True)
    call_later = asyncio.get_running_loop().call_later
    subsystem = Subsystem(
        identity, storage, env, call_later, advertised_host, firmware=firmware, managers=managers
    )  # fmt: skip
    server = TargetServer(subsystem)
    address, port = await server.start("127.0.0.1", 0)
    try:
        yield Sled(subsystem, server, address, port)
    finally:
        await server.close()
        storage.close()
