"""The credential: the authority's signed statement that one head may touch one volume in one epoch.

560 bytes of fixed layout, little-endian, so that firmware in C can check it without a parser; Ed25519 (RFC 8032) over
`SIGNING_DOMAIN` and the first 496 bytes. Offsets are in docs/credentials.md and pinned by tests/golden.
"""

import hashlib
from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import Final
from uuid import UUID

from construct import Array, Bytes, Const, Int16ul, Int32ul, Int64ul
from construct import Struct as Layout
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.keyset import KeySet

MAGIC: Final = b"PLCR"
VERSION: Final = 2
SLEDS_MAX: Final = 24  # columns of a volume, which are on different sleds
BODY_BYTES: Final = 112 + 16 * SLEDS_MAX
SIGNATURE_BYTES: Final = 64
CREDENTIAL_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
KEY_BYTES: Final = 32
SIGNING_DOMAIN: Final = b"palisade credential v2\0"
U32_MAX: Final = (1 << 32) - 1
KEY_ID_MAX: Final = U32_MAX
U64_MAX: Final = (1 << 64) - 1
EPOCHS_PER_KEY: Final = 1 << 32
"""A key signs epochs below its id times this: one failover a second for 136 years. So a stolen key cannot use up the
epochs of a volume: the next key signs above all that it can have signed. Key ids have 32 bits, epochs 64."""
TERM_MS_MAX: Final = 86_400_000
"""No credential is good for longer than a day: what a stolen key has signed is over some day, too."""

CREDENTIAL_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int16ul),
    "size" / Const(CREDENTIAL_BYTES, Int16ul),
    "key_id" / Int32ul,
    "rights" / Int32ul,
    "volume" / Bytes(16),
    "head_key" / Bytes(KEY_BYTES),
    "epoch" / Int64ul,
    "issued_ms" / Int64ul,
    "expires_ms" / Int64ul,
    "serial" / Int64ul,
    "blocks" / Int64ul,
    "namespaces" / Int32ul,
    "sled_count" / Int32ul,
    "sleds" / Array(SLEDS_MAX, Bytes(16)),
    "signature" / Bytes(SIGNATURE_BYTES),
)
BODY: Final = Struct(f"<4sHHII16s32sQQQQQII{16 * SLEDS_MAX}s")


class Rights(IntFlag):
    """What the holder may do with the volume."""

    READ = 1
    WRITE = 2
    MANAGE = 4  # create and delete the volume's namespaces


ALL_RIGHTS: Final = Rights.READ | Rights.WRITE | Rights.MANAGE
KNOWN_RIGHTS: Final = int(ALL_RIGHTS)  # a plain number: the complement of a full IntFlag is 0


@dataclass(frozen=True, slots=True)
class Credential:
    """`head_key` (32 raw bytes) may touch `volume` in `epoch` (>= 1) until `expires_ms` (Unix, milliseconds).

    It counts on `sleds` only. All namespaces of the volume on one of them together may be `namespaces` in number and
    `blocks` of 4096 bytes long. A credential that does not say counts nowhere and takes nothing.
    """

    key_id: int
    volume: UUID
    head_key: bytes
    epoch: int
    rights: Rights
    issued_ms: int
    expires_ms: int
    serial: int
    blocks: int = 0
    namespaces: int = 0
    sleds: tuple[UUID, ...] = ()

    @property
    def holder(self) -> bytes:
        """SHA-256 of the head key: what a fence names (F2)."""
        return holder_of(self.head_key)

    def body(self) -> bytes:
        """The 496 bytes that are signed; raises CredentialMalformed when a field does not fit."""
        _check_fields(self)
        return BODY.pack(
            MAGIC, VERSION, CREDENTIAL_BYTES, self.key_id, self.rights, self.volume.bytes, self.head_key,
            self.epoch, self.issued_ms, self.expires_ms, self.serial, self.blocks, self.namespaces,
            len(self.sleds), b"".join(sled.bytes for sled in self.sleds),
        )  # fmt: skip

    def sign(self, private_key: Ed25519PrivateKey) -> bytes:
        """The 560 bytes of this credential, signed with the authority's key of `key_id`."""
        body = self.body()
        return body + private_key.sign(SIGNING_DOMAIN + body)


