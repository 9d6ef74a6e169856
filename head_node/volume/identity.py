"""What a log directory is (its random log id, volume and geometry) and what its owner promised durably (F5).

`identity` is written once, twice in a file. `promise` has two blocks, written one after the other: the highest epoch
seen, the intent of a truncation that is under way, and the commit point as it stood when the volume last went idle. One
rotten byte costs neither: the other copy is as good.
"""

import asyncio
import errno
import logging
import struct
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import construct as c
from crc32c import crc32c

from head_node.files import Directory, LogFile
from head_node.volume.errors import LogCorrupt, LogForeign, LogMissing
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.segments import LogPosition, commit_now

IDENTITY_FILE: Final = "identity"
PROMISE_FILE: Final = "promise"
IDENTITY_MAGIC: Final = b"PALLOGID"
PROMISE_MAGIC: Final = b"PALPROMI"
IDENTITY: Final = struct.Struct("<8sII16s16sQQHHI")
PROMISE: Final = struct.Struct("<8sII16sQQQQQ")
IDENTITY_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(IDENTITY_MAGIC),
    "crc" / c.Int32ul,
    "version" / c.Int32ul,
    "log_id" / c.Bytes(16),
    "volume" / c.Bytes(16),
    "size_blocks" / c.Int64ul,
    "segment_bytes" / c.Int64ul,
    "data_shards" / c.Int16ul,
    "parity_shards" / c.Int16ul,
    "shard_blocks" / c.Int32ul,
)
PROMISE_CONSTRUCT: Final = c.Struct(
    "magic" / c.Const(PROMISE_MAGIC),
    "crc" / c.Int32ul,
    "reserved" / c.Int32ul,
    "log_id" / c.Bytes(16),
    "sequence" / c.Int64ul,
    "highest_epoch" / c.Int64ul,
    "cut_after" / c.Int64ul,
    "committed_opnum" / c.Int64ul,
    "committed_epoch" / c.Int64ul,
)
VERSION: Final = 3
"""Of all files of a log directory but the checkpoint, which has its own."""

logger = logging.getLogger(__name__)

_AFTER_CRC: Final = 12
_NO_CUT: Final = (1 << 64) - 1
_ROTTEN: Final = b"\xff" * BLOCK_BYTES
"""Neither empty nor valid."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Fixed at the making of a log directory."""

    log_id: UUID
    volume: UUID
    size_blocks: int
    segment_bytes: int
    geometry: Geometry

    def encode(self) -> bytes:
        """The content of the identity file: two blocks, the same."""
        geometry = self.geometry
        layout = (geometry.data_shards, geometry.parity_shards, geometry.shard_blocks)
        values = (VERSION, self.log_id.bytes, self.volume.bytes, self.size_blocks, self.segment_bytes, *layout)
        crc = crc32c(IDENTITY.pack(IDENTITY_MAGIC, 0, *values)[_AFTER_CRC:])
        return 2 * IDENTITY.pack(IDENTITY_MAGIC, crc, *values).ljust(BLOCK_BYTES, b"\0")


def read_identity(directory: Directory, volume: UUID) -> Identity:
    """The identity of a directory that should hold `volume`; raises LogMissing, LogCorrupt, LogForeign."""
    try:
        file = directory.open(IDENTITY_FILE)
    except FileNotFoundError:
        raise LogMissing(f"{directory.path}: no log here (new or wiped); create one with a new log id") from None
    try:
        blocks = _read_both(file)
    finally:
        file.close()
    for offset, block in zip((0, BLOCK_BYTES), blocks, strict=True):
        found = _decode_identity(block[: IDENTITY.size])
        if found is None:
            logger.error("event=identity_rotten path=%s byte=%d", directory.path, offset)
        elif found.volume != volume:
            raise LogForeign(f"{directory.path}: holds volume {found.volume}, not {volume}; put the right log back")
        else:
            return found
    raise LogCorrupt(IDENTITY_FILE, 0, "does not verify in either copy")


def _read_both(file: LogFile) -> list[bytes]:
    """The two blocks of a file that repeats itself. One that the drive cannot give has rotted; raises OSError when it
    gives neither."""
    blocks, refused = [], None
    for offset in (0, BLOCK_BYTES):
        try:
            blocks.append(file.read(offset, BLOCK_BYTES))
        except OSError as error:
            if refused is not None or error.errno != errno.EIO:
                raise
            refused = error
            blocks.append(_ROTTEN)
    return blocks


