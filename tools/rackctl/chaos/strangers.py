"""What strangers send to the ports of a node: reads full of commands that cost them nothing, and the node something."""

from typing import Final

from head_node.export import nbd_protocol as nbd
from rackctl.chaos.flood import Target
from rackctl.state import Node, NodeKind
from sled_controller.fabric import pdu, vendor
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, DISCOVERY_NQN, AdminOpcode, FabricsType

COMMANDS: Final = 600
"""Of one kind, sent at a time."""
HOST_NQN: Final = b"nqn.2014-08.org.nvmexpress:any"


def targets(node: Node, subsystem_nqn: str = "") -> list[Target]:
    """Every port of a node. A sled's NQN is needed to get past its Connect."""
    keep_alive = bytearray(64)
    keep_alive[:2] = AdminOpcode.KEEP_ALIVE, pdu.PSDT_SGL
    if node.kind is NodeKind.AUTHORITY:
        asked = b"GET /v1/volumes HTTP/1.1\r\nHost: x\r\n\r\n" * 50
        return [Target(node.host, node.ports["api"], asked, asked)]
    if node.kind is NodeKind.SLED:
        handshakes = capsules(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), COMMANDS, 160)
        bad_replies = capsules(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), COMMANDS, data=bytes(144))
        said = hello(subsystem_nqn)
        return [
            Target(node.host, node.ports["nvme"], said, commands)
            for commands in (capsules(keep_alive, COMMANDS), handshakes, handshakes + bad_replies)
        ]
    options = nbd.option_request(nbd.Option.STRUCTURED_REPLY) * 500
    return [
        Target(node.host, node.ports["nvme"], hello(DISCOVERY_NQN), capsules(keep_alive, COMMANDS)),
        Target(node.host, node.ports["nbd"], nbd.CLIENT_HELLO.pack(3), options),
        Target(node.host, node.ports["peer"], b"P", bytes(4096)),
        Target(node.host, node.ports["api"], b"GET ", b"/metrics HTTP/1.1\r\n\r\nGET "),
    ]


def hello(nqn: str) -> bytes:
    """ICReq and Connect, as anybody can send them."""
    data = pdu.CONNECT_DATA.pack(bytes(16), CONTROLLER_ID_DYNAMIC, nqn.encode(), HOST_NQN)
    connect = pdu.CONNECT_SQE.pack(
        AdminOpcode.FABRICS,
        pdu.PSDT_SGL,
        0,
        FabricsType.CONNECT,
        0,
        len(data),
        pdu.SGL_IN_CAPSULE,
        0,
        0,
        127,
        0,
        60_000,
    )
    return bytes(pdu.ic_req(0)) + b"".join(map(bytes, pdu.capsule_cmd(bytearray(connect), (data,))))


def capsules(sqe: bytearray, count: int, length: int = 0, data: bytes = b"") -> bytes:
    """So many of one command, which reads `length` bytes or brings `data`."""
    if length:
        sqe[24:40] = pdu.SGL.pack(0, length, pdu.SGL_TRANSPORT)
    if data:
        sqe[24:40] = pdu.SGL.pack(0, len(data), pdu.SGL_IN_CAPSULE)
    made = []
    for number in range(count):
        sqe[2:4] = (1 + number % 60).to_bytes(2, "little")
        made.append(b"".join(map(bytes, pdu.capsule_cmd(bytearray(sqe), (data,) if data else ()))))
    return b"".join(made)
