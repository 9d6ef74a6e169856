"""A real NVMe drive behind the `Device` interface."""

import asyncio
import logging
from typing import Final, Self

from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer, Done
from spdk_bindings.nvme import IoOpcode, Status
from spdk_bindings.spdk.controller import DriveCounters, DriveSettings, DriveState, SpdkController
from spdk_bindings.spdk.environment import SpdkEnvironment
from spdk_bindings.spdk.errors import AttachError, SpdkError
from spdk_bindings.spdk.queue import CommandQueue

log = logging.getLogger(__name__)

SMART_SECONDS: Final = 10.0
"""Between readings of the SMART log."""
TRANSFER_BLOCKS_MAX: Final = 256
"""Of one command to the reactor; longer ones go in pieces."""

_ZEROES_BLOCKS_MAX: Final = 1 << 16
_ZEROES_AT_ONCE: Final = 2
"""Commands of one range: a drive that writes the zeroes out takes its time, and each has its timeout."""
_FUA: Final = 1 << 14
"""Bit 30 of command dword 12, as the shim counts: from 16 on. So is the next (NVM Command Set 1.0, 3.2.8)."""
_DEALLOCATE: Final = 1 << 9
_SUCCESS: Final = int(Status.SUCCESS)
_ABORTED: Final = int(Status.ABORT_REQUESTED)
_OUT_OF_RANGE: Final = int(Status.LBA_OUT_OF_RANGE)
_INVALID_FIELD: Final = int(Status.INVALID_FIELD)
_CLOSED: Final = int(Status.HOST_PATHING_ERROR)
_READ: Final = int(IoOpcode.READ)
_WRITE: Final = int(IoOpcode.WRITE)
_COMPARE: Final = int(IoOpcode.COMPARE)
_WRITE_ZEROES: Final = int(IoOpcode.WRITE_ZEROES)


