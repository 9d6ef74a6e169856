"""The frames of a link between two heads: their layout, written once with construct and packed with struct.

Every frame is `length u32 | type u8 | payload | tag 16` (little endian; `length` counts type and payload, the tag is
an AES-GMAC over all that precedes it; see link.py). Payload layouts are the `*_LAYOUT` constructs below; tests hold the
`struct` formats of the hot frames equal to them.
"""

import enum
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import construct as c

from head_node.cluster.errors import FrameMalformed
from spdk_bindings.device import Buffer

FRAME_BYTES_MAX: Final = 6 * 1024 * 1024
"""No frame (type and payload) is longer: `read_log` answers in whole log batches (at most 4 MiB, the engine's bound),
so it exceeds the BATCH_BYTES_MAX that is asked of it by less than one."""

BATCH_BYTES_MAX: Final = 1024 * 1024
"""A sender puts at most this much of the write log in one RECORDS frame, unless one record alone is longer."""

CHUNK_BYTES: Final = 512 * 1024
"""Bytes of a checkpoint in one CHECKPOINT frame."""

CHECKPOINT_BYTES_MAX: Final = 1 << 32
"""A checkpoint longer than this is refused before memory is taken for it."""

EPOCHS_MAX: Final = 4096
"""Entries of an epoch history in a JOIN; older ones are left out, which at worst costs a full resync."""

TEXT_BYTES_MAX: Final = 512


class FrameType(enum.IntEnum):
    """What a frame is. The numbers are the wire's."""

    JOIN = 1
    TRUNCATE = 2
    REFUSED = 3
    RECORDS = 4
    DURABLE = 5
    COMMITTED = 6
    HEARTBEAT = 7
    PROMISE = 8
    CHECKPOINT = 9
    RELEASE = 10
    DELETED = 11
    TAIL = 12
    RELAY = 16
    RELAY_ACCEPTED = 17


class Purpose(enum.IntEnum):
    """What a link is for."""

    LOG = 1
    RELAY = 2
    TAIL = 3


JOIN_LAYOUT: Final = c.Struct(
    "log" / c.Bytes(16),
    "ttl_ms" / c.Int32ul,
    "tail_opnum" / c.Int64ul,
    "tail_epoch" / c.Int64ul,
    "committed_opnum" / c.Int64ul,
    "committed_epoch" / c.Int64ul,
    "history" / c.PrefixedArray(c.Int16ul, c.Struct("epoch" / c.Int64ul, "first_opnum" / c.Int64ul)),
    c.Terminated,
)
"""Member to primary: which log it has, and the last record that it knows as committed, which is never cut (D1)."""

TRUNCATE_LAYOUT: Final = c.Struct(
    "epoch" / c.Int64ul,
    "resync" / c.Int8ul,
    "after_opnum" / c.Int64ul,
    "forced_epoch" / c.Int64ul,
    "doubtful_epoch" / c.Int64ul,
    c.Terminated,
)
"""Primary to member: refuse epochs below `epoch`, drop what follows `after_opnum`; `resync`: drop the log, of which we
share all up to `after_opnum`, and take a checkpoint. `forced_epoch` and `doubtful_epoch` are the record's: a log that
ends before either of them, and would be cut, is set aside (D1)."""

TAIL_LAYOUT: Final = c.Struct(
    "log" / c.Bytes(16),
    "tail_opnum" / c.Int64ul,
    "tail_epoch" / c.Int64ul,
    "committed_opnum" / c.Int64ul,
    "committed_epoch" / c.Int64ul,
    c.Terminated,
)
"""To a head that asks before it takes the next epoch (F5): the last record that is durable in this log, and the last
one known committed, which may be above it in a log that has lost its end."""

OPNUM_LAYOUT: Final = c.Struct("opnum" / c.Int64ul, c.Terminated)
"""DURABLE, member to primary: all up to here is on disk. COMMITTED, primary to member: up to here is committed."""

HEARTBEAT_LAYOUT: Final = c.Struct(
    "sequence" / c.Int64ul, "sent_ns" / c.Int64ul, "committed" / c.Int64ul, "ttl_ms" / c.Int32ul, c.Terminated
)
"""Primary to member. `sent_ns` is the primary's clock and comes back unread in the PROMISE."""

PROMISE_LAYOUT: Final = c.Struct("sequence" / c.Int64ul, "sent_ns" / c.Int64ul, c.Terminated)
"""Member to primary: nothing is sealed for one TTL from the moment this heartbeat arrived (F7)."""

CHECKPOINT_LAYOUT: Final = c.Struct(
    "total_bytes" / c.Int64ul, "offset" / c.Int64ul, "data" / c.GreedyBytes, c.Terminated
)
"""Primary to member: a piece of a checkpoint; pieces come in order; after the last the member joins again."""

RELEASE_LAYOUT: Final = c.Struct("epoch" / c.Int64ul, "committed" / c.Int64ul, c.Terminated)
"""Primary to member: I have stopped serving for good in `epoch`; your promises to me are void (hand-over)."""

DELETED_LAYOUT: Final = c.Struct("epoch" / c.Int64ul, c.Terminated)
"""Primary to member: its namespaces are deleted; once its record is gone too, drop the log."""

REFUSED_LAYOUT: Final = c.Struct("text" / c.GreedyBytes)
"""Either way: why the link is being closed, UTF-8, for people."""

_JOIN_HEAD = struct.Struct("<16sIQQQQH")
_TAIL = struct.Struct("<16sQQQQ")
_PAIR = struct.Struct("<QQ")
_TRUNCATE = struct.Struct("<QBQQQ")
_OPNUM = struct.Struct("<Q")
_HEARTBEAT = struct.Struct("<QQQI")


