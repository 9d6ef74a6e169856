"""Every route says who may use it, and keeps everybody else out."""

import json
import re
from collections.abc import Mapping
from itertools import product

import httpx
import pytest
from fastapi import APIRouter
from kit.authority import URL, Kit, run

from head_node.api.access import ADMIN, VIEWER, state_access
from head_node.api.openapi import document
from head_node.authority.operator_tokens import Role

ROUTES = [
    (method, path, operation["x-access"])
    for path, methods in json.loads(document())["paths"].items()
    for method, operation in methods.items()
]
PLACES = {"volume": "00000000-0000-0000-0000-000000000001", "sled": "00000000-0000-0000-0000-000000000002"}
LEAST = {
    "viewer": {
        *("listVolumes", "inspectVolume", "listUnreadable", "listCleanups", "listHosts", "listNodes", "listHeads"),
        *("listSleds", "listJoinTokens", "listKeys", "listEvents", "readAudit", "showTime", "listUnfenced"),
    },
    "operator": {
        *("createVolume", "setVolumePolicy", "deleteVolume", "admitHost", "expelHost", "setHostSecret"),
        *("removeHostSecret", "freezeVolume"),
    },
    "public": {"healthz", "readyz", "readCa"},
    "newcomer": {"enrolHead"},
}
"""What is in no set takes an admin, or the signature of a head."""


async def header_of(kit: Kit, role: str) -> Mapping[str, str]:
    made = await kit.operator.post("/v1/tokens", json={"name": role, "role": role})
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['token']}"}


def slug(reply: httpx.Response) -> str:
    kind = reply.json().get("type", "") if reply.status_code >= 400 else ""
    return str(kind).rpartition(":")[2]


def test_every_route_admits_its_role_and_those_above_and_nobody_else() -> None:
    """All routes by all roles: a request that gets past the door is refused for what it says, or answered."""

    async def scenario(kit: Kit) -> None:
        strangers: dict[str, Mapping[str, str]] = {
            "nobody": {},
            "wrong": {"authorization": "Bearer po1." + "0" * 64},
            "basic": {"authorization": "Basic b3BlcmF0b3I6"},
        }
        roles = {role.value: await header_of(kit, role.value) for role in Role}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app), base_url=URL) as http:
            for (method, path, access), (who, headers) in product(ROUTES, (strangers | roles).items()):
                place = re.sub(r"\{(\w+)\}", lambda found: PLACES.get(found[1], "absent"), path)
                reply = await http.request(method, place, headers=headers, json=None if method == "get" else {})
                said = f"{who} at {method} {path}: {reply.status_code} {reply.text:.200}"
                if access == "public":
                    assert reply.status_code in (200, 404), said
                elif access in ("head", "newcomer"):
                    # A body that is none is refused before its proof is looked at; nothing else is answered.
                    assert slug(reply) in ("unauthorised", "invalid-request"), said
                elif who in strangers:
                    assert slug(reply) == "unauthorised", said
                elif not Role(who).includes(Role(access)):
                    assert (reply.status_code, slug(reply)) == (403, "not-allowed"), said
                else:
                    assert slug(reply) not in ("unauthorised", "not-allowed"), said

    run(scenario)


def test_the_roles_are_what_the_manual_says() -> None:
    stated: dict[str, set[str]] = {}
    for methods in json.loads(document())["paths"].values():
        for operation in methods.values():
            stated.setdefault(operation["x-access"], set()).add(operation["operationId"])
    assert set(stated) == {"public", "newcomer", "head", "viewer", "operator", "admin"}
    assert {access: stated[access] for access in LEAST} == LEAST


def test_a_route_that_states_nothing_keeps_the_authority_from_starting() -> None:
    for dependencies in ([], [VIEWER, ADMIN]):
        router = APIRouter(prefix="/v1")

        @router.get("/new", dependencies=dependencies)
        async def new() -> None: ...

        with pytest.raises(ValueError, match="GET /v1/new states"):
            state_access(router)


def test_a_change_by_a_lesser_role_changes_nothing() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        viewer, operator = await header_of(kit, "viewer"), await header_of(kit, "operator")
        path = f"/v1/volumes/{record.volume}"
        for headers, method, place, body in (
            (viewer, "DELETE", path, None),
            (viewer, "POST", path + "/freeze", None),
            (viewer, "POST", path + "/hosts", {"nqn": "*"}),
            (operator, "POST", path + "/recover", {"epoch": 1}),
            (operator, "POST", f"/v1/heads/{primary.id}/revoke", None),
            (operator, "POST", "/v1/keys/rotate", None),
            (operator, "POST", "/v1/tokens", {"name": "more", "role": "admin"}),
            (operator, "POST", "/v1/join-tokens", None),
        ):
            reply = await kit.operator.request(method, place, json=body, headers=headers)
            assert (reply.status_code, slug(reply)) == (403, "not-allowed"), place
        assert await kit.record(record.volume) == record
        assert (await kit.operator.post(path + "/hosts", json={"nqn": "*"}, headers=operator)).status_code == 200
        assert (await kit.operator.get(path, headers=viewer)).status_code == 200

    run(scenario)
