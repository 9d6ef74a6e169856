"""Keys are published before they sign, and stay until what they signed has expired."""

import asyncio
from pathlib import Path

import pytest
from kit.authority import Kit, ManualClock, SeededEntropy, rack, run

from head_node.authority.authority import Policy
from head_node.authority.keyring import RETIRE_SLACK_MS, RootKeyUnusable, load_root_key
from head_node.store.memory import MemoryStore
from sled_controller.credential import parse_credential, verify
from sled_controller.environment import Environment
from sled_controller.errors import CredentialRefused
from sled_controller.keyset import KEYS_MAX, KeySet

POLICY = Policy(credential_term_ms=600_000, key_publish_ms=60_000)


def test_rotation_publishes_before_use_and_retires_after_the_last_credential() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        root = kit.authority.root_public

        async def renewed() -> tuple[int, bytes]:
            raw = await primary.client.renew(record.volume, epoch=1)
            return parse_credential(raw).credential.key_id, raw

        async def published() -> KeySet:
            return KeySet.open((await primary.client.view()).key_set, root)

        assert (await published()).version == 1
        assert (await kit.operator.post("/v1/keys/rotate")).json()["version"] == 2
        assert set((await published()).keys) == {1, 2}
        key_id, _ = await renewed()
        assert key_id == 1
        kit.clock.advance(59_999)
        key_id, last = await renewed()
        assert key_id == 1
        kit.clock.advance(1)
        assert (await renewed())[0] == 2
        kit.clock.advance(600_000)
        await kit.authority.keyring.retire()
        verify(parse_credential(last), await published())
        kit.clock.advance(RETIRE_SLACK_MS)
        await kit.authority.keyring.retire()
        after = await published()
        assert (after.version, set(after.keys)) == (3, {2})
        with pytest.raises(CredentialRefused):
            verify(parse_credential(last), after)
        assert [key["signing"] for key in (await kit.operator.get("/v1/keys")).json()["keys"]] == [True]

    run(scenario, policy=POLICY)


def test_a_full_key_set_is_not_rotated_further() -> None:
    async def scenario(kit: Kit) -> None:
        for _ in range(KEYS_MAX - 1):
            assert (await kit.operator.post("/v1/keys/rotate")).status_code == 200
        reply = await kit.operator.post("/v1/keys/rotate")
        assert (reply.status_code, reply.json()["type"]) == (409, "urn:palisade:problem:conflict")

    run(scenario, policy=POLICY)


def test_keys_survive_a_restart() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store) as kit:
            first = (await kit.authority.keyring.current()).signed_set
        async with rack(store=store, seed=2) as again:
            assert (await again.authority.keyring.current()).signed_set == first
        with pytest.raises(RootKeyUnusable, match="belongs to"):
            async with rack(store=store, root_seed=2):
                pass

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_root_key_file_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    env = Environment(ManualClock(), SeededEntropy(1))
    path = tmp_path / "root.key"
    made = load_root_key(path, env, may_create=True)
    assert path.stat().st_mode & 0o777 == 0o600
    again = load_root_key(path, env, may_create=True)
    assert again.private_bytes_raw() == made.private_bytes_raw()
    path.chmod(0o640)
    with pytest.raises(RootKeyUnusable, match="chmod 600"):
        load_root_key(path, env, may_create=True)


def test_a_missing_or_damaged_root_key_is_not_replaced(tmp_path: Path) -> None:
    env = Environment(ManualClock(), SeededEntropy(1))
    path = tmp_path / "root.key"
    with pytest.raises(RootKeyUnusable, match="No such file"):
        load_root_key(path, env, may_create=False)
    path.touch(0o600)
    for content in (b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_bytes(content)
        with pytest.raises(RootKeyUnusable, match="not an unencrypted PEM"):
            load_root_key(path, env, may_create=True)
        assert path.read_bytes() == content
