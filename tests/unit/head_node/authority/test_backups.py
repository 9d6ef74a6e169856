"""What a stolen backup is worth, and what a restored or old store does not do again."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Head, Kit, RecordingFencer, rack, term_and_margin_ms

from head_node.authority.authority import Policy
from head_node.authority.errors import Frozen
from head_node.authority.key_requests import PENDING_PREFIX
from head_node.authority.keyring import RESTORED_VERSIONS_SKIPPED
from head_node.authority.root_key import AwayRoot
from head_node.store.host_secrets import unsealed
from head_node.store.memory import MemoryStore
from head_node.store.records import VolumeRecord
from head_node.store.sealed_backup import BackupSealed, is_sealed, opened, sealed
from head_node.store.sqlite import SqliteStore
from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.keyset import KeySet

OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
SEALED = Policy(backup_public=OPERATOR.public_key().public_bytes_raw())
HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111"


class PassedFencer(RecordingFencer):
    """One sled has been given a higher epoch than the store knows."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    async def passed(self, record: VolumeRecord) -> dict[UUID, int]:
        return {record.sleds[0]: self.epoch} if record.epoch < self.epoch else {}


async def guarded(kit: Kit) -> tuple[Head, Head, VolumeRecord, Secret]:
    """An active volume with a host that proves itself, both ways."""
    primary, secondary, record = await kit.ready(nbd="off")
    secret = Secret.generate(kit.env.entropy)
    body = {"secret": secret.text(), "controller_secret": Secret.generate(kit.env.entropy).text()}
    reply = await kit.operator.put(f"/v1/volumes/{record.volume}/host-secrets/{HOST}", json=body)
    assert reply.status_code == 200, reply.text
    return primary, secondary, await kit.record(record.volume), secret


async def what_signs(kit: Kit) -> list[bytes]:
    """Every private half in the store, as bytes and as text."""
    found = []
    for key in ("keys", "reply-key"):
        value = (await kit.store.get(key)) or pytest.fail(key)
        data = json.loads(value.value)
        found += [entry["private"] for entry in data.get("keys", [data])]
    assert len(found) >= 2
    return [form for text in found for form in (text.encode(), bytes.fromhex(text))]


def test_a_backup_holds_nothing_that_signs_and_no_secret_of_a_host(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "authority.db")
        async with rack(store=store) as kit:
            _, _, record, secret = await guarded(kit)
            for _ in range(3):
                await kit.operator.post("/v1/keys/rotate")
            await kit.authority.back_up(tmp_path / "store.backup")
            data = (tmp_path / "store.backup").read_bytes()
            assert not any(text in data for text in await what_signs(kit))
            assert b"private" not in data
            assert secret.text().encode() not in data
        await store.close()
        assert (tmp_path / "store.backup").stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(tmp_path / "store.backup")) as copy:
            kept = {key for (key,) in copy.execute("SELECT key FROM entries")}
        assert f"rack/volume/{record.volume}" in kept
        assert not any(key.startswith(("claim/", "token/", "root-request/")) for key in kept)

    asyncio.run(main())


def test_a_sealed_backup_is_the_operators_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "authority.db")
        async with rack(store=store, policy=SEALED) as kit:
            _, _, record, secret = await guarded(kit)
            await kit.authority.back_up(tmp_path / "store.backup")
            data = (tmp_path / "store.backup").read_bytes()
            signing = await what_signs(kit)
        await store.close()
        assert is_sealed(data)
        assert b"SQLite" not in data
        for other in (Ed25519PrivateKey.from_private_bytes(bytes(32)), kit.root_key):
            with pytest.raises(BackupSealed, match="sealed to key"):
                opened(data, other)
        plain = opened(data, OPERATOR)
        assert secret.text().encode() in plain
        assert not any(text in plain for text in signing)
        assert str(record.volume).encode() in plain

    asyncio.run(main())


def test_a_sealed_backup_that_was_altered_is_refused() -> None:
    data = sealed(b"SQLite format 3", OPERATOR.public_key().public_bytes_raw(), SystemEntropy())
    assert opened(data, OPERATOR) == b"SQLite format 3"
    for index in range(len(data)):
        with pytest.raises(BackupSealed):
            opened(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :], OPERATOR)
        with pytest.raises(BackupSealed):
            opened(data[:index], OPERATOR)


def test_a_store_is_not_opened_over_a_sealed_backup(tmp_path: Path) -> None:
    path = tmp_path / "authority.db"
    path.write_bytes(sealed(b"x", OPERATOR.public_key().public_bytes_raw(), SystemEntropy()))
    with pytest.raises(Exception, match="rackctl backup open"):
        asyncio.run(SqliteStore.open(path))


async def backed_up(kit: Kit, path: Path) -> MemoryStore:
    """A store put back from a backup made now."""
    await kit.authority.back_up(path)
    return MemoryStore.from_backup(path)


