"""One connection of the target: what it does with good bytes, and that bad ones end nothing but themselves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import host
from kit.target import BLOCK, Head, Rig, Wire

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.pdu import Digest, FatalError, PduType
from sled_controller.fabric.receive_buffer import RECEIVE_BYTES
from sled_controller.fabric.target import HANDSHAKE_NS, STALL_NS, TRANSITIONS, Event, QueueState
from spdk_bindings.nvme import CONTROL_FUA, AdminOpcode, Status, VendorIo, sgl_in_capsule, sgl_transport

DATA = random.Random(1).randbytes(BLOCK)
BOTH = Digest.HEADER | Digest.DATA


def ended(head: Head) -> bool:
    return head.controller_id not in head.rig.subsystem.hosts


def test_every_state_can_be_left_and_only_closing_leads_from_failure() -> None:
    for state in QueueState:
        if state is not QueueState.CLOSED:
            assert TRANSITIONS[state, Event.LOST] is QueueState.CLOSED
    assert {after for (_, event), after in TRANSITIONS.items() if event is Event.FAILED} == {QueueState.CLOSING}


@pytest.mark.parametrize("digests", [0, Digest.HEADER, Digest.DATA, BOTH])
def test_data_goes_in_capsules_by_r2t_and_back_with_every_digest(digests: int) -> None:
    head = Rig().attached(digests=digests)
    assert head.write(1, DATA).status == 0
    cid = head.start_long_write(2, DATA * 32)
    ((same, ttag, length),) = head.io.r2ts()
    assert (same, length) == (cid, 32 * BLOCK)
    head.send_data(cid, ttag, DATA * 16, last=False)
    head.send_data(cid, ttag, DATA * 16, offset=16 * BLOCK)
    (answer,) = head.io.answers()
    assert answer.status == 0
    assert head.read(0, 34).data == bytes(BLOCK) + DATA * 33


def test_the_data_of_an_answer_is_aligned_as_the_host_asked() -> None:
    wire = Rig().connection(hpda=7)
    wire.connect()
    identify = vendor.identify_controller()
    identify[24:40] = sgl_transport(4096)
    wire.send(*pdu.capsule_cmd(identify))
    data = wire.queue.take_output()
    assert pdu.COMMON.unpack_from(b"".join(data))[3] == 32


def test_many_writes_in_one_buffer_are_answered_in_order() -> None:
    head = Rig().attached()
    capsules, cids = [], []
    for lba in range(40):
        sqe = head.sqe(VendorIo.WRITE, lba)
        cids.append(lba + 100)
        sqe[2:4] = cids[-1].to_bytes(2, "little")
        sqe[24:40] = sgl_in_capsule(BLOCK)
        head.io.sign(sqe, DATA)
        capsules += pdu.capsule_cmd(sqe, (DATA,))
    head.io.send(*capsules)
    answers = head.io.answers()
    assert [answer.cid for answer in answers] == cids
    assert {answer.status for answer in answers} == {0}
    assert [answer.sqhd for answer in answers] == [(2 + index) % 128 for index in range(40)]
    assert head.read(0, 40).data == DATA * 40


@pytest.mark.parametrize(("control", "digests"), [(0, 0), (CONTROL_FUA, 0), (0, Digest.DATA)])
def test_the_buffer_belongs_to_the_command_until_the_device_completes_it(control: int, digests: int) -> None:
    rig = Rig()
    head = rig.attached(digests=digests)
    rig.device.holding = rig.device.holding_table = True
    blocks = [random.Random(lba).randbytes(BLOCK) for lba in range(120)]
    for lba, block in enumerate(blocks):  # nearly twice the receive buffer, all of it owned by the drive
        head.io.start(head.sqe(VendorIo.WRITE, lba, control=control), block)
    assert len(blocks) * BLOCK > RECEIVE_BYTES
    rig.device.holding = rig.device.holding_table = False
    rig.device.release()
    assert [answer.status for answer in head.io.answers()] == [0] * len(blocks)
    assert head.read(0, 120).data == b"".join(blocks)


def test_more_commands_than_the_queue_has_entries_end_the_association() -> None:
    rig = Rig()
    head = rig.attached()
    rig.device.holding = True
    for lba in range(129):
        head.start_write(lba, DATA)
    assert head.io.termination()[0] == FatalError.LIMIT_EXCEEDED
    assert ended(head)


@pytest.mark.parametrize("long", [False, True])
def test_a_command_id_in_use_ends_the_association(long: bool) -> None:
    rig = Rig()
    head = rig.attached()
    rig.device.holding = True
    cid = head.start_long_write(0, DATA * 8) if long else head.start_write(0, DATA)
    head.io._cid = cid - 1
    head.io.take = head.io.queue.take_output()  # type: ignore[attr-defined]
    head.start_write(1, DATA)
    assert head.io.termination()[0] == FatalError.PDU_SEQUENCE


# --- MACs


def flip(head: Head, at: int) -> None:
    sqe = head.sqe(VendorIo.WRITE)
    sqe[2:4] = (77).to_bytes(2, "little")
    sqe[24:40] = sgl_in_capsule(BLOCK)
    head.io.sign(sqe, DATA)
    capsule = bytearray(b"".join(pdu.capsule_cmd(sqe, (DATA,))))
    capsule[at] ^= 1
    head.io.send(capsule)


@pytest.mark.parametrize("at", [8 + 40, 8 + 48, 8 + 63, 72, 72 + BLOCK - 1, 8 + 8, 8 + 12])
def test_a_flipped_bit_in_command_mac_or_data_ends_the_association_without_effect(at: int) -> None:
    rig = Rig()
    head, bystander = rig.attached(epoch=5), rig.head(host.OTHER_HEAD_KEY)
    flip(head, at)
    (answer,) = head.io.answers()
    assert (answer.status, answer.dnr) == (Status.BAD_MAC, True)
    assert ended(head)
    assert head.io.queue.state is head.admin.queue.state is QueueState.CLOSING
    bystander.attach(6)
    bystander.nsid = head.nsid
    assert bystander.read(0).data == bytes(BLOCK)
    assert rig.subsystem.counters.bad_macs == 1


def test_a_wrong_mac_on_data_by_r2t_ends_the_association_without_effect() -> None:
    rig = Rig()
    head = rig.attached()
    cid = head.start_long_write(0, DATA * 8)
    ((_, ttag, _),) = head.io.r2ts()
    head.send_data(cid, ttag, DATA * 7 + bytes(BLOCK))
    (answer,) = head.io.answers()
    assert answer.status == Status.BAD_MAC
    assert ended(head)
    assert not any(block == DATA for block in rig.device.blocks.values())


def test_a_wrong_mac_on_an_admin_command_ends_the_association() -> None:
    head = Rig().attached()
    detach = vendor.vendor_sqe(AdminOpcode.DETACH, slot=head.slot)
    answer = head.admin.ask(head.admin.sign(detach, count=head.admin.count + 5), signed=False)
    assert answer.status == Status.BAD_MAC
    assert ended(head)


def test_gmac_nonce_never_repeats() -> None:
    """A capsule sent twice is checked under two counts, so the second fails and ends the association."""
    rig = Rig()
    head = rig.attached()
    sqe = head.sqe(VendorIo.WRITE)
    sqe[2:4], sqe[24:40] = (77).to_bytes(2, "little"), sgl_in_capsule(BLOCK)
    head.io.sign(sqe, DATA)
    capsule = b"".join(pdu.capsule_cmd(sqe, (DATA,)))
    head.io.send(capsule)
    (answer,) = head.io.answers()
    assert answer.status == 0
    head.io.send(capsule)
    (answer,) = head.io.answers()
    assert answer.status == Status.BAD_MAC
    assert ended(head)


def test_every_signed_command_takes_a_count_whatever_becomes_of_it() -> None:
    """Refused, failed, out of range, by R2T or cut short: the next command's nonce is never one already spent."""
    rig = Rig()
    head = rig.attached()
    assert head.write(10_000, DATA).status == Status.LBA_OUT_OF_RANGE
    slot, head.slot = head.slot, 9
    assert head.write(0, DATA).status == Status.NOT_ATTACHED
    head.slot, nsid, head.nsid = slot, head.nsid, 99
    assert head.write(0, DATA).status == Status.INVALID_NAMESPACE
    assert head.read(0).status == Status.INVALID_NAMESPACE
    head.nsid = nsid
    sqe = head.sqe(VendorIo.WRITE, blocks=2)
    assert head.io.ask(sqe, DATA).status == Status.SGL_LENGTH_INVALID
    assert head.io.ask(head.sqe(0x99)).status == Status.INVALID_OPCODE
    cid = head.start_long_write(0, DATA * 8)
    ((_, ttag, _),) = head.io.r2ts()
    assert head.write(0, DATA).status == 0
    head.send_data(cid, ttag, DATA * 8)
    (answer,) = head.io.answers()
    assert answer.status == 0
    io = head.io.queue.io
    assert io is not None
    assert io.count == head.io.count == 8


