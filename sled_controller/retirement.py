"""The retirement: the authority's signed statement that a volume is deleted and its credentials are all over.

With it a sled forgets the volume's fence (F2); why that is safe is in docs/decisions/0008-forgetting-a-fence.md. 112
bytes of fixed layout, little-endian; Ed25519 (RFC 8032) over `SIGNING_DOMAIN` and the first 48 bytes, by a key of the
current key set. Offsets are in docs/credentials.md and pinned by tests/golden.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int32ul, Int64ul
from construct import Struct as Layout
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.keyset import KeySet

MAGIC: Final = b"PLRT"
VERSION: Final = 1
BODY_BYTES: Final = 48
SIGNATURE_BYTES: Final = 64
RETIREMENT_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
SIGNING_DOMAIN: Final = b"palisade retirement v1\0"

RETIREMENT_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int16ul),
    "size" / Const(RETIREMENT_BYTES, Int16ul),
    "key_id" / Int32ul,
    "zero" / Const(0, Int32ul),
    "volume" / Bytes(16),
    "epoch" / Int64ul,
    "over_ms" / Int64ul,
    "signature" / Bytes(SIGNATURE_BYTES),
)
BODY: Final = Struct("<4sHHII16sQQ")


@dataclass(frozen=True, slots=True)
class Retirement:
    """`volume` is deleted. No credential for it has an epoch above `epoch`, and each expires before `over_ms` (Unix
    milliseconds); no other one will ever be signed."""

    key_id: int
    volume: UUID
    epoch: int
    over_ms: int

    def sign(self, private_key: Ed25519PrivateKey) -> bytes:
        """The 112 bytes, signed with the authority's key of `key_id`."""
        body = BODY.pack(
            MAGIC, VERSION, RETIREMENT_BYTES, self.key_id, 0, self.volume.bytes, self.epoch, self.over_ms
        )  # fmt: skip
        return body + private_key.sign(SIGNING_DOMAIN + body)

    @classmethod
    def open(cls, data: bytes, key_set: KeySet) -> "Retirement":
        """Read and verify a statement; raises CredentialMalformed, CredentialRefused."""
        if len(data) != RETIREMENT_BYTES:
            raise CredentialMalformed(f"{len(data)} bytes, a retirement has {RETIREMENT_BYTES}")
        magic, version, size, key_id, zero, volume, epoch, over_ms = BODY.unpack_from(data)
        if magic != MAGIC or version != VERSION or size != RETIREMENT_BYTES or zero:
            raise CredentialMalformed("magic, version or size is not a retirement's")
        public = key_set.keys.get(key_id)
        if public is None:
            raise CredentialRefused(f"key {key_id} is not in key set {key_set.version}")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(data[BODY_BYTES:], SIGNING_DOMAIN + data[:BODY_BYTES])
        except (InvalidSignature, ValueError):
            raise CredentialRefused(f"the signature is not one of key {key_id}") from None
        return cls(key_id, UUID(bytes=volume), epoch, over_ms)
