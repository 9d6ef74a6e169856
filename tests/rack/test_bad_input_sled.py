"""A sled process that strangers and liars talk to, while an honest head goes on with its volume."""

import random
import socket
import struct
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from kit import host, real_sled
from kit.real_sled import RealSled, SocketHead, SocketWire, now_ms

from sled_controller.credential import Credential, Rights
from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.pdu import FatalError, PduType
from sled_controller.session import HELLO_BYTES, HeadHandshake
from spdk_bindings.nvme import AdminOpcode, Status, VendorIo, sgl_in_capsule, sgl_transport

OWN, OTHER, VICTIM = (UUID(int=number) for number in (101, 102, 103))
BLOCK = 4096


@pytest.fixture(scope="module")
def sled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSled]:
    with real_sled.running(tmp_path_factory.mktemp("sled")) as sled:
        yield sled


class Bystander:
    """A head on its own connections that writes and reads back; its association must outlive everything here."""

    def __init__(self, sled: RealSled) -> None:
        self.head = SocketHead(sled, host.HEAD_KEY)  # type: ignore[arg-type]
        self.head.attach(1, 1, volume=VICTIM)
        self.head.nsid = self.head.create()
        self.round = 0

    def check(self) -> None:
        self.round += 1
        data = bytes([self.round % 251]) * (2 * BLOCK)
        assert self.head.write(self.round % 32, data).status == 0
        answer = self.head.read(self.round % 32, 2)
        assert (answer.status, answer.data) == (0, data)


@pytest.fixture(scope="module")
def bystander(sled: RealSled) -> Bystander:
    return Bystander(sled)


@pytest.fixture(autouse=True)
def nobody_else_is_hurt(sled: RealSled, bystander: Bystander) -> Iterator[None]:
    bystander.check()
    lines = len(sled.log().splitlines())
    yield
    bystander.check()
    assert sled.process.poll() is None
    assert len(sled.log().splitlines()) > lines, "what was refused is in the log"
    assert "Traceback" not in sled.log()
    sled.close_heads()


def attached(sled: RealSled, epoch: int, key: int = host.OTHER_HEAD_KEY, volume: UUID = OWN) -> SocketHead:
    head = sled.head(key)
    head.attach(epoch, 1, volume=volume)
    head.nsid = head.create()
    return head


def common(kind: int, hlen: int, pdo: int, plen: int, flags: int = 0) -> bytes:
    return pdu.COMMON.pack(kind, flags, hlen, pdo, plen) + bytes(max(0, min(plen, 4096) - 8))


