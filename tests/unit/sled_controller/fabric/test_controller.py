"""What a stock NVMe host meets: properties, identify, logs, features, discovery; and that its I/O is refused."""

from struct import Struct

import pytest
from kit import host
from kit.target import BLOCKS, HOST_NQN, Answer, Head, HeldDevice, Rig, Wire

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.target import QueueState
from sled_controller.fabric.vendor import parse_namespaces
from sled_controller.subsystem import Subsystem
from spdk_bindings.nvme import (
    CC_ENABLE,
    DISCOVERY_NQN,
    DNR,
    NVME_VERSION,
    SGL_FLAGS,
    SQE,
    AdminOpcode,
    FabricsType,
    Feature,
    IdentifyCns,
    IoOpcode,
    LogPage,
    Property,
    Status,
    VendorIo,
)


def standard(wire: Wire, opcode: int, nsid: int = 0, room: int = 0, **dwords: int) -> Answer:
    values = [dwords.get(f"cdw{number}", 0) for number in range(10, 16)]
    sqe = bytearray(SQE.pack(opcode, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), *values))
    return wire.ask(sqe, room=room, signed=False)


def identify(wire: Wire, cns: int, nsid: int = 0) -> Answer:
    return standard(wire, AdminOpcode.IDENTIFY, nsid, 4096, cdw10=cns)


