"""The firmware image as bytes: header, TLV area, signature area, payloads. docs/firmware-image.md says what they mean.

Everything is little-endian and of fixed layout but the TLV area, so that a boot loader in C can check it without a
parser. What is signed is `SIGNING_DOMAIN`, the header and the TLV area; the header's SHA-256 values cover the payloads.
"""

from typing import Final

from construct import Array, Bytes, Const, GreedyBytes, GreedyRange, Int8ul, Int16ul, Int32ul, Int64ul, Prefixed, Struct

MAGIC: Final = b"PLFW"
FORMAT: Final = 1
SIGNING_DOMAIN: Final = b"palisade firmware v1\0"

ARCHITECTURE_BYTES: Final = 8
VERSION_BYTES: Final = 64
HARDWARE_MAX: Final = 4  # boards that differ in what the application does not see
HARDWARE_BYTES: Final = 32
PAYLOADS_MAX: Final = 4
NAME_BYTES: Final = 16
DIGEST_BYTES: Final = 32  # SHA-256

TLV_AREA_BYTES_MAX: Final = 4096
CRITICAL: Final = 0x8000  # a reader that does not know a type with this bit refuses the image

PAYLOAD_BYTES_MAX: Final = 1 << 28  # all payloads together; a slot is smaller

HEADER: Final = Struct(
    "magic" / Const(MAGIC),
    "format" / Const(FORMAT, Int16ul),
    "hardware_count" / Int8ul,
    "payload_count" / Int8ul,
    "counter" / Int32ul,
    "built_s" / Int32ul,
    "tlv_bytes" / Int32ul,
    "zero" / Const(0, Int32ul),
    "architecture" / Bytes(ARCHITECTURE_BYTES),
    "version" / Bytes(VERSION_BYTES),
    "hardware" / Array(HARDWARE_MAX, Bytes(HARDWARE_BYTES)),
    "payloads" / Array(PAYLOADS_MAX, Struct("name" / Bytes(NAME_BYTES), "size" / Int64ul, "sha256" / Bytes(32))),
)
HEADER_BYTES: Final = HEADER.sizeof()

TLV_AREA: Final = GreedyRange(Struct("type" / Int16ul, "value" / Prefixed(Int16ul, GreedyBytes)))

KEY_ID_BYTES: Final = 8
PUBLIC_BYTES: Final = 32
APPLICATION: Final = "application"
"""The payload that is started."""
SIGNATURE_BYTES: Final = 64

KEY_SET_MAGIC: Final = b"PLFK"
KEY_SET_DOMAIN: Final = b"palisade firmware key set v1\0"
KEYS_MAX: Final = 16
DEVELOPMENT: Final = 1  # flag of a key

KEY_SET: Final = Struct(
    "magic" / Const(KEY_SET_MAGIC),
    "format" / Const(FORMAT, Int16ul),
    "count" / Int8ul,
    "threshold" / Int8ul,
    "version" / Int64ul,
    "places" / Array(KEYS_MAX, Struct("public" / Bytes(PUBLIC_BYTES), "flags" / Int32ul, "zero" / Const(0, Int32ul))),
    "signature" / Bytes(SIGNATURE_BYTES),
)
KEY_SET_BYTES: Final = KEY_SET.sizeof()

SIGNATURES_MAGIC: Final = b"PLSA"

SIGNATURE_AREA: Final = Struct(
    "magic" / Const(SIGNATURES_MAGIC),
    "count" / Int16ul,
    "key_set_bytes" / Int16ul,
    "key_set" / Bytes(KEY_SET_BYTES),
    "signatures" / Array(KEYS_MAX, Struct("key_id" / Bytes(KEY_ID_BYTES), "signature" / Bytes(SIGNATURE_BYTES))),
)
SIGNATURE_AREA_BYTES: Final = SIGNATURE_AREA.sizeof()
