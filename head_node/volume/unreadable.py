"""Blocks that no k shards gave when they were last read: what an operator is shown, and may declare lost.

Known to the head that tried, not to the log: another head finds them when it reads them.
"""

from typing import Final

from head_node.volume.blockmap import BlockMap
from head_node.volume.overlay import Overlay

BLOCKS_KNOWN_MAX: Final = 4096
"""What is remembered of a volume; further blocks are found again when they are read again."""
RANGES_SHOWN_MAX: Final = 32
"""Ranges in a status report, which goes to the authority every second."""


class UnreadableBlocks:
    """lba -> (opnum, slot) of the version that could not be read."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self.more = False
        """Blocks were found that there was no room for."""

    def __bool__(self) -> bool:
        return bool(self._known)

    def add(self, lba: int, opnum: int, slot: int) -> bool:
        """A version cannot be read; True if that is news."""
        if self._known.get(lba) == (opnum, slot):
            return False
        if lba not in self._known and len(self._known) >= BLOCKS_KNOWN_MAX:
            self.more = True
            return False
        self._known[lba] = (opnum, slot)
        return True

    def discard(self, lba: int, count: int) -> None:
        """Blocks were read."""
        for at in range(lba, lba + count):
            self._known.pop(at, None)

    def lbas(self, volume_map: BlockMap, overlay: Overlay) -> list[int]:
        """Those whose version is still the newest, in order; the others are forgotten."""
        for lba, version in list(self._known.items()):
            place = volume_map.find(lba)
            if place is None or (place.opnum, place.slot) != version or overlay.get(lba) is not None:
                del self._known[lba]
        if not self._known:
            self.more = False
        return sorted(self._known)


def ranges_of(lbas: list[int], ranges_max: int) -> list[tuple[int, int]]:
    """The first `ranges_max` runs of consecutive numbers in a sorted list: (first, count)."""
    out: list[tuple[int, int]] = []
    for lba in lbas:
        if out and sum(out[-1]) == lba:
            out[-1] = (out[-1][0], out[-1][1] + 1)
        elif len(out) == ranges_max:
            break
        else:
            out.append((lba, 1))
    return out