def log_page(wire: Wire, page: int, length: int, offset: int = 0) -> Answer:
    return standard(
        wire, AdminOpcode.GET_LOG_PAGE, room=length, cdw10=page | (length // 4 - 1) << 16, cdw12=offset
    )  # fmt: skip


def fabrics(wire: Wire, kind: int, offset: int, attrib: int = 0, value: int = 0) -> Answer:
    sqe = pdu.PROPERTY_SQE.pack(AdminOpcode.FABRICS, SGL_FLAGS, 0, kind, attrib, offset, value)
    return wire.ask(bytearray(sqe), signed=False)


@pytest.fixture
def head() -> Head:
    return Rig().attached()


def test_the_properties_say_what_the_controller_can_do() -> None:
    wire = Rig().connection()
    wire.connect()
    cap = fabrics(wire, FabricsType.PROPERTY_GET, Property.CAP, 1).epoch
    assert (cap & 0xFFFF, cap >> 16 & 1, cap >> 37 & 1) == (127, 1, 1)
    assert fabrics(wire, FabricsType.PROPERTY_GET, Property.VS).dw0 == NVME_VERSION
    assert fabrics(wire, FabricsType.PROPERTY_GET, Property.CSTS).dw0 == 0
    assert fabrics(wire, FabricsType.PROPERTY_SET, Property.CC, value=CC_ENABLE).status == 0
    assert fabrics(wire, FabricsType.PROPERTY_GET, Property.CSTS).dw0 == 1
    assert fabrics(wire, FabricsType.PROPERTY_SET, Property.CC, value=CC_ENABLE | 1 << 14).status == 0
    assert fabrics(wire, FabricsType.PROPERTY_GET, Property.CSTS).dw0 == 1 | 2 << 2
    for reserved, attrib in ((0x0C, 0), (0x28, 1)):  # INTMS, ASQ: of PCIe only
        answer = fabrics(wire, FabricsType.PROPERTY_GET, reserved, attrib)
        assert (answer.status, answer.dw0, answer.dw1) == (0, 0, 0)
    for offset, attrib in ((Property.CAP, 0), (Property.VS, 1), (0x1000, 0), (0x0E, 0)):
        assert fabrics(wire, FabricsType.PROPERTY_GET, offset, attrib).status == Status.INVALID_FIELD
    assert fabrics(wire, FabricsType.PROPERTY_SET, Property.VS, value=1).status == Status.INVALID_FIELD


def test_a_host_may_do_without_flow_control() -> None:
    wire = Rig().connection()
    assert wire.connect(cattr=pdu.NO_FLOW_CONTROL).sqhd == pdu.SQHD_NOT_KEPT
    version = fabrics(wire, FabricsType.PROPERTY_GET, Property.VS)
    assert (version.dw0, version.sqhd) == (NVME_VERSION, 0)
    wire.start(vendor.identify_controller(), room=4096)
    (page,) = wire.receive()
    assert (page.kind, len(page.data), page.header[1]) == (pdu.PduType.C2H_DATA, 4096, pdu.LAST_FLAG | pdu.SUCCESS_FLAG)
    refused = Rig().connection().connect(cattr=pdu.NO_FLOW_CONTROL, recfmt=1)
    assert (refused.status, refused.sqhd) == (Status.CONNECT_INCOMPATIBLE_FORMAT, 0)


def test_disabling_the_controller_ends_an_association_with_a_session(head: Head) -> None:
    assert fabrics(head.admin, FabricsType.PROPERTY_SET, Property.CC, value=0).status == 0
    assert head.controller_id not in head.rig.subsystem.hosts
    assert head.admin.queue.state is head.io.queue.state is QueueState.CLOSING


def test_a_standard_host_that_disables_its_controller_sees_it_done_and_may_begin_again() -> None:
    stranger = Rig().stranger()
    assert fabrics(stranger.admin, FabricsType.PROPERTY_SET, Property.CC, value=0).status == 0
    assert stranger.io.queue.state is QueueState.CLOSING
    assert fabrics(stranger.admin, FabricsType.PROPERTY_GET, Property.CSTS).dw0 == 0
    assert fabrics(stranger.admin, FabricsType.PROPERTY_SET, Property.CC, value=CC_ENABLE).status == 0
    again = stranger.rig.connection()
    assert again.connect(1, stranger.controller_id).status == 0
    stranger.io.queue.lost("closed at last")
    assert again.queue.state is QueueState.LIVE


def test_a_standard_host_closes_its_io_queue_first_and_then_shuts_its_controller_down() -> None:
    stranger = Rig().stranger()
    stranger.io.queue.lost("closed by the host")
    assert fabrics(stranger.admin, FabricsType.PROPERTY_SET, Property.CC, value=CC_ENABLE | 1 << 14).status == 0
    assert fabrics(stranger.admin, FabricsType.PROPERTY_GET, Property.CSTS).dw0 == 1 | 2 << 2
    stranger.admin.queue.lost("closed by the host")
    assert stranger.controller_id not in stranger.rig.subsystem.hosts


@pytest.mark.parametrize(
    ("fields", "status", "dw0"),
    [
        ({"recfmt": 1}, Status.CONNECT_INCOMPATIBLE_FORMAT, 0),
        ({"sqsize": 0}, Status.CONNECT_INVALID_PARAMETERS, 44),
        ({"sqsize": 128}, Status.CONNECT_INVALID_PARAMETERS, 44),
        ({"nqn": "nqn.2014-08.org.nvmexpress:uuid:somebody"}, Status.CONNECT_INVALID_PARAMETERS, 256 | 1 << 16),
        ({"queue_id": 2}, Status.CONNECT_INVALID_PARAMETERS, 16 | 1 << 16),
        ({"controller_id": 1}, Status.CONNECT_INVALID_PARAMETERS, 16 | 1 << 16),
        ({"queue_id": 1, "controller_id": 1}, Status.CONNECT_INVALID_PARAMETERS, 16 | 1 << 16),
        ({"data": bytes(512)}, Status.SGL_LENGTH_INVALID, 0),
    ],
)
def test_a_connect_that_does_not_fit_names_the_field(fields: dict[str, object], status: int, dw0: int) -> None:
    answer = Rig().connection().connect(**fields)  # type: ignore[arg-type]
    assert (answer.status, answer.dw0) == (status, dw0)


def test_an_io_queue_waits_for_an_enabled_controller() -> None:
    rig = Rig()
    controller = rig.connection().connect().dw0
    assert rig.connection().connect(1, controller).status == Status.CONNECT_INVALID_PARAMETERS


def test_an_io_queue_beyond_what_was_granted_is_refused_naming_its_id(head: Head) -> None:
    answer = head.rig.connection().connect(2, head.controller_id)
    assert (answer.status, answer.dw0) == (Status.CONNECT_INVALID_PARAMETERS, 42)


def test_commands_before_connect_are_out_of_sequence() -> None:
    wire = Rig().connection()
    assert identify(wire, IdentifyCns.CONTROLLER).status == Status.COMMAND_SEQUENCE_ERROR


def test_identify_shows_controller_and_namespaces(head: Head) -> None:
    controller = identify(head.admin, IdentifyCns.CONTROLLER).data
    assert controller[768:1024].rstrip(b"\0").decode() == host.NQN
    assert int.from_bytes(controller[78:80], "little") == head.controller_id
    assert controller[77] == 8  # MDTS: 1 MiB in units of 4 KiB
    assert int.from_bytes(controller[1792:1796], "little") * 16 == 64 + 16 * 1024  # IOCCSZ
    assert int.from_bytes(controller[516:520], "little") >= 31 << 16  # NN: ids carry the device index
    active = identify(head.admin, IdentifyCns.ACTIVE_NAMESPACES).data
    assert int.from_bytes(active[:4], "little") == head.nsid
    namespace = identify(head.admin, IdentifyCns.NAMESPACE, head.nsid).data
    assert int.from_bytes(namespace[:8], "little") == BLOCKS
    uuid = head.rig.storage.namespaces[head.nsid].uuid.bytes
    assert uuid in identify(head.admin, IdentifyCns.NAMESPACE_DESCRIPTORS, head.nsid).data
    assert identify(head.admin, IdentifyCns.NAMESPACE, 77).data == bytes(4096)
    assert identify(head.admin, IdentifyCns.NAMESPACE_DESCRIPTORS, 77).status == Status.INVALID_NAMESPACE
    assert identify(head.admin, 0x55).status == Status.INVALID_FIELD


def test_log_pages_are_read_in_parts_and_padded(head: Head) -> None:
    whole = log_page(head.admin, LogPage.SMART, 512).data
    assert log_page(head.admin, LogPage.SMART, 256, 256).data == whole[256:]
    (entry,) = parse_namespaces(log_page(head.admin, LogPage.NAMESPACE_TABLE, 4096).data)
    assert (entry.nsid, entry.column, entry.blocks, entry.volume) == (head.nsid, 0, BLOCKS, host.VOLUME)
    status = log_page(head.admin, LogPage.SLED_STATUS, 64).data
    assert [int.from_bytes(status[at : at + 8], "little") for at in (0, 8, 16)] == [1, 1, host.NOW_MS]
    for page in (LogPage.ERROR, LogPage.FIRMWARE_SLOT, LogPage.COMMANDS_SUPPORTED):
        assert log_page(head.admin, page, 512).status == 0
    assert log_page(head.admin, 0x99, 512).status == Status.INVALID_LOG_PAGE
    assert log_page(head.admin, LogPage.SMART, 512, 2).status == Status.INVALID_FIELD
    sqe = SQE.pack(AdminOpcode.GET_LOG_PAGE, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), 2 | 0xFFFF << 16, 0xFFFF, 0, 0, 0, 0)
    assert head.admin.ask(bytearray(sqe), room=64, signed=False).status == Status.INVALID_FIELD


