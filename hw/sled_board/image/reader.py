"""Reading an image: a file becomes an `Image` whose bytes are whole and unchanged. Whom it comes from says `Trust`."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from construct import ConstructError

from sled_board.errors import DamagedImage, WrongHardware, WrongPython
from sled_board.image import fit
from sled_board.image.fit import Buffer
from sled_board.image.layout import (
    APPLICATION,
    HARDWARE_MAX,
    HEADER,
    HEADER_BYTES,
    KEY_ID_BYTES,
    KEY_SET_BYTES,
    KEYS_MAX,
    PAYLOAD_BYTES_MAX,
    PAYLOADS_MAX,
    SIGNATURE_AREA,
    SIGNATURE_AREA_BYTES,
    SIGNATURE_BYTES,
    SIGNING_DOMAIN,
    TLV_AREA_BYTES_MAX,
)
from sled_board.image.tlv import Tag, decode_area

# Semantic Versioning 2.0.0, the grammar of its clauses 2, 9 and 10.
_NUMBER: Final = r"(?:0|[1-9][0-9]*)"
_BEFORE: Final = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD: Final = r"[0-9A-Za-z-]+"
SEMANTIC_VERSION: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_BEFORE}(?:\.{_BEFORE})*)?(?:\+{_BUILD}(?:\.{_BUILD})*)?"
)
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Payload:
    """What the header says of one payload; `size` in bytes."""

    name: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """A whole image. Nothing here is believed before `Trust.check`; the payloads are views into the bytes read.

    `hardware` are the boards that it is for, `counter` the rollback counter (0 to 2^32 - 1), `built_s` Unix seconds,
    `signatures` pairs of key id and signature, `key_set` the set carried along, still signed.
    """

    version: str
    counter: int
    hardware: tuple[str, ...]
    architecture: str
    built_s: int
    payloads: tuple[Payload, ...]
    tlvs: Mapping[int, bytes] = field(hash=False)
    signed: bytes = field(repr=False)
    signatures: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    key_set: bytes | None = field(repr=False)
    contents: Mapping[str, memoryview] = field(repr=False, hash=False)

    @property
    def id(self) -> str:
        """SHA-256 of the signed part in hex: the same however often the image is signed again."""
        return hashlib.sha256(self.signed).hexdigest()

    @property
    def message(self) -> bytes:
        """What a key signs: the domain and the signed part."""
        return SIGNING_DOMAIN + self.signed

    @property
    def build_id(self) -> str | None:
        """The commit that it was built from."""
        return self._text(Tag.BUILD_ID)

    @property
    def sbom_sha256(self) -> bytes | None:
        """SHA-256 of the CycloneDX document that was made with it."""
        return self.tlvs.get(Tag.SBOM_SHA256)

    @property
    def bootloader_min(self) -> str | None:
        """The oldest U-Boot release that may start it."""
        return self._text(Tag.BOOTLOADER_MIN)

    @property
    def python(self) -> str | None:
        """The tag of the interpreter that the base system must have, for example `cp311`."""
        return self._text(Tag.PYTHON)

    def check_startable(self, *, architecture: str, python: str | None = None) -> None:
        """Return when there is something to start, for this processor and, where it is known, this Python.

        Raises DamagedImage, WrongHardware or WrongPython.
        """
        self.payload(APPLICATION)
        if self.architecture != architecture:
            raise WrongHardware(f"it is for {self.architecture}, this board has {architecture}")
        if python is not None and self.python not in (None, python):
            raise WrongPython(f"it needs a base system with {self.python}; this one has {python}")

    def payload(self, name: str) -> memoryview:
        """The bytes of one payload; raises DamagedImage when the image has none of that name."""
        if name not in self.contents:
            raise DamagedImage(f"it has no payload {name}, only {', '.join(self.contents)}")
        return self.contents[name]

    def _text(self, tag: Tag) -> str | None:
        value = self.tlvs.get(tag)
        return None if value is None else value.decode("ascii")


def image_bytes(start: Buffer) -> int:
    """How many bytes the image has that begins with these (IMAGE_START_BYTES are enough): what to read of a slot.

    Raises DamagedImage when no image begins there, or one that no slot can hold.
    """
    told = fit.total_bytes(start)
    if told > IMAGE_BYTES_MAX:
        raise DamagedImage(f"it announces {told} bytes, an image has at most {IMAGE_BYTES_MAX}")
    return told


def read_image(data: Buffer) -> Image:
    """Read one image, exactly; every hash and every byte is checked, but not whom it comes from (`Trust.check`).

    Raises DamagedImage.
    """
    image_bytes(data)
    inner = fit.unwrap(data)
    header = bytes(inner[:HEADER_BYTES])
    fields = _header(header)
    signed_bytes = HEADER_BYTES + fields.tlv_bytes
    tlvs = bytes(inner[HEADER_BYTES:signed_bytes])
    payloads_at = signed_bytes + SIGNATURE_AREA_BYTES
    if payloads_at > len(inner):
        raise DamagedImage("it ends within the TLV or signature area")
    payloads = tuple(
        Payload(_text(item.name, "a payload's name", NAME), item.size, item.sha256)
        for item in fields.payloads[: fields.payload_count]
    )
    signatures, key_set = _signatures(bytes(inner[signed_bytes:payloads_at]))
    image = Image(
        version=_text(fields.version, "the version", SEMANTIC_VERSION),
        counter=fields.counter,
        hardware=tuple(_text(item, "a board's name", NAME) for item in fields.hardware[: fields.hardware_count]),
        architecture=_text(fields.architecture, "the architecture", NAME),
        built_s=fields.built_s,
        payloads=payloads,
        tlvs=MappingProxyType(decode_area(tlvs)),
        signed=header + tlvs,
        signatures=signatures,
        key_set=key_set,
        contents=MappingProxyType(_contents(inner[payloads_at:], payloads)),
    )
    fit.check_wrapping(data, inner, image.architecture, image.built_s)
    return image


def _header(raw: bytes) -> Any:
    try:
        fields = HEADER.parse(raw)
    except ConstructError:
        raise DamagedImage("its header is not one of a firmware image of format 1") from None
    if not 0 < fields.hardware_count <= HARDWARE_MAX or any(map(any, fields.hardware[fields.hardware_count :])):
        raise DamagedImage(f"it is for {fields.hardware_count} boards, not 1 to {HARDWARE_MAX}, or names more")
    unused = fields.payloads[fields.payload_count :]
    if not 0 < fields.payload_count <= PAYLOADS_MAX or any(any(it.name) or it.size or any(it.sha256) for it in unused):
        raise DamagedImage(f"it has {fields.payload_count} payloads, not 1 to {PAYLOADS_MAX}, or lists more")
    if fields.tlv_bytes > TLV_AREA_BYTES_MAX:
        raise DamagedImage(f"a TLV area of {fields.tlv_bytes} bytes, at most {TLV_AREA_BYTES_MAX}")
    return fields


def _signatures(area: bytes) -> tuple[tuple[tuple[bytes, bytes], ...], bytes | None]:
    try:
        fields = SIGNATURE_AREA.parse(area)
    except ConstructError:
        raise DamagedImage("the signature area does not begin where it should") from None
    if fields.count > KEYS_MAX or fields.key_set_bytes not in (0, KEY_SET_BYTES):
        raise DamagedImage("the signature area has more places than exist, or a key set of another size")
    found = tuple((item.key_id, item.signature) for item in fields.signatures[: fields.count])
    ids = [item[0] for item in found]
    if ids != sorted(set(ids)):
        raise DamagedImage("the key ids of the signatures do not ascend")
    unused = area[len(area) - (KEYS_MAX - fields.count) * (KEY_ID_BYTES + SIGNATURE_BYTES) :]
    key_set = fields.key_set if fields.key_set_bytes else None
    if any(unused) or (key_set is None and any(fields.key_set)):
        raise DamagedImage("a place of the signature area that is not used is not zero")
    return found, key_set


def _contents(area: memoryview, payloads: tuple[Payload, ...]) -> dict[str, memoryview]:
    told = sum(payload.size for payload in payloads)
    if told != len(area):
        raise DamagedImage(f"{len(area)} bytes of payloads, the header lists {told}")
    found: dict[str, memoryview] = {}
    at = 0
    for payload in payloads:
        content = area[at : at + payload.size]
        if payload.name in found:
            raise DamagedImage(f"it has two payloads {payload.name}")
        if hashlib.sha256(content).digest() != payload.sha256:
            raise DamagedImage(f"the SHA-256 of payload {payload.name} is not the one in the header")
        found[payload.name] = content
        at += payload.size
    return found


def _text(raw: bytes, what: str, grammar: re.Pattern[str]) -> str:
    """The text of a field padded with zeros."""
    found = raw.rstrip(b"\0").decode("latin-1")
    if not grammar.fullmatch(found):
        raise DamagedImage(f"{what} is {found!r}, which is none")
    return found


IMAGE_START_BYTES: Final = 8
IMAGE_BYTES_MAX: Final = (
    fit.FRAME_BYTES_MAX + HEADER_BYTES + TLV_AREA_BYTES_MAX + SIGNATURE_AREA_BYTES + PAYLOAD_BYTES_MAX
)
