"""Table records: one per 4096-byte block, checksummed, each saying where and when it belongs.

A record is written twice, in two copies of its region (see `recovery.py` for what that buys). What it says is one
of the entries below.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar, Final, TypeAlias
from uuid import UUID

import crc32c
from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct, this

from sled_controller.storage.errors import RecordMalformed
from sled_controller.storage.superblock import CRC, CRC_OFFSET, ZERO_BLOCK
from spdk_bindings.device import Buffer

MAGIC: Final = b"PTBL"
VERSION: Final = 2

RECORD_FORMAT = Struct(
    "magic" / Const(MAGIC),
    "kind" / Int8ul,
    "version" / Const(VERSION, Int8ul),
    "payload_bytes" / Int16ul,
    "device" / Bytes(16),
    "generation" / Int64ul,
    "index" / Int32ul,
    "group_first" / Int32ul,
    "group_count" / Int32ul,
    Padding(4),
    "payload" / Bytes(this.payload_bytes),
    "filler" / Bytes(lambda context: CRC_OFFSET - 48 - context.payload_bytes),
    "crc32c" / Int32ul,
)
RECORD = struct.Struct("<4sBBH16sQIII4x")
PAYLOAD_BYTES_MAX: Final = CRC_OFFSET - RECORD.size
CREDENTIAL_BYTES_MAX: Final = 1024
KEY_SET_BYTES_MAX: Final = PAYLOAD_BYTES_MAX - 10
MEMBERS_MAX: Final = 32


class Kind(IntEnum):
    """What a record says."""

    CHECKPOINT = 1
    BOOT = 2
    FENCE = 3
    NAMESPACE = 4
    NAMESPACE_DELETED = 5
    KEY_SET = 6
    ISSUED = 7
    MEMBERS = 8
    FENCE_RETIRED = 9
    TIME = 10
    RETIRED = 11


@dataclass(frozen=True, slots=True)
class StoredFence:
    """A volume's fence (F2): the epoch, sha256 of its holder's public key, and the signed credential that raised it."""

    epoch: int
    holder: bytes
    credential: bytes


CHECKPOINT = struct.Struct("<II")
CHECKPOINT_FORMAT = Struct("count" / Int32ul, "nsid_next" / Int32ul)


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """First record of a region: the checkpoint is this and the next `count` - 1 records.

    `nsid_next` is the local part of the next namespace id, so that ids of deleted namespaces are not used again.
    """

    KIND: ClassVar = Kind.CHECKPOINT
    count: int
    nsid_next: int

    def encode(self) -> bytes:
        return CHECKPOINT.pack(self.count, self.nsid_next)


BOOT = struct.Struct("<Q")
BOOT_FORMAT = Struct("counter" / Int64ul)


@dataclass(frozen=True, slots=True)
class BootEntry:
    """The sled's boot counter: how often its storage has been started, ever."""

    KIND: ClassVar = Kind.BOOT
    counter: int

    def encode(self) -> bytes:
        return BOOT.pack(self.counter)


FENCE = struct.Struct("<16sQ32sH")
FENCE_FORMAT = Struct("volume" / Bytes(16), "epoch" / Int64ul, "holder" / Bytes(32), "credential_bytes" / Int16ul)


@dataclass(frozen=True, slots=True)
class FenceEntry:
    """The fence of a volume; it outlives the volume, until a `FenceRetiredEntry`."""

    KIND: ClassVar = Kind.FENCE
    volume: UUID
    fence: StoredFence

    def encode(self) -> bytes:
        fence = self.fence
        return FENCE.pack(self.volume.bytes, fence.epoch, fence.holder, len(fence.credential)) + fence.credential


FENCE_RETIRED = struct.Struct("<16sQQI")
FENCE_RETIRED_FORMAT = Struct("volume" / Bytes(16), "epoch" / Int64ul, "over_ms" / Int64ul, "key_id" / Int32ul)
KEY_ID_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class FenceRetiredEntry:
    """The volume is deleted and every credential for it expires before `over_ms` and is signed by a key of at most
    `key_id`: its fence, of at most `epoch`, is forgotten. One record says both, so that neither is kept alone."""

    KIND: ClassVar = Kind.FENCE_RETIRED
    volume: UUID
    epoch: int
    over_ms: int
    key_id: int = KEY_ID_MAX

    def encode(self) -> bytes:
        return FENCE_RETIRED.pack(self.volume.bytes, self.epoch, self.over_ms, self.key_id)


