"""The I/O commands of an exported volume: what each takes and gives, when it is refused, and how the volume does it.

Source: NVM Command Set 1.0, section 3; NVM Express Base 2.0, 7.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from head_node.export.nvme import reservations
from head_node.volume.interface import BLOCK_BYTES, ServedVolume
from sled_controller.fabric.port import QueueLimits
from sled_controller.fabric.standard_controller import Command
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import DATASET_RANGE, IoOpcode, Status

if TYPE_CHECKING:
    from head_node.export.nvme.io_path import ExportIoPath

LIMITS: Final = QueueLimits(
    in_capsule_bytes_max=16 * 1024,  # small writes need no round trip for an R2T
    transfer_bytes_max=1024 * 1024,  # a stripe's worth of data: larger ones gain nothing
    entries_max=256,
    held_bytes_max=8 * 1024 * 1024,
    common_bytes=64 * 1024 * 1024,
)
"""Of each connection, and what all of them on a head divide among themselves from the ninth on."""
VERIFY_BYTES_MAX: Final = LIMITS.transfer_bytes_max
"""VSL: a verify reads, so it is bounded like a read."""
DATASET_BYTES_MAX: Final = 4096
"""256 ranges; Linux always sends as much, however few it names."""

FUA: Final = 1 << 30  # CDW12
LIMITED_RETRY: Final = 1 << 31  # heeded by doing what is always done
_PROTECTION: Final = 0xF << 26  # PRINFO: there is no protection information here
_DEALLOCATE_ZEROES: Final = 1 << 25  # DEAC of Write Zeroes
_DEALLOCATE: Final = 1 << 2  # AD, CDW11 of Dataset Management

Begin = Callable[["ExportIoPath", ServedVolume, Command, Buffer, int], None]


def _nothing(command: Command) -> int:
    return 0


def _slba(command: Command) -> int:
    return command.dwords[0] | command.dwords[1] << 32


def _count(command: Command) -> int:
    return (command.dwords[2] & 0xFFFF) + 1


def _bytes(command: Command) -> int:
    return _count(command) * BLOCK_BYTES


def _range_bytes(command: Command) -> int:
    return ((command.dwords[0] & 0xFF) + 1) * DATASET_RANGE.size


def _keys_bytes(command: Command) -> int:
    return reservations.data_bytes(command.opcode)


def _report_bytes(command: Command) -> int:
    return (command.dwords[0] + 1) * 4


def _within(command: Command, blocks: int) -> Status:
    if _slba(command) + _count(command) > blocks:
        return Status.LBA_OUT_OF_RANGE
    return Status.INVALID_FIELD if command.dwords[2] & _PROTECTION else Status.SUCCESS


def _transferable(command: Command, blocks: int) -> Status:
    if _bytes(command) > LIMITS.transfer_bytes_max:
        return Status.INVALID_FIELD
    return _within(command, blocks)


def _reportable(command: Command, blocks: int) -> Status:
    return Status.INVALID_FIELD if _report_bytes(command) > LIMITS.transfer_bytes_max else Status.SUCCESS


def _anything(command: Command, blocks: int) -> Status:
    return Status.SUCCESS


@dataclass(frozen=True, slots=True)
class Kind:
    """One opcode: `takes` and `gives` are bytes from and to the host, `takes_at_most` what else is tolerated."""

    begin: Begin
    refusal: Callable[[Command, int], Status] = _anything
    takes: Callable[[Command], int] = _nothing
    takes_at_most: Callable[[Command], int] = _nothing
    gives: Callable[[Command], int] = _nothing


def _read(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    path.read(volume, _slba(command), _count(command), command.cid)


def _write(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    path.write(volume, _slba(command), data, command.dwords[2] & FUA != 0, command.cid, held)


def _flush(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    volume.flush(partial(_done, path, path.turn, command.cid), path.host)


def _write_zeroes(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    no_hole = not command.dwords[2] & _DEALLOCATE_ZEROES
    done = partial(_done, path, path.turn, command.cid)
    volume.write_zeroes(
        _slba(command) * BLOCK_BYTES, _bytes(command), no_hole=no_hole, done=done, gone=path.gone, host=path.host
    )  # fmt: skip


def _done(path: "ExportIoPath", turn: int, cid: int, error: int) -> None:
    path.finish(turn, cid, 0, path.status_of(error, Status.WRITE_FAULT))


def _verify(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    """Every block that is read is checked against its CRC (D2)."""
    length = _bytes(command)
    path.hold(length)
    turn = path.turn

    def have_read(error: int, buffers: Sequence[Buffer]) -> None:
        path.finish(turn, command.cid, length, path.status_of(error, Status.UNRECOVERED_READ_ERROR))

    volume.read(_slba(command) * BLOCK_BYTES, length, have_read, path.gone, path.host)


def _compare(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    length = _bytes(command)
    path.hold(2 * length - held)
    turn = path.turn

    def have_read(error: int, buffers: Sequence[Buffer]) -> None:
        status = path.status_of(error, Status.UNRECOVERED_READ_ERROR)
        if not error and b"".join(buffers) != data:
            status = Status.COMPARE_FAILURE
        path.finish(turn, command.cid, 2 * length, status)

    volume.read(_slba(command) * BLOCK_BYTES, length, have_read, path.gone, path.host)


def _dataset(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    """Deallocate: all ranges, or none when one of them is out of range; other hints are taken note of by nobody."""
    turn, cid = path.turn, command.cid
    ranges = [
        (slba, count)
        for _, count, slba in DATASET_RANGE.iter_unpack(memoryview(data)[: _range_bytes(command)])
        if count
    ]
    if any(slba + count > volume.size_bytes // BLOCK_BYTES for slba, count in ranges):
        path.finish(turn, cid, held, Status.LBA_OUT_OF_RANGE)
        return
    if not command.dwords[1] & _DEALLOCATE or not ranges:
        path.finish(turn, cid, held, Status.SUCCESS)
        return
    left, failed = len(ranges), 0

    def done(error: int) -> None:
        nonlocal left, failed
        left -= 1
        failed = failed or error
        if not left:
            path.finish(turn, cid, held, path.status_of(failed, Status.WRITE_FAULT))

    for slba, count in ranges:
        volume.trim(slba * BLOCK_BYTES, count * BLOCK_BYTES, done, path.gone, path.host)


def _reserve(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    turn = path.turn

    def complete(status: Status, nothing: bytes) -> None:
        path.finish(turn, command.cid, held, status)

    reservations.change(volume, path.host, command.opcode, command.dwords[0], data, complete, path.gone)


def _report(path: "ExportIoPath", volume: ServedVolume, command: Command, data: Buffer, held: int) -> None:
    complete = partial(path.finish, path.turn, command.cid, 0)
    reservations.report(volume, _report_bytes(command), command.dwords[1], path.present(), complete, path.gone)


KINDS: Final[dict[int, Kind]] = {
    IoOpcode.FLUSH: Kind(_flush),
    IoOpcode.WRITE: Kind(_write, _transferable, takes=_bytes, takes_at_most=_bytes),
    IoOpcode.READ: Kind(_read, _transferable, gives=_bytes),
    IoOpcode.COMPARE: Kind(_compare, _transferable, takes=_bytes, takes_at_most=_bytes),
    IoOpcode.WRITE_ZEROES: Kind(_write_zeroes, _within),
    IoOpcode.DATASET_MANAGEMENT: Kind(_dataset, takes=_range_bytes, takes_at_most=lambda command: DATASET_BYTES_MAX),
    IoOpcode.VERIFY: Kind(_verify, _transferable),
    **dict.fromkeys(
        (IoOpcode.RESERVATION_REGISTER, IoOpcode.RESERVATION_ACQUIRE, IoOpcode.RESERVATION_RELEASE),
        Kind(_reserve, takes=_keys_bytes, takes_at_most=lambda command: reservations.KEYS_BYTES),
    ),
    IoOpcode.RESERVATION_REPORT: Kind(_report, _reportable, gives=_report_bytes),
}
