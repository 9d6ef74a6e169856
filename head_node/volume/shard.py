"""The header block that opens every shard: whose it is, which content, and what each of its blocks should be."""

import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import construct as c
import numpy as np
from crc32c import crc32c

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import PADDING_LBA
from spdk_bindings.device import Buffer

SHARD_MAGIC: Final = b"PALSHARD"
SHARD_HEADER: Final = struct.Struct("<8sI16sQQHHI")
SHARD_BLOCK: Final = np.dtype([("lba", "<u8"), ("opnum", "<u8"), ("crc", "<u4"), ("reserved", "<u4")])
SHARD_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(SHARD_MAGIC),
    "crc" / c.Int32ul,
    "volume" / c.Bytes(16),
    "epoch" / c.Int64ul,
    "sequence" / c.Int64ul,
    "index" / c.Int16ul,
    "rows" / c.Int16ul,
    "reserved" / c.Int32ul,
    "blocks" / c.Array(c.this.rows, c.Struct(
        "lba" / c.Int64ul, "opnum" / c.Int64ul, "crc" / c.Int32ul, "reserved" / c.Int32ul,
    )),
)  # fmt: skip

_AFTER_CRC: Final = 12


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """A header whose own CRC verified; parity blocks carry PADDING_LBA."""

    volume: UUID
    epoch: int
    sequence: int
    index: int
    crcs: tuple[int, ...]


def encode_shard_header(
    volume: UUID, epoch: int, sequence: int, index: int, blocks: "np.ndarray[tuple[int], np.dtype[np.void]]"
) -> bytes:
    """The header block; `blocks` is a SHARD_BLOCK array, one entry per row."""
    assert SHARD_HEADER.size + blocks.nbytes <= BLOCK_BYTES
    fields = (volume.bytes, epoch, sequence, index, len(blocks), 0)
    body = (SHARD_HEADER.pack(SHARD_MAGIC, 0, *fields) + blocks.tobytes()).ljust(BLOCK_BYTES, b"\0")
    return SHARD_MAGIC + struct.pack("<I", crc32c(body[_AFTER_CRC:])) + body[_AFTER_CRC:]


def decode_shard_header(block: Buffer) -> ShardHeader | None:
    """The header in a block, None when it is none."""
    if len(block) != BLOCK_BYTES:
        return None
    view = memoryview(block)
    magic, crc, volume, epoch, sequence, index, rows, _ = SHARD_HEADER.unpack_from(view)
    room = (BLOCK_BYTES - SHARD_HEADER.size) // SHARD_BLOCK.itemsize
    if magic != SHARD_MAGIC or rows > room or crc != crc32c(view[_AFTER_CRC:]):
        return None
    entries = np.frombuffer(view, SHARD_BLOCK, count=rows, offset=SHARD_HEADER.size)
    return ShardHeader(UUID(bytes=volume), epoch, sequence, index, tuple(entries["crc"].tolist()))


def parity_entries(parity: Buffer) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """SHARD_BLOCK entries of a parity shard: only the CRCs say anything."""
    view = memoryview(parity)
    entries = np.zeros(len(view) // BLOCK_BYTES, SHARD_BLOCK)
    entries["lba"] = PADDING_LBA
    entries["crc"] = [crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)]
    return entries
