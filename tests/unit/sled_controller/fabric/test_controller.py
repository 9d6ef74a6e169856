"""What a stock NVMe host meets: properties, identify, logs, features, discovery; and that its I/O is refused."""

import pytest
from kit import host
from kit.target import BLOCKS, Answer, Head, Rig, Wire

from sled_controller.fabric import pdu, vendor
from sled_controller.fabric.target import QueueState
from sled_controller.fabric.vendor import parse_namespaces
from spdk_bindings.nvme import (
    CC_ENABLE,
    DISCOVERY_NQN,
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
    for offset, attrib in ((Property.CAP, 0), (Property.VS, 1), (0x1000, 0)):
        assert fabrics(wire, FabricsType.PROPERTY_GET, offset, attrib).status == Status.INVALID_FIELD
    assert fabrics(wire, FabricsType.PROPERTY_SET, Property.VS, value=1).status == Status.INVALID_FIELD


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
def test_standard_io_is_denied(head: Head, opcode: int) -> None:
    answer = standard(head.io, opcode, head.nsid)
    assert (answer.status, answer.dnr) == (Status.ACCESS_DENIED, True)


def test_the_reservation_report_shows_the_fence(head: Head) -> None:
    report = standard(head.io, IoOpcode.RESERVATION_REPORT, head.nsid, 128, cdw10=31, cdw11=1)
    assert report.data[:10] == bytes.fromhex("05000000 01 0100 0000 01")
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


def test_what_is_not_on_the_allow_list_is_refused(head: Head) -> None:
    for opcode in (
        AdminOpcode.NAMESPACE_MANAGEMENT,
        AdminOpcode.FIRMWARE_COMMIT,
        AdminOpcode.NAMESPACE_ATTACHMENT,
        0x80,
    ):
        assert standard(head.admin, opcode).status == Status.INVALID_OPCODE
