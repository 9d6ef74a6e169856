"""Hosts of an exported volume without sockets: both queues of each, byte by byte."""

from uuid import UUID

from kit import host
from kit.export import VOLUME_ID, MemoryVolume
from kit.target import Answer, Wire

from head_node.export.nvme.server import NvmeServer, Offer
from head_node.export.nvme.subsystem import ANY_HOST, NSID, Access, Exported
from head_node.volume.interface import ServedVolume
from sled_controller.environment import Environment
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.target import TargetQueue
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import CC_ENABLE, SQE, AdminOpcode, Property, uuid_nqn

SIZE_BYTES = 1 << 20


class ExportRig:
    """A head that exports one volume to anybody, and serves it at first."""

    def __init__(self, volume: ServedVolume | None = None, head_number: int = 1) -> None:
        self.volume = volume or MemoryVolume(SIZE_BYTES)
        self.server = NvmeServer(Environment(host.FixedClock(), host.FixedEntropy()), serial="RIG")
        exported = Exported(VOLUME_ID, "vol", self.volume.size_bytes, frozenset({ANY_HOST}))
        self.server.update([Offer(exported, (("127.0.0.1", 4420),))], head_number, {})
        self.server.set_access(VOLUME_ID, Access.OPTIMIZED, self.volume)

    def host(self, host_id: bytes) -> "ExportHost":
        """A host with an admin queue and an I/O queue."""
        return ExportHost(self.server, host_id)


class ExportWire(Wire):
    """One connection of a host."""

    def __init__(self, server: NvmeServer) -> None:
        self.server = server
        self.digests = 0
        self.queue = TargetQueue(server, server.env.clock.boottime_ns())
        self.mac = None
        self.count = 0
        self._cid = 0
        self.send(pdu.ic_req(0))
        self.receive()

    def send(self, *parts: Buffer) -> None:
        self.queue.feed(b"".join(parts), self.server.now_ms(), self.server.env.clock.boottime_ns())


class ExportHost:
    """Its queues, and commands on them. A command answered later is among `io.answers()` or `admin.answers()`."""

    def __init__(self, server: NvmeServer, host_id: bytes, volume: UUID = VOLUME_ID) -> None:
        nqn = uuid_nqn(volume)
        self.admin = ExportWire(server)
        answer = self.admin.connect(nqn=nqn, host_id=host_id)
        assert answer.status == 0, hex(answer.status)
        self.controller_id = answer.dw0
        assert self.admin.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
        self.io = ExportWire(server)
        assert self.io.connect(1, self.controller_id, nqn=nqn, host_id=host_id).status == 0

    def start(self, opcode: int, *dwords: int, data: bytes = b"", room: int = 0, nsid: int = NSID) -> int:
        """Begin an I/O command; its CID."""
        return self.io.start(command(opcode, dwords, nsid), data, room)

    def ask(self, opcode: int, *dwords: int, data: bytes = b"", room: int = 0, nsid: int = NSID) -> Answer:
        """An I/O command whose answer is there at once."""
        return self.io.ask(command(opcode, dwords, nsid), data, room)

    def manage(self, opcode: AdminOpcode, *dwords: int, room: int = 0, nsid: int = NSID) -> Answer:
        """An admin command whose answer is there at once."""
        return self.admin.ask(command(opcode, dwords, nsid), room=room)


def command(opcode: int, dwords: tuple[int, ...], nsid: int) -> bytearray:
    """A standard SQE with CDW10 and so on."""
    padded = dwords + (0,) * (6 - len(dwords))
    return bytearray(SQE.pack(opcode, pdu.PSDT_SGL, 0, nsid, 0, 0, 0, bytes(16), *padded))
