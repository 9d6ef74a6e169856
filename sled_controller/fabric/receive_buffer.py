"""Preallocated receive memory whose bytes may be owned by a device while more of the stream arrives (F1)."""

from collections.abc import Callable
from typing import Final, TypeAlias

Memory: TypeAlias = bytearray | memoryview
Allocate: TypeAlias = Callable[[int], Memory]
"""Gives memory of so many bytes; `bytearray` is one."""

RECEIVE_BYTES: Final = 256 * 1024  # a queue of 32 commands of 4 KiB fits with room, so one read takes them all
ROOM_BYTES_MIN: Final = 32 * 1024  # more than the longest capsule; less room than this moves the stream on


class ReceiveBuffer:
    """One block of memory; `pins` counts the commands whose data in it a device still reads."""

    __slots__ = ("pins", "view")

    def __init__(self, allocate: Allocate = bytearray) -> None:
        self.view = memoryview(allocate(RECEIVE_BYTES))
        self.pins = 0


class ReceiveStream:
    """The bytes received and not consumed: `current.view[start:end]`.

    A pinned block is only appended to; when it is full the stream moves to another block and takes the unconsumed
    bytes along, so what a device owns is never written. Blocks stay bounded because each full one holds commands of
    a queue of bounded depth.
    """

    __slots__ = ("_allocate", "_spare", "current", "end", "start")

    def __init__(self, allocate: Allocate = bytearray) -> None:
        self._allocate = allocate
        self.current = ReceiveBuffer(allocate)
        self.start = 0
        self.end = 0
        self._spare: ReceiveBuffer | None = None

    def room(self) -> memoryview:
        """Where to receive to; never empty as long as consumers leave less than a capsule behind."""
        return self.current.view[self.end :]

    def tidy(self) -> None:
        """After consuming: make room at the end again."""
        current, start, end = self.current, self.start, self.end
        if not current.pins:
            if start == end:
                self.start = self.end = 0
            elif start:
                current.view[: end - start] = current.view[start:end]
                self.start, self.end = 0, end - start
        elif len(current.view) - end < ROOM_BYTES_MIN:
            fresh = self._spare or ReceiveBuffer(self._allocate)
            self._spare = None
            fresh.view[: end - start] = current.view[start:end]
            self.current, self.start, self.end = fresh, 0, end - start

    def unpin(self, buffer: ReceiveBuffer) -> None:
        """A device is done with data in `buffer`."""
        buffer.pins -= 1
        if not buffer.pins and buffer is not self.current:
            self._spare = buffer
