"""The root key may be somewhere else: the authority starts and serves, and says what waits for it and how."""

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.authority import Kit, ManualClock, SeededEntropy, rack

from head_node.authority.authority import Policy
from head_node.authority.errors import AuthorityUnavailable
from head_node.authority.root_key import AwayRoot, CommandRoot, FileRoot, RootKeyUnusable
from head_node.store.memory import MemoryStore
from sled_controller.environment import Environment

ROOT = Ed25519PrivateKey.from_private_bytes(SeededEntropy(1).bytes(32))
AWAY = AwayRoot(ROOT.public_key().public_bytes_raw())
POLICY = Policy(credential_term_ms=600_000, key_publish_ms=60_000)


@asynccontextmanager
async def away(store: MemoryStore | None = None, clock: ManualClock | None = None, seed: int = 1) -> AsyncIterator[Kit]:
    """A rack whose root key is away."""
    async with asyncio.timeout(20), rack(root=AWAY, store=store, clock=clock, seed=seed, policy=POLICY) as kit:
        yield kit


async def waiting(kit: Kit) -> dict[str, dict[str, Any]]:
    found = (await kit.operator.get("/v1/keys/requests")).json()
    assert found["root_public_key"] == AWAY.public.hex()
    return {entry["kind"]: entry for entry in found["requests"]}


async def install(kit: Kit, entry: dict[str, Any], root: Ed25519PrivateKey = ROOT) -> int:
    """Sign one request as an operator does who has the root key; the status of the answer."""
    signature = root.sign(bytes.fromhex(entry["domain"]) + bytes.fromhex(entry["body"]))
    body = {"kind": entry["kind"], "body": entry["body"], "signature": signature.hex()}
    return (await kit.operator.post("/v1/keys/install", json=body)).status_code


async def install_all(kit: Kit) -> None:
    for entry in (await waiting(kit)).values():
        assert await install(kit, entry) == 204


def test_a_new_rack_starts_without_its_root_key_and_serves_once_it_has_signed() -> None:
    async def main() -> None:
        async with away() as kit:
            refused = (await kit.operator.get("/v1/keys")).json()
            assert refused["type"] == "urn:palisade:problem:root-key-needed"
            assert "rackctl keys request" in refused["detail"]
            assert (await kit.operator.get("/v1/volumes")).json() == {"volumes": []}
            assert set(await waiting(kit)) == {"key-set", "reply-key"}
            assert (await kit.operator.get("/v1/keys")).status_code == 409
            assert set(await waiting(kit)) == {"key-set", "reply-key"}
            await install_all(kit)
            assert await waiting(kit) == {}
            keys = (await kit.operator.get("/v1/keys")).json()
            assert (keys["root_key"], keys["root_key_needed"], keys["reply_key"]["number"]) == ("away", "", 1)
            primary, _, record = await kit.ready()
            await primary.client.renew(record.volume, epoch=1)

    asyncio.run(main())


def test_a_restart_needs_no_root_key() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store, policy=POLICY) as kit:
            primary, _, record = await kit.ready()
        async with away(store, seed=2) as again:
            head = again.restarted(
                type(primary)(primary.id, primary.key, primary.client, primary.transport, primary.log)
            )
            await head.client.view()
            await head.client.takeover(record.volume, expected_version=record.version, log_id=head.log)
            assert again.authority.root_needed == ""

    asyncio.run(main())


def test_a_rotation_waits_for_the_root_key_and_the_old_keys_go_on_signing() -> None:
    async def main() -> None:
        async with away() as kit:
            await install_all(kit)
            refused = await kit.operator.post("/v1/keys/rotate")
            assert (refused.status_code, refused.json()["type"]) == (409, "urn:palisade:problem:root-key-needed")
            assert [key["key_id"] for key in (await kit.operator.get("/v1/keys")).json()["keys"]] == [1]
            asked = (await waiting(kit))["key-set"]
            kit.clock.advance(86_400_000)  # the way to the root key and back takes a day
            assert await install(kit, asked) == 204
            keys = (await kit.operator.get("/v1/keys")).json()["keys"]
            now_ms = kit.clock.wall_ms()
            assert [(key["key_id"], key["signing"]) for key in keys] == [(1, True), (2, False)]
            assert keys[1]["use_from_ms"] == now_ms + POLICY.key_publish_ms
            assert keys[0]["retire_ms"] > now_ms + POLICY.key_publish_ms + POLICY.credential_term_ms

    asyncio.run(main())


def test_only_what_was_asked_last_is_installed_and_only_with_the_roots_signature() -> None:
    async def main() -> None:
        async with away() as kit:
            await install_all(kit)
            await kit.operator.post("/v1/keys/rotate")
            former = (await waiting(kit))["key-set"]
            await kit.operator.post("/v1/keys/rotate")
            latest = (await waiting(kit))["key-set"]
            assert await install(kit, former) == 409
            assert await install(kit, latest, Ed25519PrivateKey.from_private_bytes(bytes(32))) == 422
            assert await install(kit, {**latest, "kind": "time"}) == 404
            assert await install(kit, {**latest, "domain": former["domain"][:-2]}) == 422
            assert (await kit.operator.get("/v1/keys")).json()["version"] == 1
            assert await install(kit, latest) == 204
            assert await install(kit, latest) == 404
            assert (await kit.operator.get("/v1/keys")).json()["version"] == 2

    asyncio.run(main())


