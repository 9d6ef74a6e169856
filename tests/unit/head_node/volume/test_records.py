"""Formats: what struct packs is what construct says, and nothing stale or bent parses."""

import asyncio
from uuid import UUID

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kit import host
from kit.volume import pattern

from head_node.volume import checkpoint, identity, records, segments, shard
from head_node.volume.errors import BatchMalformed, LogCorrupt
from head_node.volume.records import (
    FROM_LOG,
    HEADER_BYTES,
    STRIPE_BLOCK,
    Kind,
    Record,
    StripeRecord,
    encode_reservations,
    epoch_record,
    lost_record,
    parse_lost,
    parse_records,
    parse_reservations,
    parse_stripe,
    reservation_record,
    stripe_record,
    write_header,
    zero_record,
)
from head_node.volume.reservations import NO_HOST, Reservations, ReservationType
from head_node.volume.segments import Position
from head_node.volume.stripes import STRIPE_ENTRY


@pytest.mark.parametrize(
    ("packed", "described"),
    [
        (records.RECORD_HEADER, records.RECORD_CONSTRUCT),
        (segments.SEGMENT_HEADER, segments.SEGMENT_CONSTRUCT),
        (segments.MARK, segments.MARK_CONSTRUCT),
        (identity.IDENTITY, identity.IDENTITY_CONSTRUCT),
        (identity.PROMISE, identity.PROMISE_CONSTRUCT),
        (checkpoint.CHECKPOINT_HEADER, checkpoint.CHECKPOINT_CONSTRUCT),
    ],
)
def test_struct_and_construct_agree(packed: object, described: object) -> None:
    size = packed.size  # type: ignore[attr-defined]
    assert described.sizeof() == size  # type: ignore[attr-defined]
    raw = bytearray(range(1, size + 1))
    fields = list(packed.unpack(raw))  # type: ignore[attr-defined]
    first = next(iter(described.subcons))  # type: ignore[attr-defined]
    if first.name == "magic":
        raw[:8] = first.subcon.value
        fields[0] = bytes(raw[:8])
    parsed = described.parse(bytes(raw))  # type: ignore[attr-defined]
    assert [value for name, value in parsed.items() if name != "_io"] == fields


def stripe() -> StripeRecord:
    blocks = np.zeros(12, STRIPE_BLOCK)
    blocks["lba"], blocks["opnum"], blocks["crc"], blocks["source"] = np.arange(12), 5, 77, FROM_LOG
    return StripeRecord(3, 9, 2, tuple(((shard + 2) % 6, shard != 4, 8) for shard in range(6)), blocks)


def test_a_stripe_record_is_what_construct_says() -> None:
    raw, _ = stripe_record(11, 3, stripe(), 0)
    parsed = records.STRIPE_CONSTRUCT.parse(raw[HEADER_BYTES:])
    assert (parsed.epoch, parsed.sequence, parsed.slot) == (3, 9, 2)
    assert [(one.column, one.present, one.offset) for one in parsed.shards][4] == (0, 0, 8)
    assert [(one.lba, one.opnum, one.crc, one.source) for one in parsed.blocks][3] == (3, 5, 77, FROM_LOG)
    back = parse_stripe(memoryview(raw)[HEADER_BYTES:])
    assert (back.epoch, back.shards, back.present_mask) == (3, stripe().shards, 0b101111)
    assert (back.blocks == stripe().blocks).all()


def test_a_shard_header_is_what_construct_says() -> None:
    blocks = np.zeros(63, shard.SHARD_BLOCK)
    blocks["lba"], blocks["crc"] = np.arange(63), 5
    block = shard.encode_shard_header(UUID(int=1), 2, 3, 4, blocks)
    parsed = shard.SHARD_CONSTRUCT.parse(block)
    assert (parsed.volume, parsed.epoch, parsed.sequence, parsed.index) == (UUID(int=1).bytes, 2, 3, 4)
    assert parsed.blocks[62].lba == 62
    decoded = shard.decode_shard_header(block)
    assert decoded is not None
    assert decoded.crcs == (5,) * 63
    assert shard.decode_shard_header(block[:-1] + b"\1") is None


RESERVED = Reservations(
    generation=0x01020304,
    type=ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    holder=b"B" * 16,
    registrants={b"A" * 16: 0x1112131415161718, b"B" * 16: 0x2122232425262728},
    persist=False,
)