def test_without_a_session_nothing_credentialed_is_done() -> None:
    rig = Rig()
    wire = rig.connection()
    controller = wire.connect().dw0
    for opcode in (AdminOpcode.ATTACH, AdminOpcode.KEYSET_UPDATE, AdminOpcode.NAMESPACE_CREATE, AdminOpcode.RECEIPT):
        assert wire.ask(vendor.vendor_sqe(opcode)).status == Status.SESSION_REQUIRED
    assert controller in rig.subsystem.hosts


# --- digests


def test_a_wrong_header_digest_is_fatal_and_names_what_was_received() -> None:
    head = Rig().attached(digests=BOTH)
    sqe = head.io.sign(head.sqe(VendorIo.FLUSH))
    capsule = bytearray(b"".join(pdu.capsule_cmd(sqe, (), BOTH)))
    capsule[72:76] = (0xDEADBEEF).to_bytes(4, "little")
    head.io.send(capsule)
    assert head.io.termination() == (FatalError.HEADER_DIGEST, 0xDEADBEEF)
    assert ended(head)


def test_a_wrong_data_digest_fails_the_command_only() -> None:
    head = Rig().attached(digests=BOTH)
    sqe = head.sqe(VendorIo.WRITE)
    sqe[2:4], sqe[24:40] = (77).to_bytes(2, "little"), sgl_in_capsule(BLOCK)
    head.io.sign(sqe, DATA)
    capsule = bytearray(b"".join(pdu.capsule_cmd(sqe, (DATA,), BOTH)))
    capsule[-1] ^= 1
    head.io.send(capsule)
    (answer,) = head.io.answers()
    assert (answer.status, answer.dnr) == (Status.TRANSIENT_TRANSPORT_ERROR, False)
    assert head.write(0, DATA).status == 0
    cid = head.start_long_write(0, DATA * 8)
    ((_, ttag, _),) = head.io.r2ts()
    capsule = bytearray(b"".join(pdu.h2c_data(cid, ttag, 0, (DATA * 8,), True, BOTH)))
    capsule[-2] ^= 1
    head.io.send(capsule)
    (answer,) = head.io.answers()
    assert answer.status == Status.TRANSIENT_TRANSPORT_ERROR
    assert head.read(0, 2).data == DATA + bytes(BLOCK)


