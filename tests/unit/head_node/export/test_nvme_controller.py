"""The controller of an exported volume: who it is, what its path is worth, whom it admits, and how it goes."""

import logging

import pytest
from kit.export import VOLUME_ID
from kit.host import golden
from kit.nvme_export import BLOCK, NQN, OTHER_HOST, Host, Port, sqe
from kit.target import HOST_NQN

from head_node.export.nvme.commands import LIMITS
from head_node.export.nvme.controller import ANATT_SECONDS, IO_QUEUES_MAX
from head_node.export.nvme.server import NvmeServer
from head_node.export.nvme.subsystem import CONTROLLER_IDS_PER_HEAD, HOSTS_MAX, Access
from sled_controller.fabric import pdu, vendor
from spdk_bindings.identify import (
    CONTROLLER_FORMAT,
    INDEPENDENT_NAMESPACE_FORMAT,
    NAMESPACE_FORMAT,
    NVM_CONTROLLER_FORMAT,
)
from spdk_bindings.log_pages import ANA_GROUP_FORMAT, ANA_HEADER_FORMAT, ERROR_FORMAT, SMART_FORMAT
from spdk_bindings.nvme import (
    CC_ENABLE,
    CSTS_READY,
    CSTS_SHUTDOWN_COMPLETE,
    DISCOVERY_NQN,
    AdminOpcode,
    FabricsType,
    Feature,
    IdentifyCns,
    IoOpcode,
    LogPage,
    Property,
    Status,
)

ANA_CHANGED = 2 | 0x03 << 8 | LogPage.ANA << 16
DISCOVERY_CHANGED = 2 | 0xF0 << 8 | LogPage.DISCOVERY << 16
ANA_BIT, DISCOVERY_BIT = 11, 31
SECOND_NS = 1_000_000_000


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def host(port: Port) -> Host:
    return Host(port)


def property_get(host: Host, offset: int) -> int:
    answer = host.admin.ask(
        bytearray(pdu.PROPERTY_SQE.pack(AdminOpcode.FABRICS, 0x40, 0, FabricsType.PROPERTY_GET, 0, offset, 0))
    )
    assert answer.status == 0
    return answer.dw0


# --- who it is --------------------------------------------------------------------------------------------------------


def test_the_controller_says_what_hosts_need_for_multipath(host: Host) -> None:
    found = CONTROLLER_FORMAT.parse(host.identify(IdentifyCns.CONTROLLER).data)
    assert found.subsystem_nqn.rstrip(b"\0").decode() == NQN
    assert found.multipath == 0x0B  # several ports, several controllers, ANA
    assert (found.ana_transition_s, found.ana_capabilities) == (ANATT_SECONDS, 0x15)
    assert (found.ana_groups, found.ana_group_id_max) == (1, 1)
    assert found.namespaces_allowed == found.namespaces_max == 1  # Linux refuses an MNAN above NN
    assert found.async_events == 1 << ANA_BIT
    assert 4096 << found.max_transfer_log2_pages == LIMITS.transfer_bytes_max
    assert found.command_capsule_16b * 16 == 64 + LIMITS.in_capsule_bytes_max
    assert found.volatile_write_cache & 1 == 0
    assert found.nvm_optional == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7


def test_the_namespace_is_the_same_on_every_head_and_in_the_one_group() -> None:
    pages = []
    for number in (1, 2):
        found = Host(Port(number=number))
        namespace = NAMESPACE_FORMAT.parse(found.identify(IdentifyCns.NAMESPACE, 1).data)
        assert (namespace.size_blocks, namespace.used_blocks, namespace.ana_group) == (1024, 1024, 1)
        assert namespace.nguid == VOLUME_ID.bytes
        assert namespace.sharing == 1
        pages.append(found.identify(IdentifyCns.NAMESPACE_DESCRIPTORS, 1).data)
    assert pages[0] == pages[1]
    assert VOLUME_ID.bytes in pages[0]


