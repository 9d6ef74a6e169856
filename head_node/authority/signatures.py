"""HTTP Message Signatures (RFC 9421) with Ed25519, both ways between heads and the authority.

A head signs method, authority, path, query, the authority's instance and the body's digest (RFC 9530), with creation
time, nonce and key id. The authority signs status and digest of its reply together with what it received, signature and
all, so a reply cannot be moved to another request, nor come from a request that was altered on the way.

Pure functions: no clock, no randomness, no socket.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

REQUEST_TAG = "palisade-head"
REPLY_TAG = "palisade-authority"
INSTANCE_HEADER = "palisade-instance"
# What an unsigned part could change, a signature does not protect: all of these must be covered.
REQUEST_COMPONENTS = ('"@method"', '"@authority"', '"@path"', '"@query"', f'"{INSTANCE_HEADER}"', '"content-digest"')
REPLY_COMPONENTS = (
    '"@status"', '"content-digest"', '"@method";req', '"@path";req', '"@query";req', '"content-digest";req',
    '"signature";req',
)  # fmt: skip

HEADER_CHARS_MAX = 2048
_INPUT = re.compile(
    r"sig1=(?P<params>\((?P<components>[^()]*)\)"
    r';created=(?P<created>[0-9]{1,12});keyid="(?P<keyid>[0-9a-zA-Z-]{1,64})";alg="ed25519"'
    r';nonce="(?P<nonce>[0-9a-zA-Z]{16,64})";tag="(?P<tag>[a-z-]{1,32})")'
)
_SIGNATURE = re.compile(r"sig1=:(?P<value>[A-Za-z0-9+/=]{88}):")


class SignatureRefused(Exception):
    """The signature is missing, malformed, does not cover enough, or does not verify."""


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """The parameters of a received signature; nothing in it is trusted before `verify`."""

    params: str
    components: tuple[str, ...]
    created_s: int
    key_id: str
    nonce: str
    tag: str
    value: bytes


def content_digest(body: bytes) -> str:
    """The value of the Content-Digest field for `body`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def request_values(method: str, authority: str, path: str, query: str, instance: str, digest: str) -> dict[str, str]:
    """Component values of a request; `query` is without its question mark."""
    values = (method.upper(), authority.lower(), path, "?" + query, instance, digest)
    return dict(zip(REQUEST_COMPONENTS, values, strict=True))


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that a reply answers, as one side sent it or the other received it."""

    method: str
    path: str
    query: str
    digest: str
    signature: str


def reply_values(status: int, digest: str, asked: Asked) -> dict[str, str]:
    """Component values of a reply."""
    values = (str(status), digest, asked.method, asked.path, "?" + asked.query, asked.digest, asked.signature)
    return dict(zip(REPLY_COMPONENTS, values, strict=True))


def sign(
    values: Mapping[str, str], key: Ed25519PrivateKey, *, key_id: str, created_s: int, nonce: str, tag: str
) -> dict[str, str]:
    """The Signature-Input and Signature fields over `values`, which keep their order."""
    params = f'({" ".join(values)});created={created_s};keyid="{key_id}";alg="ed25519";nonce="{nonce}";tag="{tag}"'
    value = base64.b64encode(key.sign(_base(values, tuple(values), params))).decode()
    return {"signature-input": f"sig1={params}", "signature": f"sig1=:{value}:"}


def parse(headers: Mapping[str, str]) -> SignatureInput:
    """Read the two fields without trusting them; raises SignatureRefused."""
    given, signature = headers.get("signature-input"), headers.get("signature")
    if given is None or signature is None:
        raise SignatureRefused("the signature-input or signature field is missing")
    if len(given) > HEADER_CHARS_MAX or len(signature) > HEADER_CHARS_MAX:
        raise SignatureRefused("the signature fields are too long")
    found, value = _INPUT.fullmatch(given), _SIGNATURE.fullmatch(signature)
    if found is None or value is None:
        raise SignatureRefused("the signature fields are malformed")
    try:
        raw = base64.b64decode(value["value"], validate=True)
    except binascii.Error:
        raise SignatureRefused("the signature is not base64") from None
    components = tuple(found["components"].split(" "))
    return SignatureInput(
        found["params"], components, int(found["created"]), found["keyid"], found["nonce"], found["tag"], raw
    )


def verify(given: SignatureInput, values: Mapping[str, str], public_key: bytes, *, tag: str) -> None:
    """Check that `given` covers all of `values` and was made with `public_key`; raises SignatureRefused."""
    if given.tag != tag:
        raise SignatureRefused(f"the signature has another purpose than {tag}")
    if len(set(given.components)) != len(given.components) or set(given.components) != set(values):
        raise SignatureRefused("the signature must cover exactly " + " ".join(values))
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            given.value, _base(values, given.components, given.params)
        )
    except (InvalidSignature, ValueError):
        raise SignatureRefused("the signature does not verify") from None


def check_digest(header: str | None, body: bytes) -> str:
    """Return the Content-Digest field if it fits `body`; raises SignatureRefused."""
    if header is None or header != content_digest(body):
        raise SignatureRefused("content-digest does not fit the body")
    return header


def _base(values: Mapping[str, str], components: tuple[str, ...], params: str) -> bytes:
    lines = [f"{name}: {values[name]}" for name in components]
    return "\n".join([*lines, f'"@signature-params": {params}']).encode()
