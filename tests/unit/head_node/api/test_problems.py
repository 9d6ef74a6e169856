"""Bad input to the REST interface: each gets a problem document, and nothing else happens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.authority import URL, Kit, run

from head_node.api.wrapping import BODIES_BYTES_MAX, BODY_BYTES_FREE, BODY_BYTES_MAX

JSON = {"content-type": "application/json"}


def check_problem(reply: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = reply.json()
    assert document["type"] == "urn:palisade:problem:" + slug
    assert document["status"] == status
    assert document["title"]
    assert isinstance(document["detail"], str)
    return document


@pytest.mark.parametrize(
    "body", [b"", b"{", b"not json", b"\xff\xfe", b"[" * 200_000, b'{"name": "v", "size_bytes": 1' + b"0" * 5000 + b"}"]
)
def test_a_body_that_is_not_json(body: bytes) -> None:
    async def scenario(kit: Kit) -> None:
        reply = await kit.operator.post("/v1/volumes", content=body, headers=JSON)
        assert reply.status_code in (400, 422), reply.text
        check_problem(reply, reply.status_code, "not-json" if reply.status_code == 400 else "invalid-request")
        assert (await kit.operator.get("/v1/volumes")).json() == {"volumes": []}

    run(scenario)


@pytest.mark.parametrize("size", [0, -1, -4096, 1, 4095, 4097, 2**70, 2**56 + 4096, 4096.0, "4096", True, None, [4096]])
def test_sizes_that_no_volume_has(size: object) -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        reply = await kit.operator.post("/v1/volumes", json={"name": "v", "size_bytes": size})
        assert "size_bytes" in check_problem(reply, 422, "invalid-request")["detail"]
        assert (await kit.operator.get("/v1/volumes")).json() == {"volumes": []}

    run(scenario)


@pytest.mark.parametrize("name", ["", "-v", "a b", "a/b", "x" * 64, "ü", "..", 7, None, "v\n"])
def test_names_that_no_volume_has(name: object) -> None:
    async def scenario(kit: Kit) -> None:
        reply = await kit.operator.post("/v1/volumes", json={"name": name, "size_bytes": 4096})
        assert "name" in check_problem(reply, 422, "invalid-request")["detail"]

    run(scenario)


def test_a_name_in_use_is_a_conflict() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds()
        body = {"name": "v", "size_bytes": 4096}
        replies = await asyncio.gather(*(kit.operator.post("/v1/volumes", json=body) for _ in range(5)))
        assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409, 409]
        check_problem(await kit.operator.post("/v1/volumes", json=body), 409, "conflict")

    run(scenario)


def test_a_volume_without_room_for_it_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        body = {"name": "v", "size_bytes": 1 << 30}
        check_problem(await kit.operator.post("/v1/volumes", json=body), 409, "unplaceable")
        await kit.enrolled("head-1")
        await kit.sleds(5)
        check_problem(await kit.operator.post("/v1/volumes", json=body), 409, "unplaceable")
        assert (await kit.operator.get("/v1/volumes")).json() == {"volumes": []}

    run(scenario)


def test_sleds_that_are_too_small_take_no_volume() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.enrolled("head-1")
        await kit.sleds(6, capacity_blocks=10_000)
        sizes = [1 << 20, 1 << 30]
        replies = [
            await kit.operator.post("/v1/volumes", json={"name": f"v{size}", "size_bytes": size}) for size in sizes
        ]
        assert replies[0].status_code == 201
        assert "0 have room" in check_problem(replies[1], 409, "unplaceable")["detail"]

    run(scenario)


def test_unknown_fields_paths_methods_and_ids() -> None:
    async def scenario(kit: Kit) -> None:
        body = {"name": "v", "size_bytes": 4096, "colour": "red"}
        check_problem(await kit.operator.post("/v1/volumes", json=body), 422, "invalid-request")
        check_problem(await kit.operator.get("/v1/nothing"), 404, "not-found")
        check_problem(await kit.operator.patch("/v1/volumes"), 405, "method-not-allowed")
        check_problem(await kit.operator.get("/v1/volumes/nothing"), 404, "not-found")
        check_problem(await kit.operator.delete("/v1/volumes/" + "0" * 32), 404, "not-found")
        check_problem(await kit.operator.post("/v1/heads/nobody/revoke"), 404, "not-found")
        check_problem(await kit.operator.get("/v1/events?after=-1"), 422, "invalid-request")
        check_problem(await kit.operator.post("/v1/volumes/x/recover", json={"epoch": 1}), 404, "not-found")

    run(scenario)


def test_operators_need_the_token() -> None:
    async def scenario(kit: Kit) -> None:
        for value in (None, "Bearer", "Bearer wrong", "Basic abc", "Bearer " + "0" * 64):
            headers = {} if value is None else {"authorization": value}
            async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app), base_url=URL) as http:
                reply = await http.get("/v1/volumes", headers=headers)
            check_problem(reply, 401, "unauthorised")
            assert "www-authenticate" in reply.headers

    run(scenario)


def test_an_oversized_body_is_refused_before_it_is_read() -> None:
    async def scenario(kit: Kit) -> None:
        taken = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while True:
                taken += 65536
                yield bytes(65536)

        reply = await kit.operator.post("/v1/volumes", content=endless(), headers=JSON)
        check_problem(reply, 413, "content-too-large")
        assert taken <= BODY_BYTES_MAX + 2 * 65536
        announced = await kit.operator.post("/v1/volumes", content=bytes(BODY_BYTES_MAX + 1), headers=JSON)
        check_problem(announced, 413, "content-too-large")
        nonsense = await kit.operator.post("/v1/volumes", content=b"{}", headers=JSON | {"content-length": "-5"})
        check_problem(nonsense, 413, "content-too-large")

    run(scenario)


def test_many_long_bodies_at_once_are_refused_and_short_ones_are_not() -> None:
    async def scenario(kit: Kit) -> None:
        open_end = asyncio.Event()
        taken = asyncio.Event()
        count = BODIES_BYTES_MAX // (BODY_BYTES_MAX - BODY_BYTES_FREE)

        async def slow(arrived: list[int]) -> AsyncIterator[bytes]:
            yield b'{"name": "' + b"a" * (BODY_BYTES_MAX - 20)
            arrived.append(1)
            if len(arrived) == count:
                taken.set()
            await open_end.wait()
            yield b'"}'

        arrived: list[int] = []
        held = [
            asyncio.create_task(kit.operator.post("/v1/volumes", content=slow(arrived), headers=JSON))
            for _ in range(count)
        ]
        await taken.wait()
        long = await kit.operator.post("/v1/volumes", content=b" " * BODY_BYTES_MAX, headers=JSON)
        assert "try again" in check_problem(long, 503, "unavailable")["detail"]
        short = await kit.operator.post("/v1/volumes", content=b" " * BODY_BYTES_FREE, headers=JSON)
        check_problem(short, 400, "not-json")
        open_end.set()
        for reply in await asyncio.gather(*held):
            check_problem(reply, 422, "invalid-request")
        again = await kit.operator.post("/v1/volumes", content=b" " * BODY_BYTES_MAX, headers=JSON)
        check_problem(again, 400, "not-json")

    run(scenario)


def test_a_failing_store_is_said_to_be_unavailable() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.store.close()
        check_problem(await kit.operator.get("/v1/volumes"), 503, "unavailable")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app), base_url=URL) as http:
            check_problem(await http.get("/readyz"), 503, "unavailable")
            assert (await http.get("/healthz")).status_code == 200

    run(scenario)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = ["/v1/volumes", "/v1/sleds", "/v1/join-tokens", "/v1/heads", "/v1/volumes/x/recover", "/v1/evidence"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(PATHS), json_values), min_size=1, max_size=8))
def test_no_json_gets_an_internal_error(bodies: list[tuple[str, object]]) -> None:
    async def scenario(kit: Kit) -> None:
        for path, body in bodies:
            reply = await kit.operator.post(path, content=json.dumps(body).encode(), headers=JSON)
            assert reply.status_code < 500, (path, body, reply.text)
            if reply.status_code >= 400:
                assert reply.headers["content-type"] == "application/problem+json"

    run(scenario)
