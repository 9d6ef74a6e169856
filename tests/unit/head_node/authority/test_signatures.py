"""Forged, moved, old and repeated requests, and answers of somebody else."""

import asyncio
import base64
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kit.authority import URL, Kit, LosingTransport, rack, run, send_again

from head_node.authority import signatures
from head_node.authority.client import AuthorityClient
from head_node.authority.errors import AuthorityUnavailable, NotEligible, TooMany, Unauthorised
from head_node.authority.replay import NONCES_PER_KEY_MAX, ReplayWindow
from head_node.store.memory import MemoryStore


def slug(reply: httpx.Response) -> str:
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json()["type"]).rpartition(":")[2]


def test_a_repeated_request_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, record = await kit.ready()
        await secondary.client.takeover(record.volume, expected_version=record.version, log_id=secondary.log)
        before = await kit.record(record.volume)
        reply = await send_again(kit, secondary)
        assert (reply.status_code, slug(reply)) == (401, "unauthorised")
        assert "received before" in reply.json()["detail"]
        assert await kit.record(record.volume) == before
        assert (await primary.client.view()).volumes[record.volume] == before

    run(scenario)


def test_nothing_of_a_signed_request_can_be_changed() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        await primary.client.renew(record.volume, epoch=1)
        sent = primary.transport.sent[-1]
        later = sent.headers["signature-input"].replace("created=1", "created=2")
        changes: list[dict[str, Any]] = [
            {"content": sent.content + b" "},
            {
                "content": sent.content + b" ",
                "headers": {"content-digest": signatures.content_digest(sent.content + b" ")},
            },
            {"method": "PUT"},
            {"url": str(sent.url).replace("credential", "deleted")},
            {"url": str(sent.url) + "?x=1"},
            {"headers": {"host": "other.test"}},
            {"headers": {"signature-input": later}},
            {"headers": {"signature-input": sent.headers["signature-input"].replace('"@path" ', "")}},
            {"headers": {"signature": f"sig1=:{base64.b64encode(bytes(64)).decode()}:"}},
            {"headers": {"signature": "nonsense"}},
            {"headers": {"signature-input": "sig1=" + "(" * 5000}},
        ]
        for change in changes:
            reply = await send_again(kit, primary, **change)
            if change.get("method") == "PUT":
                assert reply.status_code in (401, 405)
            else:
                assert reply.status_code == 401, (change, reply.text)
                assert slug(reply) in ("unauthorised",), change
        assert record == await kit.record(record.volume)

    run(scenario)


def test_an_unsigned_request_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app), base_url=URL) as http:
            assert slug(await http.get("/v1/view")) == "unauthorised"
            assert slug(await http.put("/v1/heads/self/status", json={})) == "unauthorised"
        assert slug(await kit.operator.get("/v1/view")) == "unauthorised"

    run(scenario)


def test_another_key_and_an_unknown_head_are_refused() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        other = Ed25519PrivateKey.from_private_bytes(bytes(32))
        forger = kit.process(primary.id, other, root=kit.authority.root_public)
        with pytest.raises(Unauthorised, match="does not verify"):
            await forger.client.view()
        with pytest.raises(Unauthorised, match="not enrolled"):
            await kit.newcomer().client.view()
        with pytest.raises(Unauthorised):
            await forger.client.takeover(record.volume, expected_version=record.version, log_id=primary.log)

    run(scenario)


def test_an_expired_request_and_one_from_the_future_are_refused() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        for milliseconds in (61_000, -122_000):
            await primary.client.view()
            kit.clock.advance(milliseconds)
            reply = await send_again(kit, primary)
            assert reply.status_code == 401
            assert "set the clocks" in reply.json()["detail"]
            kit.clock.advance(-milliseconds)

    run(scenario)


def test_a_request_captured_before_a_restart_is_refused_after_it() -> None:
    store = MemoryStore()

    async def main() -> None:
        async with rack(store=store) as kit:
            primary, _, record = await kit.ready()
            await primary.client.view()
            key, head = primary.key, primary.id
        async with rack(store=store, seed=2) as again:
            reply = await send_again(again, primary)
            assert (reply.status_code, slug(reply)) == (401, "stale-instance")
            # A client that lived through the restart just goes on: it signs again for the new instance.
            survivor = again.process(head, key, root=again.authority.root_public)
            survivor.client._instance = "0" * 32
            assert record.volume in (await survivor.client.view()).volumes
            assert len(survivor.transport.sent) == 2

    asyncio.run(asyncio.wait_for(main(), 20))


