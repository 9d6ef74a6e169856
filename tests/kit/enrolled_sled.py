"""Real sleds enrolled at a real authority, and heads' associations with them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, ManualClock, SeededEntropy, rack

from head_node.authority.fencing import SledFencer
from head_node.store.records import VolumeRecord
from sled_controller.environment import Environment
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.target_server import TargetServer
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.emulator import MemoryDevice

SLED = UUID(int=77)
SLED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SLED_PUBLIC = SLED_KEY.public_key().public_bytes_raw()


@asynccontextmanager
async def rack_with_fencer() -> AsyncIterator[tuple[Kit, SledFencer]]:
    """An authority that visits real sleds itself, on a clock that is set by hand."""
    clock = ManualClock()
    fencer = SledFencer(Environment(clock, SeededEntropy(3)))
    async with rack(clock=clock, fencer=fencer) as kit:
        fencer.bind(kit.authority)
        yield kit, fencer


@asynccontextmanager
async def enrolled_sled(kit: Kit, sled: UUID = SLED, clock: ManualClock | None = None) -> AsyncIterator[None]:
    """A sled with the rack's root key, enrolled; with the rack's clock if it is given none of its own."""
    key = SLED_KEY if sled == SLED else Ed25519PrivateKey.from_private_bytes(sled.bytes * 2)
    identity = Identity(sled, key, kit.authority.root_public)
    env = Environment(clock or kit.clock)
    storage = await SledStorage.open((MemoryDevice(16384),), sled_id=sled, env=env, format=True)
    server = TargetServer(Subsystem(identity, storage, env, asyncio.get_running_loop().call_later))
    host, port = await server.start("127.0.0.1", 0)
    try:
        await kit.authority.nodes.enrol_sled(
            sled, f"real-{sled.int}", key.public_key().public_bytes_raw(), f"nqn-{sled.int}", (host, port), 0
        )
        yield
    finally:
        await server.close()
        storage.close()


@asynccontextmanager
async def connected(kit: Kit, head: Head, sled: UUID) -> AsyncIterator[SledClient]:
    """An association of a head with an enrolled sled; it carries the key set of now."""
    record = (await kit.authority.ledger.rack()).sleds[sled].value
    key_set = (await kit.authority.keyring.current()).signed_set
    client = SledClient(
        host=record.address[0], port=record.address[1], sled_id=sled, sled_public=record.public_key, head_key=head.key,
        head_id=head.id, env=Environment(kit.clock), key_set=lambda: key_set,
    )  # fmt: skip
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def create_with(kit: Kit, head: Head, down: int = 5) -> tuple[VolumeRecord, bytes]:
    """A volume of which the head is primary in epoch 1, and its credential."""
    for number in range(down):
        key = Ed25519PrivateKey.from_private_bytes(kit.env.entropy.bytes(32)).public_key().public_bytes_raw()
        # Port 9 of loopback has nobody: these sleds are down.
        await kit.authority.nodes.enrol_sled(UUID(int=number), f"down-{number}", key, "nqn", ("127.0.0.1", 9), 0)
    made = await kit.volume()
    return await head.client.takeover(made.volume, expected_version=made.version, log_id=head.log)
