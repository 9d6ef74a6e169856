"""Heads believe a reply that a key of the root's certificate has signed: the newest key that they know, in its term."""

import struct

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kit import host
from kit.authority import Head, Kit, run

from head_node.authority import signatures
from head_node.authority.authority import Policy
from head_node.authority.errors import AuthorityUnavailable
from head_node.authority.reply_certificate import BODY, CERTIFICATE_BYTES, CertificateRefused, ReplyCertificate
from head_node.authority.reply_keys import ReplyKey
from head_node.authority.reply_trust import CERTIFICATE_HEADER, ReplyTrust
from sled_controller.keyset import SIGNING_DOMAIN as KEY_SET_DOMAIN

ROOT = host.private_key(host.ROOT)
ROOT_PUBLIC = ROOT.public_key().public_bytes_raw()
DAY_MS = 24 * 3600 * 1000
POLICY = Policy(reply_key_term_ms=10 * DAY_MS)
GOLDEN = ReplyCertificate(3, bytes(range(32)), 1_700_000_000_000, 1_707_776_000_000)


def signed(certificate: ReplyCertificate, root: Ed25519PrivateKey = ROOT) -> bytes:
    return certificate.body() + root.sign(certificate.message())


def test_a_certificate_is_the_golden_one() -> None:
    assert signed(GOLDEN) == host.golden("reply_certificate")
    assert ReplyCertificate.open(host.golden("reply_certificate"), ROOT_PUBLIC) == GOLDEN


@given(st.integers(0, CERTIFICATE_BYTES * 8 - 1))
def test_one_flipped_bit_and_it_is_refused(bit: int) -> None:
    data = bytearray(signed(GOLDEN))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CertificateRefused):
        ReplyCertificate.open(bytes(data), ROOT_PUBLIC)


@given(st.binary(max_size=CERTIFICATE_BYTES + 8))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(CertificateRefused):
        ReplyCertificate.open(data, ROOT_PUBLIC)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<4s", b"PLKS"),
        (4, "<H", 2),
        (6, "<H", 1),
        (8, "<Q", 0),
        (8, "<Q", 1 << 63),
        (24, "<Q", 0),
        (24, "<Q", 1 << 63),
    ],
)
def test_fields_that_do_not_fit_are_refused_though_the_root_signed_them(offset: int, form: str, value: object) -> None:
    body = bytearray(GOLDEN.body())
    struct.pack_into(form, body, offset, value)
    data = bytes(body) + ROOT.sign(GOLDEN.message()[: -BODY.size] + bytes(body))
    with pytest.raises(CertificateRefused):
        ReplyCertificate.open(data, ROOT_PUBLIC)


def test_a_signature_for_something_else_certifies_no_reply_key() -> None:
    data = GOLDEN.body() + ROOT.sign(KEY_SET_DOMAIN + GOLDEN.body())
    with pytest.raises(CertificateRefused, match="root key"):
        ReplyCertificate.open(data, ROOT_PUBLIC)


class Impostor(httpx.AsyncBaseTransport):
    """Answers in the authority's place with the body of a real answer, signed by `key` and with its certificate."""

    def __init__(self, kit: Kit, key: ReplyKey) -> None:
        self._inner = httpx.ASGITransport(kit.app)
        self._env = kit.env
        self.key = key

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        body = await response.aread()
        query = request.url.query.decode()
        asked = signatures.Asked(
            request.method, request.url.path, query, request.headers["content-digest"], request.headers["signature"]
        )
        digest = signatures.content_digest(body)
        fields = signatures.sign(
            signatures.reply_values(response.status_code, digest, asked), self.key.private, key_id="reply-1",
            created_s=1, nonce=self._env.entropy.bytes(16).hex(), tag=signatures.REPLY_TAG,
        )  # fmt: skip
        headers = dict(response.headers) | fields | {"content-digest": digest}
        return httpx.Response(
            response.status_code, headers=headers | {CERTIFICATE_HEADER: self.key.raw.hex()}, content=body
        )


async def views(kit: Kit, head: Head, key: ReplyKey) -> None:
    """The head asks, and `key` signs the answer."""
    transport = head.client._http._transport
    head.client._http._transport = Impostor(kit, key)
    try:
        await head.client.view()
    finally:
        head.client._http._transport = transport


def current(kit: Kit) -> ReplyKey:
    key = kit.authority.replies.current
    assert key is not None
    return key


def test_the_root_key_signs_no_reply() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        await views(kit, primary, current(kit))
        own = ReplyKey(current(kit).certificate, current(kit).raw, kit.root_key)
        with pytest.raises(AuthorityUnavailable, match="does not verify"):
            await views(kit, primary, own)
        public = kit.root_key.public_key().public_bytes_raw()
        assert current(kit).certificate.public != public

    run(scenario)