RETIRED = struct.Struct("<QI")
RETIRED_FORMAT = Struct("over_ms" / Int64ul, "key_id" / Int32ul)


@dataclass(frozen=True, slots=True)
class RetiredEntry:
    """What stands in for all fences that were forgotten, in a checkpoint: the highest of their `over_ms` and `key_id`.
    A credential that expires before the one and is of a key up to the other raises no fence where there is none."""

    KIND: ClassVar = Kind.RETIRED
    over_ms: int
    key_id: int

    def encode(self) -> bytes:
        return RETIRED.pack(self.over_ms, self.key_id)


TIME = struct.Struct("<QQQ")
TIME_FORMAT = Struct("serial" / Int64ul, "time_ms" / Int64ul, "rtc_ahead_ms" / Int64ul)


@dataclass(frozen=True, slots=True)
class TimeEntry:
    """A statement of time was taken: `time_ms` takes the place of the issue time kept before, of whatever height; the
    machine's clock was ahead by `rtc_ahead_ms`, and counts less that."""

    KIND: ClassVar = Kind.TIME
    serial: int
    time_ms: int
    rtc_ahead_ms: int

    def encode(self) -> bytes:
        return TIME.pack(self.serial, self.time_ms, self.rtc_ahead_ms)


NAMESPACE = struct.Struct("<IHHQQ16s16s")
NAMESPACE_FORMAT = Struct(
    "nsid" / Int32ul,
    "column" / Int16ul,
    "zero" / Const(0, Int16ul),
    "first_lba" / Int64ul,
    "blocks" / Int64ul,
    "volume" / Bytes(16),
    "uuid" / Bytes(16),
)


@dataclass(frozen=True, slots=True)
class NamespaceEntry:
    """A namespace on this device: a column of a volume, `blocks` blocks from the device's block `first_lba`."""

    KIND: ClassVar = Kind.NAMESPACE
    nsid: int
    volume: UUID
    column: int
    first_lba: int
    blocks: int
    uuid: UUID

    def encode(self) -> bytes:
        return NAMESPACE.pack(
            self.nsid, self.column, 0, self.first_lba, self.blocks, self.volume.bytes, self.uuid.bytes
        )


NSID = struct.Struct("<I")
NSID_FORMAT = Struct("nsid" / Int32ul)


@dataclass(frozen=True, slots=True)
class NamespaceDeletedEntry:
    """The namespace is no more."""

    KIND: ClassVar = Kind.NAMESPACE_DELETED
    nsid: int

    def encode(self) -> bytes:
        return NSID.pack(self.nsid)


KEY_SET = struct.Struct("<QH")
KEY_SET_FORMAT = Struct("version" / Int64ul, "raw_bytes" / Int16ul)


@dataclass(frozen=True, slots=True)
class KeySetEntry:
    """The highest key set seen, as it was signed."""

    KIND: ClassVar = Kind.KEY_SET
    version: int
    raw: bytes

    def encode(self) -> bytes:
        return KEY_SET.pack(self.version, len(self.raw)) + self.raw


ISSUED = struct.Struct("<Q")
ISSUED_FORMAT = Struct("issued_ms" / Int64ul)


@dataclass(frozen=True, slots=True)
class IssuedEntry:
    """Sled time as it was kept last, Unix milliseconds: it is never before that, until a statement of time."""

    KIND: ClassVar = Kind.ISSUED
    issued_ms: int

    def encode(self) -> bytes:
        return ISSUED.pack(self.issued_ms)


MEMBER = struct.Struct("<B16s")
MEMBER_FORMAT = Struct("device_index" / Int8ul, "device" / Bytes(16))


@dataclass(frozen=True, slots=True)
class MembersEntry:
    """Every device that the sled has ever had, (index, device UUID), so that a missing one is missed."""

    KIND: ClassVar = Kind.MEMBERS
    members: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        return b"".join(MEMBER.pack(index, device) for index, device in self.members)


Entry: TypeAlias = (
    CheckpointEntry
    | BootEntry
    | FenceEntry
    | FenceRetiredEntry
    | RetiredEntry
    | TimeEntry
    | NamespaceEntry
    | NamespaceDeletedEntry
    | KeySetEntry
    | IssuedEntry
    | MembersEntry
)


