"""Reads: overlay, else the one shard that the map names, else reconstruction from any k shards.

Whatever leaves here has the CRC that the map has for it (D2), and a shard only counts if its header names the
(epoch, sequence, index) that the stripe table has.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from crc32c import crc32c

from head_node.volume.blockmap import Place
from head_node.volume.callbacks import tell
from head_node.volume.columns import Column
from head_node.volume.erasure import erasure_code
from head_node.volume.errors import BlockAway, BlockFenced, BlockUnreadable
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.shard import ShardHeader, decode_shard_header
from head_node.volume.state import VolumeState
from head_node.volume.stripes import Stripe
from sled_controller.errors import FencedOff, Superseded
from spdk_bindings.device import Buffer

HEADERS_CACHED_MAX: Final = 4096
"""Shard headers kept, about half a KiB each."""

RUNS_IN_FLIGHT_MAX: Final = 512
"""Runs asked of the columns at a time; a megabyte of scattered blocks is 256 runs. More would hold up the loop, and
with it the heartbeats, for as long as it takes to send and take them, and overflow the queues to the sleds."""

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


class Reader:
    """Reads committed blocks of one volume through its columns."""

    def __init__(
        self,
        volume: UUID,
        state: VolumeState,
        columns: list[Column | None],
        on_fenced: Callable[[int, BaseException], None],
    ) -> None:
        """`on_fenced(column index, error)` hears of every read refused because of a newer epoch or attach (F6)."""
        self._volume = volume
        self._state = state
        self.columns = columns
        self._on_fenced = on_fenced
        self._fenced: dict[int, Column] = {}
        self._headers: dict[tuple[int, int], ShardHeader] = {}
        self._tasks: dict[asyncio.Task[None], tuple[Run, RunDone]] = {}
        self._in_flight = 0
        self._waiting: deque[tuple[Run, RunDone]] = deque()
        self._closings = 0
        self.reconstructed_count = 0
        self.mismatch_count = 0

    def read(self, lba: int, count: int, done: BlocksDone) -> None:
        """Read `count` blocks; calls `done` with an error or the blocks in order, maybe inside the call."""
        overlay = self._state.overlay
        if count == 1:
            entry = overlay.get(lba)
            if entry is not None:
                done(None, (entry[2],))
                return
        answer: list[Buffer] = [_ZERO_BLOCK] * count
        runs: list[Run] = []
        for at, place in enumerate(self._state.map.find_range(lba, count)):
            entry = overlay.get(lba + at)
            if entry is not None:
                answer[at] = entry[2]
            elif place is not None:
                self._add(runs, place, lba + at, at)
        if not runs:
            done(None, answer)
            return
        _Pending(self, runs, answer, done)

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
        data = self._fetch(run, run.shard, 1 + run.row, len(run.places))
        header = self._known(run, run.shard)
        if data is None:
            self._spawn(run, None, done)
        elif header is not None:
            closings = self._closings
            data.add_done_callback(lambda future: self._arrived(run, future, done, closings))
        else:
            self._spawn(run, data, done)

    def _over(self, then: RunDone, error: Exception | None, data: Buffer) -> None:
        self._in_flight -= 1
        then(error, data)
        while self._waiting and self._in_flight < RUNS_IN_FLIGHT_MAX:
            self._begin(*self._waiting.popleft())

    def _arrived(self, run: Run, future: asyncio.Future[Buffer], done: RunDone, closings: int) -> None:
        if not future.cancelled() and future.exception() is None and self._verified(run, future.result()):
            done(None, future.result())
        elif closings != self._closings:
            self._give_up(run, done)
        else:
            self._spawn(run, None, done)

    async def _finish(
        self,
        run: Run,
        data: asyncio.Future[Buffer] | None,
        done: RunDone,
    ) -> None:
        try:
            buffer = await self._settled(data) if data is not None else None
            if buffer is None or await self._header(run, run.shard) is None or not self._verified(run, buffer):
                buffer = await self._reconstruct(run)
        except BlockUnreadable as error:
            if any(self.columns[index] is column for index, column in self._fenced.items()):
                done(BlockFenced(error.lba, error.reason), b"")
                return
            if self._away(run):
                done(BlockAway(error.lba, error.reason), b"")
                return
            logger.error("event=block_unreadable volume=%s lba=%d error=%s", self._volume, error.lba, error)
            done(error, b"")
            return
        done(None, buffer)

    def _away(self, run: Run) -> bool:
        """Whether a shard of the run's stripe is on a column that cannot be reached now."""
        geometry = self._state.geometry
        columns = (
            self.columns[geometry.column_of(run.slot, shard)]
            for shard in range(geometry.shards)
            if run.stripe.present >> shard & 1
        )
        return any(column is None or not column.available for column in columns)

    def _verified(self, run: Run, buffer: Buffer) -> bool:
        view = memoryview(buffer)
        if len(view) != len(run.places) * BLOCK_BYTES:
            return False
        for index, place in enumerate(run.places):
            if crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) != place.crc:
                self.mismatch_count += 1
                logger.warning(
                    "event=block_crc_mismatch volume=%s lba=%d slot=%d shard=%d",
                    self._volume, run.lba + index, run.slot, run.shard,
                )  # fmt: skip
                return False
        return True

    # -- reconstruction ---------------------------------------------------------------------------------------------

    async def _reconstruct(self, run: Run) -> Buffer:
        """The run from k other shards whose blocks verify against their headers."""
        geometry = self._state.geometry
        others = [shard for shard in range(geometry.shards) if shard != run.shard]
        pieces = await asyncio.gather(*(self._source(run, shard) for shard in others))
        sources = {shard: bytes(piece) for shard, piece in zip(others, pieces, strict=True) if piece is not None}
        if len(sources) < geometry.data_shards:
            reason = f"{len(sources)} other shards of slot {run.slot} are readable, {geometry.data_shards} are needed"
            raise BlockUnreadable(run.lba, reason)
        code = erasure_code(geometry.data_shards, geometry.parity_shards)
        rebuilt = code.rebuild(sources, run.shard)
        if not self._verified(run, rebuilt):
            raise BlockUnreadable(run.lba, f"what {sorted(sources)} of slot {run.slot} yield fails its CRC")
        self.reconstructed_count += len(run.places)
        return rebuilt

    async def _source(self, run: Run, shard: int) -> Buffer | None:
        data = self._fetch(run, shard, 1 + run.row, len(run.places))
        if data is None:
            return None
        header = await self._header(run, shard)
        buffer = await self._settled(data)
        if header is None or buffer is None or len(buffer) != len(run.places) * BLOCK_BYTES:
            return None
        view = memoryview(buffer)
        for index in range(len(run.places)):
            if crc32c(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) != header.crcs[run.row + index]:
                self.mismatch_count += 1
                return None
        return buffer

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

    async def _header(self, run: Run, shard: int) -> ShardHeader | None:
        """The verified header of a shard, None if the shard does not count."""
        known = self._known(run, shard)
        if known is not None:
            return known
        future = self._fetch(run, shard, 0, 1)
        block = await self._settled(future) if future is not None else None
        header = decode_shard_header(block) if block is not None else None
        if header is None or not self._names(header, run.stripe, shard):
            if block is not None:
                self.mismatch_count += 1
                logger.warning("event=stale_shard volume=%s slot=%d shard=%d", self._volume, run.slot, shard)
            return None
        if len(self._headers) >= HEADERS_CACHED_MAX:
            del self._headers[next(iter(self._headers))]
        self._headers[run.slot, shard] = header
        return header

    async def _settled(self, future: asyncio.Future[Buffer]) -> Buffer | None:
        """The result, None for any failure of a column (another shard will do)."""
        await asyncio.wait([future])
        if future.cancelled() or future.exception() is not None:
            return None
        return future.result()

    def _spawn(self, run: Run, data: asyncio.Future[Buffer] | None, done: RunDone) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(run, data, done))
        self._tasks[task] = (run, done)
        task.add_done_callback(self._tasks.pop)

    def _give_up(self, run: Run, done: RunDone) -> None:
        done(BlockUnreadable(run.lba, "reading has ended here"), b"")

    async def close(self) -> None:
        """End what is under way: those reads fail, for callers who have stopped listening. Reading may begin again."""
        self._closings += 1
        waiting = list(self._waiting)
        self._waiting.clear()
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
