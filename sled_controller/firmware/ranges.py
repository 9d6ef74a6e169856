"""Which bytes of a download have arrived, in whatever order."""

from bisect import bisect_left
from typing import Final

RANGES_MAX: Final = 64
"""Stretches with gaps between them. Hosts send in order, so that there is one; more would be memory for nothing."""
_SHOWN_MAX: Final = 4


class Ranges:
    """Disjoint stretches of bytes that do not touch, ascending; at most `RANGES_MAX`."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int]] = []

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any byte of [start, end) is there already."""
        at = bisect_left(self._stretches, (end, 0)) - 1
        return at >= 0 and self._stretches[at][1] > start

    def add(self, start: int, end: int) -> bool:
        """Add [start, end), which overlaps nothing; False where it would be one stretch too many."""
        at = bisect_left(self._stretches, (start, 0))
        first, last = at, at
        if at and self._stretches[at - 1][1] == start:
            first, start = at - 1, self._stretches[at - 1][0]
        if at < len(self._stretches) and self._stretches[at][0] == end:
            last, end = at + 1, self._stretches[at][1]
        if first == last and len(self._stretches) >= RANGES_MAX:
            return False
        self._stretches[first:last] = [(start, end)]
        return True

    def __str__(self) -> str:
        return ", ".join(f"{start} to {end}" for start, end in self._stretches[:_SHOWN_MAX])

    def whole(self, length: int) -> bool:
        """Whether all bytes from 0 to `length` are there, and what there may be more follows without a gap."""
        return len(self._stretches) == 1 and self._stretches[0][0] == 0 and self._stretches[0][1] >= length