def test_private_keys_never_leave_with_a_request() -> None:
    async def main() -> None:
        async with away() as kit:
            text = (await kit.operator.get("/v1/keys/requests")).text
            stored = [entry.value.decode() for entry in (await kit.store.list("root-request/")).entries]
            assert len(stored) == 2
            private = [part[:64] for value in stored for part in value.split('"private":"')[1:]]
            assert len(private) == 2
            assert not any(secret in text for secret in private)

    asyncio.run(main())


def test_heads_hear_nothing_they_could_believe_before_a_reply_key_is_certified() -> None:
    async def main() -> None:
        async with away() as kit:
            assert await install(kit, (await waiting(kit))["key-set"]) == 204
            head = kit.newcomer()
            with pytest.raises(AuthorityUnavailable, match="root key"):
                await head.client.enrol(await kit.token(), name="head-1", addresses={})
            await install_all(kit)
            await head.client.enrol(await kit.token(), name="head-1", addresses={})
            await head.client.view()

    asyncio.run(main())


def test_what_waits_is_not_made_again_while_somebody_is_on_the_way_with_it() -> None:
    async def main() -> None:
        async with away() as kit:
            asked = await waiting(kit)
            for _ in range(3):
                await kit.operator.get("/v1/keys")
                await kit.authority.make_keys()
            assert await waiting(kit) == asked

    asyncio.run(main())


def test_a_root_key_that_comes_back_signs_what_waits() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with away(store) as kit:
            assert await waiting(kit)
        async with rack(store=store, seed=2) as kit:
            assert await waiting(kit) == {}
            await kit.ready()

    asyncio.run(main())


def test_a_key_that_should_leave_the_set_is_said_to_wait() -> None:
    async def main() -> None:
        store, clock = MemoryStore(), ManualClock()
        async with rack(store=store, clock=clock, policy=POLICY) as kit:
            await kit.operator.post("/v1/keys/rotate")
        clock.advance(800_000)
        async with away(store, clock, seed=2) as kit:
            keys = (await kit.operator.get("/v1/keys")).json()
            assert "root key is away" in keys["root_key_needed"]
            await install_all(kit)
            keys = (await kit.operator.get("/v1/keys")).json()
            assert (keys["root_key_needed"], [key["key_id"] for key in keys["keys"]]) == ("", [2])

    asyncio.run(main())


def test_a_key_in_a_file_is_read_when_it_signs_only(tmp_path: Path) -> None:
    async def main() -> None:
        path, env = tmp_path / "root.key", Environment(ManualClock(), SeededEntropy(1))
        root = FileRoot(path, env, may_create=True)
        async with asyncio.timeout(20), rack(root=root) as kit:
            path.rename(tmp_path / "safe")
            refused = await kit.operator.post("/v1/keys/rotate")
            assert (refused.status_code, str(path) in refused.json()["detail"]) == (409, True)
            (tmp_path / "safe").rename(path)
            assert (await kit.operator.post("/v1/keys/rotate")).status_code == 200
            path.unlink()
            FileRoot(path, Environment(ManualClock(), SeededEntropy(2)), may_create=True)
            assert (await kit.operator.post("/v1/keys/rotate")).json()["type"].endswith("root-key-unusable")

    asyncio.run(main())


def test_a_root_key_behind_a_command_signs_like_one_in_a_file(tmp_path: Path) -> None:
    script = tmp_path / "sign.py"
    script.write_text(
        "import sys\nfrom cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey\n"
        f"key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex({ROOT.private_bytes_raw().hex()!r}))\n"
        "sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))\n"
    )
    root = CommandRoot(shlex.join((sys.executable, str(script))), AWAY.public)

    async def main() -> None:
        async with asyncio.timeout(30), rack(root=root) as kit:
            assert (await kit.operator.get("/v1/keys")).json()["root_key"] == "command"
            head = await kit.enrolled("head-1")
            await head.client.view()
            script.write_text("raise SystemExit(3)\n")
            refused = await kit.operator.post("/v1/keys/rotate")
            assert (refused.status_code, "ended with status 3" in refused.json()["detail"]) == (409, True)
            await head.client.view()

    asyncio.run(main())


def test_another_root_than_the_racks_does_not_start() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store):
            pass
        with pytest.raises(RootKeyUnusable, match="belongs to"):
            async with rack(store=store, root=AwayRoot(bytes(32)), seed=2):
                pass

    asyncio.run(main())


def test_no_later_request_takes_the_place_of_one_that_takes_stolen_keys_out_at_once() -> None:
    async def main() -> None:
        async with away() as kit:
            await install_all(kit)
            assert (await kit.operator.post("/v1/keys/rotate", json={"now": True})).status_code == 409
            asked = (await waiting(kit))["key-set"]
            assert (await kit.operator.post("/v1/time", json={"now_ms": kit.clock.wall_ms()})).status_code == 200
            assert (await kit.operator.post("/v1/keys/rotate")).status_code == 409
            assert (await waiting(kit))["key-set"] == asked
            assert await install(kit, asked) == 204
            assert [key["key_id"] for key in (await kit.operator.get("/v1/keys")).json()["keys"]] == [2]

    asyncio.run(main())
