"""The wrapping as a U-Boot FIT: a flattened device tree (Devicetree Specification 0.4, chapter 5) with one image node.

The tree depends on nothing but the image inside, and the data is its third property, always at `DATA_OFFSET`. So a
reader does not parse it: it takes the image out, wraps it again and compares. What U-Boot's `iminfo` and `mkimage -l`
show and check (doc/uImage.FIT/source_file_format.txt of U-Boot) is thereby what was signed.
"""

import hashlib
from typing import Final

from construct import Const, Int32ub, Struct

from sled_board.errors import DamagedImage
from sled_board.image.layout import ARCHITECTURE_BYTES

Buffer = bytes | bytearray | memoryview

FDT_MAGIC: Final = 0xD00DFEED
FDT_HEADER: Final = Struct(
    "magic" / Const(FDT_MAGIC, Int32ub),
    "total_bytes" / Int32ub,
    "structure_offset" / Int32ub,
    "strings_offset" / Int32ub,
    "reservations_offset" / Int32ub,
    "version" / Const(17, Int32ub),
    "last_compatible_version" / Const(16, Int32ub),
    "boot_cpu" / Const(0, Int32ub),
    "strings_bytes" / Int32ub,
    "structure_bytes" / Int32ub,
    "reservations" / Const(bytes(16)),  # the empty memory reservation block follows the header
)
STRUCTURE_OFFSET: Final = FDT_HEADER.sizeof()

NAMES: Final = ("timestamp", "description", "data", "type", "arch", "os", "compression", "algo", "value")
STRINGS: Final = "".join(f"{name}\0" for name in NAMES).encode()
DESCRIPTION: Final = b"Palisade sled firmware\0"

BEGIN_NODE, END_NODE, PROPERTY, END = (bytes(Int32ub.build(token)) for token in (1, 2, 3, 9))


def wrap(image: Buffer, architecture: str, built_s: int) -> list[Buffer]:
    """The FIT around `image` as buffers to be written one after the other; `image` itself is not copied.

    `architecture` is U-Boot's name of it (`arm64`), `built_s` Unix seconds below 2^32.
    """
    before = (
        _begin("")
        + _property("timestamp", Int32ub.build(built_s))
        + _property("description", DESCRIPTION)
        + _begin("images")
        + _begin("firmware")
        + _property_head("data", len(image))
    )
    digest = hashlib.sha256(image).digest()
    after = (
        bytes(-len(image) % 4)
        + _property("description", DESCRIPTION)
        + _property("type", b"firmware\0")
        + _property("arch", architecture.encode() + b"\0")
        + _property("os", b"linux\0")
        + _property("compression", b"none\0")
        + _begin("hash")
        + _property("algo", b"sha256\0")
        + _property("value", digest)
        + END_NODE * 4
        + END
    )
    structure_bytes = len(before) + len(image) + len(after)
    strings_offset = STRUCTURE_OFFSET + structure_bytes
    header = FDT_HEADER.build(
        {
            "total_bytes": strings_offset + len(STRINGS),
            "structure_offset": STRUCTURE_OFFSET,
            "strings_offset": strings_offset,
            "reservations_offset": STRUCTURE_OFFSET - 16,
            "strings_bytes": len(STRINGS),
            "structure_bytes": structure_bytes,
        }
    )
    return [header + before, image, after + STRINGS]


def total_bytes(start: Buffer) -> int:
    """How long the FIT is that begins with these (at least 8) bytes; raises DamagedImage when none begins there."""
    if len(start) < 8 or Int32ub.parse(bytes(start[:4])) != FDT_MAGIC:
        raise DamagedImage(f"it begins with {bytes(start[:8]).hex() or 'nothing'}, a FIT with {FDT_MAGIC:08x}")
    return int(Int32ub.parse(bytes(start[4:8])))


def unwrap(data: Buffer) -> memoryview:
    """The image inside, without a copy; raises DamagedImage. `check_wrapping` is to follow."""
    told = total_bytes(data)
    if told != len(data):
        raise DamagedImage(f"{len(data)} bytes, of the {told} that its first bytes announce")
    if len(data) < DATA_OFFSET:
        raise DamagedImage(f"{len(data)} bytes are too short for a firmware image")
    size = int(Int32ub.parse(bytes(data[DATA_OFFSET - 8 : DATA_OFFSET - 4])))
    if DATA_OFFSET + size > len(data):
        raise DamagedImage(f"the image inside should have {size} bytes, and the file ends before")
    return memoryview(data)[DATA_OFFSET : DATA_OFFSET + size]


def check_wrapping(data: Buffer, image: Buffer, architecture: str, built_s: int) -> None:
    """Raise DamagedImage unless `data` is exactly `image` wrapped."""
    before, _, after = wrap(image, architecture, built_s)
    if bytes(data[:DATA_OFFSET]) != before:
        raise DamagedImage("the device tree before the image is not the one that belongs to it")
    if bytes(data[DATA_OFFSET + len(image) :]) != after:
        raise DamagedImage("the device tree behind the image, with the image's SHA-256, does not belong to it")


def _begin(name: str) -> bytes:
    return BEGIN_NODE + _padded(name.encode() + b"\0")


def _property(name: str, value: bytes) -> bytes:
    return _property_head(name, len(value)) + _padded(value)


def _property_head(name: str, size: int) -> bytes:
    return PROPERTY + bytes(Int32ub.build(size) + Int32ub.build(STRINGS.index(f"{name}\0".encode())))


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


_LONGEST: Final = [len(part) for part in wrap(b"", "a" * ARCHITECTURE_BYTES, 0)]
DATA_OFFSET: Final = _LONGEST[0]
FRAME_BYTES_MAX: Final = sum(_LONGEST) + 3  # without the image: 3 bytes may be needed to align what follows it
