"""Table records: every entry survives, every damage is noticed, nonsense is malformed."""

import struct
from uuid import UUID

import construct
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled_controller.storage import records
from sled_controller.storage.errors import RecordMalformed
from sled_controller.storage.records import (
    BootEntry,
    Cell,
    CheckpointEntry,
    Entry,
    FenceEntry,
    FenceRetiredEntry,
    IssuedEntry,
    KeySetEntry,
    MembersEntry,
    NamespaceDeletedEntry,
    NamespaceEntry,
    RetiredEntry,
    StoredFence,
    TableRecord,
    TimeEntry,
    decode_entry,
    decode_record,
    encode_record,
)

DEVICE = b"D" * 16
VOLUME = UUID(int=7)
ENTRIES: list[Entry] = [
    CheckpointEntry(5, 9),
    BootEntry(3),
    FenceEntry(VOLUME, StoredFence(2**63, b"h" * 32, b"credential")),
    FenceRetiredEntry(VOLUME, 2**63, 1_700_000_000_000, 7),
    RetiredEntry(1_700_000_000_000, 7),
    TimeEntry(2**63, 1_700_000_000_000, 5),
    NamespaceEntry(0x10002, VOLUME, 5, 512, 100, UUID(int=9)),
    NamespaceDeletedEntry(0x10002),
    KeySetEntry(4, b"keys" * 100),
    IssuedEntry(1_700_000_000_000),
    MembersEntry(((0, b"a" * 16), (3, b"b" * 16))),
]
PAIRS = [
    "CHECKPOINT", "BOOT", "FENCE", "FENCE_RETIRED", "RETIRED", "TIME", "NAMESPACE", "NSID", "KEY_SET", "ISSUED",
    "MEMBER",
]  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_struct_and_construct_agree(name: str) -> None:
    fast: struct.Struct = getattr(records, name)
    described: construct.Struct = getattr(records, name + "_FORMAT")
    data = bytearray((29 * at + 5) % 256 for at in range(fast.size))
    if name == "NAMESPACE":
        data[6:8] = bytes(2)
    parsed = described.parse(bytes(data))
    values = [value for key, value in parsed.items() if key != "_io"]
    assert list(fast.unpack(data)) == values
    assert described.build(parsed) == bytes(data)


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_record_construct_describes_what_is_written(entry: Entry) -> None:
    block = encode_record(DEVICE, TableRecord(2, 1, 0, 3, entry))
    parsed = records.RECORD_FORMAT.parse(block)
    assert records.RECORD_FORMAT.build(parsed) == block
    assert (parsed.kind, parsed.device, parsed.generation) == (entry.KIND, DEVICE, 2)
    assert (parsed.index, parsed.group_first, parsed.group_count) == (1, 0, 3)
    assert parsed.payload == entry.encode()


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_record_survives(entry: Entry) -> None:
    record = TableRecord(3, 17, 15, 4, entry)
    assert decode_record(encode_record(DEVICE, record), DEVICE, 1, 17) == record


def test_zero_is_absent_and_what_belongs_elsewhere_is_damage() -> None:
    block = encode_record(DEVICE, TableRecord(3, 17, 15, 4, BootEntry(1)))
    assert decode_record(bytes(4096), DEVICE, 1, 17) is Cell.ABSENT
    assert decode_record(block, b"E" * 16, 1, 17) is Cell.DAMAGED
    assert decode_record(block, DEVICE, 1, 16) is Cell.DAMAGED
    assert decode_record(block, DEVICE, 0, 17) is Cell.DAMAGED


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ENTRIES), st.integers(0, 4095), st.integers(1, 255))
def test_any_flipped_byte_is_damage(entry: Entry, at: int, mask: int) -> None:
    block = bytearray(encode_record(DEVICE, TableRecord(2, 5, 5, 1, entry)))
    block[at] ^= mask
    assert decode_record(bytes(block), DEVICE, 0, 5) is Cell.DAMAGED


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=200))
def test_any_payload_is_an_entry_or_malformed(kind: int, payload: bytes) -> None:
    try:
        entry = decode_entry(kind, payload)
    except RecordMalformed:
        return
    assert decode_entry(entry.KIND, entry.encode()) == entry


def test_a_payload_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        encode_record(DEVICE, TableRecord(2, 0, 0, 1, KeySetEntry(1, bytes(5000))))
    biggest = KeySetEntry(1, b"k" * records.KEY_SET_BYTES_MAX)
    record = TableRecord(2, 0, 0, 1, biggest)
    assert decode_record(encode_record(DEVICE, record), DEVICE, 0, 0) == record
