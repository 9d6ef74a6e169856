"""The time statement: the root key's word on what time it is, with which a sled leaves a wrong time.

Expiry must never outlive the repair of a clock: whatever issue times a sled has kept, a newer statement counts. 112
bytes of fixed layout, little-endian; Ed25519 (RFC 8032) over `SIGNING_DOMAIN` and the first 48 bytes. Offsets are in
docs/credentials.md and pinned by tests/golden.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final, Protocol
from uuid import UUID

from construct import Bytes, Const, Int16ul, Int64ul
from construct import Struct as Layout
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sled_controller.environment import TIME_MS_MAX
from sled_controller.errors import CredentialMalformed, CredentialRefused
from sled_controller.sled_time import RELEASED_MS

MAGIC: Final = b"PLTM"
VERSION: Final = 1
BODY_BYTES: Final = 48
SIGNATURE_BYTES: Final = 64
TIME_STATEMENT_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
SIGNING_DOMAIN: Final = b"palisade time statement v1\0"
ANY_SLED: Final = UUID(int=0)
ANY_BOOT: Final = 0
SERIAL_MAX: Final = (1 << 63) - 1
"""Half of the field: one above any that is taken always fits."""

TIME_STATEMENT_LAYOUT: Final = Layout(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int16ul),
    "size" / Const(TIME_STATEMENT_BYTES, Int16ul),
    "serial" / Int64ul,
    "sled" / Bytes(16),
    "boot_counter" / Int64ul,
    "time_ms" / Int64ul,
    "signature" / Bytes(SIGNATURE_BYTES),
)
BODY: Final = Struct("<4sHHQ16sQQ")


class RootSigner(Protocol):
    """The root's private key, wherever it is."""

    def sign(self, data: bytes, /) -> bytes:
        """An Ed25519 signature over `data`, 64 bytes."""


@dataclass(frozen=True, slots=True)
class TimeStatement:
    """It is `time_ms` (Unix milliseconds, 2023 to 9999). A sled takes a `serial` (1 to 2^63 - 1) above the last one.

    With `sled` and `boot_counter` for that sled, in that start of it, only: nothing that could be kept and shown later.
    """

    serial: int
    time_ms: int
    sled: UUID = ANY_SLED
    boot_counter: int = ANY_BOOT

    def message(self) -> bytes:
        """What the root key signs; raises CredentialMalformed when a field does not fit."""
        _check(self)
        return SIGNING_DOMAIN + BODY.pack(
            MAGIC, VERSION, TIME_STATEMENT_BYTES, self.serial, self.sled.bytes, self.boot_counter, self.time_ms
        )  # fmt: skip

    def signed(self, signature: bytes) -> bytes:
        """The 112 bytes with the root key's signature of `message`."""
        return self.message()[len(SIGNING_DOMAIN) :] + signature

    def sign(self, root: RootSigner) -> bytes:
        """The 112 bytes, signed by the root; raises CredentialMalformed when a field does not fit."""
        return self.signed(root.sign(self.message()))

    @classmethod
    def open(cls, data: bytes, root_public: bytes) -> "TimeStatement":
        """Read and verify a statement; raises CredentialMalformed, CredentialRefused."""
        if len(data) != TIME_STATEMENT_BYTES:
            raise CredentialMalformed(f"{len(data)} bytes, a time statement has {TIME_STATEMENT_BYTES}")
        magic, version, size, serial, sled, boot_counter, time_ms = BODY.unpack_from(data)
        if magic != MAGIC or version != VERSION or size != TIME_STATEMENT_BYTES:
            raise CredentialMalformed("magic, version or size is not a time statement's")
        try:
            root = Ed25519PublicKey.from_public_bytes(root_public)
            root.verify(data[BODY_BYTES:], SIGNING_DOMAIN + data[:BODY_BYTES])
        except (InvalidSignature, ValueError):
            raise CredentialRefused("the signature is not the root key's") from None
        statement = cls(serial, time_ms, UUID(bytes=sled), boot_counter)
        _check(statement)
        return statement

    def is_for(self, sled: UUID, boot_counter: int) -> bool:
        """Whether a sled, in this start of it, is meant."""
        return self.sled in (ANY_SLED, sled) and self.boot_counter in (ANY_BOOT, boot_counter)


def _check(statement: TimeStatement) -> None:
    if not 0 < statement.serial <= SERIAL_MAX:
        raise CredentialMalformed(f"serial {statement.serial} is not within 1 to 2^63 - 1")
    if not RELEASED_MS <= statement.time_ms <= TIME_MS_MAX:
        raise CredentialMalformed(f"time {statement.time_ms} ms is not within the years 2023 to 9999")
    if not 0 <= statement.boot_counter < 1 << 64:
        raise CredentialMalformed("the boot counter does not fit into 64 bits")
