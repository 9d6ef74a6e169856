"""What one head keeps of a volume: the log, what its committed records say, checkpoints of that, and full resync.

Knows nothing of roles: `VolumeEngine` says when records come in and when they are committed.
"""

import asyncio
import logging
from abc import abstractmethod
from bisect import bisect_right
from collections import deque
from typing import Any, Final, Self
from uuid import UUID

from head_node.files import Directory
from head_node.volume.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    decode_checkpoint,
    read_checkpoint,
)
from head_node.volume.checkpointing import Checkpointing
from head_node.volume.columns import Column
from head_node.volume.commit_point import IdleNote
from head_node.volume.errors import (
    BatchMalformed,
    LogCorrupt,
    LogDamaged,
    LogDiverged,
    LogMissing,
    LogRotten,
    StaleEpoch,
    VolumeError,
    WrongRole,
)
from head_node.volume.geometry import Geometry
from head_node.volume.identity import IDENTITY_FILE, Identity, PromiseFile, read_identity
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from head_node.volume.log import WriteLog
from head_node.volume.reader import Reader
from head_node.volume.records import (
    RECORD_BLOCKS_MAX,
    Kind,
    Record,
    parse_lost,
    parse_records,
    parse_reservations,
    parse_stripe,
)
from head_node.volume.reservations import Reservations
from head_node.volume.salvage import Losses, Pending, Salvage, find_losses
from head_node.volume.segments import LogPosition, Position
from head_node.volume.state import VolumeState
from sled_controller.environment import Environment
from spdk_bindings.device import Buffer

INSTALLING_FILE: Final = "installing"
"""Present while a full resync replaces the log; a log that has it is no log."""

LOOK_SECONDS: Final = 5.0
"""Between two batches of the log that are verified while nothing reads them: a full log is gone through in hours, which
costs nothing, and rot is found before a restart needs the records."""

logger = logging.getLogger(__name__)


class _AcceptedCut(Exception):
    """The log is to end at `after`: an operator accepted the loss of the rest."""

    def __init__(self, after: int) -> None:
        super().__init__(after)
        self.after = after


def _newer(one: LogPosition, other: LogPosition) -> LogPosition:
    """Of two commit points: the epoch counts first, for what an earlier one had beyond that was given up."""
    return max(one, other, key=lambda point: (point.epoch, point.opnum))