BROKEN: dict[str, tuple[bool, bytes, FatalError]] = {
    "garbage": (False, b"\xff" * 4096, FatalError.INVALID_HEADER_FIELD),
    "http": (False, b"GET / HTTP/1.1\r\nHost: sled\r\n\r\n", FatalError.INVALID_HEADER_FIELD),
    "zeroes": (False, bytes(65536), FatalError.INVALID_HEADER_FIELD),
    "other version": (False, pdu.IC_REQ.pack(0, 0, 128, 0, 128, 9, 0, 0, 0), FatalError.UNSUPPORTED_PARAMETER),
    "command before ICReq": (False, common(4, 72, 0, 72), FatalError.PDU_SEQUENCE),
    "second ICReq": (True, pdu.ic_req(0), FatalError.PDU_SEQUENCE),
    "a PDU of 4 GiB": (True, common(4, 72, 72, 0xFFFFFFFC), FatalError.LIMIT_EXCEEDED),
    "more data than fits": (True, common(4, 72, 72, 72 + 9000), FatalError.LIMIT_EXCEEDED),
    "shorter than its header": (True, common(4, 72, 0, 8), FatalError.INVALID_HEADER_FIELD),
    "data inside the header": (True, common(4, 72, 8, 4096), FatalError.INVALID_HEADER_FIELD),
    "a PDU of the sled": (True, common(7, 24, 0, 24), FatalError.PDU_SEQUENCE),
    "data nobody asked for": (True, common(6, 24, 24, 4120), FatalError.PDU_SEQUENCE),
    "reserved flags": (True, common(4, 72, 0, 72, flags=0xF0), FatalError.INVALID_HEADER_FIELD),
    "digest not agreed": (True, common(4, 72, 0, 72, flags=1), FatalError.INVALID_HEADER_FIELD),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_pdu_is_answered_with_a_termination_and_counted(sled: RealSled, what: str) -> None:
    after_ic, data, expected = BROKEN[what]
    before = sled.counters()["protocol_errors"]
    wire = sled.connection() if after_ic else sled.wire()
    wire.send(data)
    (end,) = wire.receive()
    assert end.kind == PduType.C2H_TERM_REQ
    assert FatalError(pdu.parse_term_req(end.header)[0]) is expected
    assert wire.gone()
    assert sled.counters()["protocol_errors"] == before + 1


def test_random_bytes_at_every_stage_end_one_connection_only(sled: RealSled, bystander: Bystander) -> None:
    chance = random.Random(7)
    for number in range(60):
        wire = (sled.wire, sled.connection)[number % 2]()
        if number % 4 == 3:
            assert wire.connect().status == 0
        wire.send(chance.randbytes(chance.choice((1, 7, 8, 71, 72, 500, 20000))))
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.gone()
    bystander.check()


@pytest.mark.parametrize(("digest", "at"), [(pdu.HEADER_DIGEST, 72), (pdu.HEADER_DIGEST, 9)])
def test_a_wrong_header_digest_ends_the_connection(sled: RealSled, digest: int, at: int) -> None:
    wire = sled.connection(digest)
    broken = bytearray(b"".join(pdu.capsule_cmd(vendor.keep_alive(), (), digest)))
    broken[at] ^= 1
    wire.send(broken)
    assert pdu.parse_term_req(wire.receive()[0].header)[0] == FatalError.HEADER_DIGEST


def test_a_wrong_data_digest_fails_the_command_and_nothing_is_written(sled: RealSled) -> None:
    head = sled.head(host.OTHER_HEAD_KEY, pdu.DATA_DIGEST)
    head.attach(3, 1, volume=OWN)
    head.nsid = head.create()
    sqe, data = head.sqe(VendorIo.WRITE, 5), b"\x11" * BLOCK
    sqe[2:4] = (9).to_bytes(2, "little")
    sqe[24:40] = sgl_in_capsule(BLOCK)
    head.io.sign(sqe, data)
    frame = bytearray(b"".join(bytes(part) for part in pdu.capsule_cmd(sqe, (data,), pdu.DATA_DIGEST)))
    frame[-1] ^= 0x80
    head.io.send(frame)
    (answer,) = head.io.answers()
    assert answer.status == Status.TRANSIENT_TRANSPORT_ERROR
    assert head.read(5).data == bytes(BLOCK)
    lower = head.try_attach(2, 1, volume=OWN)
    assert (lower.status, lower.epoch) == (Status.FENCED_OFF, 3)


def test_no_command_reaches_a_volume_without_a_session(sled: RealSled, bystander: Bystander) -> None:
    admin = sled.connection()
    controller = admin.connect().dw0
    assert admin.ask(vendor.property_set(0x14, 1), signed=False).status == 0  # type: ignore[arg-type]
    io = sled.connection()
    assert io.connect(1, controller).status == 0
    for opcode in VendorIo:
        sqe = vendor.vendor_sqe(opcode, nsid=bystander.head.nsid, slot=bystander.head.slot)
        data = b"\x66" * BLOCK if opcode == VendorIo.WRITE else b""
        assert io.ask(sqe, data, room=BLOCK, signed=False).status == Status.SESSION_REQUIRED
    for opcode in (0x01, 0x02, 0x08, 0x09):
        assert io.ask(vendor.vendor_sqe(opcode, nsid=bystander.head.nsid), signed=False).status == Status.ACCESS_DENIED
    admin.send(b"\0" * 8)
    assert admin.gone()


def _tampered(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def _credential(**changed: object) -> bytes:
    fields: dict[str, object] = {
        "key_id": 7, "volume": OTHER, "head_key": host.public_key(host.OTHER_HEAD_KEY), "epoch": 9,
        "rights": Rights.READ | Rights.WRITE | Rights.MANAGE, "issued_ms": now_ms() - 1000,
        "expires_ms": now_ms() + 600_000, "serial": 1, "blocks": 64, "namespaces": 4, "sleds": (host.SLED,),
    }  # fmt: skip
    signer = changed.pop("signer", host.AUTHORITY)
    assert isinstance(signer, int)
    return Credential(**{**fields, **changed}).sign(host.private_key(signer))  # type: ignore[arg-type]


FORGED: dict[str, tuple[Callable[[], bytes], int, int]] = {
    "signed by the head itself": (lambda: _credential(signer=host.OTHER_HEAD_KEY), Status.REFUSED, 17),
    "signed by the root key": (lambda: _credential(signer=host.ROOT), Status.REFUSED, 17),
    "of an unknown key": (lambda: _credential(key_id=8), Status.REFUSED, 17),
    "of another head": (lambda: _credential(head_key=host.public_key(host.HEAD_KEY)), Status.REFUSED, 18),
    "expired": (
        lambda: _credential(issued_ms=now_ms() - 900_000, expires_ms=now_ms() - 300_000), Status.CREDENTIAL_EXPIRED, 0,
    ),
    "short": (lambda: _credential()[:-1], Status.REFUSED, 16),
    "long": (lambda: _credential() + b"\0", Status.REFUSED, 16),
    "of zeroes": (lambda: bytes(560), Status.REFUSED, 16),
    "with a bit of its epoch flipped": (lambda: _tampered(_credential(), 60), Status.REFUSED, 17),
    "with a bit of its signature flipped": (lambda: _tampered(_credential(), 520), Status.REFUSED, 17),
    "with a bit of its magic flipped": (lambda: _tampered(_credential(), 0), Status.REFUSED, 16),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_a_credential_that_proves_nothing_is_refused(sled: RealSled, what: str) -> None:
    make, status, code = FORGED[what]
    head = sled.head(host.OTHER_HEAD_KEY)
    answer = head.try_attach(9, 1, raw=make())
    assert answer.status == status
    if status == Status.REFUSED:
        assert answer.dw0 == code
    assert "event=refused" in sled.log().splitlines()[-1]
    sqe = vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=0, slba=16)
    assert head.admin.ask(sqe).status == Status.NOT_ATTACHED


def test_every_flipped_bit_of_a_credential_is_noticed(sled: RealSled) -> None:
    raw = _credential()
    head = sled.head(host.OTHER_HEAD_KEY)
    for at in range(0, len(raw), 3):
        answer = head.try_attach(9, 1, raw=_tampered(raw, at))
        assert answer.status == Status.REFUSED, at


def test_the_volume_of_another_credential_is_out_of_reach(sled: RealSled, bystander: Bystander) -> None:
    liar = attached(sled, 40)
    liar.nsid = bystander.head.nsid
    for answer in (liar.write(0, b"\x99" * BLOCK), liar.read(0), liar.io.ask(liar.sqe(VendorIo.DEALLOCATE))):
        assert (answer.status, answer.dw0) == (Status.REFUSED, 4)
    assert sled.log().count("event=command_refused") == 1, "one line, however many commands"
    delete = vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=liar.slot, nsid=bystander.head.nsid)
    assert liar.admin.ask(delete).status == Status.REFUSED
    liar.admin.ask(vendor.vendor_sqe(AdminOpcode.DETACH, slot=liar.slot))
    lower = liar.try_attach(39, 1, volume=OWN)
    assert lower.status == Status.FENCED_OFF


def test_an_equal_epoch_of_another_holder_is_refused(sled: RealSled, bystander: Bystander) -> None:
    liar = sled.head(host.OTHER_HEAD_KEY)
    answer = liar.try_attach(1, 99, volume=VICTIM)
    assert (answer.status, answer.dw0) == (Status.REFUSED, 19)


def test_rights_that_are_not_given_are_refused(sled: RealSled) -> None:
    attached(sled, 50)
    reader = sled.head(host.OTHER_HEAD_KEY)
    reader.attach(50, 2, raw=_credential(volume=OWN, epoch=50, rights=Rights.READ))
    reader.nsid = 1 if not sled.heads else sled.heads[0].nsid
    assert reader.read(0).status == 0
    assert (reader.write(0, bytes(BLOCK)).status, reader.admin.ask(
        vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=reader.slot, nlb=7, slba=16)
    ).status) == (Status.REFUSED, Status.REFUSED)  # fmt: skip
    assert sled.heads[0].write(0, bytes(BLOCK)).status == Status.SUPERSEDED