def test_an_answer_without_the_root_key_is_no_answer() -> None:
    """Whoever sits between could otherwise give a head false keys of sleds."""

    class Forging(LosingTransport):
        change = "body"
        older: tuple[bytes, dict[str, str]] = (b"", {})

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            reply = await super().handle_async_request(request)
            body = await reply.aread()
            headers = dict(reply.headers)
            status = reply.status_code
            if self.change == "body":
                body = body.replace(b"127.0.0.1", b"127.0.0.2")
            elif self.change == "digest too":
                body = body.replace(b"127.0.0.1", b"127.0.0.2")
                headers["content-digest"] = signatures.content_digest(body)
            elif self.change == "status":
                status = 202
            elif self.change == "older answer":
                body, headers = self.older
            elif self.change == "answer of another path":
                altered = httpx.Request("GET", URL + "/healthz", headers=request.headers)
                other = await self._inner.handle_async_request(altered)
                body, headers, status = await other.aread(), dict(other.headers), other.status_code
                assert (status, "signature" in headers) == (200, True)
            elif self.change == "unsigned":
                del headers["signature"]
            self.older = (body, headers)
            return httpx.Response(status, headers=headers, content=body)

    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        transport = Forging(httpx.ASGITransport(kit.app))
        client = AuthorityClient(
            URL,
            head_id=primary.id,
            head_key=primary.key,
            env=kit.env,
            root_public=kit.authority.root_public,
            transport=transport,
        )
        transport.change = "nothing"
        await client.view()
        for change in ("body", "digest too", "status", "answer of another path", "unsigned", "nothing", "older answer"):
            transport.change = change
            if change == "nothing":
                await client.view()
            else:
                with pytest.raises(AuthorityUnavailable, match="root key"):
                    await client.view()
        await client.close()

    run(scenario)


def test_an_authority_that_does_not_answer_or_answers_nonsense_is_unavailable() -> None:
    answers = {
        b"not json": 200,
        b"[" * 100_000: 200,
        b"{}": 200,
        b"<html>": 502,
    }

    async def scenario(kit: Kit) -> None:
        primary, _, record = await kit.ready()
        for body, status in answers.items():
            transport = httpx.MockTransport(lambda _, b=body, s=status: httpx.Response(s, content=b))
            client = AuthorityClient(URL, head_id=primary.id, head_key=primary.key, env=kit.env, transport=transport)
            with pytest.raises(AuthorityUnavailable):
                await client.view()
            with pytest.raises(AuthorityUnavailable):
                await client.takeover(record.volume, expected_version=1, log_id=primary.log)
            with pytest.raises(NotEligible):
                await client.renew(record.volume, epoch=1)
            await client.close()

    run(scenario)


def test_the_memory_of_nonces_is_bounded_and_forgets_what_is_too_old_anyway() -> None:
    window = ReplayWindow()
    for number in range(NONCES_PER_KEY_MAX):
        window.admit("a", str(number), 1000, 1000)
    with pytest.raises(TooMany):
        window.admit("a", "more", 1000, 1000)
    window.admit("b", "0", 1000, 1000)
    with pytest.raises(Unauthorised):
        window.admit("a", "0", 1000, 1060)
    with pytest.raises(Unauthorised):
        window.admit("a", "0", 1000, 1121)
    window.admit("a", "more", 1121, 1121)


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_signature_fields_are_parsed_or_refused(given_input: str, given_signature: str) -> None:
    with pytest.raises(signatures.SignatureRefused):
        signatures.parse({"signature-input": given_input, "signature": given_signature})


def test_the_signature_base_is_that_of_rfc_9421() -> None:
    """Section 2.5: one line a component, the parameters last, no newline at the end."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    values = signatures.request_values(
        "get", "Example.COM", "/v1/view", "after=1", "00", signatures.content_digest(b"")
    )
    fields = signatures.sign(values, key, key_id="k", created_s=1, nonce="n" * 16, tag=signatures.REQUEST_TAG)
    covered = '("@method" "@authority" "@path" "@query" "palisade-instance" "content-digest")'
    params = f'{covered};created=1;keyid="k";alg="ed25519";nonce="nnnnnnnnnnnnnnnn";tag="palisade-head"'
    base = (
        '"@method": GET\n"@authority": example.com\n"@path": /v1/view\n"@query": ?after=1\n"palisade-instance": 00\n'
        '"content-digest": sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:\n'
        f'"@signature-params": {params}'
    )
    assert fields["signature-input"] == "sig1=" + params
    key.public_key().verify(base64.b64decode(fields["signature"][6:-1]), base.encode())