@dataclass(frozen=True, slots=True)
class SignedCredential:
    """A well-formed credential whose signature nobody has checked yet; `verify` does."""

    credential: Credential
    signature: bytes
    raw: bytes


def epochs_end(key_id: int) -> int:
    """The first epoch that the key of that id cannot sign."""
    return key_id * EPOCHS_PER_KEY


def holder_of(head_key: bytes) -> bytes:
    """SHA-256 of a head's raw public key."""
    return hashlib.sha256(head_key).digest()


def parse_credential(data: bytes | bytearray | memoryview) -> SignedCredential:
    """Read a credential without believing it; raises CredentialMalformed."""
    if len(data) != CREDENTIAL_BYTES:
        raise CredentialMalformed(f"{len(data)} bytes, a credential has {CREDENTIAL_BYTES}")
    raw = bytes(data)
    magic, version, size, key_id, rights, volume, head_key, epoch, issued, expires, serial, *space = BODY.unpack_from(
        raw
    )
    blocks, namespaces, count, places = space
    if magic != MAGIC:
        raise CredentialMalformed("the magic is not a credential's")
    if version != VERSION or size != CREDENTIAL_BYTES:
        raise CredentialMalformed(f"version {version} of {size} bytes is not known here")
    if rights & ~KNOWN_RIGHTS:
        raise CredentialMalformed(f"rights {rights:#x} are not known here")
    if count > SLEDS_MAX or any(places[16 * count :]):
        raise CredentialMalformed(f"{count} sleds, at most {SLEDS_MAX}, and places past them are zero")
    sleds = tuple(UUID(bytes=places[at : at + 16]) for at in range(0, 16 * count, 16))
    credential = Credential(
        key_id, UUID(bytes=volume), head_key, epoch, Rights(rights), issued, expires, serial, blocks, namespaces, sleds
    )  # fmt: skip
    _check_fields(credential)
    return SignedCredential(credential, raw[BODY_BYTES:], raw)


def verify(signed: SignedCredential, key_set: KeySet) -> Credential:
    """Check the signature against the current key set (F1); raises CredentialRefused.

    Expiry, volume, holder and rights are for whoever knows the time and the command: the fence decision.
    """
    public = key_set.keys.get(signed.credential.key_id)
    if public is None:
        raise CredentialRefused(f"key {signed.credential.key_id} is not in key set {key_set.version}")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signed.signature, SIGNING_DOMAIN + signed.raw[:BODY_BYTES])
    except (InvalidSignature, ValueError):
        raise CredentialRefused(f"the signature is not one of key {signed.credential.key_id}") from None
    return signed.credential


def _check_fields(credential: Credential) -> None:
    if len(credential.head_key) != KEY_BYTES:
        raise CredentialMalformed(f"a head key of {len(credential.head_key)} bytes, not {KEY_BYTES}")
    if not 0 < credential.key_id <= KEY_ID_MAX:
        raise CredentialMalformed(f"key id {credential.key_id} is not within 1 to 2^32 - 1")
    if not credential.rights or int(credential.rights) & ~KNOWN_RIGHTS:
        raise CredentialMalformed(f"rights {int(credential.rights):#x} name nothing, or more than exists")
    for name in ("epoch", "issued_ms", "expires_ms", "serial", "blocks"):
        if not 0 <= getattr(credential, name) <= U64_MAX:
            raise CredentialMalformed(f"{name} does not fit into 64 bits")
    if not 0 <= credential.namespaces <= U32_MAX:
        raise CredentialMalformed("namespaces does not fit into 32 bits")
    if len(credential.sleds) > SLEDS_MAX:
        raise CredentialMalformed(f"{len(credential.sleds)} sleds, at most {SLEDS_MAX}")
    if credential.epoch == 0:
        raise CredentialMalformed("epochs start at 1")
    if credential.epoch >= epochs_end(credential.key_id):
        raise CredentialMalformed(f"key {credential.key_id} signs no epoch as high as {credential.epoch}")
    if credential.expires_ms <= credential.issued_ms:
        raise CredentialMalformed("it expires before it is issued")
    if credential.expires_ms - credential.issued_ms > TERM_MS_MAX:
        raise CredentialMalformed(f"its term is longer than {TERM_MS_MAX} ms")
