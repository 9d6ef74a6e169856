"""The I/O commands of an exported volume, on the wire: what is done, what is refused, and what is left undone."""

import errno

import pytest
from kit.nvme_export import BLOCK, Host, Port, at, sqe

from head_node.export.nvme.commands import LIMITS
from head_node.export.nvme.subsystem import Access
from sled_controller.fabric import pdu
from sled_controller.fabric.pdu import Digest
from spdk_bindings.nvme import DATASET_RANGE, NSID_ALL, IoOpcode, Status, sgl_in_capsule, sgl_transport

FUA = 1 << 30
BOTH_DIGESTS = int(Digest.HEADER | Digest.DATA)


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def host(port: Port) -> Host:
    return Host(port)


@pytest.mark.parametrize("digests", [0, BOTH_DIGESTS])
def test_what_is_written_in_the_capsule_is_read_back(port: Port, digests: int) -> None:
    host = Host(port, digests)
    data = bytes(range(256)) * 64
    assert host.write(7, data).status == 0
    assert host.read(7, 4).data == data
    assert port.volume.data[7 * BLOCK : 11 * BLOCK] == data


@pytest.mark.parametrize("digests", [0, BOTH_DIGESTS])
def test_what_is_asked_for_by_r2t_is_read_back(port: Port, digests: int) -> None:
    host = Host(port, digests)
    data = bytes(range(256)) * 4096  # 1 MiB
    cid = host.offer_write(0, len(data))
    ((asked, ttag, length),) = host.io.r2ts()
    assert (asked, length) == (cid, len(data))
    host.send_data(cid, ttag, data[: len(data) // 2], last=False)
    assert host.io.answers() == []
    host.send_data(cid, ttag, data[len(data) // 2 :], offset=len(data) // 2)
    (answer,) = host.io.answers()
    assert (answer.cid, answer.status) == (cid, 0)
    assert host.read(0, 256).data == data


def test_the_volume_keeps_bytes_that_later_commands_do_not_change(port: Port, host: Host) -> None:
    port.volume.keep_payloads = True
    for number in range(200):
        assert host.write(number, bytes([number]) * BLOCK).status == 0
    assert [kept for kept in port.volume.kept if bytes(kept[1]) != kept[2]] == []


@pytest.mark.parametrize("digests", [0, BOTH_DIGESTS])
def test_the_data_of_a_read_is_aligned_as_the_host_asked(port: Port, digests: int) -> None:
    host = Host(port, digests, hpda=15)
    data = bytes(range(256)) * 32
    assert host.write(0, data).status == 0
    host.start(IoOpcode.READ, room=len(data), cdw12=1)
    read, answer = host.io.receive()
    assert (read.kind, answer.kind) == (pdu.PduType.C2H_DATA, pdu.PduType.CAPSULE_RESP)
    assert pdu.COMMON.unpack_from(read.header)[3] == 64
    assert read.data == data


@pytest.mark.parametrize("digests", [0, BOTH_DIGESTS])
def test_without_flow_control_the_data_of_a_read_is_its_whole_answer(port: Port, digests: int) -> None:
    host = Host(port, digests, cattr=pdu.NO_FLOW_CONTROL)
    data = bytes(range(256)) * 16
    assert host.write(0, data).sqhd == 0
    host.start(IoOpcode.READ, room=len(data))
    (read,) = host.io.receive()
    assert (read.kind, read.header[1] & pdu.SUCCESS_FLAG) == (pdu.PduType.C2H_DATA, pdu.SUCCESS_FLAG)
    assert read.data == data
    beyond = host.read(port.subsystem.blocks, 1)
    assert (beyond.status, beyond.sqhd) == (Status.LBA_OUT_OF_RANGE, 0)


def test_many_commands_in_one_read_of_the_socket_are_answered_in_order(host: Host) -> None:
    capsules = []
    for number in range(40):
        command = sqe(IoOpcode.WRITE if number % 2 == 0 else IoOpcode.READ, 1, **at(number // 2, 1))
        command[2:4] = (number + 1).to_bytes(2, "little")
        data = (bytes([number]) * BLOCK,) if number % 2 == 0 else ()
        command[24:40] = sgl_in_capsule(BLOCK) if data else sgl_transport(BLOCK)
        capsules += pdu.capsule_cmd(command, data, 0)
    host.io.send(*capsules)
    answers = host.io.answers()
    assert [answer.cid for answer in answers] == list(range(1, 41))
    assert [answer.status for answer in answers] == [0] * 40
    assert [answer.data for answer in answers[1::2]] == [bytes([number]) * BLOCK for number in range(0, 40, 2)]
    assert answers[-1].sqhd == 41  # Connect was the first


def test_flush_write_zeroes_and_verify(port: Port, host: Host) -> None:
    host.write(0, b"x" * 2 * BLOCK, FUA)
    assert host.ask(IoOpcode.FLUSH).status == 0
    assert host.ask(IoOpcode.FLUSH, nsid=NSID_ALL).status == 0
    assert host.ask(IoOpcode.VERIFY, **at(0, 2)).status == 0
    assert host.ask(IoOpcode.WRITE_ZEROES, **at(1, 1)).status == 0
    assert host.read(0, 2).data == b"x" * BLOCK + bytes(BLOCK)
    port.volume.error = errno.EIO
    assert host.ask(IoOpcode.VERIFY, **at(0, 2)).status == Status.UNRECOVERED_READ_ERROR


def test_compare_tells_equal_from_different(host: Host) -> None:
    host.write(3, b"a" * BLOCK)
    assert host.ask(IoOpcode.COMPARE, b"a" * BLOCK, **at(3, 1)).status == 0
    assert host.ask(IoOpcode.COMPARE, b"b" * BLOCK, **at(3, 1)).status == Status.COMPARE_FAILURE


def test_deallocate_takes_its_ranges_and_what_linux_sends_after_them(port: Port, host: Host) -> None:
    host.write(0, b"x" * 4 * BLOCK)
    ranges = DATASET_RANGE.pack(0, 1, 0) + DATASET_RANGE.pack(0, 2, 2) + DATASET_RANGE.pack(0, 0, 0)
    junk = b"\xff" * (4096 - len(ranges))
    assert host.ask(IoOpcode.DATASET_MANAGEMENT, ranges + junk, cdw10=2, cdw11=4).status == 0
    assert host.read(0, 4).data == bytes(BLOCK) + b"x" * BLOCK + bytes(2 * BLOCK)
    port.volume.record_calls = True
    assert host.ask(IoOpcode.DATASET_MANAGEMENT, ranges, cdw10=2, cdw11=1).status == 0  # only a hint
    out_of_range = DATASET_RANGE.pack(0, 1, 0) + DATASET_RANGE.pack(0, 2, 1023)
    answer = host.ask(IoOpcode.DATASET_MANAGEMENT, out_of_range, cdw10=1, cdw11=4)
    assert (answer.status, answer.dnr) == (Status.LBA_OUT_OF_RANGE, False)
    assert port.volume.calls == []


@pytest.mark.parametrize(
    ("opcode", "nsid", "data", "room", "dwords", "status"),
    [
        (IoOpcode.READ, 1, b"", BLOCK, at(1024, 1), Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, 1, b"", 2 * BLOCK, at(1023, 2), Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, 1, b"", BLOCK, at(1 << 63, 1), Status.LBA_OUT_OF_RANGE),
        (IoOpcode.WRITE, 1, b"x" * BLOCK, 0, at(1024, 1), Status.LBA_OUT_OF_RANGE),
        (IoOpcode.WRITE_ZEROES, 1, b"", 0, at(1000, 25), Status.LBA_OUT_OF_RANGE),
        (IoOpcode.READ, 1, b"", 257 * BLOCK, at(0, 257), Status.INVALID_FIELD),
        (IoOpcode.VERIFY, 1, b"", 0, at(0, 257), Status.INVALID_FIELD),
        (IoOpcode.READ, 1, b"", BLOCK, at(0, 2), Status.SGL_LENGTH_INVALID),
        (IoOpcode.WRITE, 1, b"x" * BLOCK, 0, at(0, 2), Status.SGL_LENGTH_INVALID),
        (IoOpcode.WRITE, 1, b"", BLOCK, at(0, 2), Status.SGL_LENGTH_INVALID),
        (IoOpcode.WRITE, 1, b"", 0, at(0, 1), Status.SGL_LENGTH_INVALID),
        (IoOpcode.FLUSH, 1, b"x" * 512, 0, {}, Status.SGL_LENGTH_INVALID),
        (IoOpcode.DATASET_MANAGEMENT, 1, bytes(16), 0, {"cdw10": 1, "cdw11": 4}, Status.SGL_LENGTH_INVALID),
        (IoOpcode.READ, 2, b"", BLOCK, at(0, 1), Status.INVALID_NAMESPACE),
        (IoOpcode.READ, NSID_ALL, b"", BLOCK, at(0, 1), Status.INVALID_NAMESPACE),
        (IoOpcode.READ, 1, b"", BLOCK, at(0, 1, 1 << 26), Status.INVALID_FIELD),
        (0x44, 1, b"", 0, {}, Status.INVALID_OPCODE),
        (0x81, 1, b"x" * BLOCK, 0, at(0, 1), Status.INVALID_OPCODE),
    ],
)
def test_what_does_not_fit_is_refused_for_good_and_touches_nothing(
    port: Port, host: Host, opcode: int, nsid: int, data: bytes, room: int, dwords: dict[str, int], status: int
) -> None:
    port.volume.record_calls = True
    answer = host.io.ask(sqe(opcode, nsid, **dwords), data, room)
    assert (answer.status, answer.dnr) == (status, True)
    assert port.volume.calls == []
    assert host.read(0, 1).status == 0


def test_data_that_is_not_where_the_sgl_says_is_refused(host: Host) -> None:
    command = sqe(IoOpcode.WRITE, 1, **at(0, 1))
    command[24:40] = sgl_transport(BLOCK)
    host.io.send(*pdu.capsule_cmd(command, (b"x" * BLOCK,), 0))
    command[24:40] = sgl_in_capsule(BLOCK, offset=512)
    host.io.send(*pdu.capsule_cmd(command, (b"x" * BLOCK,), 0))
    assert [answer.status for answer in host.io.answers()] == [Status.SGL_TYPE_INVALID, Status.SGL_OFFSET_INVALID]


def test_a_wrong_data_digest_does_nothing_and_may_be_tried_again(port: Port) -> None:
    host = Host(port, BOTH_DIGESTS)
    command = sqe(IoOpcode.WRITE, 1, **at(0, 1))
    command[24:40] = sgl_in_capsule(BLOCK)
    capsule = bytearray(b"".join(pdu.capsule_cmd(command, (b"x" * BLOCK,), BOTH_DIGESTS)))
    capsule[-1] ^= 1
    host.io.send(capsule)
    (answer,) = host.io.answers()
    assert (answer.status, answer.dnr) == (Status.TRANSIENT_TRANSPORT_ERROR, False)
    assert not any(port.volume.data[:BLOCK])


@pytest.mark.parametrize(
    ("error", "write_status", "read_status"),
    [
        (errno.EIO, Status.WRITE_FAULT, Status.UNRECOVERED_READ_ERROR),
        (errno.ENOSPC, Status.CAPACITY_EXCEEDED, Status.CAPACITY_EXCEEDED),
    ],
)
def test_what_the_volume_cannot_do_has_a_status(port: Port, error: int, write_status: int, read_status: int) -> None:
    host = Host(port)
    port.volume.error = error
    assert host.write(0, b"x" * BLOCK).status == write_status
    assert host.read(0, 1).status == read_status
    assert port.server.counters.commands_failed == 2


def test_a_live_command_id_that_comes_again_ends_the_connection(port: Port, host: Host) -> None:
    port.volume.hold = True
    command = sqe(IoOpcode.READ, 1, **at(0, 1))
    command[24:40] = sgl_transport(BLOCK)
    host.io.send(*pdu.capsule_cmd(command, (), 0))
    host.io.send(*pdu.capsule_cmd(command, (), 0))
    assert host.io.termination()[0] == pdu.FatalError.PDU_SEQUENCE
    assert host.controller_id not in port.subsystem.hosts
    port.volume.release()
    assert host.io.receive() == []


def test_memory_is_bounded_however_many_large_reads_are_asked_for(port: Port, host: Host) -> None:
    port.volume.hold = True
    commands = []
    for number in range(64):
        command = sqe(IoOpcode.READ, 1, **at(0, 256))
        command[2:4] = (number + 1).to_bytes(2, "little")
        command[24:40] = sgl_transport(256 * BLOCK)
        commands += pdu.capsule_cmd(command, (), 0)
    host.io.send(*commands)
    queue = host.io.queue
    assert queue.stalled
    assert queue.io is not None
    assert queue.io.held_bytes <= LIMITS.held_bytes_max + LIMITS.transfer_bytes_max
    answered = 0
    port.volume.release()
    while answered < 64:  # each turn gives what was read away and takes up more
        found = len(host.io.answers())
        assert found, answered
        answered += found
        queue.resume(0)
    assert queue.io.held_bytes == 0


def test_reads_are_begun_while_the_volume_keeps_writes_back(port: Port, host: Host) -> None:
    port.volume.is_ready = False
    port.volume.record_calls = True
    host.start_read(0, 1)
    assert port.volume.calls == [("read", 0, BLOCK)]
    assert not host.io.queue.blocked
    host.start_write(0, b"x" * BLOCK)
    assert host.io.queue.blocked
    assert port.volume.calls == [("read", 0, BLOCK)]


def test_nothing_is_begun_while_the_volume_is_over_its_bounds(port: Port, host: Host) -> None:
    port.volume.is_ready = False
    port.volume.record_calls = True
    woken = []
    host.io.queue.wake = lambda: woken.append(True)
    host.start_write(0, b"x" * BLOCK)
    assert port.volume.calls == []
    assert host.io.queue.blocked
    port.volume.become_ready()
    assert woken
    host.io.queue.resume(0)
    assert [answer.status for answer in host.io.answers()] == [0]


# --- the path's worth (ANA) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "status"),
    [(Access.INACCESSIBLE, Status.ANA_INACCESSIBLE), (Access.CHANGE, Status.ANA_TRANSITION)],
)
def test_a_path_that_is_not_optimized_turns_commands_away_for_the_host_to_go_elsewhere(
    port: Port, host: Host, access: Access, status: int
) -> None:
    port.become(access)
    port.volume.record_calls = True
    for answer in (host.read(0, 1), host.write(0, b"x" * BLOCK), host.ask(IoOpcode.FLUSH)):
        assert (answer.status, answer.dnr) == (status, False)
    assert port.volume.calls == []
    port.become(Access.OPTIMIZED)
    assert host.read(0, 1).status == 0


def test_f6_what_was_unanswered_at_step_down_is_answered_by_the_path_and_never_by_an_error_of_the_medium(
    port: Port, host: Host
) -> None:
    port.volume.hold = True
    cids = [host.start_write(0, b"x" * BLOCK), host.start_read(1), host.start_read(2, 4)]
    port.become(Access.CHANGE)
    assert host.io.answers() == []  # the role may still go on
    port.server.drop_clients(port.subsystem.exported.volume)
    answers = host.io.answers()
    assert sorted(answer.cid for answer in answers) == sorted(cids)
    assert {(answer.status, answer.dnr) for answer in answers} == {(Status.ANA_INACCESSIBLE, False)}
    assert port.server.counters.commands_unfinished == 3
    port.volume.error = errno.EIO
    port.volume.release()
    assert host.io.answers() == []
    queue = host.io.queue
    assert queue.live
    assert queue.io is not None
    assert queue.io.held_bytes == 0


def test_f6_a_role_that_goes_on_after_holding_answers_what_it_was_given(port: Port, host: Host) -> None:
    port.volume.hold = True
    cid = host.start_write(0, b"x" * BLOCK)
    port.become(Access.CHANGE)
    port.become(Access.OPTIMIZED)
    port.volume.release()
    (answer,) = host.io.answers()
    assert (answer.cid, answer.status) == (cid, 0)


def test_f6_data_that_is_on_its_way_at_step_down_is_taken_in_and_its_write_turned_away(port: Port, host: Host) -> None:
    cid = host.offer_write(0, 32 * BLOCK)
    ((_, ttag, length),) = host.io.r2ts()
    port.server.drop_clients(port.subsystem.exported.volume)
    assert host.io.answers() == []
    host.send_data(cid, ttag, b"x" * length)
    (answer,) = host.io.answers()
    assert (answer.cid, answer.status) == (cid, Status.ANA_INACCESSIBLE)
    assert not any(port.volume.data)


def test_a_request_that_waits_in_the_volume_is_gone_with_its_connection_or_its_role(port: Port) -> None:
    asked = []
    port.volume.write = lambda offset, data, fua, done, gone, host: asked.append(gone)  # type: ignore[method-assign,assignment]
    host = Host(port)
    host.start_write(0, b"x" * BLOCK)
    (gone,) = asked
    assert not gone()
    port.server.drop_clients(port.subsystem.exported.volume)
    assert gone()

    port.become(Access.OPTIMIZED)
    host.start_write(0, b"x" * BLOCK)
    assert not asked[1]()
    host.io.queue.peer_gone = lambda: True
    assert asked[1]()
    host.io.queue.peer_gone = lambda: False
    host.io.queue.lost("reset by the peer")
    assert asked[1]()


def test_a_host_with_several_queues_is_answered_on_each(port: Port, host: Host) -> None:
    second = host.queue(2)
    port.volume.hold = True
    host.start_read(0)
    second.start(sqe(IoOpcode.READ, 1, **at(1, 1)), room=BLOCK)
    port.volume.release()
    assert [answer.status for answer in (*host.io.answers(), *second.answers())] == [0, 0]
