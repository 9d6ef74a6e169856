"""Making images: the same recipe gives the same bytes; signatures and key set can be added and replaced afterwards."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sled_board.errors import ImageFieldRefused
from sled_board.image import fit
from sled_board.image.fit import Buffer
from sled_board.image.layout import (
    ARCHITECTURE_BYTES,
    HARDWARE_BYTES,
    HARDWARE_MAX,
    HEADER,
    KEY_ID_BYTES,
    KEY_SET_BYTES,
    KEYS_MAX,
    NAME_BYTES,
    PAYLOAD_BYTES_MAX,
    PAYLOADS_MAX,
    SIGNATURE_AREA,
    SIGNATURE_BYTES,
    VERSION_BYTES,
)
from sled_board.image.reader import NAME, SEMANTIC_VERSION, Image
from sled_board.image.tlv import encode_area

U32_MAX: Final = (1 << 32) - 1
EMPTY_PAYLOAD: Final = {"name": bytes(NAME_BYTES), "size": 0, "sha256": bytes(32)}
EMPTY_SIGNATURE: Final = {"key_id": bytes(KEY_ID_BYTES), "signature": bytes(SIGNATURE_BYTES)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that an image says about itself, as in `Image`; `payloads` in the order in which they are stored."""

    version: str
    counter: int
    hardware: tuple[str, ...]
    architecture: str
    built_s: int
    payloads: Mapping[str, Buffer] = field(repr=False, hash=False)
    tlvs: Mapping[int, bytes] = field(default_factory=dict, hash=False)


def build_image(recipe: Recipe) -> bytes:
    """The bytes of an image that nobody has signed yet; raises ImageFieldRefused when a field does not fit."""
    area = encode_area(recipe.tlvs)
    signed = _header(recipe, len(area)) + area
    return _assemble(signed, (), None, list(recipe.payloads.values()), recipe.architecture, recipe.built_s)


def with_signatures(image: Image, signatures: Mapping[bytes, bytes], key_set: bytes | None) -> bytes:
    """The bytes of `image` with these signatures (by key id) and this signed key set instead of its own."""
    payloads = [image.contents[payload.name] for payload in image.payloads]
    ordered = tuple(sorted(signatures.items()))
    return _assemble(image.signed, ordered, key_set, payloads, image.architecture, image.built_s)


def _header(recipe: Recipe, tlv_bytes: int) -> bytes:
    if not 0 < len(recipe.hardware) <= HARDWARE_MAX:
        raise ImageFieldRefused(f"{len(recipe.hardware)} boards, not 1 to {HARDWARE_MAX}")
    if not 0 < len(recipe.payloads) <= PAYLOADS_MAX:
        raise ImageFieldRefused(f"{len(recipe.payloads)} payloads, not 1 to {PAYLOADS_MAX}")
    if (size := sum(map(len, recipe.payloads.values()))) > PAYLOAD_BYTES_MAX:
        raise ImageFieldRefused(f"{size} bytes of payloads, at most {PAYLOAD_BYTES_MAX}")
    for name in ("counter", "built_s"):
        if not 0 <= getattr(recipe, name) <= U32_MAX:
            raise ImageFieldRefused(f"{name} {getattr(recipe, name)} is not within 0 to 2^32 - 1")
    if not SEMANTIC_VERSION.fullmatch(recipe.version):
        raise ImageFieldRefused(f"version {recipe.version!r} is no semantic version, for example 1.4.0 or 1.4.0-rc.1")
    places = [
        {"name": _name(name, NAME_BYTES), "size": len(data), "sha256": hashlib.sha256(data).digest()}
        for name, data in recipe.payloads.items()
    ]
    boards = [_name(name, HARDWARE_BYTES) for name in recipe.hardware]
    return bytes(
        HEADER.build(
            {
                "hardware_count": len(boards),
                "payload_count": len(places),
                "counter": recipe.counter,
                "built_s": recipe.built_s,
                "tlv_bytes": tlv_bytes,
                "architecture": _name(recipe.architecture, ARCHITECTURE_BYTES),
                "version": _padded(recipe.version, VERSION_BYTES),
                "hardware": boards + [bytes(HARDWARE_BYTES)] * (HARDWARE_MAX - len(boards)),
                "payloads": places + [EMPTY_PAYLOAD] * (PAYLOADS_MAX - len(places)),
            }
        )
    )


def _assemble(
    signed: bytes,
    signatures: Sequence[tuple[bytes, bytes]],
    key_set: bytes | None,
    payloads: Sequence[Buffer],
    architecture: str,
    built_s: int,
) -> bytes:
    if len(signatures) > KEYS_MAX:
        raise ImageFieldRefused(f"{len(signatures)} signatures, at most {KEYS_MAX}")
    places = [{"key_id": key_id, "signature": signature} for key_id, signature in signatures]
    area = SIGNATURE_AREA.build(
        {
            "count": len(signatures),
            "key_set_bytes": 0 if key_set is None else KEY_SET_BYTES,
            "key_set": bytes(KEY_SET_BYTES) if key_set is None else key_set,
            "signatures": places + [EMPTY_SIGNATURE] * (KEYS_MAX - len(places)),
        }
    )
    return b"".join(fit.wrap(b"".join((signed, area, *payloads)), architecture, built_s))


def _name(text: str, size: int) -> bytes:
    if not NAME.fullmatch(text):
        raise ImageFieldRefused(f"{text!r} is no name: lower-case letters, digits and `_.-`, no mark first")
    return _padded(text, size)


def _padded(text: str, size: int) -> bytes:
    if len(text) > size:
        raise ImageFieldRefused(f"{text!r} has more than {size} characters")
    return text.encode().ljust(size, b"\0")
