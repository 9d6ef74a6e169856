"""What carries out the commands of one I/O queue, and how it gets data that does not come in the capsule: R2T."""

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from sled_controller.fabric.receive_buffer import Memory, ReceiveBuffer
from spdk_bindings.device import Buffer

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue


class Transfer:
    """A command whose data comes by R2T."""

    __slots__ = ("cid", "crc", "data", "digest_bad", "received", "sqe", "total", "ttag")

    def __init__(self, cid: int, sqe: bytes, total: int) -> None:
        self.cid = cid
        self.sqe = sqe
        self.total = total
        self.ttag = 0
        self.received = 0
        self.crc = 0
        self.digest_bad = False
        self.data: Memory = bytearray()  # taken when the R2T is sent


class IoPath(ABC):
    """The commands of one I/O queue. Subclasses say what a command does; memory is bounded here.

    `held_bytes` are data awaited by R2T, owned by whoever carries commands out, or read and not sent. `waits` is set
    by a subclass whose backing takes no more commands for a while: the connection is not read meanwhile.
    """

    def __init__(self, queue: "TargetQueue") -> None:
        self._queue = queue
        self.held_bytes = 0
        self.waits = False
        self.transfers: dict[int, Transfer] = {}  # by transfer tag; those whose data was asked for
        self._waiting: deque[Transfer] = deque()
        self._next_ttag = 0

    def run(self, buffer: ReceiveBuffer, pos: int, end: int, now_ms: int) -> int:
        """Carry out the commonest commands from `pos` of `buffer`, in one loop; returns where the first byte that is
        no such command lies. Only called without digests."""
        return pos

    @abstractmethod
    def command(self, sqe: bytes, data: Buffer, digest_bad: bool, buffer: ReceiveBuffer) -> None:
        """Any command with its in-capsule data, which lies in `buffer`."""

    @abstractmethod
    def arrived(self, transfer: Transfer) -> None:
        """The last data byte of a transfer is there: now, not when it was asked for, it is admitted or not."""

    def await_data(self, transfer: Transfer) -> None:
        """Ask for the data of a command as soon as there is memory for it, in the order of the commands."""
        self._queue.busy.add(transfer.cid)
        self._waiting.append(transfer)
        self._grant()

    def release(self, held: int) -> None:
        """So many bytes are no longer held."""
        self.held_bytes -= held
        if held and self._waiting:
            self._grant()

    def data_complete(self, transfer: Transfer) -> None:
        """For the queue: everything that an R2T asked for has arrived."""
        del self.transfers[transfer.ttag]
        self.arrived(transfer)

    def _grant(self) -> None:
        waiting = self._waiting
        while waiting and (not self.held_bytes or self.held_bytes + waiting[0].total <= self._queue.held_bytes_max):
            transfer = waiting.popleft()
            self.held_bytes += transfer.total
            transfer.data = self._queue.port.allocate(transfer.total)
            while self._next_ttag in self.transfers:
                self._next_ttag = (self._next_ttag + 1) & 0xFFFF
            transfer.ttag = self._next_ttag
            self._next_ttag = (self._next_ttag + 1) & 0xFFFF
            self.transfers[transfer.ttag] = transfer
            self._queue.send_r2t(transfer.cid, transfer.ttag, transfer.total)