def test_a_key_that_no_root_or_another_root_certified_is_refused() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        private = Ed25519PrivateKey.from_private_bytes(kit.env.entropy.bytes(32))
        number = current(kit).certificate.number + 1
        forged = ReplyCertificate(number, private.public_key().public_bytes_raw(), 1, DAY_MS)
        for raw in (signed(forged), signed(forged, private), b"", bytes(CERTIFICATE_BYTES), current(kit).raw[:-1]):
            with pytest.raises(AuthorityUnavailable, match="not certified by the rack's root key"):
                await views(kit, primary, ReplyKey(forged, raw, private))
        await primary.client.view()

    run(scenario)


def test_a_stolen_reply_key_is_worthless_once_a_head_knows_its_successor() -> None:
    async def scenario(kit: Kit) -> None:
        primary, secondary, _ = await kit.ready()
        stolen = current(kit)
        assert (await kit.operator.post("/v1/keys/reply/rotate")).json()["reply_key"]["number"] == 2
        await secondary.client.view()
        with pytest.raises(AuthorityUnavailable, match="was replaced: this head knows number 2"):
            await views(kit, secondary, stolen)
        await secondary.client.view()
        await views(kit, primary, stolen)  # has not heard of it yet: the rotation reaches it with the next answer
        await primary.client.view()
        with pytest.raises(AuthorityUnavailable, match="was replaced"):
            await views(kit, primary, stolen)

    run(scenario)


def test_a_head_that_restarts_still_knows_which_reply_key_was_replaced() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        stolen, kept = current(kit), list[int]()
        await kit.operator.post("/v1/keys/reply/rotate")
        root = kit.authority.root_public
        before = kit.process(primary.id, primary.key, root=root, replies=ReplyTrust(kit.env, 0, kept.append))
        await before.client.view()
        await before.client.view()
        assert kept == [2]
        after = kit.process(primary.id, primary.key, root=root, replies=ReplyTrust(kit.env, kept[-1]))
        with pytest.raises(AuthorityUnavailable, match="was replaced"):
            await views(kit, after, stolen)
        await after.client.view()

    run(scenario)


def test_a_reply_key_ends_with_its_term_in_the_heads_own_time() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        stolen = current(kit)
        kit.clock.advance(10 * DAY_MS)
        await views(kit, primary, stolen)
        kit.clock.advance(1)
        with pytest.raises(AuthorityUnavailable, match="has expired"):
            await views(kit, primary, stolen)
        await kit.operator.post("/v1/keys/reply/rotate")
        await primary.client.view()

    run(scenario, policy=POLICY)


def test_a_wrong_clock_of_a_head_or_of_the_authority_ends_no_reply_key() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        trust = ReplyTrust(kit.env)
        certificate = ReplyCertificate(current(kit).certificate.number, current(kit).certificate.public, 5, 5 + DAY_MS)
        raw = certificate.body() + kit.root_key.sign(certificate.message())
        head = kit.process(primary.id, primary.key, root=kit.authority.root_public, replies=trust)
        await views(kit, head, ReplyKey(certificate, raw, current(kit).private))  # issued in 1970

    run(scenario)


def test_the_authority_renews_the_reply_key_when_half_of_its_term_is_over() -> None:
    async def scenario(kit: Kit) -> None:
        await kit.authority.replies.keep_up()
        assert current(kit).certificate.number == 1
        kit.clock.advance(5 * DAY_MS - 1)
        await kit.authority.replies.keep_up()
        assert current(kit).certificate.number == 1
        kit.clock.advance(1)
        await kit.authority.replies.keep_up()
        assert current(kit).certificate.number == 2

    run(scenario, policy=POLICY)


def test_expiry_a_reply_key_of_a_wrong_time_is_replaced_when_time_is_set_back() -> None:
    async def scenario(kit: Kit) -> None:
        primary, _, _ = await kit.ready()
        kit.authority.issue.follow([kit.clock.now_ms + 3650 * DAY_MS] * 6, 4)
        await kit.authority.replies.keep_up()
        await primary.client.view()
        assert current(kit).certificate.issued_ms > kit.clock.now_ms
        await kit.authority.time.set(kit.clock.now_ms)
        for _ in range(3):  # heads count the term from when they have met a key
            await kit.authority.replies.keep_up()
            await primary.client.view()
            assert current(kit).certificate.issued_ms <= kit.clock.now_ms
            kit.clock.advance(6 * DAY_MS)

    run(scenario, policy=POLICY)
