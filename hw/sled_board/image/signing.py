"""Signing images and key sets with whatever holds a key: a file, or hardware behind a command."""

from typing import Protocol

from sled_board.errors import ImageFieldRefused, SigningFailed
from sled_board.image.build import with_signatures
from sled_board.image.key_set import KeySet, key_id, verifies
from sled_board.image.reader import Image


class Signer(Protocol):
    """Something that holds an Ed25519 private key."""

    @property
    def public(self) -> bytes:
        """The public key, 32 raw bytes."""

    def sign(self, message: bytes) -> bytes:
        """The signature (RFC 8032, 64 bytes) of the whole message; raises SigningFailed."""


def sign_key_set(key_set: KeySet, root: Signer) -> bytes:
    """The bytes of the set, signed by the root; raises ImageFieldRefused or SigningFailed."""
    return key_set.body() + checked_signature(root, key_set.message())


def sign_image(image: Image, signer: Signer | None, key_set: bytes | None = None) -> bytes:
    """The bytes of `image` with the signature of `signer`, if any, added, and with this key set if one is given.

    Signatures of keys that are not in the set any more go. Raises ImageFieldRefused when there is no key set or the
    key is not in it, and SigningFailed when what the signer returned is not its signature.
    """
    raw = image.key_set if key_set is None else key_set
    if raw is None:
        raise ImageFieldRefused("the image carries no key set yet, so one must be given")
    known = KeySet.parse(raw)
    signatures = {name: signature for name, signature in image.signatures if known.key(name) is not None}
    if signer is not None:
        name = key_id(signer.public)
        if known.key(name) is None:
            raise ImageFieldRefused(f"key {name.hex()} is not in key set {known.version}")
        signatures[name] = checked_signature(signer, image.message)
    return with_signatures(image, signatures, raw)


def checked_signature(signer: Signer, message: bytes) -> bytes:
    """The signature of `message`, verified; raises SigningFailed."""
    signature = signer.sign(message)
    if not verifies(signer.public, signature, message):
        raise SigningFailed(f"what was returned as the signature of key {key_id(signer.public).hex()} does not verify")
    return signature