def _decode_identity(data: bytes) -> Identity | None:
    if len(data) < IDENTITY.size:
        return None
    magic, crc, version, log_id, owner, size_blocks, segment_bytes, k, m, shard_blocks = IDENTITY.unpack(data)
    if magic != IDENTITY_MAGIC or crc != crc32c(data[_AFTER_CRC:]):
        return None
    if version != VERSION:
        raise LogCorrupt(IDENTITY_FILE, 0, f"is of format {version}, this head reads format {VERSION}")
    volume = UUID(bytes=owner)
    return Identity(UUID(bytes=log_id), volume, size_blocks, segment_bytes, Geometry(k, m, shard_blocks))


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold across a restart."""

    highest_epoch: int = 0
    cut_after: int | None = None
    """A truncation to this opnum was begun and maybe not finished."""
    committed: tuple[int, int] = (0, 0)
    """(opnum, epoch) of the newest record known committed; batches of the log may know of newer ones."""


class PromiseFile:
    """Keeps the newest promise durable in two blocks; one of them is whole at each moment."""

    def __init__(self, file: LogFile, log_id: UUID) -> None:
        self._file = file
        self._log_id = log_id
        self._sequence = 0
        self._writing = asyncio.Lock()
        self.promise = Promise()

    @classmethod
    async def create(cls, directory: Directory, log_id: UUID) -> "PromiseFile":
        """Make the file in a new log directory."""
        return cls(await directory.create(PROMISE_FILE, 2 * BLOCK_BYTES), log_id)

    @classmethod
    async def open(cls, directory: Directory, log_id: UUID) -> "PromiseFile":
        """Read the newest promise; raises LogCorrupt when neither block can be trusted, LogFailed.

        It is written again: what a failed sync left in the kernel's cache can be read and is not on the disk.
        """
        try:
            self = cls(directory.open(PROMISE_FILE), log_id)
        except FileNotFoundError:
            raise LogCorrupt(PROMISE_FILE, 0, "is missing; resync this member in full") from None
        blocks = _read_both(self._file)
        found = [promise for block in blocks if (promise := self._decode(block)) is not None]
        # A promise counts when both blocks have it, so either one is enough. Blocks are atomic: one that is neither
        # zero nor valid has rotted.
        rotten = [block for block in blocks if any(block) and self._decode(block) is None]
        if (rotten and not found) or not all(len(block) == BLOCK_BYTES for block in blocks):
            raise LogCorrupt(PROMISE_FILE, 0, "does not verify; the highest epoch seen is unknown: resync in full")
        if rotten:
            logger.error("event=promise_rotten path=%s", directory.path)
        if found:
            self._sequence, self.promise = max(found, key=lambda entry: entry[0])
            await self._write(self.promise)
        return self

    async def see_epoch(self, epoch: int) -> None:
        """Make `epoch` the highest epoch seen, if it is higher; durable on return."""
        async with self._writing:
            if epoch > self.promise.highest_epoch:
                await self._write(replace(self.promise, highest_epoch=epoch))

    async def note_committed(self, opnum: int, epoch: int) -> None:
        """Keep the commit point, if it is newer than the one kept; durable on return."""
        async with self._writing:
            if opnum > self.promise.committed[0]:
                await self._write(replace(self.promise, committed=(opnum, epoch)))

    async def accept_loss(self, epoch: int, opnum: int, opnum_epoch: int) -> None:
        """See `epoch`, and give up what was committed after `opnum` and is in no log any more, in one write."""
        async with self._writing:
            highest = max(epoch, self.promise.highest_epoch)
            await self._write(replace(self.promise, highest_epoch=highest, committed=(opnum, opnum_epoch)))

    async def intend_cut(self, opnum: int | None, given_up_to: LogPosition | None = None) -> None:
        """Record that everything after `opnum` is being cut, or that the cut is done; durable on return. With
        `given_up_to` nothing after that is committed any more."""
        async with self._writing:
            committed = self.promise.committed
            if given_up_to is not None and committed[0] > given_up_to.opnum:
                committed = (given_up_to.opnum, given_up_to.epoch)
            await self._write(replace(self.promise, cut_after=opnum, committed=committed))

    async def _write(self, promise: Promise) -> None:
        sequence = self._sequence + 1
        cut = _NO_CUT if promise.cut_after is None else promise.cut_after
        values = (0, self._log_id.bytes, sequence, promise.highest_epoch, cut, *promise.committed)
        crc = crc32c(PROMISE.pack(PROMISE_MAGIC, 0, *values)[_AFTER_CRC:])
        block = PROMISE.pack(PROMISE_MAGIC, crc, *values).ljust(BLOCK_BYTES, b"\0")
        for offset in (0, BLOCK_BYTES):
            await commit_now(self._file, offset, [block])
        self._sequence, self.promise = sequence, promise

    def _decode(self, block: bytes) -> tuple[int, Promise] | None:
        if len(block) < PROMISE.size:
            return None
        magic, crc, _, log_id, sequence, highest_epoch, cut, *committed = PROMISE.unpack_from(block)
        if magic != PROMISE_MAGIC or crc != crc32c(block[_AFTER_CRC : PROMISE.size]):
            return None
        if log_id != self._log_id.bytes:
            raise LogForeign(f"{PROMISE_FILE}: belongs to log {UUID(bytes=log_id)}, not {self._log_id}")
        return sequence, Promise(highest_epoch, None if cut == _NO_CUT else cut, (committed[0], committed[1]))
