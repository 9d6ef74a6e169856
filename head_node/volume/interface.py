"""What an export sees of a volume: byte ranges in, completion callbacks out, no task per request."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias

from head_node.volume.reservations import NO_HOST, Command, Notice, Reservations
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import Status

BLOCK_BYTES: Final = 4096

EXTENT_DATA: Final = 0
EXTENT_HOLE: Final = 1
"""Not allocated (NBD base:allocation, bit 0)."""
EXTENT_ZERO: Final = 2
"""Reads as zeroes (NBD base:allocation, bit 1)."""

Done: TypeAlias = Callable[[int], None]
"""Called once with 0 or an errno."""
ReadDone: TypeAlias = Callable[[int, Sequence[Buffer]], None]
"""Called once with 0 and buffers that add up to the length, or an errno and nothing."""
ExtentsDone: TypeAlias = Callable[[int, Sequence[tuple[int, int]]], None]
"""Called once with 0 and (length in bytes, EXTENT_* flags) pairs in order, or an errno and nothing."""
ChangeDone: TypeAlias = Callable[[Status], None]
"""Called once with the status of a reservation command."""
ReservationsDone: TypeAlias = Callable[[Reservations], None]
"""Called once with the committed reservations."""
Gone: TypeAlias = Callable[[], bool]
"""Asked right before a request that had to wait is begun: True when its client's connection is gone."""


def never_gone() -> bool:
    """The `Gone` of a client without a connection."""
    return False


class ServedVolume(Protocol):
    """A volume as a client may use it. Offsets and lengths are bytes and multiples of 4096.

    Every completion is called at most once: a request that the primary may not answer any more (F6, F7) is never
    completed, and its connection is reset by the cluster instead. A completion may come inside the call.
    A range outside the volume completes with EINVAL (reads, trims) or ENOSPC (writes).
    A request that had to wait is forgotten, uncompleted, if its client is `gone` when its turn comes: the client may
    have repeated it elsewhere by then, and newer ones.
    A request that a reservation keeps its `host` (16 bytes; NO_HOST is nobody's registrant) from completes with EPERM.
    """

    size_bytes: int

    def read(self, offset: int, length: int, done: ReadDone, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        """Read committed bytes; the buffers stay valid and unchanged as long as they are referenced."""

    def write(
        self, offset: int, data: Buffer, fua: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        """Write `data`, which belongs to the volume from now on; 0 means committed (F5), `fua` or not."""

    def trim(self, offset: int, length: int, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        """Forget a range; it reads as zeroes afterwards. Committed like a write."""

    def write_zeroes(
        self, offset: int, length: int, *, no_hole: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        """Zero a range. Space is never reserved, so `no_hole` changes nothing."""

    def flush(self, done: Done, host: bytes = NO_HOST) -> None:
        """Every write completed before this call is durable (it was when it completed)."""

    def extents(
        self, offset: int, length: int, done: ExtentsDone, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        """Say which parts hold data."""

    def change_reservation(self, host: bytes, command: Command, done: ChangeDone, gone: Gone = never_gone) -> None:
        """Carry out a reservation command of `host`, a host identifier that is not all zero.

        What it changes takes effect at its place among the writes and is committed before it is answered; writes that
        began before it are committed by then too, and reads that began before it are answered as if after it.
        """

    def reservations(self, done: ReservationsDone, gone: Gone = never_gone) -> None:
        """Who is registered and what is reserved."""

    def watch_reservations(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        """Call `watcher` for each notice that a change gives rise to, before the change is answered, until the returned
        function is called. A notice is lost with the primary that was to give it."""

    def ready(self) -> bool:
        """False while the volume keeps as many writes waiting as it has bounds for: a caller keeps further ones back.
        Other requests hold no data, and are let through: nothing of theirs depends on room."""

    def on_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when `ready()` is True again (at once if it is)."""
