"""The slot state survives a power loss at any instant: it is the former one or the new one."""

import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.host import golden
from kit.peers import run
from kit.torn_storage import PowerLost, TornStorage
from sled_board.errors import SlotStateLost
from sled_board.image.layout import KEY_SET_BYTES
from sled_board.region import Region
from sled_board.slot_store import COPY_BYTES, SlotStore, decode, encode, newest
from sled_board.slots import ATTEMPTS, EMPTY, Slot, SlotRecord, Slots, SlotState

OLD = Slots(SlotRecord(SlotState.CONFIRMED, 3, 7, "0123456789abcdef" * 4, "1.2.3"), EMPTY, Slot.A, 7)
NEW = Slots(
    OLD.a, SlotRecord(SlotState.TEST, 2, 8, "fedcba9876543210" * 4, "1.3.0-rc.1+g1a2b3c"), Slot.B, 7, b"\x0c\x5e"
)
STEPS_MAX = 8


def area(*copies: bytes) -> bytes:
    return b"".join(copies)


def test_a_copy_is_the_golden_one() -> None:
    copy = encode(NEW, 42)
    assert copy == golden("slot_state").ljust(COPY_BYTES, b"\0")
    assert decode(copy) == (42, NEW)


def test_u_boots_own_tool_makes_the_same_bytes(tmp_path: Path) -> None:
    copy = encode(NEW, 42)
    text, made = tmp_path / "text", tmp_path / "environment"
    text.write_bytes(copy[4:].split(b"\0\0")[0].replace(b"\0", b"\n") + b"\n")
    run("mkenvimage", "-s", str(COPY_BYTES), "-p", "0x00", "-o", made, text)
    assert made.read_bytes() == copy


@pytest.mark.parametrize(
    ("start", "former"),
    [
        (area(encode(OLD, 1), encode(OLD, 2)), OLD),
        (area(encode(OLD, 4), encode(NEW, 3)), OLD),
        (bytes(2 * COPY_BYTES), Slots()),
        (b"\xff" * (2 * COPY_BYTES), Slots()),
    ],
)
def test_power_lost_at_any_byte_leaves_the_former_state_or_the_new_one(start: bytes, former: Slots) -> None:
    for steps in range(STEPS_MAX):
        storage = TornStorage(start, steps)
        try:
            SlotStore(storage).keep(NEW)
            done = True
        except PowerLost:
            done = False
        for found in storage.outcomes():
            again = SlotStore(TornStorage(found, STEPS_MAX))
            assert again.load() in ((NEW,) if done else (former, NEW))
            again.keep(OLD)
            assert again.load() == OLD
        if done:
            return
    pytest.fail("it took more steps than expected")


def test_a_write_that_failed_is_tried_again_where_it_failed() -> None:
    start = area(encode(OLD, 1), encode(OLD, 2))
    storage = TornStorage(start, 1)  # the write is taken, the sync fails
    store = SlotStore(storage)
    with pytest.raises(PowerLost):
        store.keep(NEW)
    storage._steps_left = STEPS_MAX
    store.keep(NEW)
    assert newest([storage.medium[:COPY_BYTES], storage.medium[COPY_BYTES:]]) == (0, (3, NEW))
    assert decode(storage.medium[COPY_BYTES:]) == (2, OLD)


def test_one_rotten_copy_is_made_up_for_by_the_other_one() -> None:
    good = encode(OLD, 2)
    for position in range(COPY_BYTES):
        rotten = bytearray(good)
        rotten[position] ^= 0x10
        assert decode(bytes(rotten)) is None
    assert SlotStore(TornStorage(area(good, bytes(rotten)), 0)).load() == OLD
    assert SlotStore(TornStorage(area(bytes(rotten), good), 0)).load() == OLD


def test_two_rotten_copies_are_no_new_board() -> None:
    rotten = b"rotten".ljust(COPY_BYTES)
    storage = TornStorage(area(rotten, rotten), STEPS_MAX)
    store = SlotStore(storage)
    with pytest.raises(SlotStateLost, match="both copies"):
        store.load()
    with pytest.raises(SlotStateLost):
        store.keep(NEW)
    store.renew(OLD)
    assert store.load() == OLD


def with_checksum(lines: bytes) -> bytes:
    data = lines.ljust(COPY_BYTES - 4, b"\0")
    return zlib.crc32(data).to_bytes(4, "little") + data


