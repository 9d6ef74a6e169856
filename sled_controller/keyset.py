"""The key set: which keys sign credentials now, versioned and signed by the root key flashed into sleds.

736 bytes of fixed layout, little-endian: a header, 16 places for keys, an Ed25519 signature over `SIGNING_DOMAIN` and
all that precedes it. A sled keeps the highest version that it has seen; heads carry them to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from types import MappingProxyType
from typing import Final

from construct import Array, Bytes, Const, Int16ul, Int32ul, Int64ul
from construct import Struct as Layout
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sled_controller.errors import KeySetRefused

MAGIC: Final = b"PLKS"
FORMAT: Final = 1
KEYS_MAX: Final = 16  # one current and one next key per authority, with room for slow sleds
HEADER_BYTES: Final = 32
ENTRY_BYTES: Final = 40
BODY_BYTES: Final = HEADER_BYTES + KEYS_MAX * ENTRY_BYTES
SIGNATURE_BYTES: Final = 64
KEYSET_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
SIGNING_DOMAIN: Final = b"palisade key set v1\0"

KEYSET_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC),
    "format" / Const(FORMAT, Int16ul),
    "count" / Int16ul,
    "version" / Int64ul,
    "issued_ms" / Int64ul,
    "zero" / Const(0, Int64ul),
    "entries" / Array(KEYS_MAX, Layout("key_id" / Int32ul, "zero" / Const(0, Int32ul), "public" / Bytes(32))),
    "signature" / Bytes(SIGNATURE_BYTES),
)
HEADER: Final = Struct("<4sHHQQQ")
ENTRY: Final = Struct("<II32s")


@dataclass(frozen=True, slots=True)
class KeySet:
    """`keys` maps key id (1 to 2^32 - 1) to a raw Ed25519 public key; `issued_ms` also moves sled time forward."""

    version: int
    keys: Mapping[int, bytes] = field(hash=False)
    issued_ms: int

    def sign(self, root_private: Ed25519PrivateKey) -> bytes:
        """The 736 bytes of this set, signed by the root; raises KeySetRefused when a field does not fit."""
        return self.body() + root_private.sign(self.message())

    def message(self) -> bytes:
        """What the root signs: the domain and the body."""
        return SIGNING_DOMAIN + self.body()

    def body(self) -> bytes:
        """The set without its signature; raises KeySetRefused when a field does not fit."""
        _check_fields(self)
        body = HEADER.pack(MAGIC, FORMAT, len(self.keys), self.version, self.issued_ms, 0) + b"".join(
            ENTRY.pack(key_id, 0, self.keys[key_id]) for key_id in sorted(self.keys)
        )
        return body.ljust(BODY_BYTES, b"\0")

    @classmethod
    def parse(cls, body: bytes) -> "KeySet":
        """Read a set without a signature, as the root is asked to sign it; raises KeySetRefused."""
        if len(body) != BODY_BYTES:
            raise KeySetRefused(f"{len(body)} bytes, a key set without its signature has {BODY_BYTES}")
        return _parse_body(body)

    @classmethod
    def open(cls, data: bytes | bytearray | memoryview, root_public: bytes) -> "KeySet":
        """Read and verify a signed set; raises KeySetRefused."""
        if len(data) != KEYSET_BYTES:
            raise KeySetRefused(f"{len(data)} bytes, a key set has {KEYSET_BYTES}")
        raw = bytes(data)
        try:
            root = Ed25519PublicKey.from_public_bytes(root_public)
            root.verify(raw[BODY_BYTES:], SIGNING_DOMAIN + raw[:BODY_BYTES])
        except (InvalidSignature, ValueError):
            raise KeySetRefused("the signature is not the root key's") from None
        return _parse_body(raw)


def version_of(data: bytes | bytearray | memoryview) -> int:
    """The version that a signed set claims, unverified: enough to decide whether it is worth carrying to a sled."""
    if len(data) != KEYSET_BYTES:
        raise KeySetRefused(f"{len(data)} bytes, a key set has {KEYSET_BYTES}")
    return int(HEADER.unpack_from(data)[3])


def _parse_body(raw: bytes) -> KeySet:
    magic, layout, count, version, issued_ms, zero = HEADER.unpack_from(raw)
    if magic != MAGIC or layout != FORMAT or zero:
        raise KeySetRefused("magic or format is not known here")
    if count > KEYS_MAX:
        raise KeySetRefused(f"{count} keys, at most {KEYS_MAX}")
    keys: dict[int, bytes] = {}
    previous = 0
    for index in range(count):
        key_id, zero, public = ENTRY.unpack_from(raw, HEADER_BYTES + index * ENTRY_BYTES)
        if zero or key_id <= previous:
            raise KeySetRefused("key ids do not ascend")
        keys[key_id] = public
        previous = key_id
    if any(raw[HEADER_BYTES + count * ENTRY_BYTES : BODY_BYTES]):
        raise KeySetRefused("a place without a key is not zero")
    key_set = KeySet(version, MappingProxyType(keys), issued_ms)
    _check_fields(key_set)
    return key_set


def _check_fields(key_set: KeySet) -> None:
    if not 0 < key_set.version < 1 << 64:
        raise KeySetRefused(f"version {key_set.version} is not within 1 to 2^64 - 1")
    if not 0 <= key_set.issued_ms < 1 << 64:
        raise KeySetRefused("the issue time does not fit into 64 bits")
    if len(key_set.keys) > KEYS_MAX:
        raise KeySetRefused(f"{len(key_set.keys)} keys, at most {KEYS_MAX}")
    for key_id, public in key_set.keys.items():
        if not 0 < key_id < 1 << 32 or len(public) != 32:
            raise KeySetRefused(f"key {key_id} is not an id within 1 to 2^32 - 1 with 32 bytes")