def test_a_path_that_is_inaccessible_says_nothing_of_what_is_used(port: Port, host: Host) -> None:
    port.become(Access.INACCESSIBLE)
    namespace = NAMESPACE_FORMAT.parse(host.identify(IdentifyCns.NAMESPACE, 1).data)
    assert (namespace.size_blocks, namespace.used_blocks) == (1024, 0)


def test_the_other_pages_of_identify(host: Host) -> None:
    assert host.identify(IdentifyCns.ACTIVE_NAMESPACES).data[:8] == (1).to_bytes(8, "little")
    assert not any(host.identify(IdentifyCns.ACTIVE_NAMESPACES, 1).data)
    assert host.identify(IdentifyCns.IO_ACTIVE_NAMESPACES).data[:8] == (1).to_bytes(8, "little")
    limits = NVM_CONTROLLER_FORMAT.parse(host.identify(IdentifyCns.IO_CONTROLLER).data)
    assert 4096 << limits.verify_log2_pages == LIMITS.transfer_bytes_max
    assert not any(host.identify(IdentifyCns.IO_NAMESPACE, 1).data)
    independent = INDEPENDENT_NAMESPACE_FORMAT.parse(host.identify(IdentifyCns.INDEPENDENT_NAMESPACE, 1).data)
    assert (independent.ana_group, independent.sharing) == (1, 1)
    ids = host.identify(IdentifyCns.CONTROLLERS).data
    assert ids[:4] == b"\1\0" + host.controller_id.to_bytes(2, "little")
    assert host.identify(IdentifyCns.NAMESPACE, 2).status == Status.INVALID_NAMESPACE
    assert host.identify(IdentifyCns.IO_CONTROLLER, cdw11=2 << 24).status == Status.INVALID_FIELD
    assert host.identify(0x77).status == Status.INVALID_FIELD


def test_controller_ids_differ_over_heads() -> None:
    for number in (1, 2):
        port = Port(number=number)
        ids = [Host(port).controller_id for _ in range(8)]
        first = (number - 1) * CONTROLLER_IDS_PER_HEAD + 1
        assert all(first <= each < first + CONTROLLER_IDS_PER_HEAD for each in ids)
        assert len(set(ids)) == len(ids)


# --- log pages --------------------------------------------------------------------------------------------------------


def test_the_ana_page_is_that_of_the_specification(port: Port, host: Host) -> None:
    assert host.log(LogPage.ANA, 52).data == golden("nvme_ana_log")
    port.become(Access.CHANGE)
    header = ANA_HEADER_FORMAT.parse(host.log(LogPage.ANA, 52).data)
    group = ANA_GROUP_FORMAT.parse(host.log(LogPage.ANA, 52).data[16:])
    assert (header.change_count, header.groups) == (3, 1)
    assert (group.group, group.state, list(group.nsids)) == (1, 0x0F, [1])
    port.become(Access.INACCESSIBLE)
    groups_only = ANA_GROUP_FORMAT.parse(host.log(LogPage.ANA, 48, flags=1 << 8).data[16:])
    assert (groups_only.state, groups_only.namespaces) == (3, 0)