def decode_entry(kind: int, payload: bytes) -> Entry:
    """The entry in a payload whose checksum holds; raises RecordMalformed."""
    try:
        match kind:
            case Kind.CHECKPOINT:
                return CheckpointEntry(*CHECKPOINT.unpack(payload))
            case Kind.BOOT:
                return BootEntry(*BOOT.unpack(payload))
            case Kind.FENCE:
                volume, epoch, holder, size = FENCE.unpack_from(payload)
                return FenceEntry(UUID(bytes=volume), StoredFence(epoch, holder, _tail(payload, FENCE.size, size)))
            case Kind.FENCE_RETIRED:
                volume, *rest = FENCE_RETIRED.unpack(payload)
                return FenceRetiredEntry(UUID(bytes=volume), *rest)
            case Kind.RETIRED:
                return RetiredEntry(*RETIRED.unpack(payload))
            case Kind.TIME:
                return TimeEntry(*TIME.unpack(payload))
            case Kind.NAMESPACE:
                nsid, column, _, first_lba, blocks, volume, uuid = NAMESPACE.unpack(payload)
                return NamespaceEntry(nsid, UUID(bytes=volume), column, first_lba, blocks, UUID(bytes=uuid))
            case Kind.NAMESPACE_DELETED:
                return NamespaceDeletedEntry(*NSID.unpack(payload))
            case Kind.KEY_SET:
                version, size = KEY_SET.unpack_from(payload)
                return KeySetEntry(version, _tail(payload, KEY_SET.size, size))
            case Kind.ISSUED:
                return IssuedEntry(*ISSUED.unpack(payload))
            case Kind.MEMBERS:
                return MembersEntry(tuple(MEMBER.iter_unpack(payload)))
    except struct.error as error:
        raise RecordMalformed(f"record of kind {kind}: {error}") from error
    raise RecordMalformed(f"unknown record kind {kind}")


def _tail(payload: bytes, offset: int, size: int) -> bytes:
    if len(payload) != offset + size:
        raise RecordMalformed(f"{len(payload)} bytes of payload where {offset + size} belong")
    return payload[offset:]


@dataclass(frozen=True, slots=True)
class TableRecord:
    """A record as found: which checkpoint generation, where, with which others in one group, and what it says.

    The `group_count` records from index `group_first` were written by one FUA write per copy and acknowledged
    together.
    """

    generation: int
    index: int
    group_first: int
    group_count: int
    entry: Entry


class Cell(Enum):
    """A block of the table that holds no record of this device."""

    ABSENT = 0  # all zero: nothing was ever written here
    DAMAGED = 1  # unreadable, or neither zero nor a record that belongs here


def encode_record(device: bytes, record: TableRecord) -> bytes:
    """One block; ValueError when the payload does not fit."""
    payload = record.entry.encode()
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a payload of {len(payload)} bytes is longer than {PAYLOAD_BYTES_MAX}")
    head = RECORD.pack(
        MAGIC,
        record.entry.KIND,
        VERSION,
        len(payload),
        device,
        record.generation,
        record.index,
        record.group_first,
        record.group_count,
    )
    body = (head + payload).ljust(CRC_OFFSET, b"\0")
    return body + CRC.pack(crc32c.crc32c(body))


def decode_record(block: Buffer, device: bytes, region: int, index: int) -> TableRecord | Cell:
    """What the block at position `index` of a copy of region 0 or 1 of this device's table holds.

    Region 0 has the even generations, region 1 the odd ones.

    Raises RecordMalformed if the checksum holds and the content makes no sense.
    """
    if block == ZERO_BLOCK:
        return Cell.ABSENT
    magic, kind, version, size, owner, generation, own_index, group_first, group_count = RECORD.unpack_from(block)
    if magic != MAGIC or version != VERSION or owner != device or own_index != index or size > PAYLOAD_BYTES_MAX:
        return Cell.DAMAGED
    if generation % 2 != region:
        return Cell.DAMAGED
    body = bytes(block[:CRC_OFFSET])
    if CRC.unpack_from(block, CRC_OFFSET)[0] != crc32c.crc32c(body):
        return Cell.DAMAGED
    entry = decode_entry(kind, body[RECORD.size : RECORD.size + size])
    return TableRecord(generation, index, group_first, group_count, entry)
