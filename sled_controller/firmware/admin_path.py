"""The admin queue of a management host: like any other, and takes firmware, in the capsule or by R2T."""

from typing import TYPE_CHECKING

from sled_controller.fabric import pdu
from sled_controller.fabric.io_path import IoPath, Transfer
from sled_controller.fabric.receive_buffer import ReceiveBuffer
from sled_controller.fabric.standard_controller import SGL_OFFSET, Command, StandardController
from sled_controller.firmware.update import FirmwareUpdate
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import AdminOpcode, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

_DWORD_BYTES = 4


class FirmwareAdminPath(IoPath):
    """What such a queue's commands go through; those that are no concern of firmware go on to its controller.

    A piece counts as held from its R2T until it is written, so that a slow storage stops the queue, not the sled.
    """

    def __init__(self, queue: "TargetQueue", controller: StandardController, update: FirmwareUpdate) -> None:
        super().__init__(queue)
        self._controller = controller
        self._update = update

    def command(self, sqe: bytes, data: Buffer, digest_bad: bool, buffer: ReceiveBuffer) -> None:
        if sqe[0] == AdminOpcode.FIRMWARE_DOWNLOAD and not digest_bad:
            self._download(sqe, data)
        elif sqe[0] == AdminOpcode.FIRMWARE_COMMIT and not digest_bad:
            self._commit(Command.parse(sqe))
        else:
            self._controller.command(self._queue, sqe, data, digest_bad)

    def arrived(self, transfer: Transfer) -> None:
        if transfer.digest_bad:
            self._answer(transfer.cid, Status.TRANSIENT_TRANSPORT_ERROR, transfer.total)
        else:
            self._take(Command.parse(transfer.sqe), transfer.data, transfer.total)

    def _download(self, sqe: bytes, data: Buffer) -> None:
        """Firmware Image Download (Base 2.0, 5.13): NUMD (0's based) and OFST in dwords, NUMD as long as the data."""
        command = Command.parse(sqe)
        length = (command.dwords[0] + 1) * _DWORD_BYTES
        kind = pdu.SGL.unpack_from(sqe, SGL_OFFSET)[2]
        if kind not in (pdu.SGL_IN_CAPSULE, pdu.SGL_TRANSPORT):
            self._refuse(command, Status.SGL_TYPE_INVALID)
        elif command.in_capsule and command.sgl_address:
            self._refuse(command, Status.SGL_OFFSET_INVALID)
        elif length != command.length or (command.in_capsule and length != len(data)):
            self._refuse(command, Status.SGL_LENGTH_INVALID)
        elif length > self._queue.port.limits.transfer_bytes_max:
            self._refuse(command, Status.INVALID_FIELD)
        elif command.in_capsule:
            self._queue.busy.add(command.cid)
            self._take(command, bytes(data), 0)
        else:
            self.await_data(Transfer(command.cid, sqe, length))

    def _take(self, command: Command, data: Buffer, held: int) -> None:
        offset = command.dwords[1] * _DWORD_BYTES
        owner = self._controller.association
        self._update.download(owner, offset, data, lambda status: self._answer(command.cid, status, held))

    def _commit(self, command: Command) -> None:
        """Firmware Commit (Base 2.0, 5.12): slot in bits 2:0 of CDW10, action in 5:3."""
        self._queue.busy.add(command.cid)
        slot, action = command.dwords[0] & 7, command.dwords[0] >> 3 & 7
        owner = self._controller.association
        self._update.commit(owner, slot, action, lambda status: self._answer(command.cid, status, 0))

    def _refuse(self, command: Command, status: Status) -> None:
        self._queue.complete(command.cid, status, dnr=True)

    def _answer(self, cid: int, status: Status, held: int) -> None:
        again = (Status.SUCCESS, Status.COMMAND_INTERRUPTED, Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET)
        self._queue.complete(cid, status, dnr=status not in (*again, Status.TRANSIENT_TRANSPORT_ERROR))
        self.release(held)
        self._queue.poke()
