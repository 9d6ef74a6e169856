"""A storage that loses power in the middle: what was not synced is there, torn, or lost, in any mixture."""

from collections.abc import Iterator
from itertools import product
from typing import Final

SECTOR_BYTES: Final = 512


class PowerLost(OSError):
    """The power went away; nothing can be asked of the storage any more."""


class TornStorage:
    """Memory with a volatile cache. After `writes_left` writes or syncs it loses power; then ask for `outcomes`."""

    def __init__(self, content: bytes, steps_left: int) -> None:
        self.medium = content
        self._steps_left = steps_left
        self._unsynced: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> bytes:
        content = bytearray(self.medium)
        for at, data in self._unsynced:
            content[at : at + len(data)] = data
        return bytes(content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._unsynced.append((offset, bytes(data)))
        self._step()

    def sync(self) -> None:
        self._step()
        self.medium = self.read(0, len(self.medium))
        self._unsynced.clear()

    def _step(self) -> None:
        self._steps_left -= 1
        if self._steps_left < 0:
            raise PowerLost("power is gone")

    def outcomes(self) -> Iterator[bytes]:
        """Every content that may be found: each write up to each byte, and each subset of its sectors."""
        yield self.medium
        for at, data in self._unsynced:
            for length in range(len(data) + 1):
                yield _laid(self.medium, [(at, data[:length])])
        sectors = [
            (at + start, data[start : start + SECTOR_BYTES])
            for at, data in self._unsynced
            for start in range(0, len(data), SECTOR_BYTES)
        ]
        for chosen in product((False, True), repeat=len(sectors)):
            yield _laid(self.medium, [sector for sector, there in zip(sectors, chosen, strict=True) if there])


def _laid(medium: bytes, pieces: list[tuple[int, bytes]]) -> bytes:
    content = bytearray(medium)
    for at, data in pieces:
        content[at : at + len(data)] = data
    return bytes(content)
