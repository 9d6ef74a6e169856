"""Log records: the bytes that the primary makes, every member keeps, and nobody changes.

A record is a 40-byte header, `meta_bytes` of meta data and `data_bytes` of client data. Its `crc` is the CRC-32C of
the rest of the header and of the meta data, started from the `crc` of the record before it: the chain. Client data is
covered through the per-block CRCs in the meta data. So a record proves that all before it are the same, and bytes left
over in a recycled segment never parse.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import construct as c
import numpy as np
from crc32c import crc32c

from head_node.volume.errors import BatchMalformed
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.reservations import HOST_ID_BYTES, NO_HOST, REGISTRANTS_MAX, Reservations, ReservationType
from spdk_bindings.device import Buffer

RECORD_HEADER: Final = struct.Struct("<IBBHIIQQQ")
HEADER_BYTES: Final = RECORD_HEADER.size
RECORD_CONSTRUCT: Final = c.Struct(
    "crc" / c.Int32ul,
    "kind" / c.Int8ul,
    "flags" / c.Int8ul,
    "reserved" / c.Int16ul,
    "meta_bytes" / c.Int32ul,
    "data_bytes" / c.Int32ul,
    "opnum" / c.Int64ul,
    "epoch" / c.Int64ul,
    "lba" / c.Int64ul,
)

STRIPE_HEAD: Final = struct.Struct("<QQIHH")
STRIPE_SHARD: Final = struct.Struct("<HHIQ")
STRIPE_CONSTRUCT: Final = c.Struct(
    "epoch" / c.Int64ul,
    "sequence" / c.Int64ul,
    "slot" / c.Int32ul,
    "shard_count" / c.Int16ul,
    "block_count" / c.Int16ul,
    "shards" / c.Array(c.this.shard_count, c.Struct(
        "column" / c.Int16ul, "present" / c.Int16ul, "reserved" / c.Int32ul, "offset" / c.Int64ul,
    )),
    "blocks" / c.Array(c.this.block_count, c.Struct(
        "lba" / c.Int64ul, "opnum" / c.Int64ul, "crc" / c.Int32ul, "source" / c.Int32ul,
    )),
)  # fmt: skip
STRIPE_BLOCK: Final = np.dtype([("lba", "<u8"), ("opnum", "<u8"), ("crc", "<u4"), ("source", "<u4")])

RESERVATION_HEAD: Final = struct.Struct("<IBBHHHI")
RESERVATION_REGISTRANT: Final = struct.Struct("<16sQ")
RESERVATION_CONSTRUCT: Final = c.Struct(
    "generation" / c.Int32ul,
    "type" / c.Int8ul,
    "persist" / c.Int8ul,
    "registrant_count" / c.Int16ul,
    "holder" / c.Int16ul,
    "reserved" / c.Const(bytes(6)),
    "registrants" / c.Array(c.this.registrant_count, c.Struct("host" / c.Bytes(16), "key" / c.Int64ul)),
)
LOST_BLOCK: Final = np.dtype(
    [("lba", "<u8"), ("opnum", "<u8"), ("epoch", "<u8"), ("sequence", "<u8"), ("slot", "<u4"), ("reserved", "<u4")]
)
LOST_CONSTRUCT: Final = c.GreedyRange(c.Struct(
    "lba" / c.Int64ul, "opnum" / c.Int64ul, "epoch" / c.Int64ul, "sequence" / c.Int64ul, "slot" / c.Int32ul,
    "reserved" / c.Const(bytes(4)),
))  # fmt: skip
LOST_BLOCKS_MAX: Final = 1024
"""Blocks of one LOST record, 40 KiB."""

NO_HOLDER: Final = 0xFFFF
"""`holder` where nobody holds a reservation, or all registrants do; otherwise it is the holder's place among them."""

PADDING_LBA: Final = (1 << 64) - 1
"""Stands for a block of a partial stripe that holds nothing."""
FROM_LOG: Final = (1 << 32) - 1
"""`source` of a block that comes from the log; otherwise it is the slot that the block moves out of (MOVE)."""