@pytest.mark.parametrize(
    ("of", "to"),
    [
        (b"version=1", b"version=2"),
        (b"sequence=42", b"sequence=-42"),
        (b"sequence=42", b"sequence=9999999999999999999"),
        (b"sequence=42", b"sequence=\xc3\xa9"),
        (b"active=b", b"active=c"),
        (b"active=b", b"actives=b"),
        (b"a_attempts=3", b"a_attempts=4"),
        (b"a_state=confirmed", b"a_state=running"),
        (b"b_state=test", b"b_state=empty"),
        (b"b_counter=8", b"b_counter=4294967296"),
        (b"counter_min=7", b"counter_min=07"),
        (b"b_image=fedc", b"b_image=FEDC"),
        (b"b_version=1.3.0", b"b_version=1 3"),
        (b"key_set=0c5e", b"key_set=0c5"),
    ],
)
def test_a_whole_copy_with_a_wrong_field_does_not_count(of: bytes, to: bytes) -> None:
    lines = encode(NEW, 42)[4:].rstrip(b"\0") + b"\0\0"
    assert decode(with_checksum(lines)) == (42, NEW)
    assert of in lines
    assert decode(with_checksum(lines.replace(of, to))) is None


def test_variables_of_somebody_else_are_passed_over() -> None:
    lines = encode(NEW, 42)[4:].rstrip(b"\0") + b"\0bootdelay=2\0\0"
    assert decode(with_checksum(lines)) == (42, NEW)


def test_copies_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        SlotStore(TornStorage(bytes(2 * COPY_BYTES), 0), (0, COPY_BYTES - 1))


def test_a_region_of_a_file_keeps_the_state_and_nothing_round_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\x55" * 1024 + bytes(2 * COPY_BYTES) + b"\xaa" * 1024)
    store = SlotStore(Region(disk, 1024, 2 * COPY_BYTES))
    store.keep(OLD)
    store.change(lambda slots: NEW)
    content = disk.read_bytes()
    assert content[:1024] == b"\x55" * 1024
    assert content[-1024:] == b"\xaa" * 1024
    assert SlotStore(Region(disk, 1024, 2 * COPY_BYTES)).load() == NEW


def test_a_region_refuses_what_lies_outside_and_maps_what_lies_inside(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(range(256)) * 64)
    region = Region(disk, 100, 8192)
    assert bytes(region.mapped(300)) == (bytes(range(256)) * 2)[100:400]
    for offset, length in [(8000, 193), (-1, 1), (0, 8193)]:
        with pytest.raises(ValueError, match="not within 8192"):
            region.read(offset, length)
        with pytest.raises(ValueError, match="not within 8192"):
            region.write(offset, bytes(length))


def test_a_region_that_its_file_does_not_hold_is_read_as_zeros_but_not_mapped(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\x01" * 100)
    region = Region(disk, 50, 4096)
    assert region.read(40, 20) == b"\x01" * 10 + bytes(10)
    assert bytes(region.mapped(50)) == b"\x01" * 50
    with pytest.raises(OSError, match="ends within the region"):
        region.mapped(51)


RECORDS = st.builds(
    SlotRecord,
    st.sampled_from([state for state in SlotState if state is not SlotState.EMPTY]),
    st.integers(0, ATTEMPTS),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.from_regex(r"[0-9A-Za-z.+-]{0,64}", fullmatch=True),
)


@given(
    st.builds(
        Slots,
        RECORDS | st.just(EMPTY),
        RECORDS | st.just(EMPTY),
        st.none() | st.sampled_from(Slot),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=KEY_SET_BYTES),
    ),
    st.integers(0, 2**63 - 1),
)
def test_what_is_kept_is_read(slots: Slots, sequence: int) -> None:
    assert decode(encode(slots, sequence)) == (sequence, slots)


def test_the_largest_state_fits_into_a_copy() -> None:
    record = SlotRecord(SlotState.CONFIRMED, ATTEMPTS, 2**32 - 1, "f" * 64, "9" * 64)
    largest = Slots(record, record, None, 2**32 - 1, b"\xff" * KEY_SET_BYTES)
    assert decode(encode(largest, 2**63 - 1)) == (2**63 - 1, largest)
    with pytest.raises(ValueError, match="a copy has 4096"):
        encode(replace(largest, key_set=bytes(2000)), 1)


@given(st.binary(max_size=300))
def test_no_bytes_with_a_checksum_are_taken_for_a_state_by_accident(data: bytes) -> None:
    assert decode(with_checksum(data)) is None
