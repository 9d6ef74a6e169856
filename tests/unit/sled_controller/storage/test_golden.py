"""The on-disk format is pinned: the first bytes and the checksum of a superblock and of each kind of record."""

from uuid import UUID

import pytest
from kit.host import golden

from sled_controller.storage.records import (
    BootEntry,
    Entry,
    FenceEntry,
    FenceRetiredEntry,
    NamespaceEntry,
    RetiredEntry,
    StoredFence,
    TableRecord,
    TimeEntry,
    decode_record,
    encode_record,
)
from sled_controller.storage.superblock import decode, plan

SLED, DEVICE, VOLUME = (UUID(int=number << 120 | number) for number in (0xA1, 0xB2, 0xC3))
SHOWN_BYTES = 160

RECORDS: dict[str, Entry] = {
    "sled_boot_record": BootEntry(7),
    "sled_fence_record": FenceEntry(VOLUME, StoredFence(5, bytes(range(32)), b"a signed credential")),
    "sled_fence_retired_record": FenceRetiredEntry(VOLUME, 5, 1_700_000_000_000, 3),
    "sled_retired_record": RetiredEntry(1_700_000_000_000, 3),
    "sled_time_record": TimeEntry(4, 1_700_000_000_000, 86_400_000),
    "sled_namespace_record": NamespaceEntry(0x10001, VOLUME, 3, 512, 65536, UUID(int=9)),
}


def shown(block: bytes) -> bytes:
    """What a golden file holds of a block: the rest is zero."""
    assert not any(block[SHOWN_BYTES:-4])
    return block[:SHOWN_BYTES] + block[-4:]


def test_a_superblock_is_the_golden_one() -> None:
    superblock = plan(262144, 1, SLED.bytes, DEVICE.bytes)
    pinned = golden("sled_superblock")
    assert shown(superblock.encode()) == pinned
    assert decode(pinned[:-4].ljust(4092, b"\0") + pinned[-4:]) == superblock


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_the_golden_ones(name: str) -> None:
    record = TableRecord(4, 17, 16, 2, RECORDS[name])
    pinned = golden(name)
    assert shown(encode_record(DEVICE.bytes, record)) == pinned
    assert decode_record(pinned[:-4].ljust(4092, b"\0") + pinned[-4:], DEVICE.bytes, 0, 17) == record
