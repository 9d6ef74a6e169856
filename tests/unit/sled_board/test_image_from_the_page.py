"""docs/firmware-image.md is enough: a reader written from that page, with nothing of our code, agrees with ours."""

import hashlib
import re
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kit import firmware, host
from sled_board.image import IMAGE_BYTES_MAX, fit, read_image

NAMES = ("timestamp", "description", "data", "type", "arch", "os", "compression", "algo", "value")


def tree(built_s: int, architecture: str, data: bytes) -> bytes:
    """The FIT around `data`."""
    strings = b"".join(name.encode() + b"\0" for name in NAMES)

    def padded(raw: bytes) -> bytes:
        return raw + bytes(-len(raw) % 4)

    def begin(name: str) -> bytes:
        return struct.pack(">I", 1) + padded(name.encode() + b"\0")

    def prop(name: str, value: bytes) -> bytes:
        at = strings.index(name.encode() + b"\0")
        return struct.pack(">III", 3, len(value), at) + padded(value)

    structure = begin("") + prop("timestamp", struct.pack(">I", built_s))
    structure += prop("description", b"Palisade sled firmware\0") + begin("images") + begin("firmware")
    structure += prop("data", data) + prop("description", b"Palisade sled firmware\0")
    structure += prop("type", b"firmware\0") + prop("arch", architecture.encode() + b"\0") + prop("os", b"linux\0")
    structure += prop("compression", b"none\0") + begin("hash") + prop("algo", b"sha256\0")
    structure += prop("value", hashlib.sha256(data).digest()) + struct.pack(">5I", 2, 2, 2, 2, 9)
    end = 56 + len(structure)
    head = struct.pack(
        ">10I", 0xD00DFEED, end + len(strings), 56, end, 40, 17, 16, 0, len(strings), len(structure)
    )  # fmt: skip
    return head + bytes(16) + structure + strings


def text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("ascii")


def key_id(public: bytes) -> bytes:
    return hashlib.sha256(public).digest()[:8]


def signers(area: bytes, signed: bytes, root: bytes) -> tuple[set[bytes], int]:
    """The keys of the image's own set that have signed, after the root's signature has been verified; and m."""
    magic, count, set_bytes = struct.unpack_from("<4sHH", area)
    assert (magic, set_bytes) == (b"PLSA", 720)
    key_set = area[8:728]
    Ed25519PublicKey.from_public_bytes(root).verify(key_set[656:], b"palisade firmware key set v1\0" + key_set[:656])
    magic, layout, keys, threshold, version = struct.unpack_from("<4sHBBQ", key_set)
    assert (magic, layout) == (b"PLFK", 1)
    assert version > 0
    known = {}
    for place in range(keys):
        public, flags, zero = struct.unpack_from("<32sII", key_set, 16 + 40 * place)
        assert (flags | 1, zero) == (1, 0)
        known[key_id(public)] = public
    found = set()
    for place in range(count):
        name, signature = struct.unpack_from("<8s64s", area, 728 + 72 * place)
        if name in known:
            Ed25519PublicKey.from_public_bytes(known[name]).verify(signature, b"palisade firmware v1\0" + signed)
            found.add(name)
    return found, threshold


SEVERAL = firmware.recipe(hardware=("a", "b-2"), payloads={"x": b"1", "y": b"", "z": b"12345"}, tlvs={9: b""})


@pytest.mark.parametrize("data", [host.golden("firmware_image"), firmware.signed(SEVERAL)])
def test_a_reader_made_from_the_page_reads_and_verifies_an_image(data: bytes) -> None:
    ours = read_image(data)
    (total,) = struct.unpack_from(">I", data, 4)
    (size,) = struct.unpack_from(">I", data, 148)
    inner = data[156 : 156 + size]
    assert total == len(data)

    magic, layout, boards, payloads, counter, built_s, tlv_bytes, zero = struct.unpack_from("<4sHBBIIII", inner)
    assert (magic, layout, zero) == (b"PLFW", 1, 0)
    architecture = text(inner[24:32])
    assert data == tree(built_s, architecture, inner)
    assert (counter, built_s, architecture) == (ours.counter, ours.built_s, ours.architecture)
    assert text(inner[32:96]) == ours.version
    assert tuple(text(inner[96 + 32 * board : 128 + 32 * board]) for board in range(boards)) == ours.hardware

    signed = inner[: 448 + tlv_bytes]
    assert hashlib.sha256(signed).hexdigest() == ours.id
    at, tlvs = 448, {}
    while at < len(signed):
        kind, length = struct.unpack_from("<HH", signed, at)
        tlvs[kind] = signed[at + 4 : at + 4 + length]
        at += 4 + length
    assert tlvs == ours.tlvs

    found, threshold = signers(inner[len(signed) : len(signed) + 1880], signed, firmware.ROOT.public)
    assert len(found) >= threshold

    at = len(signed) + 1880
    for place in range(payloads):
        name, length, digest = struct.unpack_from("<16sQ32s", inner, 224 + 56 * place)
        assert hashlib.sha256(inner[at : at + length]).digest() == digest
        assert inner[at : at + length] == ours.payload(text(name))
        at += length
    assert at == len(inner)


def test_the_page_has_the_numbers_of_the_code() -> None:
    page = (host.GOLDEN.parents[1] / "docs/firmware-image.md").read_text(encoding="utf-8")
    assert fit.DATA_OFFSET == 156
    assert re.findall(r"The whole is at most ([0-9,]+) bytes\.", page) == [f"{IMAGE_BYTES_MAX:,}"]
