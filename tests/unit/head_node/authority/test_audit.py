"""The audit trail: every change is in it, with who, what, from where and what came of it; a head cannot write it."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from kit.authority import URL, Kit, RecordingFencer, rack, run

from head_node.authority.audit import LINE_BYTES_MAX, PAGE_MAX, PENDING_MAX, Audit
from head_node.authority.authority import Policy
from head_node.store.errors import StoreFailed
from head_node.store.memory import MemoryStore

JSON = {"content-type": "application/json"}


async def trail(kit: Kit, page: int = 7) -> list[dict[str, Any]]:
    """All of it, in pages, as an operator reads it."""
    await kit.authority.audit.flush()
    found: list[dict[str, Any]] = []
    while True:
        after = found[-1]["sequence"] if found else 0
        lines = (await kit.operator.get(f"/v1/audit?after={after}&limit={page}")).json()["lines"]
        if not lines:
            return found
        found += lines


def test_each_change_says_who_what_from_where_and_with_which_result() -> None:
    async def scenario(kit: Kit) -> None:
        made = await kit.operator.post("/v1/tokens", json={"name": "ops", "role": "operator"})
        token = made.json()
        transport = httpx.ASGITransport(kit.app, client=("192.0.2.9", 4711))
        headers = {"authorization": f"Bearer {token['token']}"}
        async with httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as ops:
            assert (await ops.post("/v1/volumes", json={"name": "v", "size_bytes": 1 << 20})).status_code == 409
            assert (await ops.post("/v1/keys/rotate")).status_code == 403
            assert (await ops.delete("/v1/volumes/absent")).status_code == 404
            assert (await ops.get("/v1/volumes")).status_code == 200
            assert (await ops.post("/v1/volumes", content=b"{", headers=JSON)).status_code == 400
        await kit.operator.delete("/v1/tokens/ops")
        found = await trail(kit)
        actor, first = f"token:ops:{token['id']}", found[0]["actor"]
        said = [(line["actor"], line["source"], line["action"], line["result"]) for line in found]
        asked = [one for one in said if one[3]]
        assert asked == [
            (found[-1]["actor"], "127.0.0.1:123", "createToken", "201"),
            (actor, "192.0.2.9:4711", "createVolume", "409"),
            (actor, "192.0.2.9:4711", "rotateKeys", "403"),
            (actor, "192.0.2.9:4711", "deleteVolume", "404"),
            (found[-1]["actor"], "127.0.0.1:123", "revokeToken", "204"),
        ]
        assert first == "authority", "the first token was made by nobody's request"
        assert found[-1]["target"] == "/v1/tokens/ops"
        assert [line["sequence"] for line in found] == sorted({line["sequence"] for line in found})

    run(scenario)


def test_what_matters_is_in_the_trail_under_the_name_of_who_caused_it() -> None:
    """Takeovers, revocations, fences, keys, tokens, freezes and forced operations."""

    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        await kit.operator.post("/v1/keys/rotate")
        await kit.operator.post(f"/v1/heads/{secondary.id}/revoke")
        await kit.operator.post(f"/v1/volumes/{record.volume}/freeze")
        await kit.operator.post("/v1/volumes/v/lost", json={"first": 0, "blocks": 1})
        found = await trail(kit)
        by = {line["action"]: line["actor"] for line in found}
        assert by["takeover"] == by["members-changed"].replace(str(primary.id), str(secondary.id))
        assert by["takeover"] == f"head:{secondary.id}"
        operator = by["revokeHead"]
        assert operator.startswith("token:bootstrap:")
        for action in ("keys-rotated", "head-revoked", "fenced-now", "volume-frozen", "head-withdrawn"):
            assert by[action] == operator, action
        assert by["head-enrolled"].startswith("head:")
        fenced = next(line for line in found if line["action"] == "fenced-now")
        assert set(fenced["details"]["sleds"].values()) == {"fenced"}
        assert fenced["target"] == str(record.volume)

    run(scenario, fencer=RecordingFencer())


def test_no_secret_gets_into_the_trail() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.ready()
        secret = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"
        await kit.operator.put("/v1/volumes/v/host-secrets/nqn.2014-08.org:h", json={"secret": secret})
        join = await kit.token()
        token = (await kit.operator.post("/v1/tokens", json={"name": "t", "role": "admin"})).json()["token"]
        text = json.dumps(await trail(kit))
        for hidden in (secret[10:50], join.split(".")[2], token[4:], kit.operator.headers["authorization"][11:]):
            assert hidden not in text

    run(scenario)


def test_a_head_writes_nothing_into_the_trail_and_washes_nothing_out() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        before = await trail(kit)
        event = {"kind": "fenced-off", "volume": str(record.volume)}
        for kind in ("fenced-off", "takeover", "head-revoked"):
            await primary.client.report({"events": [event | {"kind": kind}] * 64})
        assert await trail(kit) == before
        # What it may ask for is written under its name: no other line goes for it.
        for _ in range(60):
            record, _ = await secondary.client.takeover(
                record.volume, expected_version=record.version, log_id=secondary.log
            )
        after = await trail(kit)
        flood = f"head:{secondary.id}"
        assert [line for line in after if line["actor"] != flood] == [line for line in before if line["actor"] != flood]
        assert len(after) == 40
        assert after[-1]["details"]["epoch"] == record.epoch

    run(scenario, policy=Policy(audit_lines_max=40))


def test_strangers_leave_no_line() -> None:
    async def scenario(kit: Kit) -> None:
        before = await trail(kit)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app), base_url=URL) as stranger:
            for headers in ({}, {"authorization": "Bearer po1." + "0" * 64}):
                assert (await stranger.post("/v1/keys/rotate", headers=headers)).status_code == 401
        assert (await kit.operator.post("/v1/keys/rotate", headers={"authorization": "Bearer x"})).status_code == 401
        assert await trail(kit) == before

    run(scenario)


def test_a_change_is_durable_in_the_trail_before_it_is_answered() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with rack(store=store) as kit:
            await kit.operator.post("/v1/keys/rotate")
            last = (await store.journal(0, PAGE_MAX))[-1]
            assert json.loads(last.value)["action"] == "rotateKeys"
        async with rack(store=store, seed=2) as again:
            assert [line["action"] for line in await trail(again)].count("rotateKeys") == 1

    asyncio.run(asyncio.wait_for(main(), 20))


def test_lines_wait_for_a_store_that_fails_in_bounded_number_and_their_loss_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(kit: Kit) -> None:
        async def failing(*arguments: object) -> int:
            raise StoreFailed("the disk is full")

        before = len(await trail(kit))
        with monkeypatch.context() as broken:
            broken.setattr(kit.store, "append", failing)
            assert (await kit.operator.post("/v1/keys/rotate")).status_code == 200
            for _ in range(PENDING_MAX + 3):
                kit.authority.audit.note("something")
        await kit.authority.audit.flush()
        found = await trail(kit, PAGE_MAX)
        assert [line["action"] for line in found[before:][:2]] == ["keys-rotated", "rotateKeys"]
        assert len(found) == before + PENDING_MAX + 1
        assert (found[-1]["action"], found[-1]["details"]) == ("audit-lines-lost", {"count": 5})

    run(scenario)


def test_lines_are_bounded_and_without_control_characters() -> None:
    async def scenario(kit: Kit) -> None:
        audit: Audit = kit.authority.audit
        audit.note("x", target="\x1b[2J" + "a" * 5000, details={"reason": "b" * 5000})
        await kit.operator.delete("/v1/volumes/%1b%5b2J%0a")
        await kit.operator.delete(f"/v1/cleanups/{uuid4()}/sleds/{uuid4()}")
        for line in await kit.store.journal(0, PAGE_MAX):
            assert len(line.value) <= LINE_BYTES_MAX
        assert all(line["target"].isprintable() for line in await trail(kit))

    run(scenario)
