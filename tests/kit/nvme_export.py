"""A head's NVMe/TCP port without sockets, over a volume in memory, and hosts that may say anything."""

from typing import Any

from kit import host
from kit.export import VOLUME_ID, MemoryVolume
from kit.target import HOST_NQN, Answer, Wire

from head_node.export.nvme.guard import UNGUARDED, Guard
from head_node.export.nvme.server import NvmeServer, Offer
from head_node.export.nvme.subsystem import Access, Exported, VolumeSubsystem
from head_node.volume.interface import ServedVolume
from sled_controller.environment import Environment
from sled_controller.fabric import pdu, vendor
from spdk_bindings.nvme import CC_ENABLE, SGL_FLAGS, SQE, AdminOpcode, Feature, Property, uuid_nqn

BLOCK = 4096
NQN = uuid_nqn(VOLUME_ID)
OTHER_HOST = b"nqn.2014-08.org.nvmexpress:uuid:other"
ADDRESSES = (("10.0.0.1", 4420), ("10.0.0.2", 4420))


class Port:
    """Head number `number` of a rack, serving a volume of `blocks` unless told otherwise."""

    def __init__(self, blocks: int = 1024, number: int = 2, served: ServedVolume | None = None) -> None:
        self.clock = host.FixedClock()
        self.volume = MemoryVolume(blocks * BLOCK)
        self.served = served or self.volume
        self.server = NvmeServer(Environment(self.clock, host.FixedEntropy(b"port")), serial="HEAD")
        self.number = number
        self.guard = UNGUARDED
        self.admit("*")
        self.become(Access.OPTIMIZED)

    @property
    def port(self) -> NvmeServer:
        return self.server

    @property
    def subsystem(self) -> VolumeSubsystem:
        return self.server.subsystems[VOLUME_ID]

    def admit(self, *hosts: str) -> None:
        """The record lists these hosts."""
        exported = Exported(VOLUME_ID, "vol", self.served.size_bytes, frozenset(hosts))
        self.hosts = hosts
        self.server.update([Offer(exported, ADDRESSES)], self.number, {VOLUME_ID: self.guard})

    def protect(self, guard: Guard) -> None:
        """The view brings these secrets."""
        self.guard = guard
        self.admit(*self.hosts)

    def become(self, access: Access) -> None:
        """What the head is to the volume now."""
        self.server.set_access(VOLUME_ID, access, self.served if access is Access.OPTIMIZED else None)

    def connection(self, digests: int = 0, hpda: int = 0) -> Wire:
        """A connection after ICReq and ICResp."""
        wire = Wire(self, digests)
        wire.send(pdu.ic_req(digests, hpda=hpda))
        assert wire.receive()[0].kind == pdu.PduType.IC_RESP
        return wire


class Host:
    """A host with an enabled controller and one I/O queue."""

    def __init__(
        self, port: Port, digests: int = 0, host_nqn: bytes = HOST_NQN, kato_ms: int = 0, host_id: bytes = bytes(16),
        hpda: int = 0, cattr: int = 0,
    ) -> None:  # fmt: skip
        self.port = port
        self.host_nqn = host_nqn
        self.host_id = host_id
        self.admin = port.connection(digests)
        connected = self.admin.connect(nqn=NQN, host_nqn=host_nqn, host_id=host_id, kato_ms=kato_ms)
        assert connected.status == 0, hex(connected.status)
        self.controller_id = connected.dw0
        assert self.admin.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
        self.io = self.queue(1, digests, hpda, cattr)

    def queue(self, queue_id: int, digests: int = 0, hpda: int = 0, cattr: int = 0) -> Wire:
        """One more I/O queue."""
        wire = self.port.connection(digests, hpda)
        connected = wire.connect(
            queue_id, self.controller_id, nqn=NQN, host_nqn=self.host_nqn, host_id=self.host_id, cattr=cattr
        )
        assert connected.status == 0, hex(connected.status)
        return wire

    def ask(self, opcode: int, data: bytes = b"", room: int = 0, nsid: int = 1, **dwords: int) -> Answer:
        """An I/O command and its answer."""
        return self.io.ask(sqe(opcode, nsid, **dwords), data, room)

    def start(self, opcode: int, data: bytes = b"", room: int = 0, nsid: int = 1, **dwords: int) -> int:
        """An I/O command whose answer is not waited for; its CID."""
        return self.io.start(sqe(opcode, nsid, **dwords), data, room)

    def write(self, slba: int, data: bytes, flags: int = 0) -> Answer:
        return self.ask(0x01, data, **at(slba, len(data) // BLOCK, flags))

    def read(self, slba: int, blocks: int) -> Answer:
        return self.ask(0x02, room=blocks * BLOCK, **at(slba, blocks))

    def start_read(self, slba: int, blocks: int = 1) -> int:
        """A read whose answer is not waited for; its CID."""
        return self.start(0x02, room=blocks * BLOCK, **at(slba, blocks))

    def start_write(self, slba: int, data: bytes) -> int:
        return self.start(0x01, data, **at(slba, len(data) // BLOCK))

    def offer_write(self, slba: int, length: int) -> int:
        """A write whose data waits for an R2T; its CID."""
        return self.start(0x01, room=length, **at(slba, length // BLOCK))

    def send_data(self, cid: int, ttag: int, data: bytes, offset: int = 0, last: bool = True) -> None:
        """What an R2T asked for."""
        self.io.send(*pdu.h2c_data(cid, ttag, offset, (data,), last, self.io.digests))

    def admin_ask(self, opcode: int, room: int = 0, nsid: int = 0, **dwords: int) -> Answer:
        """An admin command and its answer."""
        return self.admin.ask(sqe(opcode, nsid, **dwords), room=room)

    def log(self, page: int, length: int, flags: int = 0) -> Answer:
        return self.admin_ask(AdminOpcode.GET_LOG_PAGE, length, cdw10=page | flags | (length // 4 - 1) << 16)

    def identify(self, cns: int, nsid: int = 0, **dwords: int) -> Answer:
        return self.admin_ask(AdminOpcode.IDENTIFY, 4096, nsid, cdw10=cns, **dwords)

    def watch(self, bit: int, requests: int = 1) -> None:
        """Ask for the event of that bit of feature 0Bh, and hold requests out for it."""
        config = self.admin_ask(AdminOpcode.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION, cdw11=1 << bit)
        assert config.status == 0
        for _ in range(requests):
            self.admin.start(sqe(AdminOpcode.ASYNC_EVENT_REQUEST, 0))
        assert self.admin.answers() == []


def sqe(opcode: int, nsid: int, **dwords: Any) -> bytearray:
    """A standard SQE without CID and SGL."""
    values = [dwords.get(f"cdw{number}", 0) for number in range(10, 16)]
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), *values))


def at(slba: int, blocks: int, flags: int = 0) -> dict[str, int]:
    """CDW10 to CDW12 of a command to a range of blocks."""
    return {"cdw10": slba & 0xFFFF_FFFF, "cdw11": slba >> 32, "cdw12": (blocks - 1) | flags}
