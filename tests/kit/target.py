"""The target without sockets: a sled over drives that a test may hold up, and hosts that may say anything."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from kit import host

from sled_controller.environment import Environment
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.pdu import PduType
from sled_controller.fabric.port import Port
from sled_controller.fabric.target import TargetQueue
from sled_controller.receipt import RECEIPT_BYTES, Receipt
from sled_controller.session import HELLO_BYTES, HeadHandshake, SessionKeys
from sled_controller.storage.sled_storage import SledStorage
from sled_controller.subsystem import Identity, Subsystem
from spdk_bindings.device import PENDING, Buffer, Done
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    AdminOpcode,
    FabricsType,
    Property,
    Status,
    VendorIo,
    sgl_in_capsule,
    sgl_transport,
)

BLOCK = 4096
BLOCKS = 512
HOST_NQN = b"nqn.2014-08.org.nvmexpress:uuid:host"


class HeldDevice(MemoryDevice):
    """A drive whose data commands a test holds: they take effect, and read their buffers, only at `release`."""

    def __init__(self, block_count: int = 16384, serial: str = "HELD") -> None:
        super().__init__(block_count, serial)
        self.holding = False
        self.holding_table = False
        self.reset_status: int | None = Status.SUCCESS  # None: a reset never ends
        self.resets = 0
        self.flushes = 0
        self.held: list[tuple[Callable[[], int], Done]] = []

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        held = self.holding_table if fua else self.holding
        return self._later(lambda: super(HeldDevice, self).write(lba, data, fua, done), done, held)

    def flush(self, done: Done) -> int:
        self.flushes += 1
        return self._later(lambda: super(HeldDevice, self).flush(done), done, self.holding)

    def reset(self, done: Done) -> int:
        self.resets += 1
        if self.reset_status is None:
            return PENDING
        held, self.held = self.held, []
        for _, waiting in held:
            waiting(Status.ABORT_REQUESTED)
        return self.reset_status

    def release(self) -> None:
        """Let everything held take effect, in order, and complete."""
        held, self.held = self.held, []
        for apply, done in held:
            done(apply())

    def _later(self, apply: Callable[[], int], done: Done, held: bool) -> int:
        if not held:
            return apply()
        self.held.append((apply, done))
        return PENDING


@dataclass
class ManualTimers:
    """`call_later` that a test runs."""

    waiting: list["ManualTimer"] = field(default_factory=list)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> "ManualTimer":
        timer = ManualTimer(delay_s, call)
        self.waiting.append(timer)
        return timer

    def fire(self) -> None:
        """Call what waits now and was not cancelled."""
        waiting, self.waiting = self.waiting, []
        for timer in waiting:
            if not timer.cancelled:
                timer.call()


@dataclass
class ManualTimer:
    """One of them."""

    delay_s: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A sled over `devices`, without loop and sockets."""

    def __init__(self, *devices: HeldDevice, clock: host.FixedClock | None = None) -> None:
        self.clock = clock or host.FixedClock()
        self.env = Environment(self.clock, host.FixedEntropy(b"rig"))
        self.devices = devices or (HeldDevice(),)
        self.timers = ManualTimers()
        opening = SledStorage.open(self.devices, sled_id=host.SLED, env=self.env, format=True)
        self.storage = asyncio.run(opening)
        identity = Identity(host.SLED, host.private_key(host.SLED_KEY), host.public_key(host.ROOT))
        self.subsystem = Subsystem(identity, self.storage, self.env, self.timers.call_later)

    @property
    def device(self) -> HeldDevice:
        return self.devices[0]

    @property
    def port(self) -> Subsystem:
        return self.subsystem

    def connection(self, digests: int = 0, hpda: int = 0) -> "Wire":
        """A connection after ICReq and ICResp."""
        wire = Wire(self, digests)
        wire.send(pdu.ic_req(digests, hpda=hpda))
        assert wire.receive()[0].kind == PduType.IC_RESP
        return wire

    def stranger(self) -> "Stranger":
        """A standard host: both queues, and no session."""
        return Stranger(self)

    def head(self, key: int = host.HEAD_KEY, digests: int = 0) -> "Head":
        """An association with a live session and the current key set."""
        return Head(self, key, digests)

    def attached(self, epoch: int = 5, number: int = 1, key: int = host.HEAD_KEY, digests: int = 0) -> "Head":
        """A head that has the volume attached and its namespace made, as `slot` and `nsid`."""
        head = self.head(key, digests)
        head.attach(epoch, number)
        head.nsid = head.create()
        return head


@dataclass(frozen=True)
class Pdu:
    """A PDU from the target."""

    kind: int
    header: bytes
    data: bytes


@dataclass(frozen=True)
class Answer:
    """A completion and the data before it."""

    cid: int
    status: int
    dnr: bool
    dw0: int
    dw1: int
    sqhd: int
    data: bytes = b""

    @property
    def epoch(self) -> int:
        return self.dw0 | self.dw1 << 32