class Replica(Checkpointing):
    """Log and committed state of one volume in one directory."""

    def __init__(
        self, directory: Directory, identity: Identity, promise: PromiseFile, env: Environment, limits: Limits
    ) -> None:
        super().__init__(directory, identity, limits)
        self._promise = promise
        self._env = env
        self._announced = 0
        """What the primary said is committed, maybe more than there is here."""
        self._floor = LogPosition(0, 0)
        """The commit point that was found noted, or came with a full resync; above the tail where the log has lost its
        end, or has not caught up."""
        self.vouched = False
        """This process itself made everything committed durable here: it followed a primary, or led, until it had all.
        A log that was recovered from disk since may lack what the disk lost, and then others have to be asked (F5)."""
        self._idle_note = IdleNote(promise, self, self._epoch_of, self._fail)
        self._pending: deque[tuple[int, int, int, Any, Any]] = deque()
        """(opnum, kind, lba, CRCs | block count | StripeRecord | Reservations | LostBlocks, data) of records not known
        committed."""
        self._columns: list[Column | None] = [None] * self.geometry.shards
        self.reader = Reader(self.volume, self.state, self._columns, self._fenced, self.reread)
        self.losses: Losses | None = None
        """What this log has lost, accepted by an operator."""
        self._looking: asyncio.TimerHandle | asyncio.Task[None] | None = None

    # -- for the engine to say --------------------------------------------------------------------------------------

    @abstractmethod
    def _expect_follower(self) -> None:
        """Raise WrongRole unless the log may be changed from outside."""

    @abstractmethod
    def _durable(self, opnum: int) -> None:
        """Everything up to `opnum` is durable here."""

    @abstractmethod
    def _fail(self, error: Exception) -> None:
        """The log or what it says cannot be used any more; final."""

    @abstractmethod
    def _disk_full(self) -> None:
        """Clients wait for a segment that the disk has no room for: give some up."""

    @abstractmethod
    def _mend(self) -> None:
        """The log is known to be rotten somewhere: see that the segment is not needed any more, and drop it."""

    @abstractmethod
    def _fenced(self, column: int, error: BaseException) -> None:
        """A sled refuses this epoch or attach."""

    # -- making, recovering, facts ----------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        directory: Directory,
        *,
        volume: UUID,
        geometry: Geometry,
        size_blocks: int,
        env: Environment,
        limits: Limits | None = None,
    ) -> Self:
        """Make a log with a new random log id in an empty directory. Raises DirectoryLocked, VolumeError when it is
        not empty, OSError (ENOSPC)."""
        limits = limits or Limits()
        directory.lock()
        try:
            if directory.names():
                raise VolumeError(f"{directory.path}: is not empty; open the log in it, or remove it first")
            identity = Identity(env.new_uuid(), volume, size_blocks, limits.segment_bytes, geometry)
            engine = cls(directory, identity, await PromiseFile.create(directory, identity.log_id), env, limits)
            engine._adopt(await WriteLog.create(directory, identity.log_id, limits.segment_bytes, Position(0, 0, 0), 1))
            await engine._room.keep_first()
            await engine._room.write(await engine._checkpoint(1, Position(0, 0, 0)).encode())
            # Last, because this file is what makes it a log.
            await directory.replace(IDENTITY_FILE, [identity.encode()])
        except BaseException:
            directory.close()
            raise
        return engine

    @classmethod
    async def open(
        cls,
        directory: Directory,
        *,
        volume: UUID,
        env: Environment,
        limits: Limits | None = None,
        accepted_loss: str = "",
        alone: bool = False,
    ) -> Self:
        """Recover a log. Raises LogMissing, LogForeign, LogCorrupt, DirectoryLocked; LogDamaged when data is lost
        whose code (`Losses.code`) is not `accepted_loss`. `alone`: no other log of the volume counts: what
        the drive cannot read has rotted, and what was committed beyond an end that is accepted is given up with it."""
        directory.lock()
        try:
            return await cls._recover(directory, volume, env, limits or Limits(), accepted_loss, alone)
        except BaseException:
            directory.close()
            raise

    @classmethod
    async def _recover(
        cls, directory: Directory, volume: UUID, env: Environment, limits: Limits, accepted_loss: str, alone: bool
    ) -> Self:
        identity = read_identity(directory, volume)
        if INSTALLING_FILE in directory.names():
            raise LogMissing(f"{directory.path}: a full resync was not finished; create a new log and join again")
        promise = await PromiseFile.open(directory, identity.log_id)
        engine = cls(directory, identity, promise, env, limits)
        checkpoint = await read_checkpoint(directory, volume, identity.log_id)
        engine._restore(checkpoint)
        cut = promise.promise.cut_after
        try:
            log = await WriteLog.recover(
                directory, identity.log_id, identity.segment_bytes, checkpoint.first_sequence, engine._note, cut,
                lambda salvage, tail: engine._judge(salvage, tail, checkpoint, accepted_loss), past_sectors=alone,
            )  # fmt: skip
        except _AcceptedCut as accepted:
            end = LogPosition(accepted.after, engine._epoch_of(accepted.after))
            await promise.intend_cut(accepted.after, end if alone else None)
            return await cls._recover(directory, volume, env, limits, accepted_loss, alone)
        engine._adopt(log)
        if cut is not None:
            await promise.intend_cut(None)
        if checkpoint.covered > engine.durable and not checkpoint.catching_up:
            reason = f"covers opnum {checkpoint.covered} but the log ends at {engine.durable}: its end has rotted"
            raise LogCorrupt(CHECKPOINT_FILE, 0, reason)
        engine._floor = _newer(LogPosition(*promise.promise.committed), checkpoint.commit_point)
        floor = engine._floor.opnum if engine._floor_counts() else 0
        engine._apply_to(min(max(engine._log.recovered_commit_point, checkpoint.covered, floor), engine.durable))
        engine._room.enough(engine._checkpoint_bytes())
        if engine.missing and not checkpoint.catching_up:
            logger.error(
                "event=log_end_lost volume=%s log=%s tail=%d committed=%d epoch=%d",
                volume, identity.log_id, engine.durable, engine._floor.opnum, engine._floor.epoch,
            )  # fmt: skip
        return engine

    def _judge(self, salvage: Salvage, tail: int, checkpoint: Checkpoint, accepted_loss: str) -> None:
        """Refuse a log that has lost what is needed, unless an operator accepted exactly that."""
        losses = find_losses(
            self.log_id, salvage, self.state.map, (Pending(*entry) for entry in self._pending),
            needed_from=checkpoint.needed_from, covered=checkpoint.covered, tail=tail,
        )  # fmt: skip
        if not losses:
            return
        if accepted_loss not in losses.codes:
            raise LogDamaged(salvage.file, salvage.offset, f"rotten, and nothing else here has what is lost: {losses}")
        logger.error("event=loss_accepted volume=%s code=%s lost=%s", self.volume, losses.code, losses)
        if losses.cut_after is not None:
            raise _AcceptedCut(losses.cut_after)
        self.losses = losses

    def _adopt(self, log: WriteLog) -> None:
        self._log = log
        self._needed_sequence = log.first_sequence
        log.on_durable = self._durable
        log.on_failed = self._fail
        log.commit_point = lambda: self.committed
        log.on_room = self._room.on_room = self._log_trimmed
        self.committed = log.first_opnum - 1
        self._look_later()

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state = VolumeState(self.size_blocks, self.geometry)
        self.state.covered = checkpoint.covered
        self.state.map.restore(dict(checkpoint.pages))
        self.state.stripes.restore(checkpoint.stripes)
        self.state.reservations = checkpoint.reservations
        self.reader = Reader(self.volume, self.state, self._columns, self._fenced, self.reread)
        self._epochs = list(checkpoint.epochs)

    @property
    def tail(self) -> LogPosition:
        """The last record appended here."""
        return LogPosition(self._log.position.opnum, self._log.position.epoch)

    @property
    def durable(self) -> int:
        """Last opnum durable in this log."""
        return self._log.durable

    @property
    def batch_count(self) -> int:
        """Batches written since the log was opened."""
        return self._log.batch_count

    @property
    def commit_point(self) -> LogPosition:
        """The last record known committed here. It is above `tail` where the log has lost its end."""
        if self._floor.opnum > self.committed and self._floor_counts():
            return self._floor
        return LogPosition(self.committed, self._epoch_of(self.committed))

    @property
    def missing(self) -> int:
        """Records known committed that this log has lost, or not got yet: it must not lead (D1)."""
        return max(0, self.commit_point.opnum - self._log.position.opnum)

    def _floor_counts(self) -> bool:
        """Whether nothing in the log contradicts the floor: a record of a later epoch at or below it means that an
        operator gave it up, and let a shorter log lead."""
        return self._epoch_of(min(self._floor.opnum, self._log.position.opnum)) <= self._floor.epoch

    @property
    def settled_tail(self) -> LogPosition:
        """The last record that is durable here."""
        return LogPosition(self.durable, self._epoch_of(self.durable))

    def _epoch_of(self, opnum: int) -> int:
        """The epoch of record `opnum` of this log; 0 before the first."""
        at = bisect_right(self._epochs, opnum, key=lambda entry: entry[1])
        return self._epochs[at - 1][0] if at else 0

    @property
    def highest_epoch(self) -> int:
        """Senders of lower epochs are refused (F5)."""
        return max(self._promise.promise.highest_epoch, self._log.position.epoch)

    def has_room(self, length: int) -> bool:
        """Is there room in log, overlay and on the disk for `length` more bytes of client records?"""
        if len(self.state.overlay) * BLOCK_BYTES >= self.limits.overlay_bytes_max:
            return False
        if not self._log_takes(length, self.limits.client_log_bytes_max):
            if self._room.refused is not None:
                self._give_up_hold()
            return False
        if not self.log_hold.admits():
            return False
        if self._log.has_room(length):
            return True
        if self._log.no_room is not None:
            self._disk_full()
        return False

    def _has_spare_room(self, length: int) -> bool:
        """Whether there is room without asking for any: nothing is given up for it."""
        return (
            len(self.state.overlay) * BLOCK_BYTES < self.limits.overlay_bytes_max
            and self._log_takes(length, self.limits.client_log_bytes_max)
            and self._log.has_spare_room(length)
        )

    def has_room_without_data(self, length: int) -> bool:
        """Is there room in the log for `length` more bytes of records that give room back (trims)? Half of what client
        data leaves, in its bound and of the kept segment, is theirs."""
        bound = self.limits.client_log_bytes_max + self.limits.segment_bytes // 2
        return self._log_takes(length, bound) and (self._log.has_room(length) or self._log.has_kept_room(length))

    def _log_takes(self, length: int, bound: int) -> bool:
        # A depth-1 writer of 4 KiB blocks uses two blocks of log per block.
        log = self._log
        bound -= log.pending_bytes + 2 * length
        if log.used_bytes > bound and self.needed_log_bytes > bound:
            return False
        if self._room.enough(self._checkpoint_to_come_bytes):
            return True
        self.state.count_pages()
        self._checkpoint_to_come_bytes = self._checkpoint_bytes()
        return self._room.enough(self._checkpoint_to_come_bytes)

    @property
    def owed(self) -> int:
        """Records that the log of this head took and has not made durable; none while it waits for room on its disk,
        for it goes on by itself then."""
        return 0 if self._log.waits_for_room else self._log.position.opnum - self.durable

    def gauges(self) -> dict[str, Any]:
        """For status reports."""
        return {
            "log_id": str(self.log_id),
            "highest_epoch": self.highest_epoch,
            "tail": self._log.position.opnum,
            "durable": self.durable,
            "committed": self.committed,
            "missing": self.missing,
            "log_bytes": self._log.used_bytes,
            "log_segments": self._log.segment_count,
            "log_batches": self._log.batch_count,
            "log_no_room": self._log.no_room or self._room.refused,
            "log_held_bytes": self._held_segments() * self._identity.segment_bytes,
            "log_holds_given_up": self.log_hold.given_up_count,
            "throttled": self.log_hold.throttled,
            "log_rotten": str(self._log.rot) if self._log.rot else None,
            "log_losses": str(self.losses) if self.losses else None,
            "checkpoints": self._checkpoint_count,
            "overlay_blocks": len(self.state.overlay),
            "overlay_blocks_corrected": self.reader.corrected_count,
            "overlay_blocks_spoiled": len(self.state.overlay.spoiled),
            "map_pages": len(self.state.map.pages),
        }

    def epoch_history(self) -> list[tuple[int, int]]:
        """(epoch, first opnum) of every epoch in this log, oldest first."""
        tail = self._log.position.opnum
        return [(epoch, first) for epoch, first in self._epochs if first <= tail]

    def read_log(self, from_opnum: int, max_bytes: int) -> list[Buffer] | None:
        """Raw records from `from_opnum` on, at least one batch if there is one; None when trimmed (full resync).
        Raises LogRotten; what can be done about it is begun."""
        try:
            return self._log.read(from_opnum, max_bytes)
        except LogRotten:
            self._mend()
            raise

    def reread(self, opnum: int, lba: int) -> bytes | None:
        """A block of a WRITE in this log, verified; None when it cannot be had."""
        try:
            record = self._log.find(opnum)
        except LogRotten:
            self._mend()
            return None
        if record is None or record.kind != Kind.WRITE or not 0 <= lba - record.lba < record.block_count():
            return None
        at = (lba - record.lba) * BLOCK_BYTES
        return bytes(record.data[at : at + BLOCK_BYTES])

    def _look_later(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().create_task(self._look_for_rot())

    async def _look_for_rot(self) -> None:
        try:
            await self._log.look_for_rot()
        except LogRotten:
            self._mend()
        self._looking = None
        self._look_later()

    async def _close_log(self) -> None:
        for later in (self._looking, self._checkpoint_retry):
            if later is not None:
                later.cancel()
        await self._room.close()
        await self._log.close()

    async def see_epoch(self, epoch: int) -> None:
        """Refuse senders of lower epochs from now on, durably (F5). Raises StaleEpoch when a higher one was seen."""
        if epoch < self.highest_epoch:
            raise StaleEpoch(epoch, self.highest_epoch)
        await self._promise.see_epoch(epoch)

    def _note(self, record: Record) -> None:
        """Remember what a record says until it is known committed."""
        kind = record.kind
        what: Any = None
        if kind == Kind.WRITE:
            what = record.block_crcs()
        elif kind == Kind.ZERO:
            what = record.block_count()
        elif kind == Kind.STRIPE:
            what = parse_stripe(record.meta)
        elif kind == Kind.RESERVATION:
            what = parse_reservations(record.meta)
        elif kind == Kind.LOST:
            what = parse_lost(record.meta)
        elif (record.epoch, record.opnum) not in self._epochs:
            self._epochs.append((record.epoch, record.opnum))
        self._pending.append((record.opnum, kind, record.lba, what, record.data))

    def _newest_reservations(self) -> Reservations:
        """What the reservations are once everything in the log is committed."""
        for opnum, kind, _, what, _ in reversed(self._pending):
            if kind == Kind.RESERVATION and opnum > self.state.covered:
                newest: Reservations = what
                return newest
        return self.state.reservations

    def follow_append(self, batch: Buffer, *, epoch: int | None = None) -> None:
        """Append raw records of the primary of `epoch` (None: of the highest epoch seen).

        Raises StaleEpoch, LogDiverged, BatchMalformed; nothing of the batch is kept then. A read-only `batch` belongs
        to the engine from now on, a writable one is copied.
        """
        self._expect_follower()
        highest = self.highest_epoch
        if epoch is not None and epoch != highest:
            if epoch < highest:
                raise StaleEpoch(epoch, highest)
            raise WrongRole(f"epoch {epoch} was not made durable by see_epoch; {highest} is the highest")
        view = memoryview(batch)
        raw: Buffer = view if view.readonly else bytes(view)
        before = self._log.position
        records: list[Record] = []
        try:
            records.extend(parse_records(raw, before.opnum + 1, before.chain))
        except BatchMalformed as error:
            if not records:
                raise LogDiverged(f"records do not continue opnum {before.opnum}: {error}") from None
            raise
        newest = before.epoch
        for record in records:
            if not newest <= record.epoch <= highest or (record.epoch > newest) != (record.kind == Kind.EPOCH):
                raise BatchMalformed(f"opnum {record.opnum}: epoch {record.epoch} after {newest}, highest {highest}")
            newest = record.epoch
        self._append_raw(memoryview(raw).cast("B"), records)

    def _append_raw(self, raw: memoryview, records: list[Record]) -> None:
        start = 0
        for index, record in enumerate(records):
            self._note(record)
            last = index + 1 == len(records)
            if last or records[index + 1].end - start > RECORD_BLOCKS_MAX * BLOCK_BYTES:
                position = Position(record.opnum, record.epoch, record.crc)
                self._log.append(raw[start : record.end], None, position)
                start = record.end
        # The frame is the batch: there is nothing more of this turn to wait for.
        self._log.kick()

    def follow_committed(self, opnum: int) -> None:
        """The primary says that everything up to `opnum` is committed."""
        self._expect_follower()
        self._announced = opnum
        self._apply_to(min(opnum, self.durable))
        self._consider_checkpoint()

    async def truncate_after(self, opnum: int) -> None:
        """Durably cut everything after `opnum`; LogDiverged when that is committed or trimmed here (full resync)."""
        self._expect_follower()
        if opnum >= self._log.position.opnum:
            return
        floor = max(self.committed, self._log.first_opnum - 1)
        if opnum < floor or opnum < self.state.covered:
            raise LogDiverged(f"opnum {opnum} is below {max(floor, self.state.covered)}, committed or trimmed here")
        # The epochs cut away stay promised: truncation must not make this member accept their predecessors.
        await self._promise.see_epoch(self._log.position.epoch)
        self._announced = 0
        try:
            await self._promise.intend_cut(opnum)
            await self._log.truncate_after(opnum)
            await self._promise.intend_cut(None)
        except Exception as error:
            # Half cut, the log and what is remembered of it disagree; opening it again finishes the cut.
            self._fail(error)
            raise
        self._pending = deque(entry for entry in self._pending if entry[0] <= opnum)
        self._epochs = [(epoch, first) for epoch, first in self._epochs if first <= opnum]

    async def export_checkpoint(self) -> list[Buffer]:
        """All a newcomer needs to follow from its `tail.opnum + 1` on after `install_checkpoint`."""
        before = self._log.segment_of(self._needed_from())[1]
        if self._log.rot is not None and self._log.rot.last_opnum > before.opnum:
            self._mend()
            raise self._log.rot
        return await self._checkpoint(1, before).encode()

    async def install_checkpoint(self, data: Buffer) -> None:
        """Replace everything here by an exported checkpoint (full resync); then follow from `tail.opnum + 1`.

        A crash in the middle leaves a directory that `open` reports as LogMissing. Raises LogCorrupt, LogForeign."""
        self._expect_follower()
        checkpoint = decode_checkpoint(bytes(data), self.volume)
        await self._settle_checkpoint()
        try:
            await self._promise.see_epoch(self.highest_epoch)
            # What fills the disk may be the log that is about to go.
            await self._room.put(INSTALLING_FILE, [b"full resync under way\n"])
        except BaseException:
            self._checkpoints_paused = False  # the former log goes on
            raise
        try:
            await self._install(checkpoint)
        except Exception as error:
            # The old log is gone and the new one is not there: what this member said to be durable is not.
            self._fail(error)
            raise
        self._checkpoints_paused = False

    async def _install(self, checkpoint: Checkpoint) -> None:
        known = self.commit_point
        if self._looking is not None:
            self._looking.cancel()
        await self._log.discard()
        self._pending.clear()
        self._announced = 0
        self._restore(checkpoint)
        log = await WriteLog.create(
            self._directory, self.log_id, self._identity.segment_bytes, checkpoint.before, checkpoint.first_sequence
        )
        self._adopt(log)
        self._floor, self.vouched = _newer(known, checkpoint.commit_point), False
        own = self._checkpoint(checkpoint.first_sequence, checkpoint.before, catching_up=True)
        await self._room.write(await own.encode())
        await self._directory.remove(INSTALLING_FILE)

    def _apply_to(self, opnum: int) -> None:
        pending, state = self._pending, self.state
        try:
            while pending and pending[0][0] <= opnum:
                at, kind, lba, what, data = pending.popleft()
                if kind == Kind.WRITE:
                    state.write(at, lba, what, data)
                elif kind == Kind.ZERO:
                    state.zero(at, lba, what)
                elif kind == Kind.STRIPE:
                    state.stripe(at, what)
                elif kind == Kind.RESERVATION:
                    state.reserve(at, what)
                elif kind == Kind.LOST:
                    state.lost(at, what)
        except Exception as error:
            # Whatever it is, a record is applied in part, and this member could not agree with the others any more.
            logger.exception("event=apply_failed volume=%s committed=%d", self.volume, self.committed)
            self._fail(error)
            return
        self._checkpoint_to_come_bytes = self._checkpoint_bytes()
        if opnum > self.committed:
            self.committed = opnum
            self._idle_note.advanced()