# --- bad PDUs


@pytest.mark.parametrize(
    ("raw", "fes"),
    [
        (b"GET / HTTP/1.1\r\n", FatalError.INVALID_HEADER_FIELD),
        (bytes(64), FatalError.INVALID_HEADER_FIELD),
        (pdu.capsule_cmd(bytes(64))[0], FatalError.PDU_SEQUENCE),
        (pdu.ic_resp(0, 4096), FatalError.PDU_SEQUENCE),
        (pdu.ic_req(0x10), FatalError.UNSUPPORTED_PARAMETER),
        (pdu.ic_req(0, hpda=32), FatalError.INVALID_HEADER_FIELD),
        (pdu.ic_req(0)[:8] + b"\1\0" + pdu.ic_req(0)[10:], FatalError.UNSUPPORTED_PARAMETER),
    ],
)
def test_a_connection_that_opens_with_something_else_is_terminated(raw: bytes, fes: FatalError) -> None:
    rig = Rig()
    head = rig.attached()
    wire = Wire(rig)
    wire.send(raw)
    assert wire.termination()[0] == fes
    assert wire.queue.state is QueueState.CLOSING
    assert rig.subsystem.counters.protocol_errors == 1
    assert head.write(0, DATA).status == 0


def test_data_pdus_out_of_place_are_terminated_with_their_fes() -> None:
    def send(change: object) -> tuple[int, int]:
        head = Rig().attached()
        cid = head.start_long_write(0, DATA * 8)
        ((_, ttag, _),) = head.io.r2ts()
        assert callable(change)
        head.io.send(*change(cid, ttag))
        assert ended(head)
        return head.io.termination()

    part = (DATA * 4,)
    assert send(lambda c, t: pdu.h2c_data(c, t + 1, 0, part, False)) == (FatalError.INVALID_HEADER_FIELD, 10)
    assert send(lambda c, t: pdu.h2c_data(c + 1, t, 0, part, False)) == (FatalError.INVALID_HEADER_FIELD, 8)
    assert send(lambda c, t: pdu.h2c_data(c, t, 4096, part, False))[0] == FatalError.DATA_OUT_OF_RANGE
    assert send(lambda c, t: pdu.h2c_data(c, t, 0, (DATA * 9,), True))[0] == FatalError.DATA_OUT_OF_RANGE
    assert send(lambda c, t: pdu.h2c_data(c, t, 0, part, True)) == (FatalError.INVALID_HEADER_FIELD, 1)
    assert send(lambda c, t: pdu.h2c_data(c, t, 0, (DATA * 8,), False)) == (FatalError.INVALID_HEADER_FIELD, 1)
    twice = lambda c, t: [*pdu.h2c_data(c, t, 0, part, False)] * 2  # noqa: E731
    assert send(twice)[0] == FatalError.DATA_OUT_OF_RANGE