RECORD_BLOCKS_MAX: Final = 256
META_BYTES_MAX: Final = 1 << 17
RECORD_BYTES_MAX: Final = HEADER_BYTES + META_BYTES_MAX + RECORD_BLOCKS_MAX * BLOCK_BYTES

_BODY: Final = struct.Struct("<BBHIIQQQ")
_WRITE_ONE: Final = struct.Struct("<BBHIIQQQII")
_ZERO: Final = struct.Struct("<BBHIIQQQQ")
_CRC: Final = struct.Struct("<I")
_COUNT: Final = struct.Struct("<Q")

StripeBlocks: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
LostBlocks: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
"""LOST_BLOCK array: versions of blocks (lba, opnum) with the slot and the stripe (epoch, sequence) that held them."""


class Kind(IntEnum):
    """What a record says."""

    EPOCH = 1
    WRITE = 2
    ZERO = 3
    STRIPE = 4
    RESERVATION = 5
    LOST = 6


_KINDS_WITHOUT_DATA: Final = frozenset({Kind.EPOCH, Kind.ZERO, Kind.STRIPE, Kind.RESERVATION, Kind.LOST})


class Record(NamedTuple):
    """One parsed record; `meta` and `data` are views of the buffer that it came in."""

    opnum: int
    epoch: int
    kind: int
    lba: int
    meta: memoryview
    data: memoryview
    crc: int
    start: int
    end: int

    def block_count(self) -> int:
        """Blocks that a WRITE or a ZERO covers."""
        if self.kind == Kind.ZERO:
            return int(_COUNT.unpack_from(self.meta)[0])
        return len(self.data) // BLOCK_BYTES

    def block_crcs(self) -> tuple[int, ...]:
        """Per-block CRC-32C of a WRITE."""
        return struct.unpack_from(f"<{len(self.data) // BLOCK_BYTES}I", self.meta)


@dataclass(frozen=True, slots=True)
class StripeRecord:
    """A stripe that exists once this record is committed."""

    epoch: int
    sequence: int
    slot: int
    shards: tuple[tuple[int, bool, int], ...]
    """(column, present, first block in the column) by shard index."""
    blocks: StripeBlocks
    """STRIPE_BLOCK array by stripe index; padding has PADDING_LBA."""

    @property
    def present_mask(self) -> int:
        """Bit i set: shard i was written."""
        return sum(1 << index for index, shard in enumerate(self.shards) if shard[1])


def write_header(opnum: int, epoch: int, lba: int, data: Buffer, chain: int) -> tuple[bytes, int, tuple[int, ...]]:
    """(header with meta data, its crc, the block CRCs) of a WRITE of `data`, 1 to RECORD_BLOCKS_MAX blocks."""
    length = len(data)
    if length == BLOCK_BYTES:
        block_crc = crc32c(data)
        body = _WRITE_ONE.pack(2, 0, 0, 8, BLOCK_BYTES, opnum, epoch, lba, block_crc, 0)
        chain = crc32c(body, chain)
        return _CRC.pack(chain) + body, chain, (block_crc,)
    view = memoryview(data)
    crcs = tuple([crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, length, BLOCK_BYTES)])
    meta = struct.pack(f"<{len(crcs)}I", *crcs)
    if len(crcs) & 1:
        meta += bytes(4)
    header, chain = _seal(Kind.WRITE, opnum, epoch, lba, meta, length, chain)
    return header, chain, crcs


def zero_record(opnum: int, epoch: int, lba: int, count: int, chain: int) -> tuple[bytes, int]:
    """A ZERO of `count` blocks (trim and write zeroes are the same to the log) and its crc."""
    body = _ZERO.pack(Kind.ZERO, 0, 0, 8, 0, opnum, epoch, lba, count)
    chain = crc32c(body, chain)
    return _CRC.pack(chain) + body, chain


def epoch_record(opnum: int, epoch: int, chain: int) -> tuple[bytes, int]:
    """The first record of an epoch and its crc."""
    return _seal(Kind.EPOCH, opnum, epoch, 0, b"", 0, chain)