def test_a_reservation_record_is_what_construct_says_and_what_it_always_was() -> None:
    raw, _ = reservation_record(9, 3, RESERVED, 0)
    assert raw == host.golden("reservation_record")
    parsed = records.RESERVATION_CONSTRUCT.parse(raw[HEADER_BYTES:])
    assert (parsed.generation, parsed.type, parsed.persist, parsed.holder) == (0x01020304, 4, 0, 1)
    assert [(one.host, one.key) for one in parsed.registrants] == list(RESERVED.registrants.items())
    assert encode_reservations(Reservations()) == bytes.fromhex("00000000 00 01 0000 ffff 000000000000")


@st.composite
def states(draw: st.DrawFn) -> Reservations:
    hosts = st.binary(min_size=16, max_size=16).filter(any)
    registrants = draw(st.dictionaries(hosts, st.integers(0, 2**64 - 1), max_size=5))
    type_ = draw(st.sampled_from([None, *ReservationType])) if registrants else None
    single = type_ is not None and not type_.held_by_all
    holder = draw(st.sampled_from(list(registrants))) if single else NO_HOST
    return Reservations(draw(st.integers(0, 2**32 - 1)), type_, holder, registrants, draw(st.booleans()))


@given(states())
def test_every_state_of_reservations_is_read_back(state: Reservations) -> None:
    found = parse_reservations(memoryview(encode_reservations(state)))
    assert found == state
    assert list(found.registrants) == list(state.registrants)


@pytest.mark.parametrize(
    "bent",
    [
        "",
        "00000000 00 01 0000 ffff 0000000000",
        "00000000 00 01 0000 ffff 00000000000000",
        "00000000 07 01 0000 ffff 000000000000",
        "00000000 00 02 0000 ffff 000000000000",
        "00000000 00 01 0000 ffff 000000000001",
        "00000000 00 01 0000 0000 000000000000",
        "00000000 01 01 0000 ffff 000000000000",
        "00000000 05 01 0000 ffff 000000000000",
        "00000000 00 01 0100 ffff 000000000000" + "00" * 24,
        "00000000 00 01 0200 ffff 000000000000" + "41" * 48,
        "00000000 01 01 0100 0100 000000000000" + "41" * 24,
        "00000000 05 01 0100 0000 000000000000" + "41" * 24,
        "00000000 00 01 0101 ffff 000000000000" + "".join(f"{n:032x}" + "41" * 8 for n in range(1, 258)),
    ],
)
def test_reservations_that_no_command_leads_to_do_not_parse(bent: str) -> None:
    with pytest.raises(BatchMalformed, match="reservations"):
        parse_reservations(memoryview(bytes.fromhex(bent)))


def checkpoint_of(reservations: Reservations) -> bytes:
    before, stripes = Position(0, 0, 0), np.zeros(1, STRIPE_ENTRY)
    made = checkpoint.Checkpoint(UUID(int=1), UUID(int=2), 9, 1, before, ((1, 1),), stripes, {}, reservations)
    return b"".join(map(bytes, asyncio.run(made.encode())))


def sealed(body: bytes) -> bytes:
    return body + crc32c(body).to_bytes(4, "little")


@pytest.mark.parametrize("offset", [44, 52, 60, 68])
def test_a_checkpoint_whose_counts_leave_no_room_for_what_follows_is_refused(offset: int) -> None:
    body = bytearray(checkpoint_of(RESERVED)[:-4])
    body[offset : offset + 8] = (checkpoint.COUNT_MAX).to_bytes(8, "little")
    checkpoint.decode_checkpoint(sealed(bytes(body)), UUID(int=2))
    body[offset : offset + 8] = (checkpoint.COUNT_MAX + 1).to_bytes(8, "little")
    with pytest.raises(LogCorrupt, match="no record could follow"):
        checkpoint.decode_checkpoint(sealed(bytes(body)), UUID(int=2))


def test_a_checkpoint_keeps_the_reservations() -> None:
    raw = checkpoint_of(RESERVED)
    assert checkpoint.decode_checkpoint(raw, UUID(int=2)).reservations == RESERVED
    needed, whole = raw[-12:-4], raw[:-12]
    bent = bytearray(whole)
    bent[-1 - 24 - 23 :] = bytes(48)
    for body in (bent, whole[:-1], whole + b"\0"):
        with pytest.raises(LogCorrupt, match="reservations"):
            checkpoint.decode_checkpoint(sealed(bytes(body) + needed), UUID(int=2))


