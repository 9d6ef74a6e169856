"""Secrets of DH-HMAC-CHAP in their written form, `DHHC-1:hh:base64:`.

NVM Express Base 2.0, 8.13.5.8. The Base64 is of the key and its CRC-32 (little-endian); `hh` says by which hash the
key is transformed before use, `00` for none. What nvme-cli writes by `gen-dhchap-key` and Linux reads is this form.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from sled_controller.environment import Entropy
from sled_controller.errors import SecretMalformed
from sled_controller.fabric.dhchap.algorithms import HashId

PREFIX: Final = "DHHC-1:"
KEY_BYTES: Final = (32, 48, 64)
CRC_BYTES: Final = 4
TEXT_CHARS_MAX: Final = len(PREFIX) + 3 + 92 + 1  # hash and colon, Base64 of 68 bytes, colon
TRANSFORM_LABEL: Final = b"NVMe-over-Fabrics"


@dataclass(frozen=True, slots=True)
class Secret:
    """A key of 32, 48 or 64 bytes, and the hash that ties it to an NQN. Its key shows in no log: see `text`."""

    key: bytes = field(repr=False)
    transform: HashId | None

    @classmethod
    def parse(cls, text: str) -> "Secret":
        """Read the written form; raises SecretMalformed, which does not repeat it."""
        if len(text) > TEXT_CHARS_MAX or not text.isascii() or not text.startswith(PREFIX):
            raise SecretMalformed("it does not have the form DHHC-1:hh:base64:")
        parts = text.split(":")
        if len(parts) != 4 or parts[3]:
            raise SecretMalformed("it does not have the form DHHC-1:hh:base64:")
        transforms = {"00": None} | {f"{each.value:02}": each for each in HashId}
        if parts[1] not in transforms:
            raise SecretMalformed("the hash is one of " + ", ".join(transforms))
        try:
            raw = b64decode(parts[2], validate=True)
        except binascii.Error:
            raise SecretMalformed("its key is no Base64") from None
        if b64encode(raw).decode() != parts[2]:
            raise SecretMalformed("its key is no Base64")  # bits that belong to no byte
        key = raw[:-CRC_BYTES]
        if len(key) not in KEY_BYTES:
            raise SecretMalformed("a key has 32, 48 or 64 bytes, and four of CRC-32")
        if raw[-CRC_BYTES:] != _crc(key):
            raise SecretMalformed("its CRC-32 is wrong: it was not copied whole")
        return cls(key, transforms[parts[1]])

    @classmethod
    def generate(
        cls, entropy: Entropy, transform: HashId | None = HashId.SHA256, key_bytes: int | None = None
    ) -> "Secret":
        """A fresh secret; the key is as long as a digest of `transform` unless told (32, 48 or 64), 32 without one.

        Raises ValueError for another length.
        """
        if key_bytes is None:
            key_bytes = KEY_BYTES[0] if transform is None else transform.digest_bytes
        if key_bytes not in KEY_BYTES:
            raise ValueError(f"a key of {key_bytes} bytes; 32, 48 and 64 are possible")
        return cls(entropy.bytes(key_bytes), transform)

    def text(self) -> str:
        """The written form, for whoever is to hold the secret."""
        return f"{PREFIX}{self.transform or 0:02}:{b64encode(self.key + _crc(self.key)).decode()}:"

    def key_for(self, nqn: str) -> bytes:
        """The key that responses are computed with: of the host's secret for its NQN, of the controller's for the
        subsystem's."""
        if self.transform is None:
            return self.key
        return hmac.digest(self.key, nqn.encode() + TRANSFORM_LABEL, self.transform.algorithm)


def _crc(key: bytes) -> bytes:
    return crc32(key).to_bytes(CRC_BYTES, "little")
