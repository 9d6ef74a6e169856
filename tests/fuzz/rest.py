"""The authority's REST interface against its OpenAPI document: stories of requests, valid and invalid, at a live rack.

Requests are drawn from the document by schemathesis; most are then given what earlier answers told (ids, names, epochs,
versions, claims, tokens), so that they reach what lies behind "not found". Requests of heads are signed with the key of
an enrolled head, so that the parser behind the signature is reached. Whatever is answered must be in the document.
"""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import httpx
import jsonschema_rs
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from kit.authority import URL, Head, Kit, rack
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    status_code_conformance,
)

from head_node.api.openapi import document
from head_node.authority import signatures
from head_node.authority.joining import JoinToken

STEPS_MAX: Final = 12
STORY_SECONDS_MAX: Final = 60.0
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
_DOCUMENT: Final = json.loads(document())


def _open_document() -> dict[str, Any]:
    """The document without what it says of tokens, which the stories see to."""
    opened: dict[str, Any] = json.loads(document())
    for path in opened["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
    return opened


_OPERATIONS: Final = [found.ok() for found in schemathesis.openapi.from_dict(_open_document()).get_all_operations()]
_CHANGING: Final = [operation for operation in _OPERATIONS if operation.method != "get"]
_KINDS: Final = (GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
# What a member of an answer, or of a request, is called elsewhere.
_SAME: Final = {"expected_version": "version", "token_id": "id", "token": "id", "head": "id", "sled": "id"}


class Story:
    """One rack, what its answers have told so far, and the requests that use it."""

    def __init__(self, kit: Kit, heads: list[Head], draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._kit = kit
        self._heads = heads
        self._draw = draw
        self._told: dict[str, list[Any]] = {"log": [str(head.log) for head in heads], "claim": ["0" * 32, "1" * 32]}

    async def step(self) -> None:
        """One request, and all checks of its answer."""
        operation = self._draw(st.sampled_from(_CHANGING if self._draw(st.integers(0, 3)) else _OPERATIONS))
        mode = self._draw(st.sampled_from(_KINDS))
        case = self._draw(_cases(operation, mode))
        if mode is GenerationMode.POSITIVE and self._draw(st.integers(0, 3)):
            self._inform(case)
        try:
            reply = await self._send(case, operation)
        except httpx.InvalidURL:
            return  # longer than httpx sends, or with a control character in it
        _check(case, reply)
        if reply.status_code < 300 and reply.content:
            self.know(reply.json())

    def _inform(self, case: Case) -> None:
        """Put what is known into the places that are called so."""
        for name in case.path_parameters:
            case.path_parameters[name] = self._known(name, case.path_parameters[name])
        if isinstance(case.body, dict):
            case.body = self._informed(case.body)
        if case.operation.definition.raw["operationId"] == "enrolHead" and "token" in self._told:
            self._invite(case)

    def _informed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._known(name, self._informed(inner)) for name, inner in value.items()}
        return [self._informed(inner) for inner in value] if isinstance(value, list) else value

    def _known(self, name: str, value: Any) -> Any:
        choice = [*self._told.get(name, ()), *self._told.get(_SAME.get(name, ""), ())]
        if isinstance(value, dict | list) or not choice or not self._draw(st.integers(0, 4)):
            return value
        return self._draw(st.sampled_from(choice))

    def _invite(self, case: Case) -> None:
        """Make an enrolment honest: the proof of a token that was given out."""
        token = JoinToken.parse(self._draw(st.sampled_from(self._told["token"])))
        newcomer = self._kit.newcomer()
        self._heads.append(newcomer)
        case.body |= {
            "id": str(newcomer.id),
            "public_key": newcomer.public.hex(),
            "token_id": token.id,
            "proof": token.proof(newcomer.id, newcomer.public).hex(),
        }

    def know(self, answer: Any) -> None:
        """Keep ids, names, numbers and secrets of an answer, the latest twenty of each name."""
        if isinstance(answer, list):
            for inner in answer:
                self.know(inner)
        elif isinstance(answer, dict):
            for name, value in answer.items():
                if isinstance(value, str | int):
                    self._told.setdefault(name, []).append(value)
                    del self._told[name][:-20]
                self.know(value)

    async def _send(self, case: Case, operation: APIOperation[Any, Any, Any, Any]) -> httpx.Response:
        parts = case.as_transport_kwargs(URL)
        query = dict(parts.get("params") or {})
        if str(query.get("wait_ms", "")).isdigit():
            query["wait_ms"] = min(int(query["wait_ms"]), 2)  # valid as well, and nobody waits for a minute
        headers = {name: value for name, value in (parts.get("headers") or {}).items() if _sendable(value)}
        request = httpx.Request(
            parts["method"], parts["url"], params=query, headers=headers,
            **{name: parts[name] for name in ("json", "files") if name in parts},
            content=parts.get("data"),
        )  # fmt: skip
        request.read()
        proven = self._draw(st.integers(0, 9)) > 0
        tags = operation.definition.raw["tags"]
        if proven and "operators" in tags:
            request.headers["authorization"] = self._kit.operator.headers["authorization"]
        if proven and "heads" in tags:
            self._sign(request, case)
        reply = await self._kit.operator.send(request)
        assert proven or "health" in tags or reply.status_code >= 400, "nobody had proved anything"
        return reply

    def _sign(self, request: httpx.Request, case: Case) -> None:
        signer = self._draw(st.sampled_from(self._heads))
        if case.operation.definition.raw["operationId"] == "enrolHead":
            signer = self._heads[-1]
        self._kit.clock.advance(1)
        sign(request, signer.id, signer.key, self._kit)


def sign(request: httpx.Request, head: UUID, key: Ed25519PrivateKey, kit: Kit) -> None:
    """Sign a request as a head does (RFC 9421)."""
    digest = signatures.content_digest(request.content)
    instance = kit.authority.authenticator.instance
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    values = signatures.request_values(request.method, request.headers["host"], path, query, instance, digest)
    request.headers["content-digest"] = digest
    request.headers[signatures.INSTANCE_HEADER] = instance
    request.headers.update(
        signatures.sign(
            values, key, key_id=str(head), created_s=kit.clock.wall_ms() // 1000,
            nonce=kit.env.entropy.bytes(16).hex(), tag=signatures.REQUEST_TAG,
        )
    )  # fmt: skip


def _cases(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> st.SearchStrategy[Case]:
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        mode = GenerationMode.POSITIVE  # there is nothing that could be wrong
    return operation.as_strategy(generation_mode=mode)


def _sendable(value: str) -> bool:
    return value.isascii() and value.isprintable()


def _check(case: Case, reply: httpx.Response) -> None:
    case.validate_response(reply, checks=CHECKS)
    if reply.content:
        _validator(case.path, case.method.lower(), reply.status_code).validate(reply.json())
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json", reply.text
        problem = reply.json()
        assert problem["status"] == reply.status_code
        assert problem["type"].startswith("urn:palisade:problem:")


@functools.cache
def _validator(path: str, method: str, status: int) -> jsonschema_rs.Draft202012Validator:
    """Of the documented body. schemathesis' own check rewrites tuples in place and then finds them malformed."""
    responses = _DOCUMENT["paths"][path][method]["responses"]
    described = responses.get(str(status)) or responses[f"{status // 100}XX"]
    (content,) = described["content"].values()
    return jsonschema_rs.Draft202012Validator({**content["schema"], "components": _DOCUMENT["components"]})


async def _tell(draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    async with asyncio.timeout(STORY_SECONDS_MAX), rack() as kit:
        primary, secondary, record = await kit.ready()
        story = Story(kit, [primary, secondary], draw)
        story.know(record.to_json() | {"claim": primary.client._claim(record.volume, record.epoch)})
        for _ in range(draw(st.integers(1, STEPS_MAX))):
            await story.step()


def stories(number: int, count: int, *, shrink: bool = True) -> None:
    """Tell `count` stories that follow from `number`. Raises what a check found, with the shortest story."""

    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def tell(data: st.DataObject) -> None:
        asyncio.run(_tell(data.draw))

    tell()
