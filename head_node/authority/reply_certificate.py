"""The certificate of a reply key: by it heads know that a reply is their authority's although the root is away.

128 bytes of fixed layout, little-endian: magic, format, two zero bytes, number, issue time, expiry (Unix milliseconds),
the raw Ed25519 key, an Ed25519 signature of the root key over `SIGNING_DOMAIN` and all that precedes it. The higher
number counts: a head that has seen it takes no lower one any more, so that a reply key ends with its successor.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAGIC: Final = b"PLRK"
FORMAT: Final = 1
SIGNING_DOMAIN: Final = b"palisade reply key v1\0"
BODY: Final = Struct("<4sHHQQQ32s")
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
CERTIFICATE_BYTES: Final = BODY.size + SIGNATURE_BYTES
NUMBER_END: Final = 1 << 63
TIME_END_MS: Final = 1 << 63


class CertificateRefused(Exception):
    """The certificate is malformed, or not the root key's."""


@dataclass(frozen=True, slots=True)
class ReplyCertificate:
    """`public` signs replies from `issued_ms` until `expires_ms` (Unix milliseconds), unless a higher number exists."""

    number: int
    public: bytes
    issued_ms: int
    expires_ms: int

    @property
    def term_ms(self) -> int:
        """How long it lasts."""
        return self.expires_ms - self.issued_ms

    def body(self) -> bytes:
        """The certificate without its signature; raises CertificateRefused when a field does not fit."""
        self._check()
        return BODY.pack(MAGIC, FORMAT, 0, self.number, self.issued_ms, self.expires_ms, self.public)

    def message(self) -> bytes:
        """What the root signs: the domain and the body."""
        return SIGNING_DOMAIN + self.body()

    @classmethod
    def parse(cls, body: bytes) -> "ReplyCertificate":
        """Read a body, unverified; raises CertificateRefused."""
        if len(body) != BODY.size:
            raise CertificateRefused(f"{len(body)} bytes, a certificate's body has {BODY.size}")
        magic, layout, zero, number, issued_ms, expires_ms, public = BODY.unpack(body)
        if magic != MAGIC or layout != FORMAT or zero:
            raise CertificateRefused("magic or format is not known here")
        found = cls(number, public, issued_ms, expires_ms)
        found._check()
        return found

    @classmethod
    def open(cls, data: bytes, root_public: bytes) -> "ReplyCertificate":
        """Read and verify a signed certificate; raises CertificateRefused."""
        if len(data) != CERTIFICATE_BYTES:
            raise CertificateRefused(f"{len(data)} bytes, a certificate has {CERTIFICATE_BYTES}")
        try:
            root = Ed25519PublicKey.from_public_bytes(root_public)
            root.verify(data[BODY.size :], SIGNING_DOMAIN + data[: BODY.size])
        except (InvalidSignature, ValueError):
            raise CertificateRefused("the signature is not the root key's") from None
        return cls.parse(data[: BODY.size])

    def _check(self) -> None:
        if not 0 < self.number < NUMBER_END:
            raise CertificateRefused(f"number {self.number} is not within 1 to 2^63 - 1")
        if not 0 <= self.issued_ms < self.expires_ms < TIME_END_MS:
            raise CertificateRefused("it does not expire after its issue")
        if len(self.public) != KEY_BYTES:
            raise CertificateRefused("the key has not 32 bytes")