def test_the_other_log_pages(port: Port, host: Host) -> None:
    host.write(0, b"x" * 2 * BLOCK)
    host.read(0, 1)
    port.volume.error = 5
    host.read(1, 1)
    smart = SMART_FORMAT.parse(host.log(LogPage.SMART, 512).data)
    assert (smart.host_read_commands, smart.host_write_commands, smart.error_log_entries) == (2, 1, 1)
    assert (smart.data_units_written, smart.available_spare_percent, smart.critical_warning) == (1, 100, 0)
    error = ERROR_FORMAT.parse(host.log(LogPage.ERROR, 4096).data)
    assert (error.count, error.queue_id, error.status >> 1 & 0x7FF) == (1, 1, Status.UNRECOVERED_READ_ERROR)
    assert host.log(LogPage.FIRMWARE_SLOT, 512).data[0] == 1
    assert not any(host.log(LogPage.CHANGED_NAMESPACES, 4096).data)
    effects = host.log(LogPage.COMMANDS_SUPPORTED, 4096).data
    assert effects[4 * AdminOpcode.ABORT] == 1
    assert effects[1024 + 4 * IoOpcode.WRITE] == 3  # supported, changes content
    assert effects[1024 + 4 * IoOpcode.READ] == 1
    assert effects[1024 + 4 * IoOpcode.RESERVATION_REPORT] == 1
    supported = host.log(LogPage.SUPPORTED, 1024).data
    assert [page for page in range(256) if supported[4 * page]] == [0, 1, 2, 3, 4, 5, 0x0C, 0x80]
    assert host.log(0x99, 64).status == Status.INVALID_LOG_PAGE


def test_a_command_that_is_turned_away_is_no_error_of_the_controller(port: Port, host: Host) -> None:
    port.become(Access.INACCESSIBLE)
    host.read(0, 1)
    assert not any(host.log(LogPage.ERROR, 64).data)


# --- events -----------------------------------------------------------------------------------------------------------


def test_each_change_of_access_is_told_once_its_page_was_read(port: Port, host: Host) -> None:
    host.watch(ANA_BIT, requests=2)
    port.become(Access.CHANGE)
    (told,) = host.admin.answers()
    assert told.dw0 == ANA_CHANGED
    port.become(Access.INACCESSIBLE)
    assert host.admin.answers() == []
    state = ANA_GROUP_FORMAT.parse(host.log(LogPage.ANA, 52).data[16:]).state
    assert state == 3  # the page says what the second event would have
    port.become(Access.OPTIMIZED)
    (told,) = host.admin.answers()
    assert told.dw0 == ANA_CHANGED


def test_an_access_that_stays_is_not_told(port: Port, host: Host) -> None:
    host.watch(ANA_BIT)
    port.become(Access.OPTIMIZED)
    assert host.admin.answers() == []


# --- features ---------------------------------------------------------------------------------------------------------


def test_features(host: Host) -> None:
    def set_feature(feature: int, value: int) -> tuple[int, int]:
        answer = host.admin_ask(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value)
        return answer.status, answer.dw0

    def get_feature(feature: int, value: int = 0, room: int = 0) -> tuple[int, int]:
        answer = host.admin_ask(AdminOpcode.GET_FEATURES, room, cdw10=feature, cdw11=value)
        return answer.status, answer.dw0

    fixed = {
        Feature.ARBITRATION: 7, Feature.POWER_MANAGEMENT: 0, Feature.TEMPERATURE_THRESHOLD: 0xFFFF,
        Feature.WRITE_ATOMICITY: 0,
    }  # fmt: skip
    for feature, value in fixed.items():
        assert get_feature(feature) == (0, value)
        assert set_feature(feature, value)[0] == Status.FEATURE_NOT_CHANGEABLE
    granted = (IO_QUEUES_MAX - 1) * 0x10001
    assert set_feature(Feature.NUMBER_OF_QUEUES, 0xFFFE_FFFE) == (0, granted)
    assert set_feature(Feature.NUMBER_OF_QUEUES, 0x0003_0003) == (0, 0x0003_0003)
    assert get_feature(Feature.NUMBER_OF_QUEUES) == (0, granted)
    assert get_feature(Feature.VOLATILE_WRITE_CACHE) == (0, 0)
    assert set_feature(Feature.VOLATILE_WRITE_CACHE, 1)[0] == Status.FEATURE_NOT_CHANGEABLE
    assert set_feature(Feature.ERROR_RECOVERY, 100)[0] == 0
    assert get_feature(Feature.ERROR_RECOVERY) == (0, 100)
    assert set_feature(Feature.KEEP_ALIVE_TIMER, 9000)[0] == 0
    assert get_feature(Feature.KEEP_ALIVE_TIMER) == (0, 9000)
    assert host.admin_ask(AdminOpcode.GET_FEATURES, 16, cdw10=Feature.HOST_IDENTIFIER, cdw11=1).data == bytes(16)
    assert get_feature(Feature.HOST_IDENTIFIER)[0] == Status.INVALID_FIELD
    assert set_feature(Feature.HOST_IDENTIFIER, 1)[0] == Status.COMMAND_SEQUENCE_ERROR
    assert get_feature(0x7F)[0] == Status.INVALID_FIELD