def stripe_record(opnum: int, epoch: int, stripe: StripeRecord, chain: int) -> tuple[bytes, int]:
    """A STRIPE and its crc."""
    head = STRIPE_HEAD.pack(stripe.epoch, stripe.sequence, stripe.slot, len(stripe.shards), len(stripe.blocks))
    shards = b"".join(STRIPE_SHARD.pack(column, present, 0, offset) for column, present, offset in stripe.shards)
    return _seal(Kind.STRIPE, opnum, epoch, 0, head + shards + stripe.blocks.tobytes(), 0, chain)


def reservation_record(opnum: int, epoch: int, state: Reservations, chain: int) -> tuple[bytes, int]:
    """A RESERVATION, which says all of the new state, and its crc."""
    return _seal(Kind.RESERVATION, opnum, epoch, 0, encode_reservations(state), 0, chain)


def lost_record(opnum: int, epoch: int, blocks: LostBlocks, chain: int) -> tuple[bytes, int]:
    """A LOST of 1 to LOST_BLOCKS_MAX blocks and its crc."""
    return _seal(Kind.LOST, opnum, epoch, 0, blocks.tobytes(), 0, chain)


def parse_lost(meta: memoryview) -> LostBlocks:
    """Decode the meta data of a LOST; raises BatchMalformed."""
    count, rest = divmod(len(meta), LOST_BLOCK.itemsize)
    if rest or not 1 <= count <= LOST_BLOCKS_MAX:
        raise BatchMalformed(f"LOST of {len(meta)} bytes")
    blocks: LostBlocks = np.frombuffer(meta, dtype=LOST_BLOCK)
    if blocks["reserved"].any():
        raise BatchMalformed("LOST with reserved bytes that are not zero")
    return blocks


def encode_reservations(state: Reservations) -> bytes:
    """The state as records and checkpoints carry it; at most 16 + 24 * REGISTRANTS_MAX bytes."""
    holder = NO_HOLDER if state.holder == NO_HOST else list(state.registrants).index(state.holder)
    head = RESERVATION_HEAD.pack(
        state.generation, state.type or 0, state.persist, len(state.registrants), holder, 0, 0
    )  # fmt: skip
    return head + b"".join(RESERVATION_REGISTRANT.pack(host, key) for host, key in state.registrants.items())


def parse_reservations(data: memoryview) -> Reservations:
    """Decode what `encode_reservations` made; raises BatchMalformed for a state that no command leads to."""
    if len(data) < RESERVATION_HEAD.size:
        raise BatchMalformed("reservations shorter than their head")
    generation, kind, persist, count, holder, *reserved = RESERVATION_HEAD.unpack_from(data)
    if len(data) != RESERVATION_HEAD.size + count * RESERVATION_REGISTRANT.size or count > REGISTRANTS_MAX:
        raise BatchMalformed(f"reservations of {count} registrants in {len(data)} bytes")
    if kind not in (0, *ReservationType) or persist > 1 or any(reserved):
        raise BatchMalformed(f"reservations of type {kind}, persist {persist}, reserved {reserved}")
    registrants = dict(RESERVATION_REGISTRANT.iter_unpack(data[RESERVATION_HEAD.size :]))
    if len(registrants) != count or bytes(HOST_ID_BYTES) in registrants:
        raise BatchMalformed("reservations name a host twice, or none")
    type_ = ReservationType(kind) if kind else None
    if type_ is None or type_.held_by_all:
        held = holder == NO_HOLDER and (type_ is None or count > 0)
    else:
        held = holder < count
    if not held:
        raise BatchMalformed(f"reservations of type {kind} held by number {holder} of {count}")
    host = NO_HOST if holder == NO_HOLDER else list(registrants)[holder]
    return Reservations(generation, type_, host, registrants, bool(persist))


def _seal(kind: int, opnum: int, epoch: int, lba: int, meta: bytes, data_bytes: int, chain: int) -> tuple[bytes, int]:
    body = _BODY.pack(kind, 0, 0, len(meta), data_bytes, opnum, epoch, lba) + meta
    chain = crc32c(body, chain)
    return _CRC.pack(chain) + body, chain


