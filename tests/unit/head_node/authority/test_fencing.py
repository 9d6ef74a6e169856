"""A revoked head is fenced off by a real sled at once, with no other head's help."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, ManualClock, SeededEntropy, rack

from head_node.authority.fencing import FENCED, SledFencer
from head_node.store.records import VolumeRecord
from sled_controller.credential import parse_credential, verify
from sled_controller.environment import Environment
from sled_controller.errors import FencedOff
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.target_server import TargetServer
from sled_controller.keyset import KeySet
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.emulator import MemoryDevice

SLED = UUID(int=77)
SLED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SLED_PUBLIC = SLED_KEY.public_key().public_bytes_raw()


@asynccontextmanager
async def enrolled_sled(kit: Kit) -> AsyncIterator[tuple[str, int]]:
    """A sled with the rack's root key, enrolled; yields where it listens."""
    identity = Identity(SLED, SLED_KEY, kit.authority.root_public)
    env = Environment(kit.clock)
    storage = await SledStorage.open((MemoryDevice(16384),), sled_id=SLED, env=env, format=True)
    server = TargetServer(Subsystem(identity, storage, env, asyncio.get_running_loop().call_later))
    host, port = await server.start("127.0.0.1", 0)
    try:
        await kit.authority.nodes.enrol_sled(SLED, "real", SLED_PUBLIC, "nqn", (host, port), 0)
        yield host, port
    finally:
        await server.close()
        storage.close()


async def create_with(kit: Kit, head: Head) -> tuple[VolumeRecord, bytes]:
    """A volume of which the head is primary in epoch 1, and its credential."""
    for number in range(5):
        key = Ed25519PrivateKey.from_private_bytes(kit.env.entropy.bytes(32)).public_key().public_bytes_raw()
        # Port 9 of loopback has nobody: these sleds are down.
        await kit.authority.nodes.enrol_sled(UUID(int=number), f"down-{number}", key, "nqn", ("127.0.0.1", 9), 0)
    made = await kit.volume()
    return await head.client.takeover(made.volume, expected_version=made.version, log_id=head.log)


def test_a_revoked_primary_is_fenced_off_at_once_and_can_verify_why() -> None:
    async def main() -> None:
        clock = ManualClock()
        fencer = SledFencer(Environment(clock, SeededEntropy(3)))
        async with rack(clock=clock, fencer=fencer) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit) as (host, port):
                record, credential = await create_with(kit, head)
                key_set = (await head.client.view()).key_set
                client = SledClient(
                    host=host, port=port, sled_id=SLED, sled_public=SLED_PUBLIC, head_key=head.key, head_id=head.id,
                    env=Environment(clock), key_set=lambda: key_set,
                )  # fmt: skip
                await client.open()
                attachment = await client.attach(credential, 1)
                nsid = await attachment.create_namespace(0, 4096)
                await attachment.write(nsid, 0, [bytes(4096)])
                done = await kit.authority.nodes.revoke_head(head.id)
                with pytest.raises(FencedOff) as fenced:
                    await attachment.write(nsid, 0, [bytes(4096)])
                await client.close()
            fences = done.fences[record.volume]
            assert fences[SLED] == FENCED
            assert {result.partition(":")[0] for sled, result in fences.items() if sled != SLED} == {"SledUnavailable"}
            assert done.orphaned == (record.volume,)
            assert fenced.value.epoch == 2
            assert fenced.value.credential is not None
            newer = verify(parse_credential(fenced.value.credential), KeySet.open(key_set, kit.authority.root_public))
            assert (newer.volume, newer.epoch) == (record.volume, 2)
            assert newer.head_key != head.public

    asyncio.run(asyncio.wait_for(main(), 20))
