"""What was read and written again is what it was: decode(encode(x)) == x, and encode(decode(bytes)) == bytes.

The latter only where one content has one form: elsewhere (`exact` is False, with the reason) reading, writing and
reading again still has to give the same.
"""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from fuzz import targets
from fuzz.fuzzer import Target
from kit import host

from head_node.cluster import frames
from head_node.cluster.errors import ClusterError
from head_node.cluster.link import LinkContext
from head_node.store.errors import RecordMalformed
from head_node.store.records import HeadRecord, SledRecord, VolumeRecord
from head_node.volume import records
from head_node.volume.checkpoint import decode_checkpoint
from head_node.volume.errors import VolumeError
from head_node.volume.shard import SHARD_BLOCK, SHARD_HEADER, decode_shard_header, encode_shard_header
from sled_controller.credential import BODY_BYTES, parse_credential
from sled_controller.errors import SledError
from sled_controller.keyset import KeySet
from sled_controller.session import HELLO, Hello
from sled_controller.storage import superblock
from sled_controller.storage.records import RECORD, Cell, decode_record, encode_record
from sled_controller.storage.records import RecordMalformed as TableRecordMalformed

Value = TypeVar("Value")


def round_trip(
    data: bytes, decode: Callable[[bytes], Value], encode: Callable[[Value], bytes], *, exact: bool = True
) -> None:
    """Check one input; what `decode` raises is its own affair."""
    value = decode(data)
    written = encode(value)
    assert decode(written) == value
    if exact:
        assert written == data


def credential(data: bytes) -> None:
    signature = data[BODY_BYTES:]
    round_trip(data, lambda raw: parse_credential(raw).credential, lambda found: found.body() + signature)


def key_set(data: bytes) -> None:
    root = host.private_key(host.ROOT)
    round_trip(data, lambda raw: KeySet.open(raw, host.public_key(host.ROOT)), lambda found: found.sign(root))


def hello(data: bytes) -> None:
    rest = data[HELLO.size :]
    round_trip(data, Hello.parse, lambda found: found.body() + rest)


def table_record(data: bytes) -> None:
    """Not exact: what lies between payload and checksum is not looked at."""
    block = data[:4096].ljust(4096, b"\0")
    _, _, _, _, device, generation, index, _, _ = RECORD.unpack_from(block)
    found = decode_record(block, device, generation % 2, index)
    if not isinstance(found, Cell):
        round_trip(
            block, lambda raw: decode_record(raw, device, generation % 2, index),
            lambda record: b"" if isinstance(record, Cell) else encode_record(device, record), exact=False,
        )  # fmt: skip


def device_superblock(data: bytes) -> None:
    """Not exact: padding is not looked at."""
    block = data[:4096].ljust(4096, b"\0")
    if superblock.decode(block) is not None:
        round_trip(block, superblock.decode, lambda found: b"" if found is None else found.encode(), exact=False)


def shard_header(data: bytes) -> None:
    """Not exact: only the CRC of a block's entry is kept."""
    block = data[:4096].ljust(4096, b"\0")
    found = decode_shard_header(block)
    if found is not None:
        entries = np.frombuffer(block, SHARD_BLOCK, count=len(found.crcs), offset=SHARD_HEADER.size)
        written = encode_shard_header(found.volume, found.epoch, found.sequence, found.index, entries)
        assert decode_shard_header(written) == found


def checkpoint(data: bytes) -> None:
    found = decode_checkpoint(data, targets.VOLUME)
    written = b"".join(map(bytes, asyncio.run(found.encode())))
    again = decode_checkpoint(written, targets.VOLUME)
    assert b"".join(map(bytes, asyncio.run(again.encode()))) == written


def log_records(data: bytes) -> None:
    chain = 0
    for record in records.parse_records(data, 1, 0):
        meta = bytes(record.meta)
        if record.kind == records.Kind.WRITE:
            written, _, _ = records.write_header(record.opnum, record.epoch, record.lba, record.data, chain)
            assert (
                records.RECORD_HEADER.unpack_from(written)[4:]
                == records.RECORD_HEADER.unpack_from(data[record.start :])[4:]
            )
            assert written[records.HEADER_BYTES :][: 4 * record.block_count()] == meta[: 4 * record.block_count()]
        elif record.kind == records.Kind.STRIPE:
            stripe = records.parse_stripe(record.meta)
            written, _ = records.stripe_record(record.opnum, record.epoch, stripe, chain)
            again = records.parse_stripe(memoryview(written)[records.HEADER_BYTES :])
            assert (again.epoch, again.sequence, again.slot, again.shards) == (
                stripe.epoch, stripe.sequence, stripe.slot, stripe.shards,
            )  # fmt: skip
            assert again.blocks.tobytes() == stripe.blocks.tobytes()
        chain = record.crc


def frame_payloads(data: bytes) -> None:
    kind, payload = (data[0] % 6 if data else 0), data[1:]
    if kind == 0:
        round_trip(payload, frames.Join.decode, frames.Join.encode)
    elif kind == 1:
        round_trip(payload, frames.Truncate.decode, frames.Truncate.encode, exact=False)  # any byte but 0 is true
    elif kind == 2:
        round_trip(payload, frames.Heartbeat.decode, frames.Heartbeat.encode)
    elif kind == 3:
        round_trip(payload, frames.decode_opnum, frames.encode_opnum)
    elif kind == 4:
        round_trip(payload, frames.decode_promise, lambda found: frames.encode_promise(*found))
    else:
        round_trip(payload, LinkContext.decode, LinkContext.encode)


def frame_seeds() -> list[bytes]:
    context = LinkContext(frames.Purpose.LOG, targets.VOLUME, targets.LOG).encode()
    return [*(seed for seed in targets.frame_seeds() if seed[0] < 5), b"\5" + context]


def json_records(data: bytes) -> None:
    """Not exact: white space, and numbers that are written in several ways."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return
    for kind in (VolumeRecord, HeadRecord, SledRecord):
        try:
            record = kind.from_json(found)
        except RecordMalformed:
            continue
        assert kind.from_json(json.loads(json.dumps(record.to_json()))) == record


TARGETS = (
    Target("again-credential", credential, (SledError,), lambda: [host.golden("credential")], targets.sign_credential),
    Target("again-key-set", key_set, (SledError,), lambda: [host.golden("keyset")], targets.sign_key_set,
           executions=1500),
    Target("again-hello", hello, (SledError,), lambda: [host.golden("hello")]),
    Target("again-table-record", table_record, (TableRecordMalformed,), lambda: [
        targets.seal_table_record(host.golden(f"sled_{kind}_record")) for kind in ("fence", "namespace", "boot")
    ], targets.seal_table_record),
    Target("again-superblock", device_superblock, (), lambda: [
        targets.seal_table_record(host.golden("sled_superblock")),
    ], targets.seal_table_record),
    Target("again-shard-header", shard_header, (), targets.shard_seeds, targets.seal_header),
    Target("again-checkpoint", checkpoint, (VolumeError,), targets.checkpoint_seeds, targets.seal_checkpoint,
           executions=1000),
    Target("again-log-records", log_records, (VolumeError,), targets.record_seeds, targets.chain_records),
    Target("again-frames", frame_payloads, (ClusterError,), frame_seeds),
    Target("again-records", json_records, (), targets.json_seeds),
)  # fmt: skip
