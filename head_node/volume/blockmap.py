"""Block map: lba -> (slot, index in the stripe, opnum, CRC-32C), in copy-on-write pages.

An entry only moves to a higher opnum, or by a MOVE while it still names the place that the block moves out of. A ZERO
leaves a tombstone: its opnum without a place. A LOST leaves a marker: its opnum at no place that can be read. Pages
exist only where something was written.
"""

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

Page: TypeAlias = np.ndarray[Any, np.dtype[np.void]]
Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PAGE_SHIFT: Final = 12
PAGE_BLOCKS: Final = 1 << PAGE_SHIFT
NOWHERE: Final = (1 << 32) - 1
"""Slot of a tombstone or of a block never written."""
LOST: Final = NOWHERE - 1
"""Slot of a block that was declared lost: it reads as an error until it is written or trimmed."""
ENTRY: Final = np.dtype([("opnum", "<u8"), ("slot", "<u4"), ("crc", "<u4"), ("index", "<u2"), ("reserved", "<u2")])

_EMPTY: Final = np.zeros(1, ENTRY)
_EMPTY["slot"] = NOWHERE


class Place(NamedTuple):
    """Where one block is."""

    opnum: int
    slot: int
    crc: int
    at: int
    """Index in the stripe."""


class BlockMap:
    """The map of one volume."""

    def __init__(self, size_blocks: int) -> None:
        self.size_blocks = size_blocks
        self.pages: dict[int, Page] = {}
        self._owned: set[int] = set()
        """Pages that no snapshot shares."""
        self.lost_count = 0
        """Blocks with the LOST marker."""

    def snapshot(self) -> dict[int, Page]:
        """The pages as they are now; they never change (the map copies a page before its next change)."""
        self._owned.clear()
        return dict(self.pages)

    def restore(self, pages: dict[int, Page]) -> None:
        """Take over pages that nobody else changes."""
        self.pages = pages
        self._owned.clear()
        self.lost_count = sum(int(np.count_nonzero(page["slot"] == LOST)) for page in pages.values())

    def find(self, lba: int) -> Place | None:
        """Where a block is, None if it reads as zeroes; its slot is LOST if it was declared lost."""
        page = self.pages.get(lba >> PAGE_SHIFT)
        if page is None:
            return None
        opnum, slot, crc, index, _ = page[lba & PAGE_BLOCKS - 1].item()
        return None if slot == NOWHERE else Place(opnum, slot, crc, index)

    def find_range(self, lba: int, count: int) -> list[Place | None]:
        """`find` for `count` blocks."""
        if count == 1:
            return [self.find(lba)]
        out: list[Place | None] = []
        while count:
            low = lba & PAGE_BLOCKS - 1
            piece = min(count, PAGE_BLOCKS - low)
            page = self.pages.get(lba >> PAGE_SHIFT)
            if page is None:
                out.extend([None] * piece)
            else:
                for opnum, slot, crc, index, _ in page[low : low + piece].tolist():
                    out.append(None if slot == NOWHERE else Place(opnum, slot, crc, index))
            lba, count = lba + piece, count - piece
        return out

    def find_data(self, lba: int, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """True for every block of a range that does not read as zeroes."""
        present = np.zeros(count, np.bool_)
        stop = lba + count
        at = lba
        while at < stop:
            upto = min((at >> PAGE_SHIFT) + 1 << PAGE_SHIFT, stop)
            page = self.pages.get(at >> PAGE_SHIFT)
            if page is not None:
                low = at & PAGE_BLOCKS - 1
                present[at - lba : upto - lba] = page["slot"][low : low + upto - at] != NOWHERE
            at = upto
        return present

    def opnum_of(self, lba: int) -> int:
        """Opnum of the newest WRITE or ZERO of a block that the map knows, 0 if none."""
        page = self.pages.get(lba >> PAGE_SHIFT)
        return 0 if page is None else int(page["opnum"][lba & PAGE_BLOCKS - 1])

    def place(self, lbas: Numbers, opnums: Numbers, crcs: Numbers, slot: int, indexes: Numbers) -> tuple[Numbers, int]:
        """Point blocks at their places in stripe `slot`, where that is newer; returns the slots that lost a block
        (NOWHERE left out, with repeats) and how many blocks were placed."""
        return self._update(lbas, opnums, crcs, slot, indexes, None)

    def move(
        self, lbas: Numbers, opnums: Numbers, crcs: Numbers, slot: int, indexes: Numbers, sources: Numbers
    ) -> tuple[Numbers, int]:
        """Point blocks at a copy in `slot`, where the map still names that version in its source slot."""
        return self._update(lbas, opnums, crcs, slot, indexes, sources)

    def _update(
        self, lbas: Numbers, opnums: Numbers, crcs: Numbers, slot: int, indexes: Numbers, sources: Numbers | None
    ) -> tuple[Numbers, int]:
        lost: list[Numbers] = [np.empty(0, np.uint32)]
        placed = 0
        numbers = lbas >> PAGE_SHIFT
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            page = self._writable(int(number))
            at = (lbas[chosen] & PAGE_BLOCKS - 1).astype(np.intp)
            old = page[at]
            if sources is None:
                keep = old["opnum"] < opnums[chosen]
            else:
                keep = (old["opnum"] == opnums[chosen]) & (old["slot"] == sources[chosen])
            at, chosen, old = at[keep], chosen[keep], old[keep]
            new = np.empty(len(at), ENTRY)
            new["opnum"], new["slot"], new["crc"] = opnums[chosen], slot, crcs[chosen]
            new["index"], new["reserved"] = indexes[chosen], 0
            page[at] = new
            placed += len(at)
            lost.append(self._left(old["slot"]))
        return np.concatenate(lost), placed

    def _left(self, slots: Numbers) -> Numbers:
        """Of the slots that entries named until now: those that are places."""
        self.lost_count -= int(np.count_nonzero(slots == LOST))
        return slots[slots < LOST]

    def lose(self, lbas: Numbers, opnums: Numbers, slots: Numbers) -> Numbers:
        """Mark blocks LOST where the map still names that version in that slot; returns the slots that lost a block,
        with repeats."""
        gone: list[Numbers] = [np.empty(0, np.uint32)]
        numbers = lbas >> PAGE_SHIFT
        for number in np.unique(numbers).tolist():
            if number not in self.pages:
                continue
            chosen = np.flatnonzero(numbers == number)
            page = self._writable(int(number))
            at = (lbas[chosen] & PAGE_BLOCKS - 1).astype(np.intp)
            old = page[at]
            keep = (old["opnum"] == opnums[chosen]) & (old["slot"] == slots[chosen])
            at = at[keep]
            page["slot"][at] = LOST
            self.lost_count += len(at)
            gone.append(old["slot"][keep])
        return np.concatenate(gone)

    def bury(self, lba: int, count: int, opnum: int) -> Numbers:
        """A ZERO: tombstones in the pages that exist; returns the slots that lost a block, with repeats."""
        lost: list[Numbers] = []
        stop = lba + count
        first, last = lba >> PAGE_SHIFT, stop - 1 >> PAGE_SHIFT
        near = last - first < len(self.pages)
        numbers = range(first, last + 1) if near else [n for n in self.pages if first <= n <= last]
        for number in numbers:
            if number not in self.pages:
                continue
            page = self._writable(number)
            base = number << PAGE_SHIFT
            piece = page[max(lba - base, 0) : min(stop - base, PAGE_BLOCKS)]
            older = piece["opnum"] < opnum
            slots = piece["slot"][older]
            lost.append(self._left(slots))
            piece["slot"][older] = NOWHERE
            piece["opnum"][older] = opnum
        return np.concatenate(lost) if lost else np.empty(0, np.uint32)

    def live_in(self, slots: list[int]) -> list[tuple[int, Place]]:
        """(lba, place) of every block whose place is in one of `slots`; scans all pages."""
        out: list[tuple[int, Place]] = []
        wanted = np.array(slots, np.uint32)
        for number, page in self.pages.items():
            for at in np.flatnonzero(np.isin(page["slot"], wanted)).tolist():
                opnum, slot, crc, index, _ = page[at].item()
                out.append(((number << PAGE_SHIFT) + at, Place(opnum, slot, crc, index)))
        return out

    def _writable(self, number: int) -> Page:
        page = self.pages.get(number)
        if page is None:
            page = np.repeat(_EMPTY, PAGE_BLOCKS)
        elif number in self._owned:
            return page
        else:
            page = page.copy()
        self.pages[number] = page
        self._owned.add(number)
        return page
