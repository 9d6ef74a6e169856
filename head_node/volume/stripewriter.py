"""Writes one stripe: k data shards as they are, m parity shards, a header block before each, FUA to every column."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import numpy as np

from head_node.volume.columns import Column
from head_node.volume.erasure import erasure_code
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import FROM_LOG, PADDING_LBA, STRIPE_BLOCK, StripeBlocks, StripeRecord
from head_node.volume.shard import SHARD_BLOCK, encode_shard_header, parity_entries
from sled_controller.errors import CommandFailed, CredentialRefused, FencedOff, Superseded
from spdk_bindings.device import Buffer

_PADDING: Final = bytes(BLOCK_BYTES)
ANSWERS: Final = (CommandFailed, CredentialRefused, FencedOff, Superseded)
"""The sled has answered: the command was refused or has ended with an error, and writes nothing later."""

logger = logging.getLogger(__name__)


class StripeBlock(NamedTuple):
    """One live block on its way into a stripe; `source` is the slot that it moves out of, or FROM_LOG."""

    lba: int
    opnum: int
    crc: int
    data: Buffer
    source: int = FROM_LOG


@dataclass(slots=True)
class Outcome:
    """What became of the shards of one stripe, by shard index."""

    needed: int
    """Shards that this stripe needs."""
    present: set[int] = field(default_factory=set)
    failed: dict[int, tuple[Column, BaseException]] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether the stripe may be recorded."""
        return len(self.present) >= self.needed

    def unanswered(self) -> list[Column]:
        """Columns whose shard may still be written later: the sled did not say what became of it."""
        return [column for column, error in self.failed.values() if not isinstance(error, ANSWERS)]

    def fenced(self) -> tuple[int, BaseException] | None:
        """(shard, error) of a shard refused because of a newer epoch or attach."""
        for shard, (_, error) in self.failed.items():
            if isinstance(error, FencedOff | Superseded):
                return shard, error
        return None


class StripeWriter:
    """Stripe contents for one volume and epoch; a sequence is spent when its first shard is sent."""

    def __init__(self, volume: UUID, geometry: Geometry, epoch: int, columns: list[Column | None]) -> None:
        self._volume = volume
        self._geometry = geometry
        self._epoch = epoch
        self._columns = columns
        self._sequence = 0
        self._open: dict[int, Outcome] = {}
        """slot -> what is known of a stripe of which not every shard was answered."""
        self._failing: set[int] = set()
        """Columns whose last shard was not written, through whichever attach."""

    def available(self) -> int:
        """Columns that can be written to now."""
        return sum(column is not None and column.available for column in self._columns)

    def reliable(self) -> int:
        """Of those, the ones that took their last shard."""
        return sum(
            column is not None and column.available and index not in self._failing
            for index, column in enumerate(self._columns)
        )

    def index_of(self, column: Column) -> int | None:
        """Which one it is, None if it was replaced."""
        return next((index for index, present in enumerate(self._columns) if present is column), None)

    def live(self, columns: Iterable[Column]) -> list[Column]:
        """Those of `columns` that were not replaced since: the others are over, and nobody would say so again."""
        return [column for column in columns if any(column is present for present in self._columns)]

    def late_answer(self, slot: int, column: Column, error: BaseException | None) -> None:
        """A shard that was given up has been written or refused, while others of its stripe are unanswered."""
        outcome = self._open.get(slot)
        shards = outcome.failed if outcome is not None else {}
        shard = next((shard for shard, (given_up, _) in shards.items() if given_up is column), None)
        if outcome is None or shard is None:
            return
        if error is None:
            del outcome.failed[shard]
            outcome.present.add(shard)
        else:
            outcome.failed[shard] = (column, error)

    def write(
        self, slot: int, blocks: Sequence[StripeBlock], needed: int, done: Callable[[StripeRecord, Outcome], None]
    ) -> None:
        """Send every shard whose column is available; `done` is called when each was answered. `needed` is how many
        the stripe needs to be recorded."""
        self._sequence += 1
        entries = self._entries(blocks)
        shards = self._shards(blocks, entries)
        outcome = self._open[slot] = Outcome(needed)
        offset = slot * self._geometry.shard_blocks
        left = 1
        epoch, sequence = self._epoch, self._sequence

        def answered(shard: int, column: Column, future: "asyncio.Future[None]") -> None:
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            index = self._geometry.column_of(slot, shard)
            if error is None:
                outcome.present.add(shard)
                self._failing.discard(index)
            else:
                self._failing.add(index)
                outcome.failed[shard] = (column, error)
            one_less()

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                del self._open[slot]
                places = tuple(
                    (self._geometry.column_of(slot, shard), shard in outcome.present, offset)
                    for shard in range(self._geometry.shards)
                )
                done(StripeRecord(epoch, sequence, slot, places, entries), outcome)

        for shard, buffers in enumerate(shards):
            column = self._columns[self._geometry.column_of(slot, shard)]
            if column is None or not column.available:
                continue
            try:
                future = column.write(offset, buffers, fua=True)
            except Exception as error:
                logger.exception("event=shard_write_refused volume=%s slot=%d shard=%d", self._volume, slot, shard)
                outcome.failed[shard] = (column, error)
                continue
            left += 1
            future.add_done_callback(lambda future, shard=shard, column=column: answered(shard, column, future))  # type: ignore[misc]
        one_less()

    def _entries(self, blocks: Sequence[StripeBlock]) -> StripeBlocks:
        entries = np.zeros(self._geometry.stripe_blocks, STRIPE_BLOCK)
        entries["lba"], entries["source"] = PADDING_LBA, FROM_LOG
        entries[: len(blocks)] = [(block.lba, block.opnum, block.crc, block.source) for block in blocks]
        return entries

    def _shards(self, blocks: Sequence[StripeBlock], entries: StripeBlocks) -> list[list[Buffer]]:
        geometry = self._geometry
        parts = [block.data for block in blocks]
        parts += [_PADDING] * (geometry.stripe_blocks - len(parts))
        payload = b"".join(parts)
        size = geometry.rows * BLOCK_BYTES
        view = memoryview(payload)
        bodies = [view[shard * size : (shard + 1) * size] for shard in range(geometry.data_shards)]
        bodies += erasure_code(geometry.data_shards, geometry.parity_shards).parity(payload)
        padding_crc = parity_entries(_PADDING)["crc"][0]
        out: list[list[Buffer]] = []
        for shard, body in enumerate(bodies):
            if shard < geometry.data_shards:
                part = entries[shard * geometry.rows : (shard + 1) * geometry.rows]
                listed = np.zeros(geometry.rows, SHARD_BLOCK)
                listed["lba"], listed["opnum"] = part["lba"], part["opnum"]
                listed["crc"] = np.where(part["lba"] == PADDING_LBA, padding_crc, part["crc"])
            else:
                listed = parity_entries(body)
            header = encode_shard_header(self._volume, self._epoch, self._sequence, shard, listed)
            out.append([header, body])
        return out
