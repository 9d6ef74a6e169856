"""The credentialed admin commands of one association: the session, and what carries a MAC under its keys."""

from typing import TYPE_CHECKING, Final

from sled_controller.association import AdminFields, Association
from sled_controller.fabric import pdu
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import AdminOpcode, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

_COSTLY: Final = frozenset(
    {
        AdminOpcode.SESSION_SEND,
        AdminOpcode.ATTACH,
        AdminOpcode.KEYSET_UPDATE,
        AdminOpcode.RETIRE,
        AdminOpcode.TIME_STATEMENT,
    }
)
"""What checks a signature; a hello, which makes one, is made once for each SESSION_SEND."""


class VendorAdmin:
    """One per association, as its admin queue is connected once: `_count` is the nonce of the next MAC, it only
    rises."""

    def __init__(self, association: Association) -> None:
        self._association = association
        self._count = 0

    def command(self, queue: "TargetQueue", sqe: bytes, data: Buffer, digest_bad: bool) -> None:
        """A vendor admin command with its in-capsule data."""
        association = self._association
        opcode, _, cid, nsid, number, nlb, _, _, _, length, _, slba, tag = pdu.VENDOR_SQE.unpack(sqe)
        unsigned = opcode in (AdminOpcode.SESSION_RECEIVE, AdminOpcode.SESSION_SEND)
        if not unsigned and association.keys is None:
            queue.complete(cid, Status.SESSION_REQUIRED)
            return
        count = self._count
        self._count += not unsigned
        if digest_bad:
            queue.complete(cid, Status.TRANSIENT_TRANSPORT_ERROR)
            return
        queue.busy.add(cid)

        def reply(status: int, dw0: int, dw1: int, answer: bytes) -> None:
            queue.complete(cid, status, dw0, dw1, answer[:length], dnr=status != Status.SUCCESS)
            queue.poke()

        if opcode in _COSTLY or (opcode == AdminOpcode.SESSION_RECEIVE and not association.greeted):
            queue.note_step()
        if opcode == AdminOpcode.SESSION_RECEIVE:
            association.session_receive(reply)
        elif opcode == AdminOpcode.SESSION_SEND:
            association.session_send(bytes(data), reply)
        elif association.keys is None or not association.keys.queue_mac(0).check_parts(
            count, tag, (sqe[: pdu.MAC_OFFSET] + pdu.NO_MAC, data)
        ):
            association.subsystem.counters.bad_macs += 1
            queue.complete(cid, Status.BAD_MAC)
            association.end("a MAC did not verify")
        else:
            association.execute(opcode, AdminFields(nsid, number, nlb, slba), bytes(data), reply)
