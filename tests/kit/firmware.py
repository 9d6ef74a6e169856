"""A small firmware image, the keys that sign it, and what the tests of images change in it."""

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sled_board.image import FirmwareKey, KeySet, Recipe, Tag, Trust, build_image, fit, read_image, sign_image
from sled_board.image import sign_key_set as signed_by
from sled_board.image.fit import Buffer

HARDWARE = "qemu-virt-arm64"
ARCHITECTURE = "arm64"
COUNTER = 3
BUILT_S = 1_700_000_000
APPLICATION = b"the sled controller" * 20


@dataclass(frozen=True)
class FixedKey:
    """A signer whose private key everybody knows."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)


def signer(number: int) -> FixedKey:
    """The signer of this number."""
    return FixedKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


ROOT, FIRST, SECOND, THIRD, DEVELOPER = (signer(number) for number in (101, 102, 103, 104, 105))


def key_set(version: int = 1, threshold: int = 2, keys: tuple[FixedKey, ...] = (FIRST, SECOND, THIRD)) -> bytes:
    """A set signed by the root; the developer's key is flagged wherever it is in one."""
    listed = tuple(FirmwareKey(key.public, key is DEVELOPER) for key in keys)
    return signed_by(KeySet(version, threshold, listed), ROOT)


def recipe(
    *,
    version: str = "1.4.0",
    counter: int = COUNTER,
    hardware: tuple[str, ...] = (HARDWARE,),
    architecture: str = ARCHITECTURE,
    payloads: dict[str, Buffer] | None = None,
    tlvs: dict[int, bytes] | None = None,
) -> Recipe:
    """What the image is made of."""
    known = {
        Tag.BUILD_ID: b"0123456789abcdef0123456789abcdef01234567",
        Tag.SBOM_SHA256: hashlib.sha256(b"{}").digest(),
        Tag.BOOTLOADER_MIN: b"2023.01",
        Tag.PYTHON: b"cp311",
    }
    return Recipe(
        version,
        counter,
        hardware,
        architecture,
        BUILT_S,
        payloads or {"application": APPLICATION},
        known | (tlvs or {}),
    )


def signed(
    made: Recipe | None = None, *, keys: tuple[FixedKey, ...] = (FIRST, SECOND), under: bytes | None = None
) -> bytes:
    """An image signed by `keys` under a key set."""
    data = sign_image(read_image(build_image(made or recipe())), None, under or key_set())
    for key in keys:
        data = sign_image(read_image(data), key)
    return data


def trust(under: bytes | None = None, *, locked: bool = True) -> Trust:
    """A board with the root key above."""
    return Trust(ROOT.public, under, locked)


def rewrapped(data: bytes, position: int, flip: int = 0x10) -> bytes:
    """`data` with bits flipped in the image inside at `position`, and a FIT around it that says nothing of it."""
    inner = bytearray(fit.unwrap(data))
    inner[position] ^= flip
    return b"".join(fit.wrap(bytes(inner), "arm64", BUILT_S))
