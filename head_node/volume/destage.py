"""Destage: moves committed blocks from the log into stripes, and live blocks out of half-dead stripes (compaction).

Starts nothing before the epoch record is committed (the engine makes it then) and appends STRIPE only when enough
shards are durable. What no committed STRIPE names is garbage, so giving a stripe up costs nothing but the slot's time.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from crc32c import crc32c

from head_node.volume.columns import Column
from head_node.volume.errors import BlockUnreadable
from head_node.volume.overlay import Entry
from head_node.volume.reader import Reader
from head_node.volume.records import StripeRecord
from head_node.volume.state import VolumeState
from head_node.volume.stripewriter import ANSWERS, Outcome, StripeBlock, StripeWriter
from sled_controller.backoff import Backoff
from sled_controller.errors import FencedOff, Superseded

STRIPES_IN_FLIGHT_MAX: Final = 3
"""Enough to keep six sleds busy while one stripe is encoded; each holds about 1.5 MiB."""
RETRY_SECONDS: Final = 0.5
RETRY_SECONDS_MAX: Final = 8.0
EXPOSED_AFTER_SECONDS: Final = 5.0
"""Stripes of exactly k shards are written once more columns have been missing for this long: sleds that restart are
back by then. Under log pressure they are written at once."""
HELD_SECONDS: Final = 60.0
"""A slot with a block that could not be moved is tried again after this time, or when a sled comes."""
COMPACTION_RESERVE_SLOTS: Final = 4
"""Slots that only compaction may take, so that it always progresses."""

logger = logging.getLogger(__name__)


class Destager:
    """Runs in one epoch of a primary."""

    def __init__(
        self,
        state: VolumeState,
        writer: StripeWriter,
        reader: Reader,
        append_stripe: Callable[[StripeRecord], int],
        on_fenced: Callable[[int, BaseException], None],
        spoiled: Callable[[int, int], bool],
    ) -> None:
        """`spoiled(lba, opnum)` hears of a block that has no good copy; True: put it into the stripe all the same."""
        self._state = state
        self._writer = writer
        self._reader = reader
        self._append_stripe = append_stripe
        self._on_fenced = on_fenced
        self._spoiled = spoiled
        self.force = False
        """Write partial stripes too (log pressure, shutdown)."""
        self.no_space = False
        """Not one slot can be had or won by compaction."""
        self.stripe_count = 0
        self.moved_count = 0
        self.given_up_count = 0
        self.unreadable_count = 0
        """Times that compaction left a block behind, because it could not be read then."""
        self._held = False
        self._stopped = False
        self._in_flight = 0
        self._unsettled: dict[int, tuple[int, list[Column]]] = {}
        """slot -> (opnum of its STRIPE, columns that did not answer for their shard), until that is committed."""
        self._compacting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._backoff = Backoff(None, RETRY_SECONDS, RETRY_SECONDS_MAX)
        self._idle: list[asyncio.Future[None]] = []
        self._held_slots: dict[int, float] = {}
        """slot -> when compaction tries again to move its blocks, one of which could not be read."""
        self.pressed: Callable[[], bool] = lambda: False
        """Whether the log or the overlay fills up."""
        self._exposed_stripes = True
        self._short_since_s: float | None = None
        """Since when no more than k columns take shards."""
        self._patience: asyncio.TimerHandle | None = None

    # -- control ----------------------------------------------------------------------------------------------------

    @property
    def short(self) -> bool:
        """Whether no stripe can be written for want of columns."""
        return self._writer.available() < self._needed()

    @property
    def held_slots(self) -> int:
        """Slots that compaction leaves alone for now, because a block of theirs cannot be read."""
        return len(self._held_slots)

    def set_exposed_stripes(self, allowed: bool) -> None:
        """Whether stripes of exactly k shards may be written."""
        self._exposed_stripes = allowed
        self.retry()

    def column_changed(self) -> None:
        """A sled came or went: what failed for it may work now."""
        self._held_slots.clear()
        self.retry()

    def lost(self) -> None:
        """Blocks were declared lost: the slots that they held may be free of them."""
        self._held_slots.clear()
        self.pump()

    def hold(self) -> None:
        """Begin no stripe until `resume` (F6)."""
        self._held = True

    def resume(self) -> None:
        """Go on."""
        self._held = False
        self.pump()

    def stop(self) -> None:
        """Begin nothing and append nothing any more."""
        self._stopped = True
        for timer in (self._retry, self._patience):
            if timer is not None:
                timer.cancel()
        if self._compacting is not None:
            self._compacting.cancel()
        self._wake()

    async def drain(self) -> bool:
        """Put everything into stripes, the last one padded; False if columns or slots do not allow it now."""
        self.force = True
        self.pump()
        while not self._stopped and (self._in_flight or self._unsettled):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter
        self.force = False
        return not len(self._state.overlay)

    def committed(self, opnum: int) -> None:
        """Everything up to `opnum` is applied: stripes named there are settled."""
        if self._unsettled:
            for slot in [slot for slot, (needed, _) in self._unsettled.items() if needed <= opnum]:
                self._state.stripes.written(slot, self._writer.live(self._unsettled.pop(slot)[1]))
            self._wake()
        self.pump()

    def column_hangs(self, column: Column, hangs: bool) -> None:
        """A column does not answer, or has answered again."""
        index = self._writer.index_of(column)
        if index is not None:
            logger.warning("event=%s column=%d", "column_hangs" if hangs else "column_answers", index)
            self.column_changed()

    def late_answer(self, slot: int, column: Column, error: BaseException | None) -> None:
        """A shard for `slot` that was given up has been written or refused, maybe before the others of its stripe are
        answered, or its STRIPE is committed: nothing more comes of that command (F3)."""
        index = self._writer.index_of(column)
        if index is None or (error is not None and not isinstance(error, ANSWERS)):
            return
        self._writer.late_answer(slot, column, error)
        if slot in self._unsettled:
            opnum, unanswered = self._unsettled[slot]
            self._unsettled[slot] = opnum, [other for other in unanswered if other is not column]
        self._state.stripes.answered(slot, column)
        if isinstance(error, FencedOff | Superseded):
            self._on_fenced(index, error)

    def pump(self) -> None:
        """Begin what can be begun; called whenever blocks, columns or slots may have come."""
        if self._stopped or self._held or self._retry is not None:
            return
        fresh = self._state.overlay.fresh
        full = self._state.geometry.stripe_blocks
        while fresh and (len(fresh) >= full or self.force) and self._in_flight < STRIPES_IN_FLIGHT_MAX:
            if self._writer.available() < self._needed() or not self._begin():
                break
            fresh = self._state.overlay.fresh
        self._consider_compaction()

    def _needed(self) -> int:
        """Shards that a stripe begun now needs: one more than a read does, so that the loss of one more sled loses
        nothing; exactly as many (D1: *exposed*) where no more columns take shards for longer than a restart, or under
        pressure, and the volume's policy allows it.

        A column that fails in the middle of a stripe costs that stripe its turn; the next one does without it."""
        geometry = self._state.geometry
        full = min(geometry.data_shards + 1, geometry.shards)
        if self._writer.reliable() >= full:
            self._short_since_s = None
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            return full
        loop = asyncio.get_running_loop()
        if self._short_since_s is None:
            self._short_since_s = loop.time()
        left_s = self._short_since_s + EXPOSED_AFTER_SECONDS - loop.time()
        if self._exposed_stripes and (left_s <= 0 or self.pressed()):
            return geometry.data_shards
        if self._exposed_stripes and self._patience is None:
            self._patience = loop.call_later(left_s, self._patience_over)
        return full

    def _patience_over(self) -> None:
        self._patience = None
        self.pump()

    def _wake(self) -> None:
        waiters, self._idle = self._idle, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- from the log -----------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        stripes = self._state.stripes
        if stripes.free_count <= min(COMPACTION_RESERVE_SLOTS, stripes.slot_count // 4):
            return False
        slot = stripes.allocate()
        if slot is None:
            return False
        self.no_space = False
        taken = self._state.overlay.take(self._state.geometry.stripe_blocks)
        blocks = self._checked(taken)
        if not blocks:
            stripes.written(slot)
            return True
        self._in_flight += 1
        self._writer.write(slot, blocks, self._needed(), lambda record, outcome: self._written(taken, record, outcome))
        return True

    def _checked(self, taken: list[tuple[int, Entry]]) -> list[StripeBlock]:
        """What of `taken` is as the client wrote it (D2): a bit that flipped in memory is an error here, not in six
        shards. Such a block comes from the log again, or stays out of the stripe."""
        blocks = []
        for lba, entry in taken:
            opnum, crc, data = entry
            if crc32c(data) != crc:
                again = self._reader.from_overlay(lba, entry)
                if again is not None:
                    data = again
                elif not self._spoiled(lba, opnum):
                    self._state.overlay.spoil(lba, entry)
                    continue
            blocks.append(StripeBlock(lba, opnum, crc, data))
        return blocks

    def _written(self, taken: list[tuple[int, Entry]], record: StripeRecord, outcome: Outcome) -> None:
        self._in_flight -= 1
        if not self._settle(record, outcome) and not self._stopped:
            self._state.overlay.put_back(taken)
        self._wake()
        self.pump()

    def _settle(self, record: StripeRecord, outcome: Outcome) -> bool:
        """Append STRIPE if enough shards are durable; else give the stripe up and come back later."""
        unanswered = outcome.unanswered()
        if self._stopped:
            return False
        fenced = outcome.fenced()
        if outcome.enough and fenced is None:
            opnum = self._append_stripe(record)
            self._unsettled[record.slot] = (opnum, unanswered)
            self.stripe_count += 1
            self._backoff.reset()
            return True
        self.given_up_count += 1
        self._state.stripes.written(record.slot, self._writer.live(unanswered))
        for shard, (_, error) in outcome.failed.items():
            logger.warning(
                "event=shard_write_failed slot=%d shard=%d column=%d error=%r",
                record.slot, shard, record.shards[shard][0], error,
            )  # fmt: skip
        if fenced is not None:
            shard, error = fenced
            self._on_fenced(record.shards[shard][0], error)
        if not self._stopped and self._retry is None:
            # Columns that fail at once would otherwise be asked again at once.
            self._retry = asyncio.get_running_loop().call_later(self._backoff.next_s(), self.retry)
        return False

    def retry(self) -> None:
        """A column changed, or time passed: a stripe that failed may work now."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.pump()

    # -- compaction -------------------------------------------------------------------------------------------------

    def _consider_compaction(self) -> None:
        stripes = self._state.stripes
        if not stripes.slot_count:
            return
        low = max(COMPACTION_RESERVE_SLOTS * 2, stripes.slot_count // 16)
        if self._compacting is None and stripes.slot_count - stripes.used_count - STRIPES_IN_FLIGHT_MAX < low:
            self._compacting = asyncio.get_running_loop().create_task(self._compact())
            self._compacting.add_done_callback(self._compacted)

    def _compacted(self, task: "asyncio.Task[None]") -> None:
        self._compacting = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("event=compaction_failed error=%r", error)
            if not self._stopped and self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(self._backoff.next_s(), self.retry)
        elif not task.cancelled() and not self._stopped and not self.no_space:
            asyncio.get_running_loop().call_soon(self.pump)

    async def _compact(self) -> None:
        """Copy the live blocks of the emptiest stripes into one new stripe and MOVE them there."""
        stripes, full = self._state.stripes, self._state.geometry.stripe_blocks
        if self._unsettled or self._writer.available() < self._needed():
            await self._settled_or_later()
            return
        victims = stripes.emptiest(64, full, self._slots_left_alone())
        if not victims:
            # What is held may be had again, with its sleds or without its lost blocks: that is no lack of space.
            self.no_space = stripes.free_count <= COMPACTION_RESERVE_SLOTS and not self._held_slots
            await self._settled_or_later()
            return
        self.no_space = False
        slot = stripes.allocate()
        if slot is None:
            self.no_space = not self._in_flight
            await self._settled_or_later()
            return
        try:
            blocks = await self._gather(victims, full)
        except BaseException:
            stripes.written(slot)
            raise
        if not blocks:
            # Those victims are held now, so the next turn looks at others.
            stripes.written(slot)
            return
        finished: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def written(record: StripeRecord, outcome: Outcome) -> None:
            settled = self._settle(record, outcome)
            self.moved_count += len(blocks) if settled else 0
            if not finished.done():
                finished.set_result(settled)

        self._in_flight += 1
        try:
            self._writer.write(slot, blocks, self._needed(), written)
            await finished
        finally:
            self._in_flight -= 1
            self._wake()
        await self._settled_or_later()

    async def _settled_or_later(self) -> None:
        """Wait for the STRIPE records under way; without one, a little, so that compaction never spins."""
        if not self._unsettled:
            await asyncio.sleep(RETRY_SECONDS)
        while self._unsettled and not self._stopped:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def _slots_left_alone(self) -> list[int]:
        """Slots to be left alone now; those whose time is over are no longer."""
        now_s = asyncio.get_running_loop().time()
        for slot in [slot for slot, until_s in self._held_slots.items() if until_s <= now_s]:
            del self._held_slots[slot]
        return list(self._held_slots)

    async def _gather(self, victims: list[int], count: int) -> list[StripeBlock]:
        """Up to `count` live blocks of `victims`, emptiest first, each verified against the map's CRC (D2).

        A slot with a block that cannot be read is held by it: moving its others wins nothing, so they come last, and
        only while slots are to be had."""
        stripes = self._state.stripes
        rank = {slot: position for position, slot in enumerate(victims)}
        live = self._state.map.live_in(victims)
        live.sort(key=lambda item: (rank[item[1].slot], item[1].at))
        # Their last live block may die while they are read, and the slots must not be written again before.
        found = {slot: stripe for slot in victims if (stripe := stripes.get(slot)) is not None}
        for slot in victims:
            stripes.hold(slot)
        out: list[StripeBlock] = []
        try:
            for at in range(0, len(live), 64):
                if len(out) >= count:
                    break
                piece = live[at : at + 64]
                copies = (self._reader.copy(lba, place, found[place.slot]) for lba, place in piece)
                results = await asyncio.gather(*copies, return_exceptions=True)
                for (lba, place), block in zip(piece, results, strict=True):
                    if not isinstance(block, BaseException):
                        out.append(StripeBlock(lba, place.opnum, place.crc, block, place.slot))
                    elif isinstance(block, BlockUnreadable):
                        self.unreadable_count += 1
                        self._hold_slot(place.slot)
                    else:
                        raise block
                if stripes.free_count <= 2 * COMPACTION_RESERVE_SLOTS:
                    out = [block for block in out if block.source not in self._held_slots]
        finally:
            for slot in victims:
                stripes.release(slot)
        out.sort(key=lambda block: block.source in self._held_slots)
        return out[:count]

    def _hold_slot(self, slot: int) -> None:
        if slot not in self._held_slots:
            logger.warning("event=compaction_slot_held slot=%d", slot)
        self._held_slots[slot] = asyncio.get_running_loop().time() + HELD_SECONDS
