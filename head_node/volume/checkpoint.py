"""Checkpoints: block map, stripe table, epoch history and reservations in one file, put in place atomically.

A checkpoint covers the committed records up to `covered`. The log is needed from `before` on: from the segment that
holds the first record that is not covered or whose data is not in a stripe yet.
"""

import asyncio
import logging
import struct
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import construct as c
import numpy as np
from crc32c import crc32c

from head_node.files import Directory
from head_node.volume.blockmap import ENTRY, PAGE_BLOCKS, Page
from head_node.volume.errors import BatchMalformed, LogCorrupt, LogForeign
from head_node.volume.records import encode_reservations, parse_reservations
from head_node.volume.reservations import Reservations
from head_node.volume.segments import LogPosition, Position
from head_node.volume.stripes import STRIPE_ENTRY, Table
from spdk_bindings.device import Buffer

CHECKPOINT_FILE: Final = "checkpoint"
CHECKPOINT_COPY: Final = "checkpoint-copy"
CHECKPOINT_MAGIC: Final = b"PALCHECK"
CHECKPOINT_HEADER: Final = struct.Struct("<8sI16s16sQQQQIIIII")
CHECKPOINT_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(CHECKPOINT_MAGIC),
    "version" / c.Int32ul,
    "log_id" / c.Bytes(16),
    "volume" / c.Bytes(16),
    "covered" / c.Int64ul,
    "first_sequence" / c.Int64ul,
    "before_opnum" / c.Int64ul,
    "before_epoch" / c.Int64ul,
    "before_chain" / c.Int32ul,
    "epoch_count" / c.Int32ul,
    "slot_count" / c.Int32ul,
    "page_count" / c.Int32ul,
    "catching_up" / c.Int32ul,
)
VERSION: Final = 4
VERSION_WITHOUT_NEED: Final = 3
VERSION_WITHOUT_LOST: Final = 2
VERSION_WITHOUT_RESERVATIONS: Final = 1
"""Older ones lack what follows the reservations, blocks marked LOST, or what follows the pages. They are read, because
a head may find them in its directory."""
BUFFERS_PER_TURN: Final = 128
"""64 pages, 5 MiB: about a millisecond."""

logger = logging.getLogger(__name__)

_EPOCH: Final = struct.Struct("<QQ")
_PAGE: Final = struct.Struct("<Q")
_CRC: Final = struct.Struct("<I")
_NEEDED: Final = struct.Struct("<Q")
PAGE_BYTES: Final = _PAGE.size + PAGE_BLOCKS * ENTRY.itemsize
REST_BYTES_MAX: Final = 16 << 10
"""Header and reservations, the parts of a checkpoint that do not grow."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Decoded content; nothing in it changes any more."""

    log_id: UUID
    volume: UUID
    covered: int
    first_sequence: int
    before: Position
    epochs: tuple[tuple[int, int], ...]
    stripes: Table
    pages: dict[int, Page]
    reservations: Reservations
    catching_up: bool = False
    """Came by a full resync: the log may still end below `covered`."""
    needed_from: int = 0
    """The oldest record whose data is in no stripe; those before it are in the log for no reason of this checkpoint."""

    @property
    def commit_point(self) -> LogPosition:
        """The last record that is covered; every covered one was committed."""
        epochs = [epoch for epoch, first in self.epochs if first <= self.covered]
        return LogPosition(self.covered, epochs[-1] if epochs else 0)

    async def encode(self) -> list[Buffer]:
        """The file as buffers, the CRC-32C of everything before it last. Lets the loop turn now and then: the map of a
        large volume takes longer than heartbeats may wait."""
        header = CHECKPOINT_HEADER.pack(
            CHECKPOINT_MAGIC, VERSION, self.log_id.bytes, self.volume.bytes, self.covered, self.first_sequence,
            self.before.opnum, self.before.epoch, self.before.chain,
            len(self.epochs), len(self.stripes), len(self.pages), self.catching_up,
        )  # fmt: skip
        out: list[Buffer] = [header, b"".join(_EPOCH.pack(*epoch) for epoch in self.epochs), self.stripes.tobytes()]
        for number, page in sorted(self.pages.items()):
            out += [_PAGE.pack(number), page.view(np.uint8).data]
        out += [encode_reservations(self.reservations), _NEEDED.pack(self.needed_from)]
        crc = 0
        for at, buffer in enumerate(out):
            crc = crc32c(buffer, crc)
            if at % BUFFERS_PER_TURN == BUFFERS_PER_TURN - 1:
                await asyncio.sleep(0)
        return [*out, _CRC.pack(crc)]


COUNT_MAX: Final = 1 << 63
"""Of operations, stripes and epochs: a million a second for 290,000 years, and what is counted from there on fits."""


