"""What the committed log says: overlay, block map, stripe table, reservations. On every member the same.

One method per kind of record is the way in. None may depend on anything but the records, or members would disagree.
"""

import logging

import numpy as np

from head_node.volume.blockmap import PAGE_BLOCKS, PAGE_SHIFT, BlockMap
from head_node.volume.errors import LogCorrupt
from head_node.volume.geometry import Geometry
from head_node.volume.overlay import Overlay
from head_node.volume.records import FROM_LOG, PADDING_LBA, LostBlocks, StripeRecord
from head_node.volume.reservations import Reservations
from head_node.volume.stripes import StripeTable
from spdk_bindings.device import Buffer

logger = logging.getLogger(__name__)


class VolumeState:
    """State of a volume as of the last committed record applied."""

    def __init__(self, size_blocks: int, geometry: Geometry) -> None:
        self.geometry = geometry
        self.overlay = Overlay()
        self.map = BlockMap(size_blocks)
        self.stripes = StripeTable(geometry.data_shards, geometry.shards)
        self.reservations = Reservations()
        self.new_pages: set[int] = set()
        """Pages that the map will have, at most, once what is in the overlay is in stripes."""
        self.covered = 0
        """Records up to this opnum are in the map and stripe table already (checkpoint); replaying them only rebuilds
        the overlay."""

    def write(self, opnum: int, lba: int, crcs: tuple[int, ...], data: Buffer) -> None:
        """Apply a WRITE."""
        pages = self.map.pages
        page, last = lba >> PAGE_SHIFT, lba + len(crcs) - 1 >> PAGE_SHIFT
        while page <= last:
            if page not in pages:
                self.new_pages.add(page)
            page += 1
        if opnum > self.covered:
            self.overlay.put(opnum, lba, crcs, data)
            return
        view = memoryview(data)
        for index, crc in enumerate(crcs):
            if self.map.opnum_of(lba + index) < opnum:
                self.overlay.put(opnum, lba + index, (crc,), view[index << 12 : index + 1 << 12])

    def pages_to_come(self) -> int:
        """At most how many pages the map has when all that is applied is in stripes."""
        return min(len(self.map.pages) + len(self.new_pages), -(-self.map.size_blocks // PAGE_BLOCKS))

    def count_pages(self) -> None:
        """Forget those that the map has by now."""
        self.new_pages = {page for page in self.new_pages if page not in self.map.pages}

    def zero(self, opnum: int, lba: int, count: int) -> None:
        """Apply a ZERO."""
        self.overlay.discard(lba, count)
        self.stripes.lose(self.map.bury(lba, count, opnum))

    def stripe(self, opnum: int, record: StripeRecord) -> None:
        """Apply a STRIPE: blocks from the log win if the overlay still has that version (so nothing newer, and no
        ZERO, was committed since), moved blocks if the map still names their source."""
        if opnum <= self.covered:
            return
        self._check_places(opnum, record)
        blocks = record.blocks
        settle = self.overlay.settle
        wins = np.zeros(len(blocks), bool)
        pairs = zip(blocks["lba"].tolist(), blocks["opnum"].tolist(), blocks["source"].tolist(), strict=True)
        for index, (lba, block_opnum, source) in enumerate(pairs):
            wins[index] = lba != PADDING_LBA and (source != FROM_LOG or settle(lba, block_opnum))
        moved = wins & (blocks["source"] != FROM_LOG)
        fresh = wins & ~moved
        indexes = np.arange(len(blocks), dtype=np.uint16)
        lost, live = [], 0
        for chosen, move in ((fresh, False), (moved, True)):
            part, at = blocks[chosen], indexes[chosen]
            columns = part["lba"].astype(np.int64), part["opnum"], part["crc"], record.slot, at
            slots, placed = self.map.move(*columns, part["source"]) if move else self.map.place(*columns)
            lost.append(slots)
            live += placed
        self.stripes.add(record, live)
        self.stripes.lose(np.concatenate(lost))

    def lost(self, opnum: int, blocks: LostBlocks) -> None:
        """Apply a LOST: a block counts if the map still names that version in that stripe. Whatever was written,
        trimmed or moved meanwhile wins."""
        if opnum <= self.covered:
            return
        slots = blocks["slot"]
        same = self.stripes.are(slots, blocks["epoch"], blocks["sequence"])
        chosen = blocks[same]
        lbas = chosen["lba"].astype(np.int64)
        self.stripes.lose(self.map.lose(lbas, chosen["opnum"], chosen["slot"]))

    def reserve(self, opnum: int, reservations: Reservations) -> None:
        """Apply a RESERVATION."""
        if opnum > self.covered:
            self.reservations = reservations

    def _check_places(self, opnum: int, record: StripeRecord) -> None:
        geometry = self.geometry
        expected = [geometry.column_of(record.slot, shard) for shard in range(geometry.shards)]
        offset = record.slot * geometry.shard_blocks
        if [(column, at) for column, _, at in record.shards] != [(column, offset) for column in expected]:
            raise LogCorrupt(
                "log", opnum, f"STRIPE in slot {record.slot} names places that this geometry does not have"
            )
        present = record.present_mask.bit_count()
        if present < geometry.data_shards:
            raise LogCorrupt("log", opnum, f"STRIPE in slot {record.slot} has {present} shards: not enough to read it")
        if self.stripes.get(record.slot) is not None:
            raise LogCorrupt("log", opnum, f"STRIPE in slot {record.slot}, which is in use")
