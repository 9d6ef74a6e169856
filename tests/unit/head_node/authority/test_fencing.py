"""A revoked head is fenced off by a real sled at once, with no other head's help."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, ManualClock, SeededEntropy, rack

from head_node.authority.fencing import FENCED, SledFencer
from head_node.store.records import Member, VolumeRecord
from sled_controller.credential import parse_credential, verify
from sled_controller.environment import Environment
from sled_controller.errors import CredentialRefused, FencedOff
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
async def enrolled_sled(kit: Kit, sled: UUID = SLED) -> AsyncIterator[None]:
    """A sled with the rack's root key, enrolled."""
    key = SLED_KEY if sled == SLED else Ed25519PrivateKey.from_private_bytes(sled.bytes * 2)
    identity = Identity(sled, key, kit.authority.root_public)
    env = Environment(kit.clock)
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


def test_a_revoked_primary_is_fenced_off_at_once_and_can_verify_why() -> None:
    async def main() -> None:
        clock = ManualClock()
        fencer = SledFencer(Environment(clock, SeededEntropy(3)))
        async with rack(clock=clock, fencer=fencer) as kit:
            fencer.bind(kit.authority)
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                key_set = (await head.client.view()).key_set
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    nsid = await attachment.create_namespace(0, 4096)
                    await attachment.write(nsid, 0, [bytes(4096)])
                    done = await kit.authority.nodes.revoke_head(head.id)
                    with pytest.raises(FencedOff) as fenced:
                        await attachment.write(nsid, 0, [bytes(4096)])
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


PRESENT, ABSENT = UUID(int=301), UUID(int=302)


@asynccontextmanager
async def succeeded(kit: Kit) -> AsyncIterator[tuple[Head, bytes, Head, bytes]]:
    """A head that was primary in epoch 1, is only secondary in epoch 2 and is revoked; then the primary of epoch 2;
    each with its credential. Both sleds knew epoch 1, the absent one missed epoch 2."""
    former, primary = await kit.enrolled("head-1"), await kit.enrolled("head-2")
    async with enrolled_sled(kit, PRESENT), enrolled_sled(kit, ABSENT):
        record, old = await create_with(kit, former, down=4)
        for sled in (PRESENT, ABSENT):
            async with connected(kit, former, sled) as client:
                await client.attach(old, 1)
        record = await former.client.change_members(
            record.volume, epoch=1, expected_version=record.version, add=Member(primary.id, primary.log)
        )
        record, current = await primary.client.takeover(
            record.volume, expected_version=record.version, log_id=primary.log
        )
        async with connected(kit, primary, PRESENT) as client:
            await client.attach(current, 1)
        done = await kit.authority.nodes.revoke_head(former.id)
        assert [(after.epoch, [member.head for member in after.current]) for after in done.changed] == [
            (2, [primary.id])
        ]
        yield former, old, primary, current


def test_old_credentials_of_a_revoked_secondary_are_refused_wherever_the_primary_has_attached() -> None:
    async def main() -> None:
        async with rack() as kit, succeeded(kit) as (former, old, _, _), connected(kit, former, PRESENT) as client:
            with pytest.raises(FencedOff) as fenced:
                await client.attach(old, 2)
            assert fenced.value.epoch == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_sled_that_missed_the_epoch_drops_a_revoked_secondary_when_the_primary_attaches() -> None:
    async def main() -> None:
        async with (
            rack() as kit,
            succeeded(kit) as (former, old, primary, current),
            connected(kit, former, ABSENT) as client,
            connected(kit, primary, ABSENT) as successor,
        ):
            attachment = await client.attach(old, 2)  # as after any takeover that this sled has missed
            nsid = await attachment.create_namespace(0, 4096)
            await successor.attach(current, 1)
            with pytest.raises(FencedOff) as fenced:
                await attachment.write(nsid, 0, [bytes(4096)])
            assert fenced.value.epoch == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_sled_that_missed_the_epoch_refuses_a_revoked_secondary_when_its_term_is_over() -> None:
    async def main() -> None:
        async with rack() as kit, succeeded(kit) as (former, old, _, _):
            kit.clock.advance(kit.authority.policy.credential_term_ms + 1)
            async with connected(kit, former, ABSENT) as client:
                with pytest.raises(CredentialRefused):
                    await client.attach(old, 2)

    asyncio.run(asyncio.wait_for(main(), 20))