def test_a_restored_store_publishes_no_key_again_that_may_have_been_rotated_out(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, _, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
            former = set(KeySet.open((await primary.client.view()).key_set, kit.authority.root_public).keys.values())
            await kit.operator.post("/v1/keys/rotate")
            newest = KeySet.open((await primary.client.view()).key_set, kit.authority.root_public)
            replies = kit.authority.replies.current
        async with asyncio.timeout(20), rack(store=store, clock=kit.clock, seed=2) as again:
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            published = KeySet.open((await head.client.view()).key_set, again.authority.root_public)
            assert not former & set(published.keys.values())
            assert published.version > newest.version + RESTORED_VERSIONS_SKIPPED - 2
            assert again.authority.replies.current is not None
            assert replies is not None
            assert again.authority.replies.current.certificate.number > replies.certificate.number
            assert not await again.store.restored()

    asyncio.run(main())


def test_a_restored_store_waits_for_a_root_key_that_is_away_and_publishes_nothing_until_then(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, record, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
            root = kit.root_key
        away = AwayRoot(root.public_key().public_bytes_raw())
        async with asyncio.timeout(20), rack(store=store, root=away, seed=2) as again:
            assert (await again.record(record.volume)).state == "frozen"
            assert (await again.operator.get("/v1/keys")).json()["type"].endswith("root-key-needed")
            head = again.process(primary.id, primary.key)
            with pytest.raises(Exception, match="key set"):
                await head.client.view()
            for entry in (await again.operator.get("/v1/keys/requests")).json()["requests"]:
                signature = root.sign(bytes.fromhex(entry["domain"]) + bytes.fromhex(entry["body"])).hex()
                body = {"kind": entry["kind"], "body": entry["body"], "signature": signature}
                assert (await again.operator.post("/v1/keys/install", json=body)).status_code == 204
            assert not await again.store.restored()
            await head.client.view()

    asyncio.run(main())


@pytest.mark.parametrize("policy", [Policy(), SEALED], ids=["plain", "sealed"])
def test_a_host_whose_secret_the_backup_does_not_have_is_refused_not_believed(tmp_path: Path, policy: Policy) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack(policy=policy) as kit:
            primary, _, record, secret = await guarded(kit)
            path = tmp_path / "copy"
            await kit.authority.back_up(path)
            if policy.backup_public is not None:
                path.write_bytes(opened(path.read_bytes(), OPERATOR))
        store = MemoryStore.from_backup(path)
        async with asyncio.timeout(20), rack(store=store, seed=2) as again:
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            view = await head.client.view()
            terms = unsealed(head.key, record.volume, view.secrets[record.volume]).terms[HOST]
            assert (terms.secret == secret) is (policy.backup_public is not None)
            assert terms.controller_secret is not None
            kinds = [event["kind"] for event in (await again.operator.get("/v1/events")).json()["events"]]
            assert ("host-secrets-missing" in kinds) is (policy.backup_public is None)

    asyncio.run(main())


def test_an_old_epochs_claim_does_not_come_back_with_a_backup(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            _, _, _record, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
            assert not (await store.list("claim/")).entries
            assert (await kit.store.list("claim/")).entries

    asyncio.run(main())


def test_a_sled_that_claims_an_epoch_without_a_next_one_holds_no_recovery_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            _, _, record, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
        fencer = PassedFencer((1 << 64) - 1)
        async with asyncio.timeout(20), rack(store=store, fencer=fencer, clock=kit.clock, seed=2) as again:
            again.clock.advance(term_and_margin_ms(again))
            path = f"/v1/volumes/{record.volume}/recover"
            assert (await again.operator.post(path, json={"epoch": 1})).status_code == 200

    asyncio.run(main())


def test_recovery_of_a_restored_volume_gives_no_epoch_below_a_fence(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            _, _, record, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
        fencer = PassedFencer(9)
        async with asyncio.timeout(20), rack(store=store, fencer=fencer, clock=kit.clock, seed=2) as again:
            again.clock.advance(term_and_margin_ms(again))
            path = f"/v1/volumes/{record.volume}/recover"
            refused = await again.operator.post(path, json={"epoch": 1})
            assert refused.status_code == 422
            assert "recover with epoch 9" in refused.json()["detail"]
            assert (await again.record(record.volume)).state == "frozen"
            assert (await again.operator.post(path, json={"epoch": 9})).status_code == 200
            assert (await again.record(record.volume)).epoch == 10

    asyncio.run(main())


async def copied(kit: Kit) -> MemoryStore:
    """The store as a snapshot of its disk has it: private keys, no mark."""
    store = MemoryStore()
    found = await kit.store.list("")
    await store.commit(put={entry.key: entry.value for entry in found.entries})
    return store


def test_a_head_that_has_a_newer_key_set_shows_that_the_store_is_an_old_copy() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, record, _ = await guarded(kit)
            old = await copied(kit)
            rotated = (await kit.operator.post("/v1/keys/rotate")).json()["keys"]
            newest = (await primary.client.view()).key_set
        async with asyncio.timeout(20), rack(store=old, clock=kit.clock, seed=2) as again:
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            for proves_nothing in ("", "00", newest.hex()[:-2] + "00", 5, (await head.client.view()).key_set.hex()):
                await head.client.report({"newer_key_set": proves_nothing})
                assert (await again.record(record.volume)).state == "active"
            await head.client.report({"newer_key_set": newest.hex()})
            assert (await again.record(record.volume)).state == "frozen"
            version = (await again.record(record.volume)).version
            with pytest.raises(Frozen):
                await head.client.takeover(record.volume, expected_version=version, log_id=head.log)
            published = KeySet.open((await head.client.view()).key_set, again.authority.root_public)
            assert published.version > KeySet.open(newest, again.authority.root_public).version
            assert not {bytes.fromhex(key["public_key"]) for key in rotated} & set(published.keys.values())
            version = (await again.record(record.volume)).version
            await head.client.report({"newer_key_set": newest.hex()})
            assert (await again.record(record.volume)).version == version
            assert (await again.operator.get("/v1/volumes")).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("now", [False, True])
def test_a_rotation_does_not_put_keys_of_a_backup_into_the_set_that_waits_for_the_root_key(
    tmp_path: Path, now: bool
) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, _, _ = await guarded(kit)
            store = await backed_up(kit, tmp_path / "copy")
            former = set(KeySet.open((await primary.client.view()).key_set, kit.authority.root_public).keys.values())
            for _ in range(3):
                await kit.operator.post("/v1/keys/rotate")
            newest = KeySet.open((await primary.client.view()).key_set, kit.authority.root_public)
            root = kit.root_key
        away = AwayRoot(root.public_key().public_bytes_raw())
        async with asyncio.timeout(20), rack(store=store, root=away, seed=2) as again:
            if not now:  # as where the authority was stopped before it had asked
                await again.authority.ledger.commit(compare={}, put={}, delete=[PENDING_PREFIX + "key-set"])
            assert (await again.operator.post("/v1/keys/rotate", json={"now": now})).status_code == 409
            for entry in (await again.operator.get("/v1/keys/requests")).json()["requests"]:
                signature = root.sign(bytes.fromhex(entry["domain"]) + bytes.fromhex(entry["body"])).hex()
                body = {"kind": entry["kind"], "body": entry["body"], "signature": signature}
                assert (await again.operator.post("/v1/keys/install", json=body)).status_code == 204
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            published = KeySet.open((await head.client.view()).key_set, again.authority.root_public)
            assert not former & set(published.keys.values())
            assert published.version > newest.version

    asyncio.run(main())


def test_an_old_copy_with_a_request_of_its_own_makes_another_for_the_root_key_that_is_away() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, _, _ = await guarded(kit)
            old = await copied(kit)
            for _ in range(3):
                await kit.operator.post("/v1/keys/rotate")
            newest = (await primary.client.view()).key_set
            root = kit.root_key
        away = AwayRoot(root.public_key().public_bytes_raw())
        async with asyncio.timeout(20), rack(store=old, clock=kit.clock, root=away, seed=2) as again:
            assert (await again.operator.post("/v1/keys/rotate")).status_code == 409  # it waits in the old copy
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            await head.client.report({"newer_key_set": newest.hex()})
            for entry in (await again.operator.get("/v1/keys/requests")).json()["requests"]:
                signature = root.sign(bytes.fromhex(entry["domain"]) + bytes.fromhex(entry["body"])).hex()
                body = {"kind": entry["kind"], "body": entry["body"], "signature": signature}
                await again.operator.post("/v1/keys/install", json=body)
            published = KeySet.open((await head.client.view()).key_set, again.authority.root_public)
            assert published.version > KeySet.open(newest, again.authority.root_public).version

    asyncio.run(main())


def test_an_old_copy_knows_no_operator_token_again_that_may_have_been_revoked_since() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), rack() as kit:
            primary, _, _, _ = await guarded(kit)
            asked = {"name": "stolen", "role": "admin", "valid_s": 3600}
            stolen = (await kit.operator.post("/v1/tokens", json=asked)).json()["token"]
            old = await copied(kit)
            await kit.operator.delete("/v1/tokens/stolen")
            await kit.operator.post("/v1/keys/rotate")
            newest = (await primary.client.view()).key_set
            bootstrap = kit.operator.headers["authorization"].split()[1]
        async with asyncio.timeout(20), rack(store=old, clock=kit.clock, seed=2, bootstrap=bootstrap) as again:
            head = again.process(primary.id, primary.key, root=again.authority.root_public)
            await head.client.report({"newer_key_set": newest.hex()})
            refused = await again.operator.get("/v1/nodes", headers={"authorization": f"Bearer {stolen}"})
            assert refused.status_code == 401
            assert (await again.operator.get("/v1/nodes")).status_code == 200

    asyncio.run(main())