class SpdkDevice:
    """A namespace with blocks of 4096 bytes. Every command is PENDING, and its status is the drive's own.

    When the controller is lost, what was outstanding ends with the status that SPDK gives it, and later commands fail
    with HOST_PATHING_ERROR until it is back, which is tried without end.
    """

    def __init__(self, environment: SpdkEnvironment, controller: SpdkController) -> None:
        """Use `open`."""
        self._environment = environment
        self._controller = controller
        self._queue = controller.queue
        identity = controller.identity
        self.block_count = identity.block_count
        self.serial = identity.serial
        self.model = identity.model
        self.firmware = identity.firmware
        deallocates = identity.write_zeroes_deallocates and identity.deallocated_reads_zero
        self._deallocate_flags = _DEALLOCATE if deallocates and identity.has_write_zeroes else 0
        self._zeroes: memoryview | None = None
        """What is written to zero blocks of a drive that does not know Write Zeroes."""
        if not identity.has_write_zeroes:
            self._zeroes = environment.buffers.allocate(TRANSFER_BLOCKS_MAX * BLOCK_BYTES)
            self._zeroes[:] = bytes(len(self._zeroes))
        self._smart: dict[str, int] = {}
        self._smart_reader: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, environment: SpdkEnvironment, address: str, settings: DriveSettings | None = None) -> Self:
        """Attach the drive at a PCIe address or transport id, for this event loop.

        Raises AttachError (also when its blocks do not have 4096 bytes), PoolExhausted, SpdkError.
        """
        controller = await SpdkController.open(environment, address, settings)
        try:
            found = controller.identity.format
            if found.block_bytes != BLOCK_BYTES or found.metadata_bytes:
                raise AttachError(
                    f"{address}: its blocks have {found.block_bytes} bytes and {found.metadata_bytes} of metadata, not "
                    f"{BLOCK_BYTES} and none; python -m spdk_bindings.spdk format {address!r} erases the drive and "
                    "gives it such blocks"
                )
            device = cls(environment, controller)
            device._smart = await controller.smart()
        except BaseException:
            controller.close()
            raise
        device._smart_reader = asyncio.get_running_loop().create_task(device._read_smart())
        return device

    @property
    def state(self) -> DriveState:
        """Whether it is there."""
        return self._controller.state

    @property
    def counters(self) -> DriveCounters:
        """What the driver has done since it was opened."""
        return self._controller.counters

    @property
    def controller(self) -> SpdkController:
        """For admin commands, logs and firmware."""
        return self._controller

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Fill `into`, without a copy when it is from `allocate`."""
        return self._transfer(_READ, 0, lba, into, done)

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write, without a copy when `data` is from `allocate`."""
        return self._transfer(_WRITE, _FUA if fua else 0, lba, data, done)

    def compare(self, lba: int, data: Buffer, done: Done) -> int:
        """COMPARE_FAILURE unless the blocks from `lba` are equal to `data` (at most 1 MiB)."""
        if len(data) > TRANSFER_BLOCKS_MAX * BLOCK_BYTES:
            return _INVALID_FIELD
        return self._transfer(_COMPARE, 0, lba, data, done)

    def flush(self, done: Done) -> int:
        """Put what completed before on the medium."""
        return self._queue.io(IoOpcode.FLUSH, 0, 0, 0, None, done)

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Zero `count` blocks, in commands of 65536; by writes of 256 where the drive has no such command."""
        return self._zero_in_pieces(_FUA if fua else 0, lba, count, done)

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """Zero `count` blocks, and give them back where the drive can do both at once.

        By Write Zeroes, as Dataset Management is advice that a drive may ignore (NVM Command Set 1.0, 3.2.3).
        """
        return self._zero_in_pieces(self._deallocate_flags, lba, count, done)

    def reset(self, done: Done) -> int:
        """Let outstanding commands end, abort those that do not, reset the controller and connect it again.

        HOST_PATHING_ERROR when it did not come back: nothing is known of what it may still do.
        """
        return self._queue.reset(done)

    def allocate(self, size_bytes: int) -> memoryview:
        """DMA memory for buffers that commands of any drive use without a copy. Raises PoolExhausted."""
        return self._environment.buffers.allocate(size_bytes)

    def smart(self) -> dict[str, int]:
        """The drive's own SMART log as it was at most some seconds ago."""
        return dict(self._smart)

    def close(self) -> None:
        """Detach. A second call does nothing."""
        if self._smart_reader is not None:
            self._smart_reader.cancel()
        self._controller.close()
        self._zeroes = None

    def _transfer(self, opcode: int, flags: int, lba: int, data: Buffer, done: Done) -> int:
        size = len(data)
        count = size // BLOCK_BYTES
        if size % BLOCK_BYTES or not count:
            return _INVALID_FIELD
        if lba < 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        if count <= TRANSFER_BLOCKS_MAX:
            return self._queue.io(opcode, flags, lba, count, data, done)
        view = memoryview(data)
        starts = range(0, count, TRANSFER_BLOCKS_MAX)
        ended = _Pieces(len(starts), done).one
        for start in starts:
            piece = view[start * BLOCK_BYTES : (start + TRANSFER_BLOCKS_MAX) * BLOCK_BYTES]
            if self._queue.io(opcode, flags, lba + start, len(piece) // BLOCK_BYTES, piece, ended) != PENDING:
                return _CLOSED
        return PENDING

    def _zero_in_pieces(self, flags: int, lba: int, count: int, done: Done) -> int:
        if lba < 0 or count <= 0 or lba + count > self.block_count:
            return _OUT_OF_RANGE
        return _Zeroing(self._queue, self._zeroes, flags, lba, count, done).begin()

    async def _read_smart(self) -> None:
        while True:
            await asyncio.sleep(SMART_SECONDS)
            try:
                self._smart = await self._controller.smart()
            except SpdkError as error:
                log.warning("event=no_smart serial=%s error=%s", self.serial, error)


class _Pieces:
    """Counts the completions of parts of one command, and answers for the whole with the first failure."""

    __slots__ = ("_done", "_status", "_waiting")

    def __init__(self, count: int, done: Done) -> None:
        self._waiting = count
        self._done = done
        self._status = _SUCCESS

    def one(self, status: int) -> None:
        """A part has completed."""
        self._status = self._status or status
        self._waiting -= 1
        if not self._waiting:
            self._done(self._status)


class _Zeroing:
    """A range that is zeroed by commands of 65536 blocks, or by writes of `zeroes` where there are some.

    _ZEROES_AT_ONCE of them are under way at a time. The first failure ends it. So does a reset: what has not begun by
    then must not take effect afterwards (F3).
    """

    __slots__ = ("_done", "_end", "_flags", "_next", "_queue", "_resets", "_status", "_under_way", "_zeroes")

    def __init__(
        self, queue: CommandQueue, zeroes: memoryview | None, flags: int, lba: int, count: int, done: Done
    ) -> None:
        self._queue = queue
        self._zeroes = zeroes
        self._resets = queue.resets
        self._flags = flags
        self._next = lba
        self._end = lba + count
        self._done = done
        self._status = _SUCCESS
        self._under_way = 0

    def begin(self) -> int:
        """PENDING, or why nothing can be begun."""
        while self._under_way < _ZEROES_AT_ONCE and self._go_on():
            pass
        return PENDING if self._under_way else self._status

    def _go_on(self) -> bool:
        if self._status or self._next == self._end:
            return False
        zeroes, left = self._zeroes, self._end - self._next
        if zeroes is None:
            blocks = min(_ZEROES_BLOCKS_MAX, left)
            status = self._queue.io(_WRITE_ZEROES, self._flags, self._next, blocks, None, self._one)
        else:
            blocks = min(TRANSFER_BLOCKS_MAX, left)
            data = zeroes[: blocks * BLOCK_BYTES]
            status = self._queue.io(_WRITE, self._flags, self._next, blocks, data, self._one)
        if status != PENDING:
            self._status = status
            return False
        self._next += blocks
        self._under_way += 1
        return True

    def _one(self, status: int) -> None:
        self._under_way -= 1
        if not status and self._next != self._end and self._queue.resets != self._resets:
            status = _ABORTED
        self._status = self._status or status
        if not self._go_on() and not self._under_way:
            self._done(self._status)
