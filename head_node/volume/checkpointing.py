"""When a replica writes a checkpoint, and how far its log is trimmed afterwards: what a member that catches up still
needs is held, within a bound."""

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Final
from uuid import UUID

from head_node.files import Directory
from head_node.volume.blockmap import PAGE_BLOCKS
from head_node.volume.checkpoint import Checkpoint, checkpoint_bytes
from head_node.volume.geometry import Geometry
from head_node.volume.identity import Identity
from head_node.volume.limits import Limits
from head_node.volume.log import WriteLog
from head_node.volume.log_hold import LogHold
from head_node.volume.room import RETRY_SECONDS, RETRY_SECONDS_MAX, CheckpointRoom
from head_node.volume.segments import Position
from head_node.volume.state import VolumeState
from sled_controller.backoff import Backoff

EPOCHS_FORESEEN: Final = 4096
SLOTS_PER_STRIPE: Final = 4
"""What the room for a checkpoint of the whole map counts with; more make it grow."""

logger = logging.getLogger(__name__)


class Checkpointing(ABC):
    """The committed state of a volume, and the log that a checkpoint of it needs."""

    def __init__(self, directory: Directory, identity: Identity, limits: Limits) -> None:
        self._directory = directory
        self._identity = identity
        self.limits = limits
        self.volume: UUID = identity.volume
        self.log_id: UUID = identity.log_id
        self.size_blocks = identity.size_blocks
        self.geometry: Geometry = identity.geometry
        self.failure: Exception | None = None
        self.state = VolumeState(self.size_blocks, self.geometry)
        self.committed = 0
        """Last opnum known committed here, and applied."""
        self._log: WriteLog
        self._epochs: list[tuple[int, int]] = []
        self.log_hold = LogHold(limits.held_log_bytes_max)
        self._room = CheckpointRoom(directory, self._checkpoint_bytes_max(), self._give_up_spare)
        self._checkpoint_to_come_bytes = self._checkpoint_bytes()
        """As of the last record applied."""
        self._checkpoint_count = 0
        self._checkpointing: asyncio.Task[None] | None = None
        self._checkpoints_paused = False
        self._checkpoint_retry: asyncio.TimerHandle | None = None
        self._checkpoint_backoff = Backoff(None, RETRY_SECONDS, RETRY_SECONDS_MAX)
        self._needed_sequence = 0
        """The oldest segment that the durable checkpoint needs; older ones are held for members."""

    @abstractmethod
    def _log_trimmed(self) -> None:
        """A checkpoint or a trim ended; there may be room in the log."""

    def _needed_from(self) -> int:
        """The oldest opnum that the log must keep for a checkpoint made now."""
        oldest = self.state.overlay.oldest_opnum()
        return self.committed + 1 if oldest is None else min(oldest, self.committed + 1)

    def _checkpoint(self, first_sequence: int, before: Position, *, catching_up: bool = False) -> Checkpoint:
        covered = max(self.committed, self.state.covered)
        epochs = tuple((epoch, first) for epoch, first in self._epochs if first <= covered)
        stripes, pages = self.state.stripes.entries.copy(), self.state.map.snapshot()
        return Checkpoint(
            self.log_id, self.volume, covered, first_sequence, before, epochs, stripes, pages,
            self.state.reservations, catching_up, self._needed_from(),
        )  # fmt: skip

    def _checkpoint_bytes(self) -> int:
        """At most how large the checkpoint is that covers all that is applied."""
        return checkpoint_bytes(len(self._epochs), len(self.state.stripes.entries), self.state.pages_to_come())

    def _checkpoint_bytes_max(self) -> int:
        """The same for a volume all of whose pages exist."""
        pages = -(-self.size_blocks // PAGE_BLOCKS)
        slots = SLOTS_PER_STRIPE * -(-self.size_blocks // self.geometry.stripe_blocks)
        return checkpoint_bytes(EPOCHS_FORESEEN, slots, pages)

    async def _give_up_spare(self) -> bool:
        """The last spare is for STRIPE records, unless a checkpoint alone gives a segment back."""
        return await self._log.give_up_spare(0 if self._log.index_of(self._needed_from()) else 1)

    def _consider_checkpoint(self) -> None:
        busy = self._checkpointing is not None or self._checkpoint_retry is not None
        if busy or self._checkpoints_paused or self.failure is not None:
            return
        rot = self._log.rot
        if rot is not None:
            due = self._log.segment_of(self._needed_from())[0] > rot.sequence
        else:
            gain = self._log.index_of(self._needed_from()) - self._held_segments()
            due = gain >= 2 or (gain > 0 and self._log_pressed())
        if due:
            self._checkpointing = asyncio.get_running_loop().create_task(self._checkpoint_now())

    def _log_pressed(self) -> bool:
        """Is the log to be made shorter as soon as it can be?"""
        return self._log.no_room is not None or (
            self._log.segment_count > 2 and self.needed_log_bytes > self.limits.log_bytes_max // 2
        )

    @property
    def needed_log_bytes(self) -> int:
        """Bytes of the log without what is only held for members that catch up."""
        return self._log.used_bytes - self._held_segments() * self._identity.segment_bytes

    def _held_segments(self) -> int:
        return max(0, self._needed_sequence - self._log.first_sequence)

    def hold_log(self, holder: UUID, opnum: int | None = None, taken_bytes: int = 0) -> None:
        """Keep the log from `opnum` on for a member (None: from where an exported checkpoint begins), which has taken
        so many bytes since it was last said."""
        if opnum is None:
            opnum = self._log.segment_of(self._needed_from())[1].opnum + 1
        self.log_hold.keep(holder, opnum, taken_bytes)
        self._trim_held()
        if self.log_hold.throttled:
            self._log_trimmed()

    def release_log(self, holder: UUID) -> None:
        """The member has caught up, or is gone."""
        if self.log_hold.release(holder):
            self._trim_held()
            self._log_trimmed()

    def _give_up_hold(self) -> None:
        """The disk is full, and clients wait: they come before members that catch up."""
        if self._held_segments():
            if self.log_hold.give_up():
                logger.warning("event=log_hold_given_up volume=%s reason=disk_full", self.volume)
            self._trim_held()

    def _trim_held(self) -> None:
        """Give up segments that no checkpoint and no member needs any more."""
        idle = self._checkpointing is None and not self._checkpoints_paused
        if idle and self._log.first_sequence < self._trim_point():
            self._checkpointing = asyncio.get_running_loop().create_task(self._trim_now())

    def _trim_point(self) -> int:
        oldest, rot, needed = self.log_hold.oldest, self._log.rot, self._needed_sequence
        point = needed if oldest is None else min(needed, self._log.segment_of(oldest)[0])
        # No member can be given what has rotted.
        return point if rot is None else max(point, min(needed, rot.sequence + 1))

    async def _trim_now(self) -> None:
        try:
            await self._log.trim_before(self._trim_point())
        except OSError as error:
            logger.error("event=trim_failed volume=%s error=%s", self.volume, error)
        finally:
            self._checkpointing = None
        self._log_trimmed()

    async def _checkpoint_now(self) -> None:
        try:
            await self._write_checkpoint()
            self._checkpoint_backoff.reset()
        except OSError as error:
            # The old checkpoint and the log it needs are still there; the log only grows.
            logger.error("event=checkpoint_failed volume=%s error=%s", self.volume, error)
            pause_s = self._checkpoint_backoff.next_s()
            self._checkpoint_retry = asyncio.get_running_loop().call_later(pause_s, self._checkpoint_again)
        finally:
            self._checkpointing = None
        self._log_trimmed()

    def _checkpoint_again(self) -> None:
        self._checkpoint_retry = None
        self._log_trimmed()

    async def _write_checkpoint(self) -> None:
        if self.committed < self.state.covered:
            return
        sequence, before = self._log.segment_of(self._needed_from())
        self.state.count_pages()
        await self._room.write(await self._checkpoint(sequence, before).encode())
        self._checkpoint_count += 1
        self._needed_sequence = sequence
        if self.log_hold.measured(self._held_segments() * self._identity.segment_bytes):
            logger.warning("event=log_hold_given_up volume=%s bytes=%d", self.volume, self.limits.held_log_bytes_max)
        await self._log.trim_before(self._trim_point())

    async def _settle_checkpoint(self) -> None:
        """Wait for the checkpoint under way; the next one begins when `_checkpoints_paused` is taken back."""
        self._checkpoints_paused = True
        while self._checkpointing is not None:
            await asyncio.wait([self._checkpointing])
