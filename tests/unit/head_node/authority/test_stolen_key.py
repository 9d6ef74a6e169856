"""A signing key is stolen: how far it raises epochs, how a volume goes on above them, how the key is made worthless."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, RecordingFencer, rack, run, term_and_margin_ms
from kit.enrolled_sled import SLED, connected, create_with, enrolled_sled, rack_with_fencer

from head_node.authority.errors import Conflict
from head_node.authority.evidence import proven_epoch
from head_node.authority.key_push import TAKEN
from head_node.store.memory import MemoryStore
from sled_controller.association import Refusal
from sled_controller.credential import ALL_RIGHTS, Credential, epochs_end, parse_credential, verify
from sled_controller.errors import CredentialRefused, FencedOff
from sled_controller.keyset import KEYS_MAX, KeySet

THIEF = Ed25519PrivateKey.from_private_bytes(b"t" * 32)
LAST = epochs_end(1) - 1
"""The last epoch that the first key signs."""


async def stolen(kit: Kit) -> tuple[int, Ed25519PrivateKey]:
    """The newest signing key, as a thief has it."""
    key = (await kit.authority.keyring.current()).keys[-1]
    return key.key_id, Ed25519PrivateKey.from_private_bytes(key.private)


async def forged(kit: Kit, volume: UUID, epoch: int, holder: bytes = THIEF.public_key().public_bytes_raw()) -> bytes:
    key_id, key = await stolen(kit)
    now_ms = kit.clock.wall_ms()
    return Credential(key_id, volume, holder, epoch, ALL_RIGHTS, now_ms, now_ms + 600_000, 1).sign(key)


async def key_ids(kit: Kit, head: Head) -> set[int]:
    return set(KeySet.open((await head.client.view()).key_set, kit.authority.root_public).keys)


async def rotate_now(kit: Kit) -> dict[str, object]:
    reply = await kit.operator.post("/v1/keys/rotate", json={"now": True})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def recover(kit: Kit, epoch: int) -> tuple[int, dict[str, object]]:
    reply = await kit.operator.post("/v1/volumes/v/recover", json={"epoch": epoch})
    return reply.status_code, reply.json()


@pytest.mark.parametrize("rotated_before", [True, False])
def test_f4_a_volume_is_recovered_above_the_highest_epoch_that_a_stolen_key_can_sign(rotated_before: bool) -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        await primary.client.report_credential(await forged(kit, record.volume, LAST))
        if rotated_before:
            await rotate_now(kit)
        kit.clock.advance(term_and_margin_ms(kit))
        status, body = await recover(kit, LAST)
        assert (status, body["state"], body["epoch"]) == (200, "active", LAST + 1)
        assert await key_ids(kit, primary) == {2}, "the key that went so far is gone"
        record = await kit.record(record.volume)
        taken, raw = await primary.client.takeover(record.volume, expected_version=record.version, log_id=primary.log)
        assert taken.epoch == LAST + 2
        newest = KeySet.open((await primary.client.view()).key_set, kit.authority.root_public)
        assert verify(parse_credential(raw), newest).epoch == LAST + 2

    run(scenario)


def test_f4_an_ordinary_recovery_rotates_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        await primary.client.report_credential(await forged(kit, record.volume, LAST - 1))
        kit.clock.advance(term_and_margin_ms(kit))
        assert (await recover(kit, LAST - 1))[0] == 200
        assert await key_ids(kit, primary) == {1}

    run(scenario)


@pytest.mark.parametrize("epoch", [LAST + 1, 1 << 63, (1 << 64) - 1])
def test_f4_no_record_takes_an_epoch_that_no_key_has_signed(epoch: int) -> None:
    async def scenario(kit: Kit) -> None:
        _, _, record = await kit.ready()
        await kit.operator.post("/v1/volumes/v/freeze")
        kit.clock.advance(term_and_margin_ms(kit))
        status, body = await recover(kit, epoch)
        assert (status, body["type"]) == (422, "urn:palisade:problem:invalid-request")
        assert "rotate the keys" in str(body["detail"])
        assert (await recover(kit, 1))[1]["epoch"] == 2
        assert (await kit.record(record.volume)).epoch == 2

    run(scenario)


def test_f4_a_takeover_beyond_the_newest_key_is_refused_before_it_costs_an_epoch() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        await kit.operator.post("/v1/volumes/v/freeze")
        kit.clock.advance(term_and_margin_ms(kit))
        await recover(kit, LAST - 1)
        before = await kit.record(record.volume)
        with pytest.raises(Conflict, match="rotate the signing keys"):
            await primary.client.takeover(record.volume, expected_version=before.version, log_id=primary.log)
        assert await kit.record(record.volume) == before
        await rotate_now(kit)
        await primary.client.takeover(record.volume, expected_version=before.version, log_id=primary.log)

    run(scenario)


def test_keys_that_are_rotated_at_once_are_worth_nothing_from_there_on() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        kit.authority.issue.now_ms()
        old = await primary.client.renew(record.volume, epoch=1)
        theirs = await forged(kit, record.volume, 9)
        said = await rotate_now(kit)
        assert [key["key_id"] for key in said["keys"]] == [2]  # type: ignore[index, attr-defined]
        newest = KeySet.open((await primary.client.view()).key_set, kit.authority.root_public)
        for worthless in (old, theirs):
            with pytest.raises(CredentialRefused):
                verify(parse_credential(worthless), newest)
        fresh = await primary.client.renew(record.volume, epoch=1)
        assert verify(parse_credential(fresh), newest).key_id == 2
        reply = await kit.operator.post("/v1/evidence", json={"credential": theirs.hex()})
        assert reply.status_code == 401, "evidence is what heads hand in"
        assert (await kit.record(record.volume)).state.value == "active"

    run(scenario)


def test_a_full_key_set_does_not_stand_in_the_way_of_rotating_at_once() -> None:
    async def scenario(kit: Kit) -> None:
        for _ in range(KEYS_MAX - 1):
            await kit.operator.post("/v1/keys/rotate")
        assert (await kit.operator.post("/v1/keys/rotate")).status_code == 409
        assert len((await rotate_now(kit))["keys"]) == 1  # type: ignore[arg-type]

    run(scenario)


def test_sleds_that_were_away_get_the_new_keys_later_also_from_an_authority_that_restarted() -> None:
    async def main() -> None:
        store, fencer = MemoryStore(), RecordingFencer()
        async with rack(store=store, fencer=fencer) as kit:
            sleds = await kit.sleds(3)
            fencer.away = {sleds[1]}
            said = await rotate_now(kit)
            assert said["sleds"] == {str(sleds[0]): TAKEN, str(sleds[1]): "out of reach", str(sleds[2]): TAKEN}
            assert said["sleds_due"] == [str(sleds[1])]
        again = RecordingFencer()
        async with rack(store=store, fencer=again) as kit:
            while await kit.authority.key_push.due():
                await store.watch((await store.list("")).revision)
            assert (await kit.operator.get("/v1/keys")).json()["sleds_due"] == []
            assert again.pushed == [(sleds[1], 2)]
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_real_sled_refuses_what_a_stolen_key_signed_as_soon_as_the_rotation_is_answered() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, _):
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                theirs = await forged(kit, record.volume, 2, head.public)
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    nsid = await attachment.create_namespace(0, 4096)
                    said = await rotate_now(kit)
                    assert said["sleds"][str(SLED)] == TAKEN  # type: ignore[index]
                    with pytest.raises(CredentialRefused) as refused:
                        await client.attach(theirs, 1)
                    assert refused.value.code == Refusal.SIGNATURE
                    with pytest.raises(CredentialRefused) as refused:
                        await attachment.write(nsid, 0, [bytes(4096)])
                    assert refused.value.code == Refusal.KEY_RETIRED
                    await attachment.renew(await head.client.renew(record.volume, epoch=1))
                    await attachment.write(nsid, 0, [bytes(4096)])

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_write_that_meets_the_rotation_is_sent_again_under_the_new_credential() -> None:
    async def main() -> None:
        async with rack_with_fencer() as (kit, _):
            head = await kit.enrolled("head-1")
            async with enrolled_sled(kit):
                record, credential = await create_with(kit, head)
                async with connected(kit, head, SLED) as client:
                    attachment = await client.attach(credential, 1)
                    nsid = await attachment.create_namespace(0, 4096)
                    asked = asyncio.Event()
                    attachment.on_credential_refused = lambda error: asked.set()
                    await rotate_now(kit)
                    writes = [attachment.write(nsid, lba, [bytes([lba]) * 4096]) for lba in (1, 2)]
                    long = attachment.write(nsid, 8, [b"l" * 4096 * 32])
                    read = attachment.read(nsid, 0, 1)
                    await asked.wait()
                    await attachment.renew(await head.client.renew(record.volume, epoch=1))
                    await asyncio.gather(*writes, long, read)
                    assert bytes(await attachment.read(nsid, 2, 1)) == bytes([2]) * 4096
                    assert bytes(await attachment.read(nsid, 39, 1)) == b"l" * 4096

    asyncio.run(asyncio.wait_for(main(), 20))


VOLUME, OTHER = UUID(int=5), UUID(int=6)
KEYS = KeySet(2, {2: THIEF.public_key().public_bytes_raw()}, 1)


def shown(key_id: int = 2, epoch: int = 40, volume: UUID = VOLUME, key: Ed25519PrivateKey = THIEF) -> bytes:
    return Credential(key_id, volume, bytes(32), epoch, ALL_RIGHTS, 1, 2, 1).sign(key)


@pytest.mark.parametrize(
    ("credential", "epoch", "proven"),
    [
        (shown(), 40, 40),
        (None, 40, 0),
        (None, (1 << 64) - 1, 0),
        (shown(), (1 << 64) - 1, 0),
        (shown(volume=OTHER), 40, 0),
        (shown(key=Ed25519PrivateKey.from_private_bytes(b"f" * 32)), 40, 0),
        (shown(key_id=3, epoch=epochs_end(3) - 1), epochs_end(3) - 1, 0),
        (shown(key_id=1, epoch=LAST), LAST, LAST),
        (bytes(560), 40, 0),
        (b"", 40, 0),
    ],
)
def test_f6_what_a_sled_says_of_an_epoch_counts_only_as_far_as_a_credential_proves_it(
    credential: bytes | None, epoch: int, proven: int
) -> None:
    assert proven_epoch(FencedOff(epoch, credential), VOLUME, KEYS) == proven


def test_a_cleanup_takes_no_epoch_that_no_key_signs() -> None:
    async def main() -> None:
        fencer = RecordingFencer()
        async with rack(fencer=fencer) as kit:
            primary, _, record = await kit.ready()
            await kit.operator.delete("/v1/volumes/v")
            await primary.client.confirm_deleted(record.volume, epoch=1, strays=record.sleds)
            (cleanup,) = (await kit.authority.ledger.rack("cleanup/")).cleanups.values()
            put = replace(cleanup.value, epoch=LAST)
            await kit.authority.ledger.commit(compare={}, put={f"rack/cleanup/{record.volume}": put.to_json()})
            with pytest.raises(Conflict):
                await kit.authority.cleanups._next_epoch(record.volume, 0)
            left = await kit.authority.ledger.cleanup(record.volume)
            assert left is not None
            assert left.value.epoch == LAST

    asyncio.run(asyncio.wait_for(main(), 20))