@pytest.mark.parametrize("where", ["mac", "lba", "data", "nsid"])
def test_a_flipped_bit_of_a_write_ends_the_association_and_writes_nothing(sled: RealSled, where: str) -> None:
    head = attached(sled, {"mac": 60, "lba": 61, "data": 62, "nsid": 63}[where])
    assert head.write(3, b"\x01" * BLOCK).status == 0
    before = sled.counters()["bad_macs"]
    sqe, data = head.sqe(VendorIo.WRITE, 3), bytearray(b"\x02" * BLOCK)
    sqe[2:4] = (77).to_bytes(2, "little")
    sqe[24:40] = sgl_in_capsule(BLOCK)
    head.io.sign(sqe, bytes(data))
    if where == "data":
        data[100] ^= 1
    else:
        sqe[{"mac": 48, "lba": 40, "nsid": 4}[where]] ^= 1
    head.io.send(*pdu.capsule_cmd(sqe, (data,)))
    (answer,) = head.io.answers()
    assert answer.status == Status.BAD_MAC
    assert head.io.gone()
    assert head.admin.gone()  # type: ignore[attr-defined]
    assert sled.counters()["bad_macs"] == before + 1
    again = sled.head(host.OTHER_HEAD_KEY)
    again.attach({"mac": 60, "lba": 61, "data": 62, "nsid": 63}[where], 2, volume=OWN)
    again.nsid = head.nsid
    assert again.read(3).data == b"\x01" * BLOCK


