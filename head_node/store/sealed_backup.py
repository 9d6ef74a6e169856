"""A backup for one reader: the store's file sealed to a key of the operator, which is never where the store is.

Fixed header, little-endian: magic, format, two zero bytes, the raw Ed25519 key that it is sealed to; then what
`head_node.sealing` makes: X25519 with an ephemeral key, HKDF-SHA256, AES-256-GCM. See docs/decisions/0012.
"""

from struct import Struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.sealing import SealBroken, seal, unseal
from sled_controller.environment import Entropy

MAGIC: Final = b"PLBK"
FORMAT: Final = 1
HEADER: Final = Struct("<4sHH32s")
PURPOSE: Final = b"backup of a metadata store v1"


class BackupSealed(Exception):
    """It cannot be opened: it is sealed to another key, or damaged."""


def is_sealed(data: bytes) -> bool:
    """Whether that is a sealed backup, by its first bytes."""
    return data.startswith(MAGIC)


def sealed(data: bytes, public: bytes, entropy: Entropy) -> bytes:
    """`data` for the holder of the Ed25519 key `public` (32 raw bytes)."""
    header = HEADER.pack(MAGIC, FORMAT, 0, public)
    return header + seal(public, PURPOSE + header, data, entropy)


def opened(data: bytes, key: Ed25519PrivateKey) -> bytes:
    """What was sealed to `key`; raises BackupSealed."""
    if len(data) < HEADER.size:
        raise BackupSealed("it is cut short")
    magic, layout, zero, public = HEADER.unpack_from(data)
    if magic != MAGIC or layout != FORMAT or zero:
        raise BackupSealed("magic or format is not known here")
    if public != key.public_key().public_bytes_raw():
        raise BackupSealed(f"it is sealed to key {public.hex()}, not to this one")
    try:
        return unseal(key, PURPOSE + data[: HEADER.size], data[HEADER.size :])
    except SealBroken as error:
        raise BackupSealed(f"it is damaged: {error}") from None
