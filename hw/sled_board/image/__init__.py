"""Signed firmware images: what they are made of (`layout`), how they are read, built, signed and trusted.

image = read_image(data)                                     # whole and unchanged, or DamagedImage
Trust(root_public, key_set, locked).check(image, hardware="qemu-virt-arm64", counter_min=3)
"""

from sled_board.image.build import Recipe, build_image
from sled_board.image.key_set import FirmwareKey, KeySet
from sled_board.image.reader import IMAGE_BYTES_MAX, IMAGE_START_BYTES, Image, image_bytes, read_image
from sled_board.image.signing import Signer, sign_image, sign_key_set
from sled_board.image.tlv import Tag
from sled_board.image.trust import Trust

__all__ = [
    "IMAGE_BYTES_MAX",
    "IMAGE_START_BYTES",
    "FirmwareKey",
    "Image",
    "KeySet",
    "Recipe",
    "Signer",
    "Tag",
    "Trust",
    "build_image",
    "image_bytes",
    "read_image",
    "sign_image",
    "sign_key_set",
]