@pytest.mark.parametrize("repeat", ["the last", "an older"])
def test_a_replayed_write_ends_the_association(sled: RealSled, repeat: str) -> None:
    head = attached(sled, 70 if repeat == "the last" else 71)
    frames = []
    for version in (1, 2, 3):
        sqe, data = head.sqe(VendorIo.WRITE, 8), bytes([version]) * BLOCK
        sqe[2:4] = version.to_bytes(2, "little")
        sqe[24:40] = sgl_in_capsule(BLOCK)
        head.io.sign(sqe, data)
        frames.append(b"".join(bytes(part) for part in pdu.capsule_cmd(sqe, (data,))))
        head.io.send(frames[-1])
        assert head.io.answers()[0].status == 0
    head.io.send(frames[2 if repeat == "the last" else 0])
    assert head.io.answers()[0].status == Status.BAD_MAC
    assert head.io.gone()


def test_a_write_of_another_session_is_refused(sled: RealSled) -> None:
    first = attached(sled, 80)
    sqe, data = first.sqe(VendorIo.WRITE, 1), b"\x05" * BLOCK
    sqe[24:40] = sgl_in_capsule(BLOCK)
    first.io.sign(sqe, data)
    second = attached(sled, 81)
    second.io.send(*pdu.capsule_cmd(sqe, (data,)))
    assert second.io.answers()[0].status == Status.BAD_MAC


