"""Secrets on their way to one head: sealed to its identity key, so that whoever reads the network reads nothing.

X25519 with an ephemeral key, HKDF-SHA256, AES-256-GCM. The head's Ed25519 key stands for an X25519 key by the
birational map of RFC 7748, 4.1, as age and libsodium use it, so that a head needs no second key to enrol. Who sealed
is not said: the answers that carry this are signed by the authority.
"""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sled_controller.environment import Entropy

KEY_BYTES: Final = 32
LABEL: Final = b"palisade sealed to a head v1\0"
_NONCE: Final = bytes(12)  # each key seals once
_PRIME: Final = 2**255 - 19


class SealBroken(Exception):
    """It was not sealed to this key, for this purpose, or not as it is now; ask for it again."""


def seal(public: bytes, purpose: bytes, data: bytes, entropy: Entropy) -> bytes:
    """`data` for the holder of the Ed25519 key `public` (32 raw bytes), and for `purpose` only.

    32 bytes of ephemeral key, then the ciphertext with its 16 bytes of tag. Raises SealBroken for a degenerate key.
    """
    ephemeral = X25519PrivateKey.from_private_bytes(entropy.bytes(KEY_BYTES))
    sent = ephemeral.public_key().public_bytes_raw()
    return sent + _cipher(ephemeral, _montgomery(public), sent + public).encrypt(_NONCE, data, purpose)


def unseal(key: Ed25519PrivateKey, purpose: bytes, sealed: bytes) -> bytes:
    """What was sealed to `key` for `purpose`; raises SealBroken."""
    sent = sealed[:KEY_BYTES]
    if len(sent) < KEY_BYTES:
        raise SealBroken(f"{len(sealed)} bytes were never sealed")
    own = X25519PrivateKey.from_private_bytes(hashlib.sha512(key.private_bytes_raw()).digest()[:KEY_BYTES])
    cipher = _cipher(own, sent, sent + key.public_key().public_bytes_raw())
    try:
        return cipher.decrypt(_NONCE, sealed[KEY_BYTES:], purpose)
    except InvalidTag:
        raise SealBroken("sealed to another key, for another purpose, or altered") from None


def _cipher(own: X25519PrivateKey, other: bytes, transcript: bytes) -> AESGCM:
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise SealBroken("a degenerate key") from None
    return AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, salt=transcript, info=LABEL).derive(shared))


def _montgomery(public: bytes) -> bytes:
    """u = (1 + y) / (1 - y) of an Ed25519 point."""
    y = int.from_bytes(public, "little") & (1 << 255) - 1
    if y % _PRIME == 1:
        raise SealBroken("a degenerate key")
    return ((1 + y) * pow(1 - y, -1, _PRIME) % _PRIME).to_bytes(KEY_BYTES, "little")
