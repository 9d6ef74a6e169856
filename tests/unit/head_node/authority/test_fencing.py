"""A revoked head is fenced off by a real sled at once, with no other head's help."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import pytest
from kit.authority import Head, Kit, rack
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled, rack_with_fencer

from head_node.authority.fencing import FENCED
from head_node.store.records import Member
from sled_controller.credential import parse_credential, verify
from sled_controller.errors import CredentialRefused, FencedOff
from sled_controller.keyset import KeySet


def test_a_revoked_primary_is_fenced_off_at_once_and_can_verify_why() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, _):
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


def test_a_sled_tells_an_old_store_that_it_has_passed_its_epoch() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, fencer):
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, _ = await create_with(kit, head)
                await fencer.fence(replace(record, epoch=7))
                assert await fencer.passed(replace(record, epoch=6)) == {SLED: 7}
                assert await fencer.passed(replace(record, epoch=8)) == {}
                assert await fencer.passed(replace(record, epoch=7)) == {SLED: 8}

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