def test_a_capsule_longer_than_agreed_is_refused_before_it_is_stored() -> None:
    head = Rig().attached()
    head.io.send(pdu.COMMON.pack(PduType.CAPSULE_CMD, 0, 72, 72, 72 + 16 * 1024 + 4))
    assert head.io.termination()[0] == FatalError.LIMIT_EXCEEDED


def test_a_long_write_that_names_too_much_is_refused() -> None:
    head = Rig().attached()
    sqe = head.sqe(VendorIo.WRITE, blocks=257)
    sqe[24:40] = sgl_transport(257 * BLOCK)
    assert head.io.ask(sqe).status == Status.SGL_LENGTH_INVALID


def test_a_lost_queue_ends_the_association() -> None:
    for which in ("admin", "io"):
        head = Rig().attached()
        getattr(head, which).queue.lost("pulled out")
        other = head.io if which == "admin" else head.admin
        assert ended(head)
        assert other.queue.state is QueueState.CLOSING


def test_another_host_cannot_connect_to_somebodys_controller() -> None:
    rig = Rig()
    head = rig.attached()
    wire = rig.connection()
    answer = wire.connect(1, head.controller_id, host_id=b"x" * 16)
    assert answer.status == Status.CONNECT_INVALID_PARAMETERS
    assert not ended(head)


def test_a_drives_error_is_the_commands_status() -> None:
    rig = Rig()
    head = rig.attached()
    served = rig.subsystem.served[head.nsid]
    served.write = lambda lba, data, fua, done: Status.CAPACITY_EXCEEDED
    assert head.write(0, DATA).status == Status.CAPACITY_EXCEEDED
    served.follow()
    assert head.write(0, DATA).status == 0


# --- memory and time


def test_data_awaited_is_bounded_and_goes_on_when_there_is_room() -> None:
    head = Rig().attached()
    mebibyte = DATA * 256
    cids = [head.start_long_write(0, mebibyte) for _ in range(8)]
    granted = head.io.r2ts()
    assert [cid for cid, _, _ in granted] == cids[:4]
    head.send_data(granted[0][0], granted[0][1], mebibyte)
    kinds = [each.kind for each in head.io.receive()]
    assert kinds == [PduType.CAPSULE_RESP, PduType.R2T] or kinds == [PduType.R2T, PduType.CAPSULE_RESP]


def test_a_host_that_does_not_read_stops_being_served() -> None:
    head = Rig().attached()
    sqe_count = 0
    while not head.io.queue.stalled:
        head.io.start(head.sqe(VendorIo.READ, 0, 256), room=256 * BLOCK)
        sqe_count += 1
    assert sqe_count == 5
    head.io.start(head.sqe(VendorIo.FLUSH))
    assert len(head.io.answers()) == 5
    head.io.queue.resume(host.NOW_MS)
    assert len(head.io.answers()) == 1


