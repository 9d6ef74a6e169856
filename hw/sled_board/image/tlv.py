"""The TLV area: facts about an image that a reader may, or with the critical bit must, understand."""

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from sled_board.errors import DamagedImage, ImageFieldRefused
from sled_board.image.layout import CRITICAL, DIGEST_BYTES, TLV_AREA, TLV_AREA_BYTES_MAX

TEXT_BYTES_MAX: Final = 255
PRINTABLE: Final = re.compile(rb"[ -~]+")
UBOOT_RELEASE: Final = re.compile(rb"20[0-9]{2}\.[01][0-9]")  # so that releases compare as texts


class Tag(IntEnum):
    """The types that are known here."""

    BUILD_ID = 1  # text: the commit that it was built from
    SBOM_SHA256 = 2  # 32 bytes: of the CycloneDX document that was made with the image
    BOOTLOADER_MIN = 3  # text: the oldest U-Boot release that may start it, for example 2023.01
    PYTHON = 4  # text: the tag of the interpreter that the base system must have, for example cp311


def encode_area(tlvs: Mapping[int, bytes]) -> bytes:
    """The area, types ascending; raises ImageFieldRefused when a type or a value does not fit."""
    for tag, value in tlvs.items():
        if not 0 < tag < 1 << 16:
            raise ImageFieldRefused(f"TLV type {tag} is not within 1 to 65535")
        if (wrong := _wrong(tag, value)) is not None:
            raise ImageFieldRefused(wrong)
    area = bytes(TLV_AREA.build([{"type": tag, "value": tlvs[tag]} for tag in sorted(tlvs)]))
    if len(area) > TLV_AREA_BYTES_MAX:
        raise ImageFieldRefused(f"{len(area)} bytes of TLVs, at most {TLV_AREA_BYTES_MAX}")
    return area


def decode_area(area: bytes) -> dict[int, bytes]:
    """The types and values of an area of at most `TLV_AREA_BYTES_MAX` bytes; raises DamagedImage."""
    found: dict[int, bytes] = {}
    previous = 0
    items = TLV_AREA.parse(area)
    if TLV_AREA.build(items) != area:  # the last one reaches beyond the end
        raise DamagedImage("the TLV area does not end where a TLV ends")
    for item in items:
        if item.type <= previous:
            raise DamagedImage(f"TLV type {item.type} follows type {previous}: they must ascend")
        if item.type & CRITICAL:
            raise DamagedImage(f"TLV type {item.type:#06x} is critical and not known here: a newer reader is needed")
        if (wrong := _wrong(item.type, item.value)) is not None:
            raise DamagedImage(wrong)
        found[item.type] = item.value
        previous = item.type
    return found


def _wrong(tag: int, value: bytes) -> str | None:
    if tag == Tag.SBOM_SHA256:
        return None if len(value) == DIGEST_BYTES else f"an SBOM digest of {len(value)} bytes, not {DIGEST_BYTES}"
    if tag == Tag.BOOTLOADER_MIN and not UBOOT_RELEASE.fullmatch(value):
        return "the oldest boot loader is no release of U-Boot, for example 2023.01"
    if tag in tuple(Tag) and (len(value) > TEXT_BYTES_MAX or not PRINTABLE.fullmatch(value)):
        return f"{Tag(tag).name.lower()} is not text of 1 to {TEXT_BYTES_MAX} printable ASCII characters"
    return None if len(value) < 1 << 16 else f"TLV type {tag} has {len(value)} bytes, at most 65535"
