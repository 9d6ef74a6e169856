"""The I/O commands of one queue, carried out by the volume: plain reads and writes in one loop, the rest one by one.

The volume keeps what it is given and receive memory is used again, so the data of a write that came in its capsule is
copied once; data that came by R2T has memory of its own. A command whose connection is gone is not begun: its host
may have repeated it elsewhere by then, and newer ones.
"""

import errno
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

from head_node.export.nvme import commands
from head_node.export.nvme.commands import LIMITS, Kind
from head_node.export.nvme.subsystem import NSID, TURNED_AWAY, VolumeSubsystem
from head_node.volume.interface import ServedVolume
from sled_controller.fabric import pdu
from sled_controller.fabric.io_path import IoPath, Transfer
from sled_controller.fabric.receive_buffer import ReceiveBuffer
from sled_controller.fabric.standard_controller import Command
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import NSID_ALL, IoOpcode, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

_SHIFT: Final = 12
_READ: Final = int(IoOpcode.READ)
_WRITE: Final = int(IoOpcode.WRITE)
_PSDT: Final = pdu.PSDT_SGL
_IN_CAPSULE: Final = pdu.SGL_IN_CAPSULE
_TRANSPORT: Final = pdu.SGL_TRANSPORT
_HEADER: Final = pdu.CAPSULE_CMD_BYTES
_IN_CAPSULE_MAX: Final = LIMITS.in_capsule_bytes_max
_TRANSFER_MAX: Final = LIMITS.transfer_bytes_max
# Common headers of a CapsuleCmd without digests: with data right behind the SQE, and without data.
_WITH_DATA: Final = pdu.PduType.CAPSULE_CMD | _HEADER << 16 | _HEADER << 24
_WITHOUT_DATA: Final = pdu.PduType.CAPSULE_CMD | _HEADER << 16
_HOT: Final = Struct("<IIBBHI16xQI3xBQI")  # up to CDW12
_REPLY: Final = Struct("<16sHHHH")
_REPLY_OPENING: Final = (
    pdu.COMMON.pack(pdu.PduType.CAPSULE_RESP, 0, pdu.CAPSULE_RESP_BYTES, 0, pdu.CAPSULE_RESP_BYTES) + bytes(8)
)  # fmt: skip
_COUNT: Final = 0xFFFF
_RARE: Final = 0xFFFF_FFFF & ~(commands.FUA | commands.LIMITED_RETRY | _COUNT)  # CDW12

_STATUS_OF: Final[dict[int, int]] = {
    0: Status.SUCCESS,
    errno.ENOSPC: Status.CAPACITY_EXCEEDED,
    errno.EINVAL: Status.INVALID_FIELD,
    errno.EPERM: Status.RESERVATION_CONFLICT,
}
_FINAL: Final = frozenset({Status.RESERVATION_CONFLICT, Status.INVALID_FIELD, Status.HOST_IDENTIFIER_INCONSISTENT})
"""What trying again does not change, so that hosts are told not to."""