def test_features_know_one_queue_and_the_timer(head: Head) -> None:
    admin = head.admin
    assert standard(admin, AdminOpcode.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0x70007).dw0 == 0
    assert standard(admin, AdminOpcode.SET_FEATURES, cdw10=Feature.KEEP_ALIVE_TIMER, cdw11=7000).status == 0
    assert standard(admin, AdminOpcode.GET_FEATURES, cdw10=Feature.KEEP_ALIVE_TIMER).dw0 == 7000
    assert standard(admin, AdminOpcode.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION, cdw11=3).status == 0
    assert standard(admin, AdminOpcode.GET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION).dw0 == 3
    assert standard(admin, AdminOpcode.GET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE).dw0 == 1
    assert standard(admin, AdminOpcode.SET_FEATURES, cdw10=0x7F).status == Status.INVALID_FIELD


def test_event_requests_are_held_bounded_and_aborted(head: Head) -> None:
    sqe = bytearray(SQE.pack(AdminOpcode.ASYNC_EVENT_REQUEST, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), *[0] * 6))
    cids = [head.admin.start(sqe, signed=False) for _ in range(4)]
    assert head.admin.answers() == []
    assert head.admin.ask(sqe, signed=False).status == Status.ASYNC_EVENT_LIMIT
    abort = bytearray(SQE.pack(AdminOpcode.ABORT, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), cids[1] << 16, *[0] * 5))
    head.admin.start(abort, signed=False)
    aborted, done = head.admin.answers()
    assert (aborted.cid, aborted.status) == (cids[1], Status.ABORT_REQUESTED)
    assert (done.status, done.dw0) == (0, 0)
    assert head.admin.ask(abort, signed=False).dw0 == 1