@dataclass(frozen=True, slots=True)
class Join:
    log: UUID
    ttl_ms: int
    tail_opnum: int
    tail_epoch: int
    committed_opnum: int
    committed_epoch: int
    history: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        history = self.history[-EPOCHS_MAX:]
        head = _JOIN_HEAD.pack(
            self.log.bytes, self.ttl_ms, self.tail_opnum, self.tail_epoch, self.committed_opnum, self.committed_epoch,
            len(history),
        )  # fmt: skip
        return head + b"".join(_PAIR.pack(*pair) for pair in history)

    @classmethod
    def decode(cls, payload: Buffer) -> "Join":
        """Raises FrameMalformed."""
        if len(payload) < _JOIN_HEAD.size:
            raise FrameMalformed("JOIN is too short")
        log, ttl_ms, opnum, epoch, committed, committed_epoch, count = _JOIN_HEAD.unpack_from(payload)
        if count > EPOCHS_MAX or len(payload) != _JOIN_HEAD.size + count * _PAIR.size:
            raise FrameMalformed(f"JOIN of {len(payload)} bytes says {count} epochs")
        pairs = tuple((e, o) for e, o in _PAIR.iter_unpack(memoryview(payload)[_JOIN_HEAD.size :]))
        if any(later <= earlier for earlier, later in itertools.pairwise(pairs)):
            raise FrameMalformed("JOIN has epochs that do not rise")
        return cls(UUID(bytes=log), ttl_ms, opnum, epoch, committed, committed_epoch, pairs)


@dataclass(frozen=True, slots=True)
class Tail:
    log: UUID
    tail_opnum: int
    tail_epoch: int
    committed_opnum: int
    committed_epoch: int

    def encode(self) -> bytes:
        return _TAIL.pack(
            self.log.bytes, self.tail_opnum, self.tail_epoch, self.committed_opnum, self.committed_epoch
        )  # fmt: skip

    @classmethod
    def decode(cls, payload: Buffer) -> "Tail":
        """Raises FrameMalformed."""
        if len(payload) != _TAIL.size:
            raise FrameMalformed(f"TAIL has {len(payload)} bytes, not {_TAIL.size}")
        log, *rest = _TAIL.unpack(payload)
        return cls(UUID(bytes=log), *rest)


@dataclass(frozen=True, slots=True)
class Truncate:
    epoch: int
    resync: bool
    after_opnum: int
    forced_epoch: int
    doubtful_epoch: int

    def encode(self) -> bytes:
        return _TRUNCATE.pack(self.epoch, self.resync, self.after_opnum, self.forced_epoch, self.doubtful_epoch)

    @classmethod
    def decode(cls, payload: Buffer) -> "Truncate":
        """Raises FrameMalformed."""
        epoch, resync, after, forced, doubtful = _unpack(_TRUNCATE, payload, "TRUNCATE")
        return cls(epoch, bool(resync), after, forced, doubtful)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    sequence: int
    sent_ns: int
    committed: int
    ttl_ms: int

    def encode(self) -> bytes:
        return _HEARTBEAT.pack(self.sequence, self.sent_ns, self.committed, self.ttl_ms)

    @classmethod
    def decode(cls, payload: Buffer) -> "Heartbeat":
        """Raises FrameMalformed."""
        return cls(*_unpack(_HEARTBEAT, payload, "HEARTBEAT"))


def encode_opnum(opnum: int) -> bytes:
    """The payload of DURABLE and COMMITTED."""
    return _OPNUM.pack(opnum)


def decode_opnum(payload: Buffer) -> int:
    """Raises FrameMalformed."""
    opnum: int = _unpack(_OPNUM, payload, "DURABLE, COMMITTED or DELETED")[0]
    return opnum


def encode_promise(sequence: int, sent_ns: int) -> bytes:
    return _PAIR.pack(sequence, sent_ns)


def decode_promise(payload: Buffer) -> tuple[int, int]:
    """(sequence, sent_ns); raises FrameMalformed."""
    sequence, sent_ns = _unpack(_PAIR, payload, "PROMISE")
    return sequence, sent_ns


def encode_release(epoch: int, committed: int) -> bytes:
    return _PAIR.pack(epoch, committed)


def decode_release(payload: Buffer) -> tuple[int, int]:
    """(epoch, committed); raises FrameMalformed."""
    epoch, committed = _unpack(_PAIR, payload, "RELEASE")
    return epoch, committed


def encode_chunk(total_bytes: int, offset: int, data: Buffer) -> Sequence[Buffer]:
    return (_PAIR.pack(total_bytes, offset), data)


def decode_chunk(payload: Buffer) -> tuple[int, int, memoryview]:
    """(total_bytes, offset, data); raises FrameMalformed."""
    if len(payload) < _PAIR.size:
        raise FrameMalformed("CHECKPOINT is too short")
    total, offset = _PAIR.unpack_from(payload)
    data = memoryview(payload)[_PAIR.size :]
    if not 0 < total <= CHECKPOINT_BYTES_MAX or not data or offset + len(data) > total:
        raise FrameMalformed(f"CHECKPOINT piece of {len(data)} bytes at {offset} of {total}")
    return total, offset, data


def encode_refused(text: str) -> bytes:
    return text.encode()[:TEXT_BYTES_MAX]


def decode_refused(payload: Buffer) -> str:
    return bytes(payload[:TEXT_BYTES_MAX]).decode(errors="replace")


def _unpack(layout: struct.Struct, payload: Buffer, name: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise FrameMalformed(f"{name} has {len(payload)} bytes, not {layout.size}")
    return layout.unpack(payload)