# --- whom it admits ---------------------------------------------------------------------------------------------------


def test_only_listed_hosts_connect(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.admit(HOST_NQN.decode())
    Host(port)
    with caplog.at_level(logging.WARNING):
        refused = port.connection().connect(nqn=NQN, host_nqn=OTHER_HOST)
    assert (refused.status, refused.dnr) == (Status.CONNECT_INVALID_HOST, True)
    assert port.server.counters.hosts_refused == 1
    assert "event=nvme_host_refused" in caplog.text
    port.admit()
    assert port.connection().connect(nqn=NQN).status == Status.CONNECT_INVALID_HOST


def test_a_head_that_has_no_view_yet_tells_hosts_to_try_again(port: Port) -> None:
    """Linux gives a path up for good at an answer with DNR, and a restarted head listens before it knows anything."""
    known = port.server
    port.server = NvmeServer(known.env, serial="HEAD")
    early = port.connection().connect(nqn=NQN)
    assert (early.status, early.dnr) == (Status.CONNECT_INVALID_PARAMETERS, False)
    port.admit("*")
    assert port.connection().connect(nqn=NQN).status == 0
    unknown = port.connection().connect(nqn=NQN + "x")
    assert (unknown.status, unknown.dnr) == (Status.CONNECT_INVALID_PARAMETERS, True)


def test_a_host_that_is_taken_off_the_list_is_put_out_and_others_stay(port: Port) -> None:
    port.admit(HOST_NQN.decode(), OTHER_HOST.decode())
    stays, goes = Host(port), Host(port, host_nqn=OTHER_HOST)
    port.admit(HOST_NQN.decode())
    assert list(port.subsystem.hosts) == [stays.controller_id]
    assert not goes.io.queue.live
    assert stays.read(0, 1).status == 0


def test_a_volume_that_is_not_exported_any_more_puts_its_hosts_out(port: Port, host: Host) -> None:
    port.server.update([], port.number, {})
    assert not host.admin.queue.live
    assert port.connection().connect(nqn=NQN).dw0 == 256 | 1 << 16


def test_hosts_are_bounded(port: Port) -> None:
    for _ in range(HOSTS_MAX):
        assert port.connection().connect(nqn=NQN).status == 0
    busy = port.connection().connect(nqn=NQN)
    assert (busy.status, busy.dnr) == (Status.CONNECT_CONTROLLER_BUSY, False)


def test_an_io_queue_of_another_host_is_refused(port: Port, host: Host) -> None:
    answer = port.connection().connect(2, host.controller_id, nqn=NQN, host_nqn=OTHER_HOST)
    assert (answer.status, answer.dw0) == (Status.CONNECT_INVALID_PARAMETERS, 16 | 1 << 16)
    beyond = port.connection().connect(IO_QUEUES_MAX + 1, host.controller_id, nqn=NQN)
    assert (beyond.status, beyond.dw0) == (Status.CONNECT_INVALID_PARAMETERS, 42)


# --- how it goes ------------------------------------------------------------------------------------------------------


def test_an_orderly_shutdown_is_completed_and_can_be_read(host: Host) -> None:
    shutdown = vendor.property_set(Property.CC, CC_ENABLE | 1 << 14)
    assert host.admin.ask(shutdown).status == 0
    assert property_get(host, Property.CSTS) == CSTS_READY | CSTS_SHUTDOWN_COMPLETE


def test_a_controller_reset_takes_the_io_queues_and_lets_the_host_begin_again(port: Port, host: Host) -> None:
    port.volume.hold = True
    host.start_write(0, b"x" * BLOCK)
    assert host.admin.ask(vendor.property_set(Property.CC, 0)).status == 0
    assert property_get(host, Property.CSTS) == 0
    port.volume.release()
    assert host.io.receive() == []
    assert host.admin.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    host.io = host.queue(1)
    assert host.read(0, 1).status == 0


def test_a_host_that_falls_silent_beyond_its_keep_alive_timeout_is_given_up(port: Port) -> None:
    host = Host(port, kato_ms=5000)
    start = port.clock.boottime_ns()
    queue = host.admin.queue
    assert queue.overdue(start + 5 * SECOND_NS) is None
    assert queue.overdue(start + 7 * SECOND_NS) == "keep-alive timer expired"


def test_an_admin_command_that_nobody_knows_is_refused(host: Host) -> None:
    for opcode in (AdminOpcode.NAMESPACE_MANAGEMENT, AdminOpcode.FIRMWARE_COMMIT, AdminOpcode.ATTACH, 0x80):
        assert host.admin.ask(sqe(opcode, 0)).status == Status.INVALID_OPCODE


def test_abort_ends_held_event_requests_only(port: Port, host: Host) -> None:
    port.volume.hold = True
    cid = host.start_read(0)
    assert host.admin_ask(AdminOpcode.ABORT, cdw10=1 | cid << 16).dw0 == 1
    port.volume.release()
    assert [answer.status for answer in host.io.answers()] == [0]


# --- discovery --------------------------------------------------------------------------------------------------------


def discover(port: Port, host_nqn: bytes = HOST_NQN) -> bytes:
    wire = port.connection()
    assert wire.connect(nqn=DISCOVERY_NQN, host_nqn=host_nqn).status == 0
    assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    return wire.ask(sqe(AdminOpcode.GET_LOG_PAGE, 0, cdw10=LogPage.DISCOVERY | 1023 << 16), room=4096).data


def test_discovery_names_every_path_to_every_volume_that_admits_the_host(port: Port) -> None:
    page = discover(port)
    assert [int.from_bytes(page[at : at + 8], "little") for at in (0, 8, 16)] == [2, 2, 0]
    assert page[2048:3072] == golden("nvme_discovery_entry")
    port.admit(OTHER_HOST.decode())
    assert int.from_bytes(discover(port)[8:16], "little") == 0
    assert int.from_bytes(discover(port, OTHER_HOST)[8:16], "little") == 2


def test_a_stranger_that_asks_for_the_discovery_log_has_no_row_made(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a thousand volumes a page took 10 ms, of any length, and a stranger gets 16 commands at a time."""
    page = discover(port)
    for made in ("DiscoveryEntry", "discovery_row", "uuid_nqn", "is_ipv6"):
        monkeypatch.setattr(f"head_node.export.nvme.server.{made}", None)
    assert discover(port) == page


def test_discovery_tells_of_changes_and_counts_them(port: Port) -> None:
    wire = port.connection()
    wire.connect(nqn=DISCOVERY_NQN)
    wire.ask(sqe(AdminOpcode.SET_FEATURES, 0, cdw10=Feature.ASYNC_EVENT_CONFIGURATION, cdw11=1 << DISCOVERY_BIT))
    wire.start(sqe(AdminOpcode.ASYNC_EVENT_REQUEST, 0))
    generation = int.from_bytes(discover(port)[:8], "little")
    port.admit("*")
    assert wire.answers() == []  # nothing is different
    port.admit(HOST_NQN.decode())
    (told,) = wire.answers()
    assert told.dw0 == DISCOVERY_CHANGED
    assert int.from_bytes(discover(port)[:8], "little") == generation + 1
