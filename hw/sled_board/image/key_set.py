"""The key set: which keys may sign firmware, and how many of them must; signed by the root key that boards know.

A newer set takes keys in and out without touching the boards: images carry it. See docs/firmware-image.md.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from construct import ConstructError
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sled_board.errors import ImageFieldRefused, WrongSignature
from sled_board.image.layout import (
    DEVELOPMENT,
    KEY_ID_BYTES,
    KEY_SET,
    KEY_SET_BYTES,
    KEY_SET_DOMAIN,
    KEYS_MAX,
    PUBLIC_BYTES,
    SIGNATURE_BYTES,
)

EMPTY_PLACE: Final[dict[str, object]] = {"public": bytes(PUBLIC_BYTES), "flags": 0}


@dataclass(frozen=True, slots=True)
class FirmwareKey:
    """One Ed25519 key (`public`: 32 raw bytes); a `development` key does not count on a locked board."""

    public: bytes
    development: bool = False

    @property
    def id(self) -> bytes:
        """The first 8 bytes of the SHA-256 of the public key."""
        return key_id(self.public)


@dataclass(frozen=True, slots=True)
class KeySet:
    """`threshold` (1 to the number of keys) of the `keys` (1 to 16) must sign; the higher `version` (>= 1) counts."""

    version: int
    threshold: int
    keys: tuple[FirmwareKey, ...]

    def body(self) -> bytes:
        """What the root signs behind `KEY_SET_DOMAIN`; raises ImageFieldRefused when a field does not fit."""
        if (wrong := self._wrong()) is not None:
            raise ImageFieldRefused(f"key set: {wrong}")
        return self._build(bytes(SIGNATURE_BYTES))[:-SIGNATURE_BYTES]

    def message(self) -> bytes:
        """All that is signed: the domain and the body."""
        return KEY_SET_DOMAIN + self.body()

    def key(self, wanted: bytes) -> FirmwareKey | None:
        """The key of this id."""
        return next((key for key in self.keys if key.id == wanted), None)

    @classmethod
    def parse(cls, data: bytes) -> "KeySet":
        """Read a set without believing it; raises WrongSignature, as nothing can be signed by such a set."""
        if len(data) != KEY_SET_BYTES:
            raise WrongSignature(f"the key set has {len(data)} bytes, not {KEY_SET_BYTES}")
        try:
            fields = KEY_SET.parse(data)
        except ConstructError:
            raise WrongSignature("the key set is damaged, or of a format not known here") from None
        if fields.count > KEYS_MAX:
            raise WrongSignature(f"key set: {fields.count} keys, at most {KEYS_MAX}")
        keys = tuple(FirmwareKey(key.public, bool(key.flags & DEVELOPMENT)) for key in fields.places[: fields.count])
        found = cls(fields.version, fields.threshold, keys)
        wrong = found._wrong()
        if wrong is None and found._build(fields.signature) != data:
            wrong = "its keys do not ascend, or a place without a key or an unknown flag is not zero"
        if wrong is not None:
            raise WrongSignature(f"key set: {wrong}")
        return found

    @classmethod
    def open(cls, data: bytes, root_public: bytes) -> "KeySet":
        """Read and verify a signed set; raises WrongSignature."""
        found = cls.parse(data)
        signature = data[-SIGNATURE_BYTES:]
        if not verifies(root_public, signature, KEY_SET_DOMAIN + data[:-SIGNATURE_BYTES]):
            root = key_id(root_public).hex()
            raise WrongSignature(f"key set {found.version} is not signed by root key {root}, which this board trusts")
        return found

    def _build(self, signature: bytes) -> bytes:
        places: list[dict[str, object]] = [
            {"public": key.public, "flags": DEVELOPMENT if key.development else 0}
            for key in sorted(self.keys, key=lambda key: key.id)
        ]
        places += [EMPTY_PLACE] * (KEYS_MAX - len(places))
        return bytes(
            KEY_SET.build(
                {
                    "count": len(self.keys),
                    "threshold": self.threshold,
                    "version": self.version,
                    "places": places,
                    "signature": signature,
                }
            )
        )

    def _wrong(self) -> str | None:
        if not 0 < self.version < 1 << 64:
            return f"version {self.version} is not within 1 to 2^64 - 1"
        if not 0 < len(self.keys) <= KEYS_MAX:
            return f"{len(self.keys)} keys, not 1 to {KEYS_MAX}"
        if not 0 < self.threshold <= len(self.keys):
            return f"{self.threshold} of {len(self.keys)} keys can never sign"
        if any(len(key.public) != PUBLIC_BYTES for key in self.keys):
            return f"a public key does not have {PUBLIC_BYTES} bytes"
        if len({key.id for key in self.keys}) != len(self.keys):
            return "a key is in it twice"
        return None


def key_id(public: bytes) -> bytes:
    """The name of a key: the first 8 bytes of the SHA-256 of its 32 raw public bytes."""
    return hashlib.sha256(public).digest()[:KEY_ID_BYTES]


def verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the Ed25519 signature (RFC 8032) of `message` by `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