def decode_checkpoint(data: Buffer, volume: UUID) -> Checkpoint:
    """Parse a whole checkpoint; raises LogCorrupt, or LogForeign when it is another volume's."""
    view = memoryview(data).cast("B")
    if len(view) < CHECKPOINT_HEADER.size + _CRC.size:
        raise LogCorrupt(CHECKPOINT_FILE, 0, "too short")
    fields = CHECKPOINT_HEADER.unpack_from(view)
    magic, version, log_id, owner, covered, first_sequence, opnum, epoch, chain, epochs, slots, pages, behind = fields
    sections = epochs * _EPOCH.size, slots * STRIPE_ENTRY.itemsize, pages * PAGE_BYTES
    if magic != CHECKPOINT_MAGIC or not VERSION_WITHOUT_RESERVATIONS <= version <= VERSION:
        raise LogCorrupt(CHECKPOINT_FILE, 0, "is no checkpoint of this version")
    at_reservations = CHECKPOINT_HEADER.size + sum(sections)
    end = len(view) - _CRC.size - (_NEEDED.size if version > VERSION_WITHOUT_NEED else 0)
    rest = end - at_reservations
    if rest < 0 or (version == VERSION_WITHOUT_RESERVATIONS and rest):
        raise LogCorrupt(CHECKPOINT_FILE, 0, f"has {len(view)} bytes, which its header contradicts")
    if _CRC.unpack_from(view, len(view) - _CRC.size)[0] != crc32c(view[: -_CRC.size]):
        raise LogCorrupt(CHECKPOINT_FILE, len(view) - _CRC.size, "does not verify")
    if max(covered, first_sequence, opnum, epoch) > COUNT_MAX:
        raise LogCorrupt(CHECKPOINT_FILE, 0, f"has a count above {COUNT_MAX}, where no record could follow")
    if owner != volume.bytes:
        raise LogForeign(f"{CHECKPOINT_FILE}: is of volume {UUID(bytes=owner)}, not {volume}")
    reservations = Reservations()
    if version > VERSION_WITHOUT_RESERVATIONS:
        try:
            reservations = parse_reservations(view[at_reservations:end])
        except BatchMalformed as error:
            raise LogCorrupt(CHECKPOINT_FILE, at_reservations, str(error)) from None
    at = CHECKPOINT_HEADER.size
    history = tuple((first, last) for first, last in _EPOCH.iter_unpack(view[at : at + sections[0]]))
    at += sections[0]
    stripes = np.frombuffer(view, STRIPE_ENTRY, count=slots, offset=at).copy()
    at += sections[1]
    found: dict[int, Page] = {}
    for _ in range(pages):
        page = np.frombuffer(view, ENTRY, count=PAGE_BLOCKS, offset=at + _PAGE.size).copy()
        found[_PAGE.unpack_from(view, at)[0]] = page
        at += PAGE_BYTES
    before = Position(opnum, epoch, chain)
    needed_from = _NEEDED.unpack_from(view, end)[0] if version > VERSION_WITHOUT_NEED else opnum + 1
    return Checkpoint(
        UUID(bytes=log_id), volume, covered, first_sequence, before, history, stripes, found,
        reservations, bool(behind), needed_from,
    )  # fmt: skip


def checkpoint_bytes(epochs: int, slots: int, pages: int) -> int:
    """At most how large a checkpoint of so much is."""
    return REST_BYTES_MAX + epochs * _EPOCH.size + slots * STRIPE_ENTRY.itemsize + pages * PAGE_BYTES


async def read_checkpoint(directory: Directory, volume: UUID, log_id: UUID) -> Checkpoint:
    """The newest checkpoint that verifies; the other copy is written again if it differs. Raises LogCorrupt when there
    is none, LogForeign."""
    reasons: list[str] = []
    for name, other in ((CHECKPOINT_FILE, CHECKPOINT_COPY), (CHECKPOINT_COPY, CHECKPOINT_FILE)):
        try:
            data = directory.read(name)
            found = decode_checkpoint(data, volume)
            if found.log_id != log_id:
                raise LogCorrupt(name, 0, f"is of log {found.log_id}, not {log_id}")
        except FileNotFoundError:
            reasons.append(f"{name} is missing")
        except (LogCorrupt, OSError) as error:
            reasons.append(f"{name}: {error}")
        else:
            if reasons:
                logger.error("event=checkpoint_rotten path=%s error=%s", directory.path, reasons[0])
            await _mend(directory, other, data)
            return found
    raise LogCorrupt(CHECKPOINT_FILE, 0, "; ".join(reasons) + "; resync this member in full")


async def _mend(directory: Directory, name: str, data: bytes) -> None:
    try:
        if directory.size_of(name) == len(data) and directory.read(name) == data:
            return
        await directory.replace(name, [data])
    except OSError as error:
        # One copy is enough to go on; the next checkpoint writes both.
        logger.error("event=checkpoint_copy_failed path=%s error=%s", directory.path, error)