def test_a_connection_without_connect_in_time_is_overdue() -> None:
    wire = Rig().connection()
    opened = wire.rig.clock.boot_ns
    assert wire.queue.overdue(opened + HANDSHAKE_NS) is None
    assert wire.queue.overdue(opened + HANDSHAKE_NS + 1) is not None


def test_a_pdu_or_transfer_that_does_not_go_on_is_overdue() -> None:
    rig = Rig()
    head = rig.attached()
    late = rig.clock.boot_ns + STALL_NS + 1
    assert head.io.queue.overdue(late) is None
    head.io.send(b"\4\0")
    assert head.io.queue.overdue(late) is not None
    other = rig.attached(epoch=6)
    other.start_long_write(0, DATA * 8)
    assert other.io.queue.overdue(late) is not None


def test_the_keep_alive_timer_counts_from_the_last_word() -> None:
    rig = Rig()
    wire = rig.connection()
    wire.connect(kato_ms=5000)
    start = rig.clock.boot_ns
    assert wire.queue.overdue(start + 5_900_000_000) is None
    assert wire.queue.overdue(start + 6_100_000_000) is not None
    rig.clock.boot_ns += 5_000_000_000
    assert wire.ask(vendor.keep_alive(), signed=False).status == 0
    assert wire.queue.overdue(start + 6_100_000_000) is None


# --- any bytes, in any pieces


def conversation(head: Head) -> bytes:
    """A mixture of commands whose answers do not depend on when their bytes arrive."""
    stream = bytearray()
    for index in range(12):
        cid = 200 + index
        if index % 4 == 3:
            sqe = head.sqe(VendorIo.FLUSH)
            data = b""
        else:
            data = DATA * (1 + index % 3)
            sqe = head.sqe(VendorIo.WRITE, index * 3, 1 + index % 3, control=index % 2)
            sqe[24:40] = sgl_in_capsule(len(data))
        sqe[2:4] = cid.to_bytes(2, "little")
        head.io.sign(sqe, data)
        stream += b"".join(pdu.capsule_cmd(sqe, (data,) if data else (), head.io.digests))
    return bytes(stream)


@settings(max_examples=25, deadline=None)
@given(digests=st.sampled_from([0, BOTH]), pieces=st.lists(st.integers(1, 9000), min_size=1, max_size=40))
def test_the_answers_do_not_depend_on_how_the_bytes_arrive(digests: int, pieces: list[int]) -> None:
    head = Rig().attached(digests=digests)
    stream = conversation(head)
    at = turn = 0
    while at < len(stream):
        size = pieces[turn % len(pieces)]
        head.io.send(stream[at : at + size])
        at, turn = at + size, turn + 1
    answers = head.io.answers()
    assert [answer.cid for answer in answers] == list(range(200, 212))
    assert {answer.status for answer in answers} == {0}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_raise_never_write_and_touch_nobody_else(data: st.DataObject) -> None:
    rig = Rig()
    head, bystander = rig.attached(epoch=5), rig.head(host.OTHER_HEAD_KEY)
    stream = bytearray(conversation(head))
    at = data.draw(st.integers(0, len(stream) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=64))
    changed = bytes(stream[at : at + len(junk)]) != junk[: len(stream) - at]
    stream[at : at + len(junk)] = junk
    pieces = data.draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=8))
    position = turn = 0
    while position < len(stream):
        size = pieces[turn % len(pieces)]
        head.io.send(stream[position : position + size])
        position, turn = position + size, turn + 1
    statuses = [answer.status for answer in head.io.answers()]
    if changed and not ended(head):
        assert len(statuses) < 12 or any(statuses), "damage went unnoticed"
    assert bystander.try_attach(6, 1).status == 0
    allowed = {DATA, bytes(BLOCK)}
    first = rig.storage.namespaces[head.nsid].first_lba
    assert {rig.device.blocks.get(first + lba, bytes(BLOCK)) for lba in range(64)} <= allowed


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=400), opened=st.booleans())
def test_garbage_never_raises(raw: bytes, opened: bool) -> None:
    rig = Rig()
    wire = rig.connection() if opened else Wire(rig)
    wire.send(raw)
    wire.receive()
    assert wire.queue.state in QueueState
