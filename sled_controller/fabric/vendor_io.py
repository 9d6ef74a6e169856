"""The credentialed I/O of one queue: MAC, fence decision, device, completion.

The common write (in-capsule data, no digests, no FUA) runs in one loop over the receive buffer without an object or
a call back per command; everything else takes `command`. Admission and submission happen in the same call that saw
the last data byte (F1).
"""

import logging
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from sled_controller.association import Association, refusal_of
from sled_controller.attach import Slot
from sled_controller.fabric import pdu
from sled_controller.fabric.io_path import IoPath, Transfer
from sled_controller.fabric.port import QueueLimits
from sled_controller.fabric.receive_buffer import ReceiveBuffer
from sled_controller.fencing import RIGHT_READ, RIGHT_WRITE, Verdict, decide
from sled_controller.served import Served
from sled_controller.session import QueueMac
from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer
from spdk_bindings.nvme import CONTROL_FUA, Status, VendorIo, cqe_status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

LIMITS: Final = QueueLimits(
    in_capsule_bytes_max=16 * 1024,
    transfer_bytes_max=1024 * 1024,
    entries_max=128,
    held_bytes_max=4 * 1024 * 1024,
)
IN_CAPSULE_BYTES_MAX: Final = LIMITS.in_capsule_bytes_max
TRANSFER_BYTES_MAX: Final = LIMITS.transfer_bytes_max

RIGHTS: Final[dict[int, int]] = {
    VendorIo.WRITE: RIGHT_WRITE,
    VendorIo.READ: RIGHT_READ,
    VendorIo.FLUSH: RIGHT_READ | RIGHT_WRITE,
    VendorIo.WRITE_ZEROES: RIGHT_WRITE,
    VendorIo.DEALLOCATE: RIGHT_WRITE,
}

_VENDOR_BIT: Final = 0x80
_WRITE: Final = int(VendorIo.WRITE)
_PSDT: Final = pdu.PSDT_SGL
_IN_CAPSULE: Final = pdu.SGL_IN_CAPSULE
_HEADER: Final = pdu.CAPSULE_CMD_BYTES
_MAC_AT: Final = pdu.COMMON_BYTES + pdu.MAC_OFFSET
_DATA_SHIFT: Final = 12
# A CapsuleCmd whose common header reads as this number has no digests and its data right behind the SQE.
_PLAIN_CAPSULE: Final = pdu.PduType.CAPSULE_CMD | _HEADER << 16 | _HEADER << 24
_HOT: Final = Struct("<IIBBHIHHIQQI3xBQ16s")
_REPLY: Final = Struct("<16sHHHH")
_REPLY_OPENING: Final = (
    pdu.COMMON.pack(pdu.PduType.CAPSULE_RESP, 0, pdu.CAPSULE_RESP_BYTES, 0, pdu.CAPSULE_RESP_BYTES) + bytes(8)
)  # fmt: skip
assert _HOT.size == pdu.CAPSULE_CMD_BYTES

log = logging.getLogger(__name__)


class Ticket:
    """A command that a device has not completed. Made once per queue entry, used again and again."""

    __slots__ = ("buffer", "bytes_held", "callback", "cid", "data", "io", "opcode", "served", "slot")

    def __init__(self, io: "VendorIoPath") -> None:
        self.io = io
        self.callback: Callable[[int], None] = self._done
        self.cid = 0
        self.opcode = 0
        self.bytes_held = 0
        self.slot: Slot | None = None
        self.served: Served | None = None
        self.buffer: ReceiveBuffer | None = None  # pinned receive memory
        self.data: Buffer | None = None  # memory of its own

    def _done(self, status: int) -> None:
        self.io.completed(self, status)


class SignedTransfer(Transfer):
    """A write whose data comes by R2T. It keeps the slot that its number meant when the command arrived (F3)."""

    __slots__ = ("count", "slot")

    def __init__(self, cid: int, count: int, slot: Slot | None, sqe: bytes, total: int) -> None:
        super().__init__(cid, sqe, total)
        self.count = count
        self.slot = slot


