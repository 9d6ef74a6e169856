"""Fakes for the export side: a volume in memory, a directory of exports, and a relay link without a network."""

import asyncio
import errno
from collections.abc import Callable, Sequence
from uuid import UUID

from head_node.export.interface import LocalExport, RelayReceiver, RemoteExport, Security
from head_node.volume.interface import (
    EXTENT_DATA,
    EXTENT_HOLE,
    EXTENT_ZERO,
    ChangeDone,
    Done,
    ExtentsDone,
    Gone,
    ReadDone,
    ReservationsDone,
    never_gone,
)
from head_node.volume.reservations import NO_HOST, Command, Notice, Reservations, decide
from spdk_bindings.device import Buffer

BLOCK = 4096
VOLUME_ID = UUID("00000000-0000-4000-8000-000000000001")


class MemoryVolume:
    """A ServedVolume over a bytearray. `held` collects completions while `hold` is set; `error` makes all fail."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.data = bytearray(size_bytes)
        self.allocated = bytearray(size_bytes // BLOCK)
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.kept: list[tuple[int, Buffer, bytes]] = []
        self.keep_payloads = False
        self.error = 0
        self.is_ready = True
        self.waiters: list[Callable[[], None]] = []
        self.reserved = Reservations()
        self.watchers: list[Callable[[Notice], None]] = []
        self.calls: list[tuple[str, int, int]] = []
        self.record_calls = False

    def _finish(self, completion: Callable[[], None]) -> None:
        if self.hold:
            self.held.append(completion)
        else:
            completion()

    def _note(self, name: str, offset: int, length: int) -> None:
        assert offset % BLOCK == 0
        assert length % BLOCK == 0
        assert offset + length <= self.size_bytes
        if self.record_calls:
            self.calls.append((name, offset, length))

    def release(self) -> None:
        """Complete what was held, and hold nothing any more."""
        self.hold = False
        held, self.held = self.held, []
        for completion in held:
            completion()

    def become_ready(self) -> None:
        self.is_ready = True
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter()

    def read(self, offset: int, length: int, done: ReadDone, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        self._note("read", offset, length)
        if not self.reserved.may_read(host):
            self._finish(lambda: done(errno.EPERM, ()))
            return
        data = bytes(self.data[offset : offset + length])
        error = self.error
        self._finish(lambda: done(error, () if error else (data,)))

    def write(
        self, offset: int, data: Buffer, fua: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._note("write", offset, len(data))
        if not self.reserved.may_write(host):
            self._finish(lambda: done(errno.EPERM))
            return
        if self.keep_payloads:
            self.kept.append((offset, data, bytes(data)))
        if not self.error:
            self.data[offset : offset + len(data)] = data
            self._mark(offset, len(data), 1)
        error = self.error
        self._finish(lambda: done(error))

    def _mark(self, offset: int, length: int, value: int) -> None:
        blocks = length // BLOCK
        self.allocated[offset // BLOCK : offset // BLOCK + blocks] = bytes((value,)) * blocks

    def _zero(self, name: str, offset: int, length: int, done: Done, host: bytes) -> None:
        self._note(name, offset, length)
        if not self.reserved.may_write(host):
            self._finish(lambda: done(errno.EPERM))
            return
        if not self.error:
            self.data[offset : offset + length] = bytes(length)
            self._mark(offset, length, 0)
        error = self.error
        self._finish(lambda: done(error))

    def trim(self, offset: int, length: int, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST) -> None:
        self._zero("trim", offset, length, done, host)

    def write_zeroes(
        self, offset: int, length: int, *, no_hole: bool, done: Done, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._zero("write_zeroes", offset, length, done, host)

    def flush(self, done: Done, host: bytes = NO_HOST) -> None:
        self._note("flush", 0, 0)
        error = self.error if self.reserved.may_write(host) else errno.EPERM
        self._finish(lambda: done(error))

    def extents(
        self, offset: int, length: int, done: ExtentsDone, gone: Gone = never_gone, host: bytes = NO_HOST
    ) -> None:
        self._note("extents", offset, length)
        blocks = self.allocated[offset // BLOCK : (offset + length) // BLOCK]
        extents = [(BLOCK, EXTENT_DATA if used else EXTENT_HOLE | EXTENT_ZERO) for used in blocks]
        error = self.error
        self._finish(lambda: done(error, () if error else extents))

    def change_reservation(self, host: bytes, command: Command, done: ChangeDone, gone: Gone = never_gone) -> None:
        outcome = decide(self.reserved, host, command)
        self.reserved = outcome.state
        for notice in outcome.notices:
            for watcher in self.watchers:
                watcher(notice)
        self._finish(lambda: done(outcome.status))

    def reservations(self, done: ReservationsDone, gone: Gone = never_gone) -> None:
        self._finish(lambda: done(self.reserved))

    def watch_reservations(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)

    def ready(self) -> bool:
        return self.is_ready

    def on_ready(self, callback: Callable[[], None]) -> None:
        if self.is_ready:
            callback()
        else:
            self.waiters.append(callback)


class MemoryDirectory:
    """An ExportDirectory over a dict; an Exception as a value is raised by `find`."""

    def __init__(self, exports: dict[str, LocalExport | RemoteExport | Exception]) -> None:
        self.exports = exports

    def names(self, security: Security) -> Sequence[str]:
        return [name for name, export in self.exports.items() if getattr(export, "security", 0) <= security]

    def find(self, name: str) -> LocalExport | RemoteExport | None:
        if not name and len(self.exports) == 1:
            (name,) = self.exports
        found = self.exports.get(name)
        if isinstance(found, Exception):
            raise found
        return found


def one_volume(volume: MemoryVolume, name: str = "vol") -> MemoryDirectory:
    """A directory with one local export."""
    return MemoryDirectory({name: LocalExport(VOLUME_ID, volume)})


class LinkEnd:
    """One end of a relay link in memory (a RelayTransport). Frames arrive in a later loop turn, in order.

    `cut` makes both ends deaf without telling either, as a partition does. `sent` keeps the frames for inspection.
    """

    def __init__(self) -> None:
        self.other: LinkEnd
        self.receiver: RelayReceiver | None = None
        self.early: list[bytes] = []
        self.sent: list[bytes] = []
        self.dead = False
        self.cut = False

    def start(self, receiver: RelayReceiver) -> None:
        self.receiver = receiver
        early, self.early = self.early, []
        for frame in early:
            asyncio.get_running_loop().call_soon(self._deliver, frame)

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self.dead:
            return
        frame = b"".join(buffers)
        self.sent.append(frame)
        if not self.cut:
            asyncio.get_running_loop().call_soon(self.other._deliver, frame)

    def abort(self) -> None:
        if not self.dead:
            self.dead = True
            if not self.cut:
                asyncio.get_running_loop().call_soon(self.other._lost)

    def _deliver(self, frame: bytes) -> None:
        if self.dead or self.cut:
            return
        if self.receiver is None:
            self.early.append(frame)
        else:
            self.receiver.frame_received(memoryview(frame))

    def _lost(self) -> None:
        if not self.dead:
            self.dead = True
            if self.receiver is not None:
                self.receiver.transport_lost("reset by the other end")


def link_pair() -> tuple[LinkEnd, LinkEnd]:
    """Both ends of a fresh link."""
    one, other = LinkEnd(), LinkEnd()
    one.other, other.other = other, one
    return one, other


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds (bounded by the test's own time-out)."""
    while not condition():  # noqa: ASYNC110 - many conditions, one waiter
        await asyncio.sleep(0)
