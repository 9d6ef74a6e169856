"""Formats: what struct packs is what construct says, and nothing stale or bent parses."""

from uuid import UUID

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from kit.volume import pattern

from head_node.volume import checkpoint, identity, records, segments, shard
from head_node.volume.errors import BatchMalformed
from head_node.volume.records import (
    FROM_LOG,
    HEADER_BYTES,
    STRIPE_BLOCK,
    Kind,
    Record,
    StripeRecord,
    epoch_record,
    parse_records,
    parse_stripe,
    stripe_record,
    write_header,
    zero_record,
)


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


def sequence() -> tuple[bytes, list[int]]:
    """A WRITE of one block, a WRITE of three, a ZERO, a STRIPE and an EPOCH; and where each ends."""
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
    ):
        raw, chain = make(chain)
        out += raw
        ends.append(len(out))
    return out, ends


def test_records_parse_back() -> None:
    raw, ends = sequence()
    parsed = list(parse_records(raw, 1, 0))
    assert [record.kind for record in parsed] == [Kind.WRITE, Kind.WRITE, Kind.ZERO, Kind.STRIPE, Kind.EPOCH]
    assert [record.end for record in parsed] == ends
    assert parsed[1].block_crcs() == tuple(crc32c(pattern(2, 3)[at : at + 4096]) for at in (0, 4096, 8192))
    assert (parsed[2].lba, parsed[2].block_count()) == (5, 7)


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