def test_checkpoints_of_the_versions_before_are_read() -> None:
    raw = checkpoint_of(RESERVED)
    before = bytearray(raw[:-12])
    before[8:12] = (2).to_bytes(4, "little")
    found = checkpoint.decode_checkpoint(sealed(bytes(before)), UUID(int=2))
    assert (found.reservations, found.needed_from) == (RESERVED, found.before.opnum + 1)
    older = bytearray(before[: -len(encode_reservations(RESERVED))])
    older[8:12] = (1).to_bytes(4, "little")
    found = checkpoint.decode_checkpoint(sealed(bytes(older)), UUID(int=2))
    assert (found.covered, found.reservations) == (9, Reservations())
    with pytest.raises(LogCorrupt, match="contradicts"):
        checkpoint.decode_checkpoint(sealed(bytes(older) + b"\0"), UUID(int=2))


def sequence() -> tuple[bytes, list[int]]:
    """A WRITE of one block, a WRITE of three, a ZERO, a STRIPE, an EPOCH and a RESERVATION; and where each ends."""
    out, ends, chain = b"", [], 0
    for opnum, (data, blocks) in enumerate([(pattern(1), 1), (pattern(2, 3), 3)], 1):
        header, chain, crcs = write_header(opnum, 1, 10, data, chain)
        assert len(crcs) == blocks
        out += header + data
        ends.append(len(out))
    for make in (
        lambda chain: zero_record(3, 1, 5, 7, chain),
        lambda chain: stripe_record(4, 1, stripe(), chain),
        lambda chain: epoch_record(5, 2, chain),
        lambda chain: reservation_record(6, 2, RESERVED, chain),
    ):
        raw, chain = make(chain)
        out += raw
        ends.append(len(out))
    return out, ends


def test_records_parse_back() -> None:
    raw, ends = sequence()
    parsed = list(parse_records(raw, 1, 0))
    kinds = [Kind.WRITE, Kind.WRITE, Kind.ZERO, Kind.STRIPE, Kind.EPOCH, Kind.RESERVATION]
    assert [record.kind for record in parsed] == kinds
    assert [record.end for record in parsed] == ends
    assert parsed[1].block_crcs() == tuple(crc32c(pattern(2, 3)[at : at + 4096]) for at in (0, 4096, 8192))
    assert (parsed[2].lba, parsed[2].block_count()) == (5, 7)
    assert parse_reservations(parsed[5].meta) == RESERVED


@given(st.data())
def test_any_flipped_bit_ends_the_parse_at_its_record(data: st.DataObject) -> None:
    raw, ends = sequence()
    at = data.draw(st.integers(0, len(raw) - 1))
    bent = bytearray(raw)
    bent[at] ^= 1 << data.draw(st.integers(0, 7))
    parsed: list[Record] = []
    with pytest.raises(BatchMalformed):
        parsed.extend(parse_records(bent, 1, 0))
    assert len(parsed) == sum(end <= at for end in ends)


@given(st.binary(max_size=300))
def test_garbage_never_parses(raw: bytes) -> None:
    if raw:
        with pytest.raises(BatchMalformed):
            list(parse_records(raw, 1, 0))


def test_a_record_of_another_history_does_not_continue_this_one() -> None:
    header, chain, _ = write_header(1, 1, 0, pattern(1), 0)
    other, _, _ = write_header(2, 1, 0, pattern(3), chain ^ 1)
    with pytest.raises(BatchMalformed, match="chain"):
        list(parse_records(header + pattern(1) + other + pattern(3), 1, 0))


LOST_BLOCKS = np.array(
    [(0x0102030405060708, 0x11, 0x21, 0x31, 0x41424344, 0), (9, 8, 7, 6, 5, 0)], dtype=records.LOST_BLOCK
)


def test_a_lost_record_is_what_construct_says_and_what_it_always_was() -> None:
    raw, chain = lost_record(9, 3, LOST_BLOCKS, 0)
    assert raw == host.golden("lost_record")
    parsed = records.LOST_CONSTRUCT.parse(raw[HEADER_BYTES:])
    assert [(one.lba, one.opnum, one.epoch, one.sequence, one.slot) for one in parsed] == [
        (0x0102030405060708, 0x11, 0x21, 0x31, 0x41424344),
        (9, 8, 7, 6, 5),
    ]
    (record,) = parse_records(raw, 9, 0)
    assert (record.kind, record.crc) == (Kind.LOST, chain)
    assert (parse_lost(record.meta) == LOST_BLOCKS).all()


@pytest.mark.parametrize("meta", [b"", bytes(39), bytes(41), bytes(40 * (records.LOST_BLOCKS_MAX + 1)), b"\1" * 40])
def test_a_lost_record_of_another_shape_does_not_parse(meta: bytes) -> None:
    with pytest.raises(BatchMalformed, match="LOST"):
        parse_lost(memoryview(meta))
