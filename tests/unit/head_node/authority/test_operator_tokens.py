"""Tokens of operators: made, used, run out, revoked; and what the store holds of them."""

import asyncio
import hashlib
import re
from pathlib import Path

import httpx
import pytest
from kit.authority import Kit, rack, run

from head_node.authority.ledger import operator_token_key
from head_node.authority.operator_tokens import TOKENS_MAX
from head_node.store.memory import MemoryStore

DAY_S = 86_400


async def made(kit: Kit, name: str, role: str = "viewer", **more: object) -> dict[str, str]:
    reply = await kit.operator.post("/v1/tokens", json={"name": name, "role": role, **more})
    assert reply.status_code == 201, reply.text
    found: dict[str, str] = reply.json()
    return found


async def ask(kit: Kit, token: str, path: str = "/v1/volumes") -> httpx.Response:
    return await kit.operator.get(path, headers={"authorization": f"Bearer {token}"})


def test_a_token_has_a_name_a_role_and_an_end_and_is_shown_once() -> None:
    async def scenario(kit: Kit) -> None:
        token = await made(kit, "night-shift", "operator", valid_s=DAY_S)
        (listed,) = [
            one for one in (await kit.operator.get("/v1/tokens")).json()["tokens"] if one["name"] == "night-shift"
        ]
        assert listed == {key: value for key, value in token.items() if key != "token"}
        assert listed["expires_ms"] == kit.clock.wall_ms() + DAY_S * 1000
        assert listed["created_by"].startswith("token:bootstrap:")
        assert (await ask(kit, token["token"])).status_code == 200
        for wrong in ({"role": "root"}, {"valid_s": None}, {"valid_s": 0}, {"valid_s": 367 * DAY_S}, {"name": "a b"}):
            body = {"name": "other", "role": "viewer", **wrong}
            assert (await kit.operator.post("/v1/tokens", json=body)).status_code == 422, wrong
        again = await kit.operator.post("/v1/tokens", json={"name": "night-shift", "role": "viewer"})
        assert again.status_code == 409

    run(scenario)


def test_nothing_that_the_store_holds_is_a_token() -> None:
    """Neither the operators' own one nor one of theirs can be read from the store, or from a backup of it."""

    async def scenario(kit: Kit) -> None:
        token = (await made(kit, "admin", "admin"))["token"]
        first = kit.operator.headers["authorization"].removeprefix("Bearer ")
        await kit.operator.delete("/v1/tokens/absent", headers={"authorization": f"Bearer {token}"})
        stored = b"".join(entry.value for entry in (await kit.store.list("")).entries)
        stored += b"".join(line.value for line in await kit.store.journal(0, 1000))
        for text in (token, first):
            assert text.removeprefix("po1.").encode() not in stored
        for known in set(re.findall(r"[0-9a-f]{64}", stored.decode())):
            for guess in (known, f"po1.{known}"):
                assert (await ask(kit, guess)).status_code == 401

    run(scenario)


@pytest.mark.parametrize("set_back", [False, True])
def test_an_expired_token_is_refused_and_stays_so(set_back: bool) -> None:
    async def scenario(kit: Kit) -> None:
        token = (await made(kit, "short", valid_s=60))["token"]
        kit.clock.advance(59_999)
        assert (await ask(kit, token)).status_code == 200
        kit.clock.advance(1)
        refused = await ask(kit, token)
        assert (refused.status_code, "expired" in refused.json()["detail"]) == (401, True)
        await kit.authority.tokens.clear_expired()
        if set_back:
            kit.clock.advance(-60_000)
        assert (await ask(kit, token)).status_code == 401
        assert "short" not in str((await kit.operator.get("/v1/tokens")).json())
        assert (await made(kit, "short"))["token"] != token

    run(scenario)


def test_a_revoked_token_is_worthless_at_once_by_name_or_id() -> None:
    async def scenario(kit: Kit) -> None:
        one, two = await made(kit, "one"), await made(kit, "two")
        for token, called in ((one, one["name"]), (two, two["id"])):
            assert (await ask(kit, token["token"])).status_code == 200
            assert (await kit.operator.delete(f"/v1/tokens/{called}")).status_code == 204
            assert (await ask(kit, token["token"])).status_code == 401
            assert (await kit.operator.delete(f"/v1/tokens/{called}")).status_code == 404

    run(scenario)


def test_a_token_is_found_by_all_of_it() -> None:
    async def scenario(kit: Kit) -> None:
        token = (await made(kit, "one"))["token"]
        other = token[:-1] + ("0" if token[-1] != "0" else "1")
        for wrong in (other, token[:-1], token + "0", token.upper(), token.removeprefix("po1."), "po1.", "é" * 68):
            header = f"Bearer {wrong}".encode()
            reply = await kit.operator.get("/v1/volumes", headers={b"authorization": header})
            assert reply.status_code == 401, wrong

    run(scenario)


def test_a_token_with_the_id_of_another_one_is_refused() -> None:
    """The id is a part of the hash: whatever has that part in common has to differ in the rest."""

    async def scenario(kit: Kit) -> None:
        token, guess = await made(kit, "one", "admin"), "po1." + "ab" * 32
        kept = await kit.authority.ledger.json(operator_token_key(token["id"]))
        assert kept is not None
        forged = operator_token_key(hashlib.sha256(guess.encode()).hexdigest()[:16])
        await kit.authority.ledger.commit(compare={}, put={forged: kept.value})
        assert (await ask(kit, guess)).status_code == 401
        assert (await ask(kit, token["token"])).status_code == 200

    run(scenario)


def test_tokens_are_bounded_in_number() -> None:
    async def scenario(kit: Kit) -> None:
        for number in range(TOKENS_MAX - 1):
            await made(kit, f"t{number}")
        full = await kit.operator.post("/v1/tokens", json={"name": "more", "role": "viewer"})
        assert full.status_code == 409

    run(scenario)


def test_a_revoked_bootstrap_token_stays_revoked_over_a_restart_until_its_file_is_removed() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store) as kit:
            first = await kit.authority.operator_token(None)
            assert await kit.authority.operator_token(first) == first
            kit.operator.headers["authorization"] = f"Bearer {first}"
            assert (await kit.operator.delete("/v1/tokens/bootstrap")).status_code == 204
        async with rack(store=store, seed=2, bootstrap=first) as again:
            assert (await ask(again, first)).status_code == 401
            fresh = await again.authority.operator_token(None)
            assert (await ask(again, fresh)).status_code == 200
            assert (await ask(again, first)).status_code == 401

    asyncio.run(asyncio.wait_for(main(), 20))


def test_tokens_of_a_restored_store_are_worthless(tmp_path: Path) -> None:
    """The backup does not know which of them were revoked since."""

    async def main() -> None:
        async with rack() as kit:
            operators = (await made(kit, "old", "admin"))["token"]
            heads = await kit.token(uses=3)
            first = kit.operator.headers["authorization"].removeprefix("Bearer ")
            await kit.store.backup(tmp_path / "copy")
        store = MemoryStore.from_backup(tmp_path / "copy")
        async with rack(store=store, seed=7, bootstrap=first) as restored:
            assert (await ask(restored, operators)).status_code == 401
            assert (await ask(restored, first)).status_code == 401
            assert (await restored.operator.get("/v1/volumes")).status_code == 200
            assert (await restored.operator.get("/v1/join-tokens")).json() == {"tokens": []}
            assert heads.split(".")[1] not in str(await restored.authority.nodes.tokens())

    asyncio.run(asyncio.wait_for(main(), 20))