class ExportIoPath(IoPath):
    """One I/O queue of a host. Whatever the volume completes after `give_up` is ignored."""

    def __init__(self, queue: "TargetQueue", subsystem: VolumeSubsystem, host: bytes) -> None:
        super().__init__(queue)
        self._subsystem = subsystem
        self.host = host
        """Identifier of the host, which reservations know it by."""
        self._blocks = subsystem.blocks
        self.reads = 0
        self.writes = 0
        self.blocks_read = 0
        self.blocks_written = 0
        self._turn = 0  # one more with each `give_up`
        self.gone: Callable[[], bool] = partial(self._is_gone, 0)

    # --- ends

    def _is_gone(self, turn: int) -> bool:
        """Asked by the volume before it begins a command that had to wait."""
        return turn != self._turn or not self._queue.live or self._queue.peer_gone()

    def give_up(self) -> int:
        """Answer what the volume has by the state of the path; whose data is still to come is answered when it has."""
        queue = self._queue
        awaited = {transfer.cid for transfer in (*self.transfers.values(), *self._waiting)}
        given_up = [cid for cid in queue.busy if cid not in awaited]
        self._turn += 1
        self.gone = partial(self._is_gone, self._turn)
        self.waits = False
        for cid in given_up:
            queue.complete(cid, Status.ANA_INACCESSIBLE)
        self.release(self.held_bytes - sum(transfer.total for transfer in self.transfers.values()))
        queue.poke()
        return len(given_up)

    # --- the hot path

    def run(self, buffer: ReceiveBuffer, pos: int, end: int, now_ms: int) -> int:
        """Carry out plain reads and writes from `pos`."""
        subsystem, queue, turn = self._subsystem, self._queue, self._turn
        volume = subsystem.volume
        if volume is None:
            return pos
        view, unpack, blocks = buffer.view, _HOT.unpack_from, self._blocks
        busy, entries, ready, held_max = queue.busy, queue.entries, volume.ready, queue.held_bytes_max
        while end - pos >= _HEADER and queue.commands_left > 0:
            common, plen, opcode, flags, cid, nsid, address, length, kind, slba, cdw12 = unpack(view, pos)
            count = (cdw12 & _COUNT) + 1
            if (
                flags != _PSDT or nsid != NSID or cdw12 & _RARE or length != count << _SHIFT or address
                or slba + count > blocks or cid in busy or len(busy) >= entries
            ):  # fmt: skip
                break
            stop: int = pos + plen
            if opcode == _WRITE:
                if (
                    common != _WITH_DATA or kind != _IN_CAPSULE or plen != length + _HEADER or stop > end
                    or length > _IN_CAPSULE_MAX
                ):  # fmt: skip
                    break
            elif (
                opcode != _READ or common != _WITHOUT_DATA or plen != _HEADER or kind != _TRANSPORT
                or length > _TRANSFER_MAX
            ):  # fmt: skip
                break
            if queue.out_bytes + self.held_bytes > held_max:
                break
            if opcode == _WRITE and not ready():
                self._wait_for(volume)
                break
            queue.sqhd = (queue.sqhd + 1) % queue.sqhd_end
            queue.commands_left -= 1
            busy.add(cid)
            if opcode == _WRITE:
                self.write(volume, slba, bytes(view[pos + _HEADER : stop]), cdw12 & commands.FUA != 0, cid, 0)
            else:
                self.read(volume, slba, count, cid)
            pos = stop
            if self._turn != turn or subsystem.volume is not volume or not queue.live:
                break
        return pos

    def write(self, volume: ServedVolume, slba: int, data: Buffer, fua: bool, cid: int, held: int) -> None:
        """Let the volume write `data`, of which `held` bytes are counted already."""
        length = len(data)
        self.writes += 1
        self.blocks_written += length >> _SHIFT
        self.held_bytes += length - held
        volume.write(slba << _SHIFT, data, fua, partial(self._written, self._turn, cid, length), self.gone, self.host)

    def read(self, volume: ServedVolume, slba: int, count: int, cid: int) -> None:
        """Let the volume read `count` blocks for the host."""
        length = count << _SHIFT
        self.reads += 1
        self.blocks_read += count
        self.held_bytes += length
        volume.read(slba << _SHIFT, length, partial(self._have_read, self._turn, cid, length), self.gone, self.host)

    def _written(self, turn: int, cid: int, held: int, error: int) -> None:
        if turn != self._turn:
            return
        self.release(held)
        queue = self._queue
        if error or queue.digests or not queue.live:
            self.complete(cid, error, Status.WRITE_FAULT)
            return
        queue.busy.discard(cid)
        queue.out.append(_REPLY.pack(_REPLY_OPENING, queue.sqhd, 0, cid, 0))
        queue.poke()

    def _have_read(self, turn: int, cid: int, held: int, error: int, buffers: Sequence[Buffer]) -> None:
        if turn != self._turn:
            return
        self.release(held)
        if error:
            self.complete(cid, error, Status.UNRECOVERED_READ_ERROR)
            return
        queue = self._queue
        queue.complete_read(cid, buffers, held)
        queue.poke()

    def _wait_for(self, volume: ServedVolume) -> None:
        """The volume is over its bounds: read no more of the connection until it is not."""
        if not self.waits:
            self.waits = True
            volume.on_ready(partial(self._ready, self._turn))

    def _ready(self, turn: int) -> None:
        if turn == self._turn:
            self.waits = False
            self._queue.poke()

    # --- everything else

    def command(self, sqe: bytes, data: Buffer, digest_bad: bool, buffer: ReceiveBuffer) -> None:
        command = Command.parse(sqe, data)
        status = Status.TRANSIENT_TRANSPORT_ERROR if digest_bad else self._refusal(command, sqe[1])
        if status:
            self._subsystem.counters.commands_rejected += 1
            self._queue.complete(command.cid, status, dnr=not digest_bad)
        elif self._subsystem.volume is None:
            self._turn_away(command.cid)
        elif commands.KINDS[command.opcode].takes(command) and not data:
            self.await_data(Transfer(command.cid, sqe, command.length))
        else:
            self._begin(command, data, 0)

    def arrived(self, transfer: Transfer) -> None:
        self._queue.busy.discard(transfer.cid)
        if transfer.digest_bad:
            self.release(transfer.total)
            self._queue.complete(transfer.cid, Status.TRANSIENT_TRANSPORT_ERROR)
        else:
            self._begin(Command.parse(transfer.sqe, memoryview(transfer.data)), transfer.data, transfer.total)

    def _begin(self, command: Command, data: Buffer, held: int) -> None:
        """Everything is there: `held` bytes of `data` are this command's own memory, others have to be copied."""
        volume = self._subsystem.volume
        if volume is None:
            self.release(held)
            self._turn_away(command.cid)
            return
        self._queue.busy.add(command.cid)
        if not held and data:
            data = bytes(data)
        commands.KINDS[command.opcode].begin(self, volume, command, data, held)
        if data and not volume.ready():
            self._wait_for(volume)

    def _turn_away(self, cid: int) -> None:
        self._subsystem.counters.commands_turned_away += 1
        self._queue.complete(cid, TURNED_AWAY[self._subsystem.access])

    def _refusal(self, command: Command, flags: int) -> Status:
        """Why the command cannot be done, whatever the volume's state; SUCCESS if it can."""
        kind = commands.KINDS.get(command.opcode)
        if kind is None:
            return Status.INVALID_OPCODE
        if command.nsid != NSID and not (command.opcode == IoOpcode.FLUSH and command.nsid == NSID_ALL):
            return Status.INVALID_NAMESPACE
        if flags != _PSDT:
            return Status.INVALID_FIELD
        return kind.refusal(command, self._blocks) or self._sgl_refusal(command, kind)

    def _sgl_refusal(self, command: Command, kind: Kind) -> Status:
        least, most = kind.takes(command), kind.takes_at_most(command)
        if not least and command.data:
            return Status.SGL_LENGTH_INVALID
        if least and command.in_capsule != bool(command.data):
            return Status.SGL_TYPE_INVALID
        if command.in_capsule and command.sgl_address:
            return Status.SGL_OFFSET_INVALID
        if command.data and command.length != len(command.data):
            return Status.SGL_LENGTH_INVALID
        gives = kind.gives(command)
        if (least and not least <= command.length <= most) or (gives and command.length != gives):
            return Status.SGL_LENGTH_INVALID
        return Status.SUCCESS

    # --- for the kinds of commands

    @property
    def turn(self) -> int:
        """To be given back with `finish`."""
        return self._turn

    def hold(self, count: int) -> None:
        """So many more bytes are held for a command."""
        self.held_bytes += count

    def present(self) -> list[tuple[int, bytes]]:
        """(controller, host) of all that are connected to this head."""
        return [(number, association.host_id) for number, association in self._subsystem.hosts.items()]

    def finish(self, turn: int, cid: int, held: int, status: int, data: bytes = b"") -> None:
        """A command is over, unless it was given up meanwhile."""
        if turn == self._turn:
            self.release(held)
            self._queue.complete(cid, status, data=data, dnr=status in _FINAL)
            self._queue.poke()

    def complete(self, cid: int, error: int, otherwise: int) -> None:
        """Complete a command with what the volume said of it; an error that has no name here is `otherwise`."""
        status = self.status_of(error, otherwise)
        self._queue.complete(cid, status, dnr=status in _FINAL)
        self._queue.poke()

    def status_of(self, error: int, otherwise: int) -> int:
        """The status of an errno of the volume's."""
        if error:
            self._subsystem.counters.commands_failed += 1
        return _STATUS_OF.get(error, otherwise)