class Listening(Protocol):
    """What a connection is made to: a sled, or whatever else listens on a port."""

    clock: host.FixedClock

    @property
    def port(self) -> Port:
        """What the target asks for subsystems."""


class Wire:
    """One connection to the target, byte by byte."""

    def __init__(self, rig: Listening, digests: int = 0) -> None:
        self.rig = rig
        self.digests = digests
        self.queue = TargetQueue(rig.port, rig.clock.boottime_ns())
        self.mac: Any = None
        self.count = 0
        self._cid = 0

    def send(self, *parts: Buffer) -> None:
        """Let the target receive `parts`."""
        self.queue.feed(b"".join(parts), self.rig.port.now_ms(), self.rig.clock.boottime_ns())

    def receive(self) -> list[Pdu]:
        """All PDUs that the target has to send, their digests checked."""
        stream = b"".join(self.queue.take_output())
        pdus = []
        while stream:
            kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(stream)
            whole, stream = stream[:plen], stream[plen:]
            assert len(whole) == plen
            end = plen
            if flags & pdu.PduFlag.HDGST:
                assert whole[hlen : hlen + 4] == pdu.digest(whole[:hlen])
            if flags & pdu.PduFlag.DDGST:
                end -= 4
                assert whole[end:] == pdu.digest(whole[pdo:end])
            data = whole[hlen:] if kind == PduType.C2H_TERM_REQ else whole[pdo:end] if pdo else b""
            pdus.append(Pdu(kind, whole[:hlen], data))
        return pdus

    def answers(self) -> list[Answer]:
        """The completions among what the target sends, each with its data."""
        data: dict[int, bytes] = {}
        found = []
        for each in self.receive():
            if each.kind == PduType.C2H_DATA:
                cid = pdu.C2H_DATA.unpack(each.header)[5]
                data[cid] = data.get(cid, b"") + each.data
                if each.header[1] & pdu.SUCCESS_FLAG:
                    found.append(Answer(cid, 0, False, 0, 0, 0, data.pop(cid)))
            elif each.kind == PduType.CAPSULE_RESP:
                dw0, dw1, sqhd, _, cid, status = pdu.CQE.unpack(each.header[8:])
                value = status >> 1
                found.append(Answer(cid, value & 0x7FF, bool(value >> 14), dw0, dw1, sqhd, data.pop(cid, b"")))
        return found

    def sign(self, sqe: bytearray, data: bytes = b"", count: int | None = None) -> bytearray:
        """Give a vendor command the queue's next MAC, or that of `count`."""
        if count is None:
            count, self.count = self.count, self.count + 1
        sqe[pdu.MAC_OFFSET :] = bytes(16)
        key = self.mac
        sqe[pdu.MAC_OFFSET :] = key._gcm.encrypt(count.to_bytes(12, "big"), b"", bytes(sqe) + data)
        return sqe

    def next_cid(self) -> int:
        self._cid = self._cid % 60000 + 1
        return self._cid

    def start(self, sqe: bytearray, data: bytes = b"", room: int = 0, signed: bool = True) -> int:
        """Send a command with in-capsule `data` or with `room` for an answer; its CID."""
        cid = self.next_cid()
        sqe[2:4] = cid.to_bytes(2, "little")
        if data:
            sqe[24:40] = sgl_in_capsule(len(data))
        elif room:
            sqe[24:40] = sgl_transport(room)
        if signed and self.mac is not None:
            self.sign(sqe, data)
        self.send(*pdu.capsule_cmd(sqe, (data,) if data else (), self.digests))
        return cid

    def ask(self, sqe: bytearray, data: bytes = b"", room: int = 0, signed: bool = True) -> Answer:
        """Send a command and take its answer, which has to be there at once and alone."""
        cid = self.start(sqe, data, room, signed)
        (answer,) = self.answers()
        assert answer.cid == cid
        return answer

    def connect(self, queue_id: int = 0, controller_id: int = CONTROLLER_ID_DYNAMIC, **fields: Any) -> Answer:
        """Connect with the given fields replaced."""
        data = pdu.CONNECT_DATA.pack(
            fields.get("host_id", bytes(16)), controller_id, fields.get("nqn", host.NQN).encode(),
            fields.get("host_nqn", HOST_NQN),
        )  # fmt: skip
        sqe = pdu.CONNECT_SQE.pack(
            AdminOpcode.FABRICS, pdu.PSDT_SGL, 0, FabricsType.CONNECT, 0, 1024, pdu.SGL_IN_CAPSULE,
            fields.get("recfmt", 0), queue_id, fields.get("sqsize", 127), fields.get("cattr", 0),
            fields.get("kato_ms", 0),
        )  # fmt: skip
        return self.ask(bytearray(sqe), fields.get("data", data), signed=False)

    def r2ts(self) -> list[tuple[int, int, int]]:
        """(cid, ttag, length) of the R2Ts that the target sends."""
        found = []
        for each in self.receive():
            assert each.kind == PduType.R2T, PduType(each.kind).name
            fields = pdu.R2T.unpack(each.header)
            found.append((fields[5], fields[6], fields[8]))
        return found

    def termination(self) -> tuple[int, int]:
        """(FES, FEI) of the C2HTermReq that the target sends last."""
        last = self.receive()[-1]
        assert last.kind == PduType.C2H_TERM_REQ, PduType(last.kind).name
        return pdu.parse_term_req(last.header)


