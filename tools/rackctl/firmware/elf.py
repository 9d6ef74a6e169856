"""What the loader never looks at, taken out of shared objects: wheels carry megabytes of symbols and debug data.

A shared object is loaded by its segments alone (System V gABI, chapter 5); sections are for linkers and debuggers.
Whatever no segment covers becomes zero, which compresses to nothing, and goes where nothing follows.
"""

from typing import Final

from construct import Bytes, Const, ConstructError, Int16ul, Int32ul, Int64ul, Padding, Struct

MAGIC: Final = b"\x7fELF"
HEADER: Final = Struct(
    "magic" / Const(MAGIC),
    "class" / Const(b"\2"),  # 64 bits
    "order" / Const(b"\1"),  # little-endian
    "rest" / Bytes(10),
    "kind" / Int16ul,
    "machine" / Int16ul,
    "version" / Int32ul,
    "entry" / Int64ul,
    "segments_offset" / Int64ul,
    "sections_offset" / Int64ul,
    "flags" / Int32ul,
    "header_bytes" / Int16ul,
    "segment_bytes" / Int16ul,
    "segments" / Int16ul,
    "section_bytes" / Int16ul,
    "sections" / Int16ul,
    "names_section" / Int16ul,
)
SEGMENT: Final = Struct(
    "kind" / Int32ul, "flags" / Int32ul, "offset" / Int64ul, Padding(16), "size" / Int64ul, Padding(16)
)
SEGMENT_BYTES: Final = SEGMENT.sizeof()


def loadable(data: bytes) -> bytes:
    """The same shared object without what no segment covers; anything but a 64-bit little-endian one is left alone."""
    if not data.startswith(MAGIC):
        return data
    try:
        header = HEADER.parse(data)
        at = range(
            header.segments_offset, header.segments_offset + header.segments * header.segment_bytes, SEGMENT_BYTES
        )
        segments = [SEGMENT.parse(data[offset : offset + SEGMENT_BYTES]) for offset in at]
    except ConstructError:
        return data
    if header.segment_bytes != SEGMENT_BYTES or not segments:
        return data
    header.update({"sections_offset": 0, "sections": 0, "names_section": 0})
    start = HEADER.build(header)
    kept = bytearray(max([at.stop, *(segment.offset + segment.size for segment in segments)]))
    for offset, size in [(header.segments_offset, at.stop - at.start), *((it.offset, it.size) for it in segments)]:
        kept[offset : offset + size] = data[offset : offset + size]
    kept[: len(start)] = start
    return bytes(kept)