def parse_stripe(meta: memoryview) -> StripeRecord:
    """Decode the meta data of a STRIPE; raises BatchMalformed."""
    if len(meta) < STRIPE_HEAD.size:
        raise BatchMalformed("STRIPE shorter than its head")
    epoch, sequence, slot, shard_count, block_count = STRIPE_HEAD.unpack_from(meta)
    blocks_at = STRIPE_HEAD.size + shard_count * STRIPE_SHARD.size
    if len(meta) != blocks_at + block_count * STRIPE_BLOCK.itemsize:
        raise BatchMalformed(f"STRIPE of {shard_count} shards and {block_count} blocks in {len(meta)} bytes")
    shards = tuple(
        (column, bool(present), offset)
        for column, present, _, offset in STRIPE_SHARD.iter_unpack(meta[STRIPE_HEAD.size : blocks_at])
    )
    return StripeRecord(epoch, sequence, slot, shards, np.frombuffer(meta[blocks_at:], dtype=STRIPE_BLOCK))


def parse_records(buffer: Buffer, opnum: int, chain: int) -> Iterator[Record]:
    """Every record of `buffer`, which starts with `opnum` and continues `chain`.

    Raises BatchMalformed at the first byte that is not part of a valid record; records before it were yielded.
    """
    view = memoryview(buffer).cast("B").toreadonly()
    at, end = 0, len(view)
    while at < end:
        record = parse_header(view, at, end, opnum, chain)
        check_payload(record)
        yield record
        at, chain, opnum = record.end, record.crc, opnum + 1


def parse_header(view: memoryview, at: int, end: int, expected_opnum: int, chain: int) -> Record:
    """The record at byte `at`, whose header and meta data continue `chain`; its data is not looked at. Raises
    BatchMalformed."""
    if end - at < HEADER_BYTES:
        raise BatchMalformed(f"byte {at}: header cut off")
    crc, kind, _, _, meta_bytes, data_bytes, opnum, epoch, lba = RECORD_HEADER.unpack_from(view, at)
    meta_at = at + HEADER_BYTES
    data_at = meta_at + meta_bytes
    stop = data_at + data_bytes
    if meta_bytes > META_BYTES_MAX or data_bytes > RECORD_BLOCKS_MAX * BLOCK_BYTES or stop > end:
        raise BatchMalformed(f"byte {at}: lengths {meta_bytes} + {data_bytes} do not fit")
    if opnum != expected_opnum:
        raise BatchMalformed(f"byte {at}: opnum {opnum}, expected {expected_opnum}")
    if crc32c(view[at + 4 : data_at], chain) != crc:
        raise BatchMalformed(f"byte {at}: opnum {opnum} does not continue the chain")
    return Record(opnum, epoch, kind, lba, view[meta_at:data_at], view[data_at:stop], crc, at, stop)


def check_payload(record: Record) -> None:
    """Raise BatchMalformed unless what the record carries fits its kind and, for a WRITE, its block CRCs."""
    kind, meta, data = record.kind, record.meta, record.data
    if kind == Kind.WRITE:
        blocks, rest = divmod(len(data), BLOCK_BYTES)
        if rest or not blocks or len(meta) != (blocks * 4 + 7 & ~7):
            raise BatchMalformed(f"opnum {record.opnum}: WRITE of {len(data)} bytes with {len(meta)} of meta data")
        at = 0
        for expected in record.block_crcs():
            if crc32c(data[at : at + BLOCK_BYTES]) != expected:
                raise BatchMalformed(f"opnum {record.opnum}: block {record.lba + at // BLOCK_BYTES} fails its CRC")
            at += BLOCK_BYTES
    elif kind not in _KINDS_WITHOUT_DATA or data or (kind == Kind.ZERO and len(meta) != _COUNT.size):
        raise BatchMalformed(f"opnum {record.opnum}: kind {kind} is unknown or has the wrong length")
    elif kind == Kind.STRIPE:
        parse_stripe(meta)
    elif kind == Kind.RESERVATION:
        parse_reservations(meta)
    elif kind == Kind.LOST:
        parse_lost(meta)