class Stranger:
    """Both queues of an association without a session."""

    def __init__(self, rig: Rig, digests: int = 0) -> None:
        self.rig = rig
        self.admin = rig.connection(digests)
        self.controller_id = self.admin.connect().dw0
        assert self.admin.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
        self.io = rig.connection(digests)
        assert self.io.connect(1, self.controller_id).status == 0


class Head(Stranger):
    """Both queues of an association, and its session."""

    def __init__(self, rig: Rig, key: int, digests: int = 0) -> None:
        super().__init__(rig, digests)
        self.key = key
        self.slot = self.nsid = 0
        self.keys: SessionKeys = self._open(rig)
        update = self.admin.ask(
            vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), host.key_set().sign(host.private_key(host.ROOT))
        )
        assert update.status == 0

    def _open(self, rig: Rig) -> SessionKeys:
        handshake = HeadHandshake(
            host.private_key(self.key), host.SLED, host.public_key(host.SLED_KEY), host.NQN, self.controller_id, rig.env
        )
        hello = self.admin.ask(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), room=HELLO_BYTES)
        assert self.admin.ask(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), handshake.reply(hello.data)).status == 0
        self.admin.mac, self.io.mac = handshake.keys.queue_mac(0), handshake.keys.queue_mac(1)
        return handshake.keys

    def start_attach(self, epoch: int, number: int, **fields: Any) -> int:
        raw = host.signed(epoch=epoch, head=fields.pop("head", self.key), **fields)
        return self.admin.start(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=number), raw)

    def try_attach(self, epoch: int, number: int, **fields: Any) -> Answer:
        self.start_attach(epoch, number, **fields)
        (answer,) = self.admin.answers()
        return answer

    def attach(self, epoch: int = 5, number: int = 1, **fields: Any) -> None:
        """ATTACH that succeeds; `slot` is the new one."""
        answer = self.try_attach(epoch, number, **fields)
        assert answer.status == 0, hex(answer.status)
        self.slot = answer.dw0

    def receipt(self) -> Receipt:
        answer = self.admin.ask(vendor.vendor_sqe(AdminOpcode.RECEIPT, slot=self.slot), room=RECEIPT_BYTES)
        assert answer.status == 0, hex(answer.status)
        return Receipt.decode(answer.data, self.keys)

    def create(self, column: int = 0, blocks: int = BLOCKS) -> int:
        sqe = vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=self.slot, nlb=column, slba=blocks)
        answer = self.admin.ask(sqe)
        assert answer.status == 0, hex(answer.status)
        return answer.dw0

    def sqe(self, opcode: int, lba: int = 0, blocks: int = 1, control: int = 0) -> bytearray:
        return vendor.vendor_sqe(
            opcode, nsid=self.nsid, slot=self.slot, nlb=blocks - 1, control=control, slba=lba
        )  # fmt: skip

    def write(self, lba: int, data: bytes, control: int = 0) -> Answer:
        return self.io.ask(self.sqe(VendorIo.WRITE, lba, len(data) // BLOCK, control), data)

    def start_write(self, lba: int, data: bytes) -> int:
        return self.io.start(self.sqe(VendorIo.WRITE, lba, len(data) // BLOCK), data)

    def start_long_write(self, lba: int, data: bytes) -> int:
        """A write whose data goes by R2T."""
        sqe = self.sqe(VendorIo.WRITE, lba, len(data) // BLOCK)
        cid = self.io.next_cid()
        sqe[2:4] = cid.to_bytes(2, "little")
        sqe[24:40] = sgl_transport(len(data))
        self.io.sign(sqe, data)
        self.io.send(*pdu.capsule_cmd(sqe, (), self.io.digests))
        return cid

    def send_data(self, cid: int, ttag: int, data: bytes, offset: int = 0, last: bool = True) -> None:
        self.io.send(*pdu.h2c_data(cid, ttag, offset, (data,), last, self.io.digests))

    def read(self, lba: int, blocks: int = 1) -> Answer:
        return self.io.ask(self.sqe(VendorIo.READ, lba, blocks), room=blocks * BLOCK)


def other_volume(number: int) -> UUID:
    """A volume that is not `host.VOLUME`."""
    return UUID(int=number)