def test_a_reply_to_another_hello_opens_no_session(sled: RealSled) -> None:
    first, second = sled.connection(), sled.connection()
    replies = []
    for wire in (first, second):
        controller = wire.connect().dw0
        assert wire.ask(vendor.property_set(0x14, 1), signed=False).status == 0  # type: ignore[arg-type]
        hello = wire.ask(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), room=HELLO_BYTES, signed=False).data
        handshake = HeadHandshake(
            host.private_key(host.HEAD_KEY), host.SLED, host.public_key(host.SLED_KEY), host.NQN, controller, sled.env
        )
        replies.append(handshake.reply(hello))
    answer = second.ask(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), replies[0], signed=False)
    assert (answer.status, answer.dw0) == (Status.REFUSED, 21)


def test_writes_out_of_range_are_refused_and_change_nothing(sled: RealSled) -> None:
    head = attached(sled, 90)
    for lba, blocks in ((512, 1), (511, 2), (2**64 - 1, 1), (2**63, 2)):
        assert head.write(lba, b"\x07" * (blocks * BLOCK)).status == Status.LBA_OUT_OF_RANGE, lba
        assert head.read(lba, blocks).status == Status.LBA_OUT_OF_RANGE
    zeroes = head.io.ask(head.sqe(VendorIo.WRITE_ZEROES, 1, 65536))
    assert zeroes.status == Status.LBA_OUT_OF_RANGE
    assert head.read(511).data == bytes(BLOCK)
    head.nsid += 1000
    assert head.write(0, bytes(BLOCK)).status == Status.INVALID_NAMESPACE
    lower = head.try_attach(89, 1, volume=OWN)
    assert lower.status == Status.FENCED_OFF


@pytest.mark.parametrize(("field", "value", "fes"), [
    ("ttag", 999, FatalError.INVALID_HEADER_FIELD), ("cid", 999, FatalError.INVALID_HEADER_FIELD),
    ("offset", BLOCK, FatalError.DATA_OUT_OF_RANGE), ("length", 5 * 8 * BLOCK, FatalError.LIMIT_EXCEEDED),
])  # fmt: skip
def test_data_that_does_not_fit_its_r2t_ends_the_connection(
    sled: RealSled, field: str, value: int, fes: FatalError
) -> None:
    head = attached(sled, {"ttag": 100, "cid": 101, "offset": 102, "length": 103}[field])
    data = b"\x0a" * (8 * BLOCK)
    sent = head.start_long_write(0, data)
    ((cid, ttag, _),) = head.io.r2ts()
    assert cid == sent
    fields = {"cid": cid, "ttag": ttag, "offset": 0, "length": len(data), field: value}
    head.io.send(*pdu.h2c_data(fields["cid"], fields["ttag"], fields["offset"], (bytes(fields["length"]),), True))
    end = head.io.receive()[-1]
    assert end.kind == PduType.C2H_TERM_REQ
    assert pdu.parse_term_req(end.header)[0] in (fes, FatalError.DATA_OUT_OF_RANGE, FatalError.INVALID_HEADER_FIELD)
    assert head.io.gone()


def test_a_transfer_length_that_lies_takes_no_memory(sled: RealSled) -> None:
    head = attached(sled, 110)
    before = sled.resident_mib()
    for length in (0xFFFFFFFF, 2 << 20, 0):
        sqe = head.sqe(VendorIo.WRITE, 0, 256)
        cid = head.io.next_cid()
        sqe[2:4] = cid.to_bytes(2, "little")
        sqe[24:40] = sgl_transport(length)
        head.io.sign(sqe, b"")
        head.io.send(*pdu.capsule_cmd(sqe, ()))
        assert head.io.answers()[0].status == Status.SGL_LENGTH_INVALID
    assert sled.resident_mib() < before + 8
    lower = head.try_attach(109, 1, volume=OWN)
    assert lower.status == Status.FENCED_OFF


def test_strangers_cannot_keep_heads_out(sled: RealSled) -> None:
    strangers = [SocketWire(sled.port) for _ in range(200)]
    for stranger in strangers:
        stranger.send(b"\0" * 4)
    head = attached(sled, 120)
    assert head.write(0, bytes(BLOCK)).status == 0
    assert sled.resident_mib() < 128
    for stranger in strangers:
        stranger.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stranger.socket.close()
