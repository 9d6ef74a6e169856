"""The Connect command: which association a connection becomes a queue of, or why it is refused.

NVM Express Base 2.0, 6.3. The DW0 of a refusal is the offset of the field, bit 16 set when it is in the data.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sled_controller.fabric import pdu
from sled_controller.fabric.associations import HostAssociation
from sled_controller.fabric.port import (
    CONTROLLER_ID_FIELD,
    QUEUE_ID_FIELD,
    SQ_SIZE_FIELD,
    SUBSYSTEM_NQN_FIELD,
    ConnectRefused,
    ConnectRequest,
    NvmSubsystem,
)
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, AdminOpcode, FabricsType, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

CONNECTS_REFUSED_MAX: Final = 16
"""Of one connection, which ends then: whatever looks for a controller id dials again and again."""
_WRONG_CONTROLLER: Final = ConnectRefused(Status.CONNECT_INVALID_PARAMETERS, CONTROLLER_ID_FIELD)
_FABRICS: Final = int(AdminOpcode.FABRICS)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The queue that a connection is from now on."""

    association: HostAssociation
    queue_id: int
    entries: int
    flow_control: bool


def connect(queue: "TargetQueue", sqe: bytes, data: Buffer, digest_bad: bool) -> Admitted | ConnectRefused:
    """Take the first command of a connection."""
    if digest_bad:
        return ConnectRefused(Status.TRANSIENT_TRANSPORT_ERROR, do_not_retry=False)
    if sqe[0] != _FABRICS or sqe[4] != FabricsType.CONNECT:
        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)
    if len(data) != pdu.CONNECT_DATA_BYTES:
        return ConnectRefused(Status.SGL_LENGTH_INVALID)
    _, _, _, _, _, _, _, recfmt, queue_id, sqsize, attributes, kato_ms = pdu.CONNECT_SQE.unpack(sqe)
    host_id, controller_id, subsystem_nqn, host_nqn = pdu.CONNECT_DATA.unpack(data)
    subsystem = queue.port.subsystem_of(subsystem_nqn.rstrip(b"\0").decode("utf-8", "replace"))
    if recfmt:
        return ConnectRefused(Status.CONNECT_INCOMPATIBLE_FORMAT)
    if not 1 <= sqsize < queue.port.limits.entries_max:
        return ConnectRefused(Status.CONNECT_INVALID_PARAMETERS, SQ_SIZE_FIELD)
    if subsystem is None:
        # Linux gives a path up for good when it is told not to try again.
        return ConnectRefused(Status.CONNECT_INVALID_PARAMETERS, SUBSYSTEM_NQN_FIELD, do_not_retry=queue.port.settled)
    request = ConnectRequest(host_nqn, host_id, kato_ms)
    if queue_id:
        association = _io_queue(queue, subsystem, request, queue_id, controller_id)
    elif controller_id != CONTROLLER_ID_DYNAMIC:
        association = _WRONG_CONTROLLER
    elif kato_ms > queue.port.kato_ms_max:
        association = ConnectRefused(Status.KEEP_ALIVE_INVALID)
    else:
        association = subsystem.open(queue, request)
    if isinstance(association, ConnectRefused):
        return association
    return Admitted(association, queue_id, sqsize + 1, not attributes & pdu.NO_FLOW_CONTROL)


def _io_queue(
    queue: "TargetQueue", subsystem: NvmSubsystem, request: ConnectRequest, queue_id: int, controller_id: int
) -> HostAssociation | ConnectRefused:
    association = subsystem.hosts.get(controller_id)
    if association is None or (association.host_nqn, association.host_id) != (request.host_nqn, request.host_id):
        return _WRONG_CONTROLLER
    if not association.authenticates and association.queues[0].peer_host != queue.peer_host:
        return _WRONG_CONTROLLER  # names are all that such a host has, and names travel in the clear
    if queue_id in association.queues:
        return ConnectRefused(Status.COMMAND_SEQUENCE_ERROR)  # the one that exists stays
    if not association.authenticates and association.refuses_queue():
        return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
    if queue_id > association.controller.io_queues_max or not association.controller.enabled:
        return ConnectRefused(Status.CONNECT_INVALID_PARAMETERS, QUEUE_ID_FIELD)
    return association