@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE, IoOpcode.FLUSH, IoOpcode.DATASET_MANAGEMENT])
def test_standard_io_is_denied_and_counted_and_its_first_is_logged(
    head: Head, opcode: int, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        answer = standard(head.io, opcode, head.nsid)
        assert (answer.status, answer.dnr) == (Status.ACCESS_DENIED, True)
        assert head.rig.subsystem.counters.denied == number + 1
    (line,) = [record.getMessage() for record in caplog.records if "denied" in record.getMessage()]
    assert f"opcode={opcode:#04x} nsid={head.nsid} status=ACCESS_DENIED" in line
    assert HOST_NQN.decode() in line


def test_a_hosts_name_can_not_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    stranger = Rig().stranger()
    stranger.io.queue.controller.association.host_nqn = b"nqn\nevent=forged\x1b".ljust(256, b"\0")  # type: ignore[union-attr]
    standard(stranger.io, IoOpcode.READ, 1)
    (line,) = [record.getMessage() for record in caplog.records if "denied" in record.getMessage()]
    assert line.isprintable()


def error_entries(wire: Wire, count: int) -> list[tuple[int, ...]]:
    """(count, queue, cid, status with DNR, lba, nsid) of the newest entries that are in use."""
    page = log_page(wire, LogPage.ERROR, 64 * count).data
    entries = []
    for entry in (page[at : at + 64] for at in range(0, len(page), 64)):
        number, queue_id, cid, status, _, lba, nsid = Struct("<QHHHHQI").unpack_from(entry)
        if number:
            entries.append((number, queue_id, cid, status >> 1, lba, nsid))
    return entries


def test_the_error_log_has_the_commands_that_failed_newest_first_whatever_refused_them() -> None:
    head = Rig().attached()
    assert error_entries(head.admin, 4) == []
    denied = standard(head.io, IoOpcode.READ, head.nsid, 4096, cdw10=7)
    out_of_range = head.write(BLOCKS, bytes(4096))
    unknown = identify(head.admin, 0x55, 3)
    assert error_entries(head.admin, 4) == [
        (3, 0, unknown.cid, Status.INVALID_FIELD | DNR, 0, 3),
        (2, 1, out_of_range.cid, Status.LBA_OUT_OF_RANGE | DNR, BLOCKS, head.nsid),
        (1, 1, denied.cid, Status.ACCESS_DENIED | DNR, 7, head.nsid),
    ]
    smart = log_page(head.admin, LogPage.SMART, 512).data
    assert int.from_bytes(smart[176:192], "little") == 3  # number of error log entries
    head.rig.attached(epoch=6, key=host.OTHER_HEAD_KEY)
    fenced_off = head.write(5, bytes(4096))
    assert error_entries(head.admin, 1) == [(4, 1, fenced_off.cid, Status.FENCED_OFF | DNR, 5, head.nsid)]
    for _ in range(100):
        standard(head.io, IoOpcode.FLUSH, head.nsid)
    assert [entry[0] for entry in error_entries(head.admin, 64)] == list(range(104, 40, -1))


def test_another_controllers_error_log_does_not_show_them() -> None:
    rig = Rig()
    first, second = rig.stranger(), rig.stranger()
    standard(first.io, IoOpcode.READ, 1)
    assert len(error_entries(first.admin, 1)) == 1
    assert error_entries(second.admin, 1) == []


def test_smart_says_degraded_when_a_drive_is_lost() -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"))
    stranger = rig.stranger()
    assert log_page(stranger.admin, LogPage.SMART, 512).data[0] == 0
    rig.subsystem.take_offline(1, "pulled out")
    assert log_page(stranger.admin, LogPage.SMART, 512).data[0] == 0x04


def test_the_effects_log_names_vendor_commands_and_what_they_change(head: Head) -> None:
    page = log_page(head.admin, LogPage.COMMANDS_SUPPORTED, 4096).data
    effects = Struct("<512I").unpack_from(page)
    supported = {opcode for opcode in range(256) if effects[opcode] & 1}
    assert {AdminOpcode.IDENTIFY, AdminOpcode.FABRICS, AdminOpcode.ATTACH, AdminOpcode.NAMESPACE_DELETE} <= supported
    assert AdminOpcode.FIRMWARE_COMMIT not in supported
    io = {opcode: effects[256 + opcode] for opcode in range(256) if effects[256 + opcode]}
    assert set(io) == {*VendorIo, IoOpcode.RESERVATION_REPORT}
    assert (io[VendorIo.WRITE] >> 1 & 1, io[VendorIo.READ] >> 1 & 1) == (1, 0)
    assert effects[AdminOpcode.NAMESPACE_CREATE] >> 3 & 1


def test_io_commands_without_a_session_are_refused_and_counted() -> None:
    stranger = Rig().stranger()
    answer = stranger.io.ask(vendor.vendor_sqe(VendorIo.READ, nsid=1, slba=9), room=4096)
    assert answer.status == Status.SESSION_REQUIRED
    assert stranger.rig.subsystem.counters.denied == 1
    assert error_entries(stranger.admin, 1) == [(1, 1, answer.cid, Status.SESSION_REQUIRED | DNR, 9, 1)]


def test_the_reservation_report_shows_the_fence(head: Head) -> None:
    report = standard(head.io, IoOpcode.RESERVATION_REPORT, head.nsid, 128, cdw10=31, cdw11=1)
    assert report.data[:10] == bytes.fromhex("05000000 02 0100 0000 01")
    assert report.data[64:72] == bytes.fromhex("ffff 01 0000000000")
    assert report.data[80:96] == head.rig.subsystem.served[head.nsid].fence.holder[:16]
    assert standard(head.io, IoOpcode.RESERVATION_REPORT, 99, 64, cdw10=15).status == Status.INVALID_NAMESPACE


def test_a_stock_host_discovers_the_subsystem() -> None:
    rig = Rig()
    wire = rig.connection()
    wire.queue.local_address = ("127.0.0.1", 4420)
    assert wire.connect(nqn=DISCOVERY_NQN).status == 0
    assert fabrics(wire, FabricsType.PROPERTY_SET, Property.CC, value=CC_ENABLE).status == 0
    assert identify(wire, IdentifyCns.CONTROLLER).data[111] == 2  # CNTRLTYPE: discovery
    page = log_page(wire, LogPage.DISCOVERY, 2048).data
    assert int.from_bytes(page[8:16], "little") == 1
    assert page[1024 + 256 : 1024 + 512].rstrip(b"\0").decode() == host.NQN
    assert page[1024 + 512 : 1024 + 768].rstrip(b"\0 ") == b"127.0.0.1"
    assert page[1024 + 32 : 1024 + 64].rstrip(b"\0 ") == b"4420"
    assert log_page(wire, LogPage.NAMESPACE_TABLE, 64).status == Status.INVALID_LOG_PAGE
    assert wire.ask(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), room=160).status == Status.INVALID_OPCODE
    assert standard(wire, AdminOpcode.ABORT).status == Status.INVALID_OPCODE