class VendorIoPath(IoPath):
    """The credentialed commands of one I/O queue. `count` is the nonce of the next MAC'd command; it only rises.

    `standard` answers the commands that carry no MAC.
    """

    def __init__(
        self, queue: "TargetQueue", association: Association, entries: int,
        standard: Callable[["TargetQueue", bytes], None],
    ) -> None:  # fmt: skip
        super().__init__(queue)
        self._standard = standard
        self._association = association
        self._counters = association.subsystem.counters
        self._served = association.subsystem.served
        self._mac: QueueMac | None = None
        self.count = 0
        self._out_of_range_noted = False
        self.tickets = [Ticket(self) for _ in range(entries)]

    @property
    def mac(self) -> QueueMac | None:
        """The queue's MAC once there is a session."""
        if self._mac is None and self._association.keys is not None:
            self._mac = self._association.keys.queue_mac(self._queue.queue_id)
        return self._mac

    # --- the hot path

    def run(self, buffer: ReceiveBuffer, pos: int, end: int, now_ms: int) -> int:
        """Carry out plain writes from `pos`."""
        mac = self.mac
        if mac is None:
            return pos
        queue = self._queue
        busy, sqhd, sqhd_end = queue.busy, queue.sqhd, queue.sqhd_end
        view = buffer.view
        unpack, pack, open_tag, decision = _HOT.unpack_from, _REPLY.pack, mac.opener, decide
        slots, served_of, tickets = self._association.slots, self._served.get, self.tickets
        count, no_mac, opening, slot_count = self.count, pdu.NO_MAC, _REPLY_OPENING, len(slots)
        out = bytearray()
        missed = 0
        while end - pos >= _HEADER:
            (
                common, plen, opcode, flags, cid, nsid, number, nlb, control, zero, address, length, kind, slba, tag
            ) = unpack(view, pos)  # fmt: skip
            size = (nlb + 1) << _DATA_SHIFT
            stop: int = pos + plen
            if (
                common != _PLAIN_CAPSULE or opcode != _WRITE or stop > end or plen != size + _HEADER
                or length != size or control or zero or address or flags != _PSDT or kind != _IN_CAPSULE
                or size > IN_CAPSULE_BYTES_MAX or number >= slot_count or not tickets or (busy and cid in busy)
            ):  # fmt: skip
                break
            at = pos + _MAC_AT
            view[at : at + 16] = no_mac
            try:
                open_tag(count.to_bytes(12, "big"), tag, view[pos + 8 : stop])
            except InvalidTag:
                good = False
            else:
                good = True
            count += 1
            sqhd += 1
            if sqhd == sqhd_end:
                sqhd = 0
            if not good:
                self._hot_leave(out, count, sqhd, missed + 1)
                self._bad_mac(cid)
                return stop
            slot = slots[number]
            served = served_of(nsid)
            if served is None:
                missed += 1
                queue.note_failure(cid, _INVALID_NAMESPACE, nsid, slba)
                out += pack(opening, sqhd, 0, cid, _INVALID_NAMESPACE)
            elif decision(slot, slot.fence, served.volume, 2, now_ms):
                self._hot_leave(out, count, sqhd, missed + 1)
                out, missed = bytearray(), 0
                self._refuse(cid, decision(slot, slot.fence, served.volume, 2, now_ms), slot, nsid, slba)
            elif slba + nlb >= served.blocks:
                missed += 1
                self._note_out_of_range(nsid, slba, nlb + 1)
                queue.note_failure(cid, _OUT_OF_RANGE, nsid, slba)
                out += pack(opening, sqhd, 0, cid, _OUT_OF_RANGE)
            else:
                ticket = tickets[-1]
                status = served.write(served.first_lba + slba, view[pos + _HEADER : stop], False, ticket.callback)
                if not status:
                    out += pack(opening, sqhd, 0, cid, 0)
                elif status == PENDING:
                    tickets.pop()
                    buffer.pins += 1
                    self._own(ticket, cid, opcode, slot, served, buffer, None, 0)
                else:
                    self._counters.device_errors += 1
                    queue.note_failure(cid, cqe_status(status), nsid, slba)
                    out += pack(opening, sqhd, 0, cid, cqe_status(status))
            pos = stop
        self._hot_leave(out, count, sqhd, missed)
        return pos

    def _hot_leave(self, out: bytearray, count: int, sqhd: int, missed: int) -> None:
        self._counters.admitted += count - self.count - missed
        self.count = count
        self._queue.sqhd = sqhd
        if out:
            self._queue.out.append(out)

    # --- everything else

    def command(self, sqe: bytes, data: Buffer, digest_bad: bool, buffer: ReceiveBuffer) -> None:
        """A vendor command with its in-capsule data, which lies in `buffer`."""
        opcode, flags, cid, nsid, number, nlb, _, _, address, length, kind, slba, tag = pdu.VENDOR_SQE.unpack(sqe)
        if not opcode & _VENDOR_BIT:
            if digest_bad:
                self._queue.complete(cid, Status.TRANSIENT_TRANSPORT_ERROR)
            else:
                self._standard(self._queue, sqe)
            return
        mac = self.mac
        if mac is None:
            self._counters.denied += 1
            self._queue.complete(cid, Status.SESSION_REQUIRED, nsid=nsid, lba=slba)
            return
        count = self.count
        self.count = count + 1
        slots = self._association.slots
        slot = slots[number] if number < len(slots) else None
        if opcode == _WRITE and kind == pdu.SGL_TRANSPORT and not data:
            self._await_write(SignedTransfer(cid, count, slot, sqe, length), (nlb + 1) * BLOCK_BYTES)
            return
        if digest_bad:
            self._queue.complete(cid, Status.TRANSIENT_TRANSPORT_ERROR)
            return
        if not mac.check_parts(count, tag, (sqe[: pdu.MAC_OFFSET] + pdu.NO_MAC, data)):
            self._bad_mac(cid)
            return
        if flags != _PSDT or (data and (kind != _IN_CAPSULE or address or length != len(data))):
            self._queue.complete(cid, Status.SGL_LENGTH_INVALID, dnr=True)
            return
        self._run(sqe, slot, data, buffer, 0)

    def _run(self, sqe: bytes, slot: Slot | None, data: Buffer, buffer: ReceiveBuffer | None, held: int) -> None:
        """Decide, and submit in the same turn (F1). `held` bytes of `data` are this command's own memory."""
        opcode, _, cid, nsid, _, nlb, control, zero, _, length, _, slba, _ = pdu.VENDOR_SQE.unpack(sqe)
        right = RIGHTS.get(opcode)
        served = self._served.get(nsid)
        status: int = Status.SUCCESS
        if right is None:
            status = Status.INVALID_OPCODE
        elif zero or control & ~CONTROL_FUA:
            status = Status.INVALID_FIELD
        elif served is None:
            status = Status.INVALID_NAMESPACE
        if status or right is None or served is None:
            self.release(held)
            self._queue.complete(cid, status, dnr=True, nsid=nsid, lba=slba)
            return
        verdict = (
            Verdict.NOT_ATTACHED if slot is None
            else decide(slot, slot.fence, served.volume, right, self._queue.now_ms)
        )  # fmt: skip
        if verdict:
            self.release(held)
            self._refuse(cid, verdict, slot, nsid, slba)
            return
        size = (nlb + 1) * BLOCK_BYTES
        status = self._check_range(opcode, served, slba, nlb + 1, size, length, len(data))
        if status == Status.LBA_OUT_OF_RANGE:
            self._note_out_of_range(nsid, slba, nlb + 1)
        if status or slot is None:
            self.release(held)
            self._queue.complete(cid, status, dnr=True, nsid=nsid, lba=slba)
            return
        self._counters.admitted += 1
        if opcode == VendorIo.READ:
            held, data = size, served.allocate(size)
            self.held_bytes += size
        self._submit(opcode, cid, slot, served, slba, nlb + 1, bool(control & CONTROL_FUA), data, buffer, held)

    def _note_out_of_range(self, nsid: int, slba: int, blocks: int) -> None:
        """Count it; the first of a queue is worth a log line, a head that does this once does it often."""
        self._counters.out_of_range += 1
        if not self._out_of_range_noted:
            self._out_of_range_noted = True
            log.warning(
                "event=out_of_range controller=%d nsid=%d slba=%d blocks=%d",
                self._association.controller_id, nsid, slba, blocks,
            )  # fmt: skip

    @staticmethod
    def _check_range(opcode: int, served: Served, slba: int, blocks: int, size: int, length: int, given: int) -> int:
        if opcode == VendorIo.FLUSH:
            return Status.SGL_LENGTH_INVALID if given else Status.SUCCESS
        if slba + blocks > served.blocks:
            return Status.LBA_OUT_OF_RANGE
        if opcode in (VendorIo.READ, VendorIo.WRITE):
            if size > TRANSFER_BYTES_MAX:
                return Status.INVALID_FIELD
            if length != size or given != (size if opcode == VendorIo.WRITE else 0):
                return Status.SGL_LENGTH_INVALID
        return Status.SUCCESS

    def _submit(
        self, opcode: int, cid: int, slot: Slot, served: Served, slba: int, blocks: int, fua: bool, data: Buffer,
        buffer: ReceiveBuffer | None, held: int,
    ) -> None:  # fmt: skip
        device, lba = served.device, served.first_lba + slba
        ticket = self.tickets[-1]
        done = ticket.callback
        if opcode == _WRITE:
            status = device.write(lba, data, fua, done)
        elif opcode == VendorIo.READ:
            assert isinstance(data, bytearray | memoryview)
            status = device.read(lba, data, done)
        elif opcode == VendorIo.FLUSH:
            status = device.flush(done)
        elif opcode == VendorIo.WRITE_ZEROES:
            status = device.write_zeroes(lba, blocks, fua, done)
        else:
            status = device.deallocate(lba, blocks, done)
        if status == PENDING:
            self.tickets.pop()
            if buffer is not None and opcode == _WRITE:
                buffer.pins += 1
            else:
                buffer = None
            self._own(ticket, cid, opcode, slot, served, buffer, data if held else None, held)
            return
        self._complete(opcode, cid, served, status, data, held)

    def _own(
        self, ticket: Ticket, cid: int, opcode: int, slot: Slot, served: Served, buffer: ReceiveBuffer | None,
        data: Buffer | None, held: int,
    ) -> None:  # fmt: skip
        ticket.cid, ticket.opcode, ticket.slot, ticket.served = cid, opcode, slot, served
        ticket.buffer, ticket.data, ticket.bytes_held = buffer, data, held
        slot.enter(served.device_index)
        served.in_flight += 1
        self._queue.busy.add(cid)

    def completed(self, ticket: Ticket, status: int) -> None:
        """A device has completed a command: its memory is free again, and a drain may go on."""
        slot, served, buffer, data, held = ticket.slot, ticket.served, ticket.buffer, ticket.data, ticket.bytes_held
        assert slot is not None, "a device completes a command once"
        assert served is not None
        ticket.slot = ticket.served = ticket.buffer = ticket.data = None
        ticket.bytes_held = 0
        self.tickets.append(ticket)
        if buffer is not None:
            self._queue.stream.unpin(buffer)
        self._complete(ticket.opcode, ticket.cid, served, status, data if data is not None else b"", held)
        served.leave()
        slot.leave(served.device_index)
        self._queue.poke()

    def _complete(self, opcode: int, cid: int, served: Served, status: int, data: Buffer, held: int) -> None:
        self.release(held)
        if status:
            self._counters.device_errors += 1
            self._queue.complete(cid, status, nsid=served.namespace.nsid)
        elif opcode == VendorIo.READ:
            self._queue.complete(cid, Status.SUCCESS, data=data)
        else:
            self._queue.complete(cid, Status.SUCCESS)

    def _refuse(self, cid: int, verdict: Verdict, slot: Slot | None, nsid: int, slba: int) -> None:
        self._association.note_refusal(verdict, slot)
        status, dw0, dw1 = refusal_of(verdict, None if slot is None else slot.fence)
        self._queue.complete(cid, status, dw0, dw1, nsid=nsid, lba=slba)

    def _bad_mac(self, cid: int) -> None:
        self._counters.bad_macs += 1
        self._queue.complete(cid, Status.BAD_MAC)
        self._association.end("a MAC did not verify")

    # --- data by R2T

    def _await_write(self, transfer: SignedTransfer, size: int) -> None:
        if transfer.total != size or size > TRANSFER_BYTES_MAX:
            # Its MAC covers data that will not come, so nothing about it can be believed: refuse without effect.
            self._queue.complete(transfer.cid, Status.SGL_LENGTH_INVALID, dnr=True)
            return
        self.await_data(transfer)

    def arrived(self, transfer: Transfer) -> None:
        mac = self.mac
        assert mac is not None
        assert isinstance(transfer, SignedTransfer)
        if transfer.digest_bad:
            self.release(transfer.total)
            self._queue.complete(transfer.cid, Status.TRANSIENT_TRANSPORT_ERROR)
            return
        tag = transfer.sqe[pdu.MAC_OFFSET :]
        signed = transfer.sqe[: pdu.MAC_OFFSET] + pdu.NO_MAC
        if not mac.check_parts(transfer.count, tag, (signed, transfer.data)):
            self._bad_mac(transfer.cid)
            return
        self._queue.busy.discard(transfer.cid)
        self._run(transfer.sqe, transfer.slot, transfer.data, None, transfer.total)


_INVALID_NAMESPACE: Final = cqe_status(Status.INVALID_NAMESPACE, do_not_retry=True)
_OUT_OF_RANGE: Final = cqe_status(Status.LBA_OUT_OF_RANGE, do_not_retry=True)
