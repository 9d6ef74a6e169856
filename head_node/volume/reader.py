"""Reads: overlay, else the one shard that the map names, else reconstruction from any k shards.

Whatever leaves here has the CRC that the map has for it (D2), and a shard only counts if its header names the
(epoch, sequence, index) that the stripe table has.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, groupby, islice
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from crc32c import crc32c

from head_node.volume.blockmap import LOST, Place
from head_node.volume.callbacks import tell
from head_node.volume.columns import Column
from head_node.volume.erasure import erasure_code
from head_node.volume.errors import BlockAway, BlockFenced, BlockLost, BlockUnreadable
from head_node.volume.hedging import HEDGE_SECONDS_MIN, Hedging
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.overlay import Entry
from head_node.volume.shard import ShardHeader, decode_shard_header
from head_node.volume.state import VolumeState
from head_node.volume.stripes import Stripe
from head_node.volume.unreadable import UnreadableBlocks
from sled_controller.errors import CommandFailed, FencedOff, Superseded
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import Status

HEADERS_CACHED_MAX: Final = 4096
"""Shard headers kept, about half a KiB each."""

LOOK_AGAIN_SECONDS_MAX: Final = 0.25
"""A read that is slow, and was not worth a second one, is judged again at least so often."""

RUNS_IN_FLIGHT_MAX: Final = 512
"""Runs asked of the columns at a time; a megabyte of scattered blocks is 256 runs. More would hold up the loop, and
with it the heartbeats, for as long as it takes to send and take them, and overflow the queues to the sleds."""

COMBINATIONS_MAX: Final = 64
"""Sets of k sources that are tried for a row when there are more than k, and the first does not give it."""

MEDIUM_ERRORS: Final = frozenset({Status.UNRECOVERED_READ_ERROR, Status.END_TO_END_GUARD_ERROR})
"""The drive has answered that it does not have the data. Any other failure of a command (the drive or the sled is
away, is not ready, was interrupted, did not answer in time) says nothing about the data: it may come back."""

logger = logging.getLogger(__name__)

BlocksDone = Callable[[Exception | None, Sequence[Buffer]], None]
RunDone = Callable[[Exception | None, Buffer], None]
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)


class Run(NamedTuple):
    """Consecutive rows of one shard that a read wants, and where they go in the answer."""

    slot: int
    stripe: Stripe
    """As it was when the read began: its last live block may die meanwhile, the slot is held."""
    shard: int
    row: int
    places: list[Place]
    lba: int
    position: int


class _ShardAway(Exception):
    """A column did not give what it was asked for now."""


class Piece(NamedTuple):
    """What one shard gave for a run."""

    shard: int
    data: memoryview
    """Empty if it gave nothing."""
    good: list[bool]
    """By row: whether the block is what its header, or the map, says."""
    column: int | None = None
    """The column, if it may give more another time."""


_Asked: TypeAlias = tuple[float, Run, RunDone, Column, asyncio.Future[Buffer] | None]
"""A run whose shard was asked of its column: since when, who waits for it, the column, and its header, if asked for."""

_Slow: TypeAlias = tuple[asyncio.Future[Buffer], asyncio.Future[Buffer] | None]
"""What was asked of a column that is slow: the data, and the header."""


class Reader:
    """Reads committed blocks of one volume through its columns."""

    def __init__(
        self,
        volume: UUID,
        state: VolumeState,
        columns: list[Column | None],
        on_fenced: Callable[[int, BaseException], None],
        reread: Callable[[int, int], bytes | None],
    ) -> None:
        """`on_fenced(column index, error)` hears of every read refused because of a newer epoch or attach (F6);
        `reread(opnum, lba)` asks the log for a block."""
        self._volume = volume
        self._state = state
        self.columns = columns
        self._on_fenced = on_fenced
        self._reread = reread
        self._fenced: dict[int, Column] = {}
        self._headers: dict[tuple[int, int], ShardHeader] = {}
        self._tasks: dict[asyncio.Task[None], tuple[Run, RunDone]] = {}
        self._in_flight = 0
        self._waiting: deque[tuple[Run, RunDone]] = deque()
        self._asked: dict[asyncio.Future[Buffer], _Asked] = {}
        """Runs read the usual way, oldest first."""
        self._hedging = Hedging()
        self._look_timer: asyncio.TimerHandle | None = None
        self.unreadable = UnreadableBlocks()
        self.reconstructed_count = 0
        self.hedged_count = 0
        """Runs that were reconstructed because their shard was slow."""
        self.mismatch_count = 0
        self.corrected_count = 0
        """Blocks of the overlay that had changed in memory and were read from the log again."""

    def read(self, lba: int, count: int, done: BlocksDone) -> None:
        """Read `count` blocks; calls `done` with an error or the blocks in order, maybe inside the call."""
        if count == 1:
            self._read_one(lba, done)
            return
        overlay = self._state.overlay
        answer: list[Buffer] = [_ZERO_BLOCK] * count
        runs: list[Run] = []
        for at, place in enumerate(self._state.map.find_range(lba, count)):
            entry = overlay.get(lba + at)
            if entry is not None:
                block = self.from_overlay(lba + at, entry)
                if block is None:
                    done(self._spoiled(lba + at), ())
                    return
                answer[at] = block
            elif place is not None:
                if place.slot == LOST:
                    done(BlockLost(lba + at, "it was declared lost"), ())
                    return
                self._add(runs, place, lba + at, at)
        if not runs:
            done(None, answer)
            return
        _Pending(self, runs, answer, done)

    def _read_one(self, lba: int, done: BlocksDone) -> None:
        entry = self._state.overlay.get(lba)
        if entry is not None:
            block = self.from_overlay(lba, entry)
            done(*((None, (block,)) if block is not None else (self._spoiled(lba), ())))
            return
        place = self._state.map.find(lba)
        if place is None:
            done(None, [_ZERO_BLOCK])
        elif place.slot == LOST:
            done(BlockLost(lba, "it was declared lost"), ())
        else:
            runs: list[Run] = []
            self._add(runs, place, lba, 0)
            _Pending(self, runs, [_ZERO_BLOCK], done)

    def from_overlay(self, lba: int, entry: Entry) -> bytes | None:
        """The block if it has the CRC that the client's bytes had (D2), else what the log has; None for neither."""
        opnum, crc, block = entry
        if crc32c(block) == crc:
            return block
        again = self._reread(opnum, lba)
        if again is None or crc32c(again) != crc:
            return None
        logger.error("event=overlay_block_corrected volume=%s lba=%d opnum=%d", self._volume, lba, opnum)
        self.corrected_count += 1
        self._state.overlay.correct(lba, opnum, again)
        return again

    def _spoiled(self, lba: int) -> BlockUnreadable:
        return BlockUnreadable(lba, "its newest version is rotten in memory and in the log")

    def _add(self, runs: list[Run], place: Place, lba: int, position: int) -> None:
        shard, row = divmod(place.at, self._state.geometry.rows)
        if runs:
            last = runs[-1]
            length = len(last.places)
            if (last.slot, last.shard, last.row + length, last.position + length) == (place.slot, shard, row, position):
                last.places.append(place)
                return
        stripe = self._state.stripes.get(place.slot)
        assert stripe is not None, f"block {lba} is mapped to slot {place.slot}, which is empty"
        runs.append(Run(place.slot, stripe, shard, row, [place], lba, position))

    async def copy(self, lba: int, place: Place, stripe: Stripe) -> Buffer:
        """The block at `place` in `stripe`, for a copier that holds the slot; raises BlockUnreadable. The map may
        point elsewhere by the time that this returns: MOVE finds out."""
        shard, row = divmod(place.at, self._state.geometry.rows)
        done: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()

        def finished(error: Exception | None, blocks: Sequence[Buffer]) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(blocks[0])
            else:
                done.set_exception(error)

        _Pending(self, [Run(place.slot, stripe, shard, row, [place], lba, 0)], [b""], finished)
        return await done

    # -- one run, the usual way -------------------------------------------------------------------------------------

    def start(self, run: Run, done: RunDone) -> None:
        """Read one run, now or when others are done; the slot is held by the caller."""
        if self._in_flight >= RUNS_IN_FLIGHT_MAX:
            self._waiting.append((run, done))
        else:
            self._begin(run, done)

    def _begin(self, run: Run, then: RunDone) -> None:
        self._in_flight += 1
        done = partial(self._over, then)
        geometry = self._state.geometry
        column = self.columns[geometry.column_of(run.slot, run.shard)]
        if column is None or not column.available or not run.stripe.present >> run.shard & 1:
            self._spawn(run, done)
            return
        data = column.read(run.slot * geometry.shard_blocks + 1 + run.row, len(run.places))
        head = None if self._known(run, run.shard) is not None else self._fetch(run, run.shard, 0, 1)
        self._hedging.asked()
        loop = asyncio.get_running_loop()
        self._asked[data] = (loop.time(), run, done, column, head)
        if self._look_timer is None:
            self._look_timer = loop.call_later(HEDGE_SECONDS_MIN, self._look)
        if head is None:
            data.add_done_callback(self._arrived)
        else:
            both = partial(self._arrived_in_part, run, head, data)
            head.add_done_callback(both)
            data.add_done_callback(both)

    def _over(self, then: RunDone, error: Exception | None, data: Buffer) -> None:
        self._in_flight -= 1
        then(error, data)
        while self._waiting and self._in_flight < RUNS_IN_FLIGHT_MAX:
            self._begin(*self._waiting.popleft())

    def _arrived_in_part(
        self, run: Run, head: asyncio.Future[Buffer], data: asyncio.Future[Buffer], one: asyncio.Future[Buffer]
    ) -> None:
        if not (head.done() and data.done()) or data not in self._asked:
            return
        if not head.cancelled() and head.exception() is None:
            self._keep_header(run, run.shard, head.result())
        self._arrived(data)

    def _arrived(self, future: asyncio.Future[Buffer]) -> None:
        asked = self._asked.pop(future, None)
        if asked is None:
            return
        since_s, run, done, column, head = asked
        self._hedging.took(asyncio.get_running_loop().time() - since_s)
        counts = head is None or self._known(run, run.shard) is not None
        if counts and not future.cancelled() and future.exception() is None and self._verified(run, future.result()):
            if self.unreadable:
                self.unreadable.discard(run.lba, len(run.places))
            done(None, future.result())
        else:
            self._noted(self._state.geometry.column_of(run.slot, run.shard), column, future)
            self._spawn(run, done)

    def _look(self) -> None:
        """Give the runs a second try whose shard is slow, oldest first."""
        loop = asyncio.get_running_loop()
        self._look_timer = None
        now_s = loop.time()
        slow: list[asyncio.Future[Buffer]] = []
        for data, (since_s, run, _, _, head) in self._asked.items():
            if now_s - since_s < self._hedging.wait_s:
                break
            answered = data.done() and (head is None or head.done())
            if not answered and self._may_hedge(run):
                slow.append(data)
        for data in slow:
            since_s, run, done, column, head = self._asked.pop(data)
            data.add_done_callback(partial(self._noted, self._state.geometry.column_of(run.slot, run.shard), column))
            self._hedging.took(now_s - since_s)
            self._spawn(run, done, (data, head))
        if self._asked:
            self._look_timer = loop.call_later(max(HEDGE_SECONDS_MIN, self._hedging.wait_s / 4), self._look)

    def _may_hedge(self, run: Run) -> bool:
        """Within the budget, or because the column hangs: then waiting is no answer."""
        geometry = self._state.geometry
        return not self._attached(geometry.column_of(run.slot, run.shard)) or self._hedging.spend(geometry.shards - 1)

    async def _finish(self, run: Run, done: RunDone, slow: _Slow | None) -> None:
        try:
            buffer = await self._first_good(run, slow)
        except BlockUnreadable as error:
            done(error, b"")
            return
        if self.unreadable:
            self.unreadable.discard(run.lba, len(run.places))
        done(None, buffer)

    async def _first_good(self, run: Run, asked: _Slow | None) -> Buffer:
        """What the shard says, or what the others yield, who are asked when it is slow, too. `asked` is what was, if it
        is slow already. Raises BlockUnreadable."""
        direct = asyncio.ensure_future(self._piece(run, run.shard, asked))
        slow = asked is not None
        others: asyncio.Future[Buffer] | None = None
        try:
            wait_s = self._hedging.wait_s
            while not (slow or direct.done()):
                await asyncio.wait([direct], timeout=wait_s)
                slow = not direct.done() and self._may_hedge(run)
                wait_s = min(wait_s * 2, LOOK_AGAIN_SECONDS_MAX)
            if slow:
                self.hedged_count += 1
                late = self._nothing(run, run.shard)._replace(
                    column=self._state.geometry.column_of(run.slot, run.shard)
                )
                others = asyncio.ensure_future(self._reconstruct(run, late))
                tries: set[asyncio.Future[Any]] = {direct, others}
                while tries and not (direct.done() and all(direct.result().good)):
                    _, tries = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
                    if others.done() and others.exception() is None:
                        return others.result()
            own = await direct
            return own.data if all(own.good) else await self._reconstruct(run, own)
        finally:
            asked_for: list[asyncio.Future[Any]] = [direct] if others is None else [direct, others]
            for one in asked_for:
                if not one.done():
                    one.cancel()
                    await asyncio.wait([one])
                _ = one.cancelled() or one.exception()  # what became of one that is not needed is asked no more

    def _verified(self, run: Run, buffer: Buffer) -> bool:
        return len(buffer) == len(run.places) * BLOCK_BYTES and all(self._verify(run, run.shard, memoryview(buffer)))

    def _verify(self, run: Run, shard: int, view: memoryview, crcs: Sequence[int] = ()) -> list[bool]:
        """By row: whether the block has the CRC that the map has for it, or the one that is given."""
        good = [
            crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) == (crcs[index] if crcs else place.crc)
            for index, place in enumerate(run.places)
        ]
        if not all(good):
            self.mismatch_count += 1
            logger.warning(
                "event=block_crc_mismatch volume=%s lba=%d slot=%d shard=%d",
                self._volume, run.lba + good.index(False), run.slot, shard,
            )  # fmt: skip
        return good

    # -- reconstruction ---------------------------------------------------------------------------------------------

    async def _reconstruct(self, run: Run, own: Piece) -> Buffer:
        """The run, each row from the shard itself or from k others whose blocks verify against their headers.

        Raises BlockUnreadable for what no k shards can give, BlockFenced or BlockAway for what may come back."""
        k = self._state.geometry.data_shards
        others = [shard for shard in range(self._state.geometry.shards) if shard != run.shard]
        self._check_reachable(run, own, others)
        asking = [asyncio.ensure_future(self._piece(run, shard)) for shard in others]
        left = set(asking)
        pieces: list[Piece] = []
        try:
            # One that hangs holds nothing up while k others suffice.
            while left:
                over, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                pieces = sorted([*pieces, *(one.result() for one in over)], key=lambda piece: piece.shard)
                if left and sum(all(piece.good) for piece in pieces) < k:
                    continue
                out, short = self._rebuilt(run, own, pieces)
                if not short:
                    return out
        finally:
            for one in left:
                one.cancel()
            if left:
                await asyncio.wait(left)
        raise self._short_of(run, own, pieces, short)

    def _rebuilt(self, run: Run, own: Piece, pieces: list[Piece]) -> tuple[Buffer, list[int]]:
        """The run as far as its own shard and these others give it, and the rows that they do not."""
        k = self._state.geometry.data_shards
        out = bytearray(len(run.places) * BLOCK_BYTES)
        short: list[int] = []
        rows = range(len(run.places))
        sources_of = [tuple(piece.shard for piece in pieces if piece.good[row]) for row in rows]
        for (from_own, sources), group in groupby(rows, lambda row: (own.good[row], sources_of[row])):
            span = list(group)
            start, stop = span[0] * BLOCK_BYTES, (span[-1] + 1) * BLOCK_BYTES
            if from_own:
                out[start:stop] = own.data[start:stop]
                continue
            shards = {piece.shard: bytes(piece.data[start:stop]) for piece in pieces if piece.shard in sources}
            rebuilt = self._rebuild(run, shards, span) if len(sources) >= k else None
            if rebuilt is None:
                short += span
            else:
                out[start:stop] = rebuilt
                self.reconstructed_count += len(span)
        return out, short

    def _check_reachable(self, run: Run, own: Piece, others: list[int]) -> None:
        """Raise BlockAway before anything is asked of the columns, where too few of them are attached."""
        k = self._state.geometry.data_shards
        written = [self._state.geometry.column_of(run.slot, at) for at in others if run.stripe.present >> at & 1]
        away = {index for index in written if not self._attached(index)}
        if len(written) - len(away) < k and (len(written) >= k or own.column is not None):
            raise self._away(run, run.lba, away if own.column is None else away | {own.column})

    def _attached(self, index: int) -> bool:
        column = self.columns[index]
        return column is not None and column.available

    def _away(self, run: Run, lba: int, columns: set[int]) -> BlockUnreadable:
        reason = f"{len(columns)} shards of slot {run.slot} cannot be had now"
        if any(self.columns[index] is column for index, column in self._fenced.items()):
            return BlockFenced(lba, reason)
        return BlockAway(lba, reason, frozenset(columns), moment=all(map(self._attached, columns)))

    def _rebuild(self, run: Run, sources: dict[int, bytes], span: list[int]) -> memoryview | None:
        """Rows `span` of the run from `sources`, or from any k of them, verified against the map."""
        geometry = self._state.geometry
        code = erasure_code(geometry.data_shards, geometry.parity_shards)
        part = run._replace(places=run.places[span[0] : span[-1] + 1], lba=run.lba + span[0], row=run.row + span[0])
        for chosen in islice(combinations(sorted(sources), geometry.data_shards), COMBINATIONS_MAX):
            rebuilt = code.rebuild({shard: sources[shard] for shard in chosen}, run.shard)
            if self._verified(part, rebuilt):
                return rebuilt
        return None

    def _short_of(self, run: Run, own: Piece, pieces: list[Piece], short: list[int]) -> BlockUnreadable:
        """Rows `short` could not be had; an error for good counts for more than one that may pass."""
        k = self._state.geometry.data_shards
        away = {piece.column for piece in pieces if piece.column is not None}
        for row in short:
            good = sum(piece.good[row] for piece in pieces)
            may_come = own.column is not None or (bool(away) and good + len(away) >= k)
            if not may_come:
                reason = f"{good} other shards of slot {run.slot} hold it, {k} are needed"
                lba, place = run.lba + row, run.places[row]
                if self.unreadable.add(lba, place.opnum, place.slot):
                    logger.error("event=block_unreadable volume=%s lba=%d reason=%s", self._volume, lba, reason)
                return BlockUnreadable(lba, reason)
        return self._away(run, run.lba + short[0], away if own.column is None else away | {own.column})

    @staticmethod
    def _nothing(run: Run, shard: int) -> Piece:
        return Piece(shard, memoryview(b""), [False] * len(run.places))

    async def _piece(self, run: Run, shard: int, slow: _Slow | None = None) -> Piece:
        """What a shard gives for the run: its own blocks as the map wants them, others as their header says."""
        data, head = slow or (None, None)
        nothing = self._nothing(run, shard)
        if not run.stripe.present >> shard & 1:
            return nothing
        try:
            asked = data or self._fetch(run, shard, 1 + run.row, len(run.places))
            header = await self._header(run, shard, head)
            buffer = await self._settled(asked)
        except _ShardAway:
            return nothing._replace(column=self._state.geometry.column_of(run.slot, shard))
        if header is None or buffer is None or len(buffer) != len(run.places) * BLOCK_BYTES:
            return nothing
        view = memoryview(buffer).cast("B")
        crcs = () if shard == run.shard else header.crcs[run.row : run.row + len(run.places)]
        return Piece(shard, view, self._verify(run, shard, view, crcs))

    # -- shards and their headers -----------------------------------------------------------------------------------

    def _fetch(self, run: Run, shard: int, row: int, count: int) -> asyncio.Future[Buffer] | None:
        """Ask the column, None if the shard was never written or the column is away."""
        geometry = self._state.geometry
        index = geometry.column_of(run.slot, shard)
        column = self.columns[index]
        if not run.stripe.present >> shard & 1 or column is None or not column.available:
            return None
        data = column.read(run.slot * geometry.shard_blocks + row, count)
        # Whoever waits for it may have been cancelled by the time that it fails.
        data.add_done_callback(partial(self._noted, index, column))
        return data

    def _noted(self, index: int, column: Column, future: asyncio.Future[Buffer]) -> None:
        error = None if future.cancelled() else future.exception()
        # What a former attach is told says nothing about the one in its place.
        if isinstance(error, FencedOff | Superseded) and self.columns[index] is column:
            self._fenced[index] = column
            self._on_fenced(index, error)

    def _known(self, run: Run, shard: int) -> ShardHeader | None:
        header = self._headers.get((run.slot, shard))
        return header if header is not None and self._names(header, run.stripe, shard) else None

    def _names(self, header: ShardHeader, stripe: Stripe, shard: int) -> bool:
        named = (header.volume, header.epoch, header.sequence, header.index, len(header.crcs))
        return named == (self._volume, stripe.epoch, stripe.sequence, shard, self._state.geometry.rows)

    async def _header(self, run: Run, shard: int, asked: asyncio.Future[Buffer] | None) -> ShardHeader | None:
        """The verified header of a shard, None if the shard does not count; raises _ShardAway."""
        known = self._known(run, shard)
        if known is not None:
            return known
        block = await self._settled(asked or self._fetch(run, shard, 0, 1))
        return None if block is None else self._keep_header(run, shard, block)

    def _keep_header(self, run: Run, shard: int, block: Buffer) -> ShardHeader | None:
        header = decode_shard_header(block)
        if header is None or not self._names(header, run.stripe, shard):
            self.mismatch_count += 1
            logger.warning("event=stale_shard volume=%s slot=%d shard=%d", self._volume, run.slot, shard)
            return None
        if len(self._headers) >= HEADERS_CACHED_MAX:
            del self._headers[next(iter(self._headers))]
        self._headers[run.slot, shard] = header
        return header

    async def _settled(self, future: asyncio.Future[Buffer] | None) -> Buffer | None:
        """The result, None where the medium does not have it; raises _ShardAway where it may be had another time."""
        if future is None:
            raise _ShardAway
        await asyncio.wait([future])
        if future.cancelled():
            raise _ShardAway
        error = future.exception()
        if isinstance(error, CommandFailed) and error.status in MEDIUM_ERRORS:
            return None
        if error is not None:
            raise _ShardAway from error
        return future.result()

    def _spawn(self, run: Run, done: RunDone, slow: _Slow | None = None) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(run, done, slow))
        self._tasks[task] = (run, done)
        task.add_done_callback(self._tasks.pop)

    def _give_up(self, run: Run, done: RunDone) -> None:
        done(BlockUnreadable(run.lba, "reading has ended here"), b"")

    async def close(self) -> None:
        """End what is under way: those reads fail, for callers who have stopped listening. Reading may begin again."""
        waiting = [*self._waiting, *((run, done) for _, run, done, _, _ in self._asked.values())]
        self._waiting.clear()
        self._asked.clear()
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for run, done in [*waiting, *(tasks[task] for task in tasks if task.cancelled())]:
            self._give_up(run, done)

    def hold(self, run: Run) -> None:
        """Keep the run's slot from being written again."""
        self._state.stripes.hold(run.slot)

    def release(self, run: Run) -> None:
        """The other half of `hold`."""
        self._state.stripes.release(run.slot)


class _Pending:
    """A read that waits for its runs; holds their slots."""

    __slots__ = ("_answer", "_done", "_error", "_left", "_reader")

    def __init__(self, reader: Reader, runs: list[Run], answer: list[Buffer], done: BlocksDone) -> None:
        self._reader, self._answer, self._done = reader, answer, done
        self._left = len(runs)
        self._error: Exception | None = None
        for run in runs:
            reader.hold(run)
        for run in runs:
            reader.start(run, lambda error, data, run=run: self._finished(run, error, data))  # type: ignore[misc]

    def _finished(self, run: Run, error: Exception | None, data: Buffer) -> None:
        self._reader.release(run)
        self._left -= 1
        if error is not None:
            self._error = error
        elif len(run.places) == 1:
            self._answer[run.position] = data
        else:
            view = memoryview(data)
            # One buffer stands for the whole run; the other places get nothing.
            self._answer[run.position] = view
            for index in range(run.position + 1, run.position + len(run.places)):
                self._answer[index] = b""
        if not self._left:
            parts: list[Buffer] = [] if self._error else [part for part in self._answer if len(part)]
            tell(self._reader._volume, "done", self._done, self._error, parts)