def test_discovery_names_the_advertised_address_where_one_is_set() -> None:
    rig = Rig()
    sled = rig.subsystem
    rig.subsystem = Subsystem(sled.identity, sled.storage, rig.env, rig.timers.call_later, "2001:db8::7")
    wire = rig.connection()
    wire.queue.local_address = ("127.0.0.1", 4420)
    assert wire.connect(nqn=DISCOVERY_NQN).status == 0
    page = log_page(wire, LogPage.DISCOVERY, 2048).data
    assert page[1024 + 1] == 2  # ADRFAM: IPv6
    assert page[1024 + 512 : 1024 + 768].rstrip(b"\0 ") == b"2001:db8::7"


def test_what_is_not_on_the_allow_list_is_refused(head: Head) -> None:
    for opcode in (
        AdminOpcode.NAMESPACE_MANAGEMENT,
        AdminOpcode.FIRMWARE_COMMIT,
        AdminOpcode.NAMESPACE_ATTACHMENT,
        0x80,
    ):
        assert standard(head.admin, opcode).status == Status.INVALID_OPCODE


CHECKS_A_SIGNATURE = [AdminOpcode.ATTACH, AdminOpcode.KEYSET_UPDATE, AdminOpcode.RETIRE, AdminOpcode.TIME_STATEMENT]


@pytest.mark.parametrize("opcode", CHECKS_A_SIGNATURE)
def test_each_command_that_checks_a_signature_is_a_costly_step(opcode: AdminOpcode) -> None:
    """Anyone may have a session: what is not counted could be asked for without end."""
    session = Rig().head()
    session.admin.ask(vendor.vendor_sqe(opcode), b"what a stranger sends")
    assert session.admin.queue.steps == 1
