"""The superblock's two copies: which counts, which is repaired, when neither does."""

import struct
from dataclasses import replace

import pytest

from sled_controller.storage import superblock as sb
from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.superblock import FormatState, Superblock, decode, judge, plan

GOOD = plan(1024, 3, b"S" * 16, b"D" * 16, 64)


def test_struct_and_construct_agree() -> None:
    parsed = sb.SUPERBLOCK_FORMAT.parse(GOOD.encode())
    assert sb.SUPERBLOCK_FORMAT.sizeof() == 4096
    assert sb.SUPERBLOCK_FORMAT.build(parsed) == GOOD.encode()
    assert isinstance(sb.SUPERBLOCK, struct.Struct)
    for name in Superblock.__slots__:
        assert parsed[name] == getattr(GOOD, name)


def test_it_survives_encoding_and_notices_any_flipped_byte() -> None:
    block = GOOD.encode()
    assert decode(block) == GOOD
    for at in (0, 9, 40, 80, 83, 2000, 4092, 4095):
        rotten = bytearray(block)
        rotten[at] ^= 1
        assert decode(rotten) is None


def test_areas_do_not_overlap_and_end_before_the_data() -> None:
    firsts = sorted(GOOD.area(region, copy) for region in (0, 1) for copy in (0, 1))
    assert firsts == [1, 65, 129, 193]
    assert abs(GOOD.area(0, 0) - GOOD.area(0, 1)) == 128
    assert GOOD.data_lba == 512
    assert GOOD.data_lba + GOOD.data_blocks == 1023
    assert GOOD.copies() == (0, 1023)


def test_the_table_grows_with_the_device() -> None:
    assert plan(1 << 18, 0, b"S" * 16, b"D" * 16).table_records == 1024
    assert plan(1 << 31, 0, b"S" * 16, b"D" * 16).table_records == sb.TABLE_RECORDS_MAX
    assert plan(1 << 14, 0, b"S" * 16, b"D" * 16).table_records == 256  # 64 MiB
    assert plan(1 << 12, 0, b"S" * 16, b"D" * 16).table_records == 64


@pytest.mark.parametrize(
    ("blocks", "index", "records"), [(100, 0, 64), (1024, 32, 64), (1024, -1, 64), (1024, 0, 9999)]
)
def test_a_plan_that_cannot_be_is_refused(blocks: int, index: int, records: int) -> None:
    with pytest.raises(ValueError, match=r"small|index|records"):
        plan(blocks, index, b"S" * 16, b"D" * 16, records)


def test_one_copy_is_enough_and_the_other_is_repaired() -> None:
    assert judge(GOOD, GOOD, 1024).repair == ()
    assert judge(GOOD, None, 1024).repair == (1,)
    assert judge(None, GOOD, 1024).repair == (0,)
    assert judge(None, GOOD, 1024).superblock == GOOD


def test_ready_outranks_formatting() -> None:
    unfinished = replace(GOOD, state=FormatState.FORMATTING)
    assert judge(unfinished, GOOD, 1024) == judge(None, GOOD, 1024)


@pytest.mark.parametrize(
    ("first", "last", "blocks"),
    [
        (None, None, 1024),
        (GOOD, replace(GOOD, table_records=32), 1024),
        (replace(GOOD, state=FormatState.FORMATTING, device=b"X" * 16), GOOD, 1024),
        (GOOD, GOOD, 1023),
    ],
)
def test_what_contradicts_itself_is_distrusted(first: Superblock | None, last: Superblock | None, blocks: int) -> None:
    with pytest.raises(DeviceUntrusted):
        judge(first, last, blocks)


@pytest.mark.parametrize(
    "changes", [{"table_lba": 0}, {"data_lba": 100}, {"data_blocks": 512}, {"table_records": 3}, {"device_index": 40}]
)
def test_a_checksum_does_not_make_nonsense_plausible(changes: dict[str, int]) -> None:
    assert decode(replace(GOOD, **changes).encode()) is None  # type: ignore[arg-type]
