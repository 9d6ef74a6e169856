"""One volume on one head: a follower that keeps what the primary sends, or the primary that serves it.

Owns the role and what follows from it. What each part does is said in its module; docs/volume-engine.md is the map.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final
from uuid import UUID

from head_node.files import Directory
from head_node.volume.callbacks import tell
from head_node.volume.columns import Column
from head_node.volume.destage import Destager
from head_node.volume.errors import (
    LogCorrupt,
    LogDiverged,
    LogHangs,
    NotEnoughColumns,
    StaleEpoch,
    VolumeStopped,
    WrongRole,
)
from head_node.volume.identity import Identity, PromiseFile
from head_node.volume.interface import BLOCK_BYTES, ServedVolume
from head_node.volume.limits import Limits
from head_node.volume.policy import SledPolicy
from head_node.volume.records import (
    RECORD_BLOCKS_MAX,
    Kind,
    LostBlocks,
    StripeRecord,
    epoch_record,
    lost_record,
    reservation_record,
    stripe_record,
    write_header,
    zero_record,
)
from head_node.volume.replica import Replica
from head_node.volume.reservations import Reservations
from head_node.volume.segments import LogPosition, Position
from head_node.volume.service import ClientService
from head_node.volume.stripewriter import StripeWriter
from head_node.volume.unreadable import RANGES_SHOWN_MAX, ranges_of
from head_node.volume.watched_column import WatchedColumn, hanging
from sled_controller.environment import Environment
from spdk_bindings.device import Buffer

__all__ = ["LogPosition", "Role", "VolumeEngine"]

TURN_BYTES: Final = 128 << 10
"""Room that is asked for at once, for the further writes of a loop turn: to ask costs more than to append."""
NOTICE_SECONDS: Final = 0.005
"""Followers apply what is committed this much later: a frame for each commit would cost a small write a third more."""

logger = logging.getLogger(__name__)


class Role(Enum):
    """What the engine is now."""

    FOLLOWER = "follower"
    PRIMARY = "primary"
    FAILED = "failed"
    CLOSED = "closed"


TRANSITIONS = {
    Role.FOLLOWER: {Role.PRIMARY, Role.FAILED, Role.CLOSED},
    Role.PRIMARY: {Role.FOLLOWER, Role.FAILED, Role.CLOSED},
    Role.FAILED: {Role.CLOSED},
    Role.CLOSED: set[Role](),
}


class VolumeEngine(Replica):
    """See docs/volume-engine.md. Every callback is called on the loop and may be replaced at any time."""

    def __init__(
        self, directory: Directory, identity: Identity, promise: PromiseFile, env: Environment, limits: Limits
    ) -> None:
        super().__init__(directory, identity, promise, env, limits)
        self.role = Role.FOLLOWER
        self._service = ClientService(self)
        self.served: ServedVolume = self._service
        """What EXPORT uses; only meaningful while primary."""
        self._destager: Destager | None = None
        self._members: dict[UUID, int] = {}
        self._epoch = 0
        self._epoch_opnum = 0
        self.reservations_ahead = self.state.reservations
        """As primary: what the whole log says, committed or not, and so what the next record is judged by."""
        self._held = False
        self.policy = SledPolicy()
        self.serving = False
        """Primary, epoch record committed, not held."""
        self._left_sequence = 0
        """The segment that was left early: rotten, or the only one on a full disk."""
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._streaming: list[Buffer] = []
        self._streaming_first = 0
        self._turn_scheduled = False
        self._turn_room_bytes = 0
        """Room that was found in this turn and not yet used."""
        self._notice: asyncio.TimerHandle | None = None
        self.lease: Callable[[], bool] = lambda: True
        """F7, asked at admission and before each reply; False makes requests wait."""
        self.on_durable: Callable[[int], None] = lambda opnum: None
        self.on_failed: Callable[[Exception], None] = lambda error: None
        self.on_append: Callable[[int, int, Sequence[Buffer]], None] = lambda first, last, buffers: None
        """(first opnum, last opnum, raw records) once per loop turn that appended, as primary only."""
        self.on_committed: Callable[[int], None] = lambda opnum: None
        """(opnum) at most NOTICE_SECONDS after `committed` advanced, as primary only: tell the followers."""
        self.on_fenced: Callable[[int, BaseException], None] = lambda column, error: None
        """(column index, FencedOff or Superseded)."""

    @property
    def leading(self) -> bool:
        """Primary, serving or not."""
        return self.role is Role.PRIMARY

    def no_space(self) -> bool:
        """Slots ran out and compaction cannot win any."""
        return self._destager is not None and self._destager.no_space

    def set_policy(self, policy: SledPolicy) -> None:
        """What the volume does while sleds are away is this from now on."""
        if policy == self.policy:
            return
        self.policy = policy
        if self._destager is not None:
            self._destager.set_exposed_stripes(policy.exposed_stripes)
        self._service.policy_changed()

    def status(self) -> dict[str, Any]:
        """Counters and gauges for status reports."""
        stripes, destager = self.state.stripes, self._destager
        away = [index for index, column in enumerate(self._columns) if column is None or not column.available]
        unreadable = self.reader.unreadable.lbas(self.state.map, self.state.overlay)
        return {
            "role": self.role.value,
            "serving": self.serving,
            "epoch": self._epoch or self._log.position.epoch,
            **self.gauges(),
            "slots": stripes.slot_count,
            "slots_free": stripes.free_count,
            "columns_missing": len(away) if self.role is Role.PRIMARY else None,
            "columns_away": away if self.role is Role.PRIMARY else [],
            "stripes_wait_for_sleds": destager.short if destager else False,
            "columns_hanging": hanging(self._columns),
            "stripes_written": destager.stripe_count if destager else 0,
            "stripes_exposed": stripes.exposed_count,
            "stripes_without_spare": stripes.without_spare_count,
            "stripes_given_up": destager.given_up_count if destager else 0,
            "blocks_moved": destager.moved_count if destager else 0,
            "blocks_left_unreadable": destager.unreadable_count if destager else 0,
            "blocks_unreadable": len(unreadable),
            "blocks_unreadable_more": self.reader.unreadable.more,
            "blocks_unreadable_ranges": ranges_of(unreadable, RANGES_SHOWN_MAX),
            "blocks_lost": self.state.map.lost_count,
            "slots_held": destager.held_slots if destager else 0,
            "no_space": self.no_space(),
            "blocks_reconstructed": self.reader.reconstructed_count,
            "reads_hedged": self.reader.hedged_count,
            "blocks_mismatched": self.reader.mismatch_count,
            "failure": str(self.failure) if self.failure else None,
            "requests": self._service.gauges(),
            "sled_waits": self._service.sled_waits(),
        }

    async def lead(self, epoch: int, columns: Sequence[Column | None], forced_epoch: int = 0) -> int:
        """Become primary of `epoch`: append its epoch record and return its opnum (not yet committed).

        Nothing is served or destaged before that is committed. A log that lacks committed records leads only when an
        operator chose it in `forced_epoch`, after they were committed. Raises StaleEpoch, WrongRole, LogDiverged."""
        self._expect_follower()
        if epoch < self.highest_epoch or epoch <= self._log.position.epoch:
            raise StaleEpoch(epoch, self.highest_epoch)
        if self.tail.opnum < self.state.covered:
            raise WrongRole(f"volume {self.volume}: the full resync has not caught up with its checkpoint here")
        if len(columns) != self.geometry.shards:
            raise NotEnoughColumns(f"{len(columns)} columns given, the geometry has {self.geometry.shards}")
        await self._accept_loss(epoch, forced_epoch)
        await self.see_epoch(epoch)
        self._become(Role.PRIMARY)
        self._columns[:] = [self._watched(column) for column in columns]
        self._epoch = epoch
        opnum = self._log.position.opnum + 1
        header, chain = epoch_record(opnum, epoch, self._log.position.chain)
        self._epochs.append((epoch, opnum))
        self._epoch_opnum = opnum
        self.reservations_ahead = self._newest_reservations()
        self._append(opnum, chain, Kind.EPOCH, 0, None, header, None)
        return opnum

    async def _accept_loss(self, epoch: int, forced_epoch: int) -> None:
        if not self.missing:
            return
        lost, tail = self.commit_point, self.tail
        if forced_epoch <= lost.epoch:
            raise LogDiverged(f"opnum {lost.opnum} of epoch {lost.epoch} was committed, this log ends at {tail.opnum}")
        logger.warning(
            "event=committed_records_given_up volume=%s epoch=%d tail=%d records=%d",
            self.volume, epoch, tail.opnum, self.missing,
        )  # fmt: skip
        await self._promise.accept_loss(epoch, tail.opnum, tail.epoch)
        self._floor = tail

    def _begin_destage(self) -> None:
        """The epoch record is committed: slots can be told free from used now, not before."""
        self.state.stripes.open_slots(self._slots())
        writer = StripeWriter(self.volume, self.geometry, self._epoch, self._columns)
        self._destager = Destager(self.state, writer, self.reader, self._append_stripe, self._fenced, self._spoiled)
        self._destager.pressed = self._pressed
        self._destager.set_exposed_stripes(self.policy.exposed_stripes)
        if self._held:
            self._destager.hold()
        if self._log.rot is not None:
            self._mend()

    def _mend(self) -> None:
        """Put what is in memory into stripes; the checkpoint that follows drops the segment. A member waits for the
        primary's stripes."""
        if self._log.rot is not None and self._log.newest_sequence <= self._log.rot.sequence:
            self._leave_segment()
        self._free_room()

    def _leave_segment(self) -> None:
        """See that the segment which is written now can be dropped."""
        if self._destager is not None and not self._held and self._left_sequence != self._log.newest_sequence:
            self._left_sequence = self._log.newest_sequence
            self._log.leave_segment()
            self.append_reservation(self.reservations_ahead)  # something has to be the first record of the next one

    def _disk_full(self) -> None:
        self._give_up_hold()
        if self._log.segment_count == 1:
            self._leave_segment()
        self._free_room()

    def _free_room(self) -> None:
        self._relieve()
        if self._destager is not None:
            self._destager.pump()
        self._consider_checkpoint()

    def _spoiled(self, lba: int, opnum: int) -> bool:
        """A block has no good copy here. True when an operator accepted its loss: it is put into a stripe as it is,
        under its true CRC, and so reads as an error everywhere until it is written again."""
        if self.losses is not None and (lba, opnum) in self.losses.blocks:
            return True
        logger.error("event=block_spoiled volume=%s epoch=%d opnum=%d lba=%d", self.volume, self._epoch, opnum, lba)
        if self._members:  # each has every acknowledged write: let one take over before the block is put aside
            spoiled = LogCorrupt("memory", opnum, f"block {lba} is rotten in memory and in the log; a member has it")
            asyncio.get_running_loop().call_soon(self._fail, spoiled)
        return False

    def _pressed(self) -> bool:
        """Is half of what clients may fill full?"""
        limits = self.limits
        filled = len(self.state.overlay) * BLOCK_BYTES
        return filled > limits.overlay_bytes_max // 2 or self.needed_log_bytes > limits.client_log_bytes_max // 2

    def _slots(self) -> int:
        sizes = [column.blocks for column in self._columns if column is not None]
        return min(sizes, default=0) // self.geometry.shard_blocks

    def set_required(self, members: frozenset[UUID]) -> None:
        """Heads other than this one whose durability a commit needs. A head new here counts from its next
        `member_durable`."""
        self._members = {head: self._members.get(head, 0) for head in members}
        self._advance()

    def member_durable(self, head: UUID, opnum: int) -> None:
        """`head` has everything up to `opnum` durable; ignored for heads not required."""
        if head in self._members:
            self._members[head] = opnum
            self._advance()

    def wait_committed(self, opnum: int) -> asyncio.Future[None]:
        """Resolved when `opnum` is committed; fails with VolumeStopped."""
        waiter = self._waiters.get(opnum)
        if waiter is None or waiter.cancelled():
            waiter = asyncio.get_running_loop().create_future()
            if opnum <= self.committed:
                waiter.set_result(None)
            elif self.role is not Role.PRIMARY:
                waiter.set_exception(VolumeStopped(f"opnum {opnum} is not committed and this is no primary"))
            else:
                self._waiters[opnum] = waiter
        return waiter

    def set_column(self, index: int, column: Column | None) -> None:
        """A sled came back with a new attach, or went."""
        former = self._columns[index]
        if not isinstance(former, WatchedColumn) or former.inner is not column:
            self._columns[index] = self._watched(column)
            if former is not None:
                self.state.stripes.attach_gone(former)
        if self._destager is not None:
            if self._slots() != self.state.stripes.slot_count:
                self.state.stripes.resize(self._slots())
            self._destager.column_changed()
        if column is not None:
            self._service.attached()
        self._service.pump()

    def ration(self, elapsed_ns: int) -> None:
        """Time has passed, of which clients that are slowed get their share. With each heartbeat."""
        if self.log_hold.throttled:
            self.log_hold.passed(elapsed_ns)
            self._service.pump()

    def _watched(self, column: Column | None) -> Column | None:
        return column and WatchedColumn(column, self.limits.column_seconds_max, self._column_changed, self._late_answer)

    def _column_changed(self, column: WatchedColumn) -> None:
        if self._destager is not None:
            self._destager.column_hangs(column, column.hangs)
        if not column.hangs:
            self._service.attached()
        self._service.pump()

    def _late_answer(self, column: WatchedColumn, lba: int, error: BaseException | None) -> None:
        if self._destager is not None:
            self._destager.late_answer(lba // self.geometry.shard_blocks, column, error)

    def hold(self) -> None:
        """Acknowledge nothing until `resume` (F6)."""
        self._held = True
        self._set_serving()
        if self._destager is not None:
            self._destager.hold()

    def resume(self) -> None:
        """Acknowledge again."""
        self._held = False
        self._set_serving()
        if self._destager is not None:
            self._destager.resume()
        self._service.answer(self.committed)
        self._service.pump()

    async def step_down(self) -> None:
        """Drop client requests unanswered and become a follower (F6)."""
        # A role that ended before it led may have held too; the next one must not inherit that.
        self._held = False
        if self.role is Role.PRIMARY:
            self._become(Role.FOLLOWER)
            await self.reader.close()

    def abandon(self, error: LogHangs) -> None:
        """Wait for this log no more: the engine has failed, and `close` leaves the directory as it is."""
        self._fail(error)

    async def close(self, *, destage: bool = False) -> None:
        """Stop; as primary with `destage` first put everything committed into stripes."""
        if self.role is Role.CLOSED:
            return
        if destage and self._destager is not None and not self._held:
            await self._destager.drain()
        await self._idle_note.close(wait=not isinstance(self.failure, LogHangs))
        if self.role is not Role.FAILED:
            await self._settle_checkpoint()
        failed = self.role is Role.FAILED
        self._become(Role.CLOSED)
        await self.reader.close()
        if isinstance(self.failure, LogHangs):
            return
        await self._close_log()
        if not failed and self.failure is None and self._log.failed is None:
            try:
                await self._write_checkpoint()
            except OSError as error:
                logger.warning("event=checkpoint_failed volume=%s error=%s", self.volume, error)
        self._directory.close()

    def has_room(self, length: int) -> bool:
        """See Replica."""
        if not self._turn_scheduled or self.log_hold.throttled:
            return super().has_room(length)
        if length > self._turn_room_bytes:
            if not self._has_spare_room(length + TURN_BYTES):
                return super().has_room(length)
            self._turn_room_bytes = length + TURN_BYTES
        self._turn_room_bytes -= length
        return True

    def append_write(self, lba: int, data: Buffer) -> int:
        """Log a client write; returns the opnum of its last record."""
        if self.log_hold.throttled:
            self.log_hold.spent(len(data))
        log = self._log
        position = log.position
        if len(data) == BLOCK_BYTES:
            opnum = position.opnum + 1
            header, chain, crcs = write_header(opnum, self._epoch, lba, data, position.chain)
            self._append(opnum, chain, Kind.WRITE, lba, crcs, header, data)
            return opnum
        view = memoryview(data)
        step = RECORD_BLOCKS_MAX * BLOCK_BYTES
        opnum = position.opnum
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            opnum += 1
            header, chain, crcs = write_header(opnum, self._epoch, lba, piece, log.position.chain)
            self._append(opnum, chain, Kind.WRITE, lba, crcs, header, piece)
            lba += len(crcs)
        return opnum

    def append_zero(self, lba: int, count: int) -> int:
        """Log a client's trim or write-zeroes; returns its opnum."""
        opnum = self._log.position.opnum + 1
        header, chain = zero_record(opnum, self._epoch, lba, count, self._log.position.chain)
        self._append(opnum, chain, Kind.ZERO, lba, count, header, None)
        return opnum

    def append_reservation(self, reservations: Reservations) -> int:
        """Log what the reservations are from here on; returns its opnum."""
        opnum = self._log.position.opnum + 1
        header, chain = reservation_record(opnum, self._epoch, reservations, self._log.position.chain)
        self._append(opnum, chain, Kind.RESERVATION, 0, reservations, header, None)
        self.reservations_ahead = reservations
        return opnum

    def append_lost(self, blocks: LostBlocks) -> int:
        """Log that these versions of blocks are lost; returns its opnum."""
        opnum = self._log.position.opnum + 1
        header, chain = lost_record(opnum, self._epoch, blocks, self._log.position.chain)
        self._append(opnum, chain, Kind.LOST, 0, blocks, header, None)
        logger.warning(
            "event=blocks_declared_lost volume=%s opnum=%d blocks=%d first=%d",
            self.volume, opnum, len(blocks), blocks["lba"][0],
        )  # fmt: skip
        return opnum

    def slots_won(self) -> None:
        """Blocks were declared lost: compaction may move what they held up."""
        if self._destager is not None:
            self._destager.lost()

    def _append_stripe(self, stripe: StripeRecord) -> int:
        opnum = self._log.position.opnum + 1
        header, chain = stripe_record(opnum, self._epoch, stripe, self._log.position.chain)
        self._append(opnum, chain, Kind.STRIPE, 0, stripe, header, None)
        return opnum

    def _append(
        self, opnum: int, chain: int, kind: int, lba: int, what: Any, header: bytes, data: Buffer | None
    ) -> None:
        self._log.append(header, data, Position(opnum, self._epoch, chain))
        self._pending.append((opnum, kind, lba, what, data))
        if not self._streaming:
            self._streaming_first = opnum
        self._streaming.append(header)
        if data is not None:
            self._streaming.append(data)
        if not self._turn_scheduled:
            self._schedule_turn()

    def _schedule_turn(self) -> None:
        """Once per loop turn: stream and commit what the turn appended."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn_scheduled = False
        self._turn_room_bytes = 0
        if self._streaming:
            buffers, self._streaming = self._streaming, []
            last = self._log.position.opnum
            tell(self.volume, "on_append", self.on_append, self._streaming_first, last, buffers)
        self._log.kick()

    def _durable(self, opnum: int) -> None:
        if self.role is Role.PRIMARY:
            self._advance()
        elif self._announced > self.committed:
            self._apply_to(min(self._announced, opnum))
            self._consider_checkpoint()
        tell(self.volume, "on_durable", self.on_durable, opnum)

    def _advance(self) -> None:
        """Commit what every required member has, once the epoch record is among it (F5)."""
        opnum = min(self._log.durable, *self._members.values()) if self._members else self._log.durable
        if self.role is not Role.PRIMARY or opnum < self._epoch_opnum or opnum <= self.committed:
            return
        try:
            self._commit(opnum)
        except Exception as error:
            # Callbacks have been caught before: this is the engine's own, and its state is in doubt.
            logger.exception("event=commit_failed volume=%s opnum=%d", self.volume, opnum)
            self._fail(error)

    def _commit(self, opnum: int) -> None:
        """Apply, answer and tell; then destage and begin what this made room for."""
        self._apply_to(opnum)
        if self.role is not Role.PRIMARY:
            return
        if self._destager is None:
            self._begin_destage()
            self._set_serving()
            self.vouched = True
        self._service.answer(opnum)
        if self._notice is None:
            self._notice = asyncio.get_running_loop().call_later(NOTICE_SECONDS, self._give_notice)
        for needed in [needed for needed in self._waiters if needed <= opnum]:
            waiter = self._waiters.pop(needed)
            if not waiter.done():
                waiter.set_result(None)
        self._relieve()
        if self._destager is not None:
            self._destager.committed(opnum)
        self._service.pump()
        self._consider_checkpoint()

    def _give_notice(self) -> None:
        self._notice = None
        tell(self.volume, "on_committed", self.on_committed, self.committed)

    def _relieve(self) -> None:
        """Under log pressure, or to leave a rotten segment, destage what there is, so that the log can be trimmed."""
        if self._destager is None:
            return
        log, rot, pressed = self._log, self._log.rot, self._log_pressed()
        oldest = self.state.overlay.oldest_opnum() if pressed or rot is not None else None
        force = False
        if oldest is not None:
            sequence, _ = log.segment_of(oldest)
            first = max(log.first_sequence, self._needed_sequence)
            force = (pressed and sequence <= first) or (rot is not None and sequence <= rot.sequence)
        self._destager.force = force

    def _fenced(self, column: int, error: BaseException) -> None:
        logger.warning("event=fenced volume=%s epoch=%d column=%d error=%s", self.volume, self._epoch, column, error)
        tell(self.volume, "on_fenced", self.on_fenced, column, error)

    def _expect_follower(self) -> None:
        if self.failure is not None:
            raise VolumeStopped(f"volume {self.volume} failed here: {self.failure}")
        if self.role is not Role.FOLLOWER:
            raise WrongRole(f"volume {self.volume} is {self.role.value} here, not a follower")

    def _log_trimmed(self) -> None:
        if self.role is Role.CLOSED:
            return
        self._free_room()
        self._service.pump()

    def _become(self, role: Role) -> None:
        if role not in TRANSITIONS[self.role]:
            raise WrongRole(f"volume {self.volume} cannot become {role.value} from {self.role.value}")
        former, self.role = self.role, role
        logger.info("event=role volume=%s from=%s to=%s tail=%s", self.volume, former.value, role.value, self.tail)
        if former is Role.PRIMARY:
            self._leave_primary()
        self._set_serving()

    def _leave_primary(self) -> None:
        self._service.drop()
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        if self._destager is not None:
            self._destager.stop()
            self._destager = None
        self.state.stripes.close_slots()
        self.state.overlay.put_all_back()
        self._columns[:] = [None] * self.geometry.shards
        self._epoch = self._epoch_opnum = self._announced = 0
        self._held = False
        self._members.clear()
        self.log_hold.clear()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            if not waiter.done():
                waiter.set_exception(VolumeStopped(f"volume {self.volume} is no longer primary here"))
                # Nobody may be waiting any more; that is no error.
                waiter.exception()

    def _set_serving(self) -> None:
        self.serving = self.role is Role.PRIMARY and self._destager is not None and not self._held

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            logger.error("event=volume_failed volume=%s error=%s", self.volume, error)
            if self.role is Role.CLOSED:
                return
            self._become(Role.FAILED)
            tell(self.volume, "on_failed", self.on_failed, error)
