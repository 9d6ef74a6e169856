"""The superblock: whose device this is and where its table and data lie; two copies, first and last block.

Written only by formatting, and to repair a copy from the other one.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import crc32c
from construct import Bytes, Const, Int8ul, Int32ul, Int64ul, Padding, Struct

from sled_controller.storage.errors import DeviceUntrusted
from spdk_bindings.device import BLOCK_BYTES, Buffer

MAGIC: Final = b"PALISADE"
VERSION: Final = 1
DEVICE_INDEX_MAX: Final = 31
"""A receipt has room for 32 devices."""

TABLE_LBA: Final = 1
TABLE_COPIES: Final = 4
"""Two regions of two copies each."""
TABLE_RECORDS_MIN: Final = 64
TABLE_RECORDS_MAX: Final = 32_768
"""Every volume that a rack may have with a column on this one device, and as many deleted ones that are not retired."""
TABLE_SHARE: Final = 256
"""One table record (four blocks) per this many blocks of the device, within the limits."""
TABLE_RECORDS_SMALL: Final = 256
TABLE_SHARE_SMALL: Final = 64
"""On a small device a larger share, up to so many records."""
DATA_ALIGN_BLOCKS: Final = 256

SUPERBLOCK_FORMAT = Struct(
    "magic" / Const(MAGIC),
    "version" / Const(VERSION, Int32ul),
    "state" / Int8ul,
    "device_index" / Int8ul,
    Padding(2),
    "sled" / Bytes(16),
    "device" / Bytes(16),
    "block_count" / Int64ul,
    "table_lba" / Int64ul,
    "data_lba" / Int64ul,
    "data_blocks" / Int64ul,
    "table_records" / Int32ul,
    Padding(BLOCK_BYTES - 4 - 84),
    "crc32c" / Int32ul,
)
SUPERBLOCK = struct.Struct("<8sIBB2x16s16sQQQQI")
CRC = struct.Struct("<I")
CRC_OFFSET: Final = BLOCK_BYTES - CRC.size
ZERO_BLOCK: Final = bytes(BLOCK_BYTES)


class FormatState(IntEnum):
    """How far formatting got; only READY devices are served."""

    FORMATTING = 1
    READY = 2


@dataclass(frozen=True, slots=True)
class Superblock:
    """`sled` and `device` are UUIDs (16 bytes); lbas and counts are in blocks of the device.

    The table is `TABLE_COPIES` areas of `table_records` blocks from `table_lba`; namespaces lie in `data_blocks`
    blocks from `data_lba`.
    """

    state: FormatState
    device_index: int
    sled: bytes
    device: bytes
    block_count: int
    table_lba: int
    data_lba: int
    data_blocks: int
    table_records: int

    def encode(self) -> bytes:
        """One block."""
        body = SUPERBLOCK.pack(
            MAGIC,
            VERSION,
            self.state,
            self.device_index,
            self.sled,
            self.device,
            self.block_count,
            self.table_lba,
            self.data_lba,
            self.data_blocks,
            self.table_records,
        ).ljust(CRC_OFFSET, b"\0")
        return body + CRC.pack(crc32c.crc32c(body))

    def copies(self) -> tuple[int, int]:
        """The lbas of the two copies."""
        return 0, self.block_count - 1

    def area(self, region: int, copy: int) -> int:
        """First lba of copy 0 or 1 of region 0 or 1: twins lie two areas apart."""
        return self.table_lba + (2 * copy + region) * self.table_records


def plan(
    block_count: int, device_index: int, sled: bytes, device: bytes, table_records: int | None = None
) -> Superblock:
    """Lay a device of `block_count` blocks out; ValueError if it is too small or an argument is out of range.

    `table_records` (per region and copy) is chosen by size when None.
    """
    if not 0 <= device_index <= DEVICE_INDEX_MAX:
        raise ValueError(f"device index {device_index} is not 0..{DEVICE_INDEX_MAX}")
    if table_records is None:
        small = min(TABLE_RECORDS_SMALL, block_count // TABLE_SHARE_SMALL)
        table_records = min(TABLE_RECORDS_MAX, max(TABLE_RECORDS_MIN, small, block_count // TABLE_SHARE))
    if not 16 <= table_records <= TABLE_RECORDS_MAX:
        raise ValueError(f"table_records {table_records} is not 16..{TABLE_RECORDS_MAX}")
    end = TABLE_LBA + TABLE_COPIES * table_records
    data_lba = -(-end // DATA_ALIGN_BLOCKS) * DATA_ALIGN_BLOCKS
    data_blocks = block_count - 1 - data_lba
    if data_blocks < 1:
        raise ValueError(f"a device of {block_count} blocks is too small for a table of {table_records} records")
    return Superblock(
        FormatState.READY, device_index, sled, device, block_count, TABLE_LBA, data_lba, data_blocks, table_records
    )


def decode(block: Buffer) -> Superblock | None:
    """The superblock in this block, or None when it isn't one or is damaged."""
    if bytes(block[: len(MAGIC)]) != MAGIC:
        return None
    (crc,) = CRC.unpack_from(block, CRC_OFFSET)
    if crc32c.crc32c(bytes(block[:CRC_OFFSET])) != crc:
        return None
    _, version, state, index, sled, device, blocks, table_lba, data_lba, data_blocks, records = SUPERBLOCK.unpack_from(
        block
    )
    if version != VERSION or state not in (FormatState.FORMATTING, FormatState.READY):
        return None
    found = Superblock(FormatState(state), index, sled, device, blocks, table_lba, data_lba, data_blocks, records)
    return found if _plausible(found) else None


def _plausible(found: Superblock) -> bool:
    return (
        found.device_index <= DEVICE_INDEX_MAX
        and 16 <= found.table_records <= TABLE_RECORDS_MAX
        and found.table_lba >= TABLE_LBA
        and found.table_lba + TABLE_COPIES * found.table_records <= found.data_lba
        and found.data_lba + found.data_blocks < found.block_count
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What both copies together say: the superblock to use and the copies (0, 1) to be written again from it."""

    superblock: Superblock
    repair: tuple[int, ...]


def judge(first: Superblock | None, last: Superblock | None, block_count: int) -> Verdict:
    """Decide which copy counts; raises DeviceUntrusted when neither does or they contradict each other.

    A READY copy outranks a FORMATTING one: the crash fell between the two writes that end formatting.
    """
    if first is not None and last is not None and first != last:
        if first.state == last.state:
            raise DeviceUntrusted("the two superblock copies contradict each other")
        if (first.device, first.sled) != (last.device, last.sled):
            raise DeviceUntrusted("the two superblock copies are of different devices")
        first, last = (first, None) if first.state == FormatState.READY else (None, last)
    chosen = first or last
    if chosen is None:
        raise DeviceUntrusted("neither superblock copy is valid")
    if chosen.block_count > block_count:
        raise DeviceUntrusted(f"it was formatted with {chosen.block_count} blocks and has {block_count} now")
    return Verdict(chosen, tuple(copy for copy, found in enumerate((first, last)) if found is None))
