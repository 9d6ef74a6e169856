"""What controllers share whatever stands behind them: events told once, features and what can be done about them."""

import pytest
from kit import host
from kit.target import Head, HeldDevice, Rig, Wire

from sled_controller.fabric import vendor
from sled_controller.fabric.pdu import FatalError
from spdk_bindings.nvme import (
    CC_ENABLE,
    DISCOVERY_NQN,
    SGL_FLAGS,
    SQE,
    AdminOpcode,
    Feature,
    LogPage,
    Property,
    Status,
)

DISCOVERY_CHANGED = 2 | 0xF0 << 8 | LogPage.DISCOVERY << 16
RETAIN_EVENT = 1 << 15


def admin_sqe(opcode: int, **dwords: int) -> bytearray:
    values = [dwords.get(f"cdw{number}", 0) for number in range(10, 16)]
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), *values))


@pytest.fixture
def watcher() -> Wire:
    """A host that asked the discovery controller to be told of changes, by two requests."""
    rig = Rig()
    wire = rig.connection()
    assert wire.connect(nqn=DISCOVERY_NQN).status == 0
    assert wire.ask(vendor.property_set(Property.CC, CC_ENABLE)).status == 0
    configure = admin_sqe(AdminOpcode.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION, cdw11=1 << 31)
    assert wire.ask(configure).status == 0
    for _ in range(2):
        wire.start(admin_sqe(AdminOpcode.ASYNC_EVENT_REQUEST))
    assert wire.answers() == []
    return wire


def read_discovery(wire: Wire, flags: int = 0) -> bytes:
    dwords = {"cdw10": LogPage.DISCOVERY | flags | (1024 // 4 - 1) << 16}
    answer = wire.ask(admin_sqe(AdminOpcode.GET_LOG_PAGE, **dwords), room=1024)
    assert answer.status == 0
    return answer.data


def test_a_change_is_told_once_until_the_host_has_read_the_page(watcher: Wire) -> None:
    discovery = watcher.rig.subsystem.discovery
    discovery.changed()
    (told,) = watcher.answers()
    assert told.dw0 == DISCOVERY_CHANGED

    discovery.changed()
    assert watcher.answers() == []
    assert int.from_bytes(read_discovery(watcher, RETAIN_EVENT)[:8], "little") == 3
    assert watcher.answers() == []
    read_discovery(watcher)
    assert watcher.answers() == []  # what the page said includes the second change

    discovery.changed()
    (told,) = watcher.answers()
    assert told.dw0 == DISCOVERY_CHANGED


def test_a_change_while_no_request_is_held_is_told_with_the_next_request(watcher: Wire) -> None:
    discovery = watcher.rig.subsystem.discovery
    for _ in range(2):
        discovery.changed()
        watcher.answers()
        read_discovery(watcher)
    discovery.changed()
    assert watcher.answers() == []
    assert watcher.ask(admin_sqe(AdminOpcode.ASYNC_EVENT_REQUEST)).dw0 == DISCOVERY_CHANGED


def test_a_host_may_take_the_id_of_an_event_request_again_and_hears_no_more_of_that_request(watcher: Wire) -> None:
    first, second = watcher.queue.busy
    watcher._cid = first - 1
    assert watcher.ask(vendor.property_get(Property.CSTS)).dw0 == 1
    discovery = watcher.rig.subsystem.discovery
    discovery.changed()
    (told,) = watcher.answers()
    assert told.cid == second
    read_discovery(watcher)
    discovery.changed()
    assert watcher.answers() == []


def test_the_id_of_any_other_command_is_not_to_be_taken_again() -> None:
    head = Rig(HeldDevice()).attached()
    head.rig.device.holding = True
    head.start_write(0, bytes(4096))
    (cid,) = head.io.queue.busy
    head.io._cid = cid - 1
    head.start_write(1, bytes(4096))
    assert head.io.termination()[0] == FatalError.PDU_SEQUENCE


def test_a_change_that_the_host_did_not_ask_for_is_not_told() -> None:
    rig = Rig()
    wire = rig.connection()
    wire.connect(nqn=DISCOVERY_NQN)
    wire.start(admin_sqe(AdminOpcode.ASYNC_EVENT_REQUEST))
    rig.subsystem.discovery.changed()
    assert wire.answers() == []


def test_features_say_their_default_and_whether_they_change() -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin

    def ask(opcode: int, **dwords: int) -> tuple[int, int]:
        answer = admin.ask(admin_sqe(opcode, **dwords), signed=False)
        return answer.status, answer.dw0

    cache, config = Feature.VOLATILE_WRITE_CACHE, Feature.ASYNC_EVENT_CONFIGURATION
    assert ask(AdminOpcode.SET_FEATURES, cdw10=cache, cdw11=0)[0] == Status.FEATURE_NOT_CHANGEABLE
    assert ask(AdminOpcode.SET_FEATURES, cdw10=config | 1 << 31, cdw11=1)[0] == Status.FEATURE_NOT_SAVEABLE
    assert ask(AdminOpcode.SET_FEATURES, cdw10=config, cdw11=9)[0] == 0
    assert ask(AdminOpcode.GET_FEATURES, cdw10=config) == (0, 9)
    assert ask(AdminOpcode.GET_FEATURES, cdw10=config | 1 << 8) == (0, 0)  # the default
    assert ask(AdminOpcode.GET_FEATURES, cdw10=config | 3 << 8) == (0, 4)  # changeable
    assert ask(AdminOpcode.GET_FEATURES, cdw10=cache | 3 << 8) == (0, 0)
    assert ask(AdminOpcode.SET_FEATURES, cdw10=Feature.NUMBER_OF_QUEUES, cdw11=0xFFFF)[0] == Status.INVALID_FIELD


def test_the_supported_pages_name_each_other() -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin
    answer = admin.ask(admin_sqe(AdminOpcode.GET_LOG_PAGE, cdw10=255 << 16), room=1024, signed=False)
    named = {at // 4 for at in range(0, 1024, 4) if answer.data[at] & 1}
    assert {LogPage.SUPPORTED, LogPage.ERROR, LogPage.SMART, LogPage.FENCE} <= named
    assert LogPage.DISCOVERY not in named
    assert LogPage.ANA not in named


SHUTDOWN_COMPLETE = 2 << 2
NORMAL_SHUTDOWN = 1 << 14


def set_cc(wire: Wire, value: int) -> int:
    """Write CC; what CSTS says then."""
    assert wire.ask(vendor.property_set(Property.CC, value)).status == 0
    return wire.ask(vendor.property_get(Property.CSTS)).dw0


def test_a_reset_ends_a_shutdown(watcher: Wire) -> None:
    assert set_cc(watcher, CC_ENABLE | NORMAL_SHUTDOWN) == SHUTDOWN_COMPLETE | 1
    assert set_cc(watcher, CC_ENABLE) == SHUTDOWN_COMPLETE | 1  # only a reset does
    assert set_cc(watcher, 0) == 0
    assert set_cc(watcher, CC_ENABLE) == 1


def test_a_controller_that_is_disabled_may_be_shut_down_too(watcher: Wire) -> None:
    assert set_cc(watcher, NORMAL_SHUTDOWN) == SHUTDOWN_COMPLETE
    assert set_cc(watcher, CC_ENABLE) == SHUTDOWN_COMPLETE | 1


def test_a_reset_forgets_features_and_event_requests(watcher: Wire) -> None:
    held = set(watcher.queue.busy)
    assert set_cc(watcher, 0) == 0
    assert set_cc(watcher, CC_ENABLE) == 1
    assert not held & watcher.queue.busy
    asked = watcher.ask(admin_sqe(AdminOpcode.GET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION))
    assert asked.dw0 == 0
    watcher.start(admin_sqe(AdminOpcode.ASYNC_EVENT_REQUEST))
    watcher.rig.subsystem.discovery.changed()
    assert watcher.answers() == []


def test_the_errors_before_a_reset_are_not_shown_after_it() -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin
    read_errors = admin_sqe(AdminOpcode.GET_LOG_PAGE, cdw10=LogPage.ERROR | 15 << 16)
    assert admin.ask(admin_sqe(AdminOpcode.IDENTIFY, cdw10=0x7F), room=4096, signed=False).status
    assert any(admin.ask(read_errors, room=64, signed=False).data)
    controller = admin.queue.controller
    assert controller is not None
    controller._reset()
    assert not any(admin.ask(read_errors, room=64, signed=False).data)


@pytest.mark.parametrize("page", [LogPage.SMART, LogPage.SUPPORTED, LogPage.NAMESPACE_TABLE])
def test_a_log_page_has_an_end(page: LogPage) -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin

    def read(offset: int, **dwords: int) -> tuple[int, bytes]:
        named = {"cdw10": page | 127 << 16, "cdw12": offset & 0xFFFF_FFFF, "cdw13": offset >> 32, **dwords}
        answer = admin.ask(admin_sqe(AdminOpcode.GET_LOG_PAGE, **named), room=512, signed=False)
        return answer.status, answer.data

    assert read(0)[0] == 0
    for beyond in (4096, 1 << 32, 1 << 63):
        assert read(beyond)[0] == Status.INVALID_FIELD
    assert read(2)[0] == Status.INVALID_FIELD
    assert read(0, cdw14=1 << 23)[0] == Status.INVALID_FIELD  # no page is read by index


def test_what_follows_the_last_byte_of_a_page_is_zero(watcher: Wire) -> None:
    page = admin_sqe(AdminOpcode.GET_LOG_PAGE, cdw10=LogPage.SUPPORTED | 127 << 16, cdw12=1024)
    assert watcher.ask(page, room=512).data == bytes(512)


def test_namespaces_are_not_listed_after_the_last_possible_id() -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin
    for nsid in (0xFFFF_FFFE, 0xFFFF_FFFF):
        sqe = bytearray(SQE.pack(AdminOpcode.IDENTIFY, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), 2, 0, 0, 0, 0, 0))
        assert admin.ask(sqe, room=4096, signed=False).status == Status.INVALID_NAMESPACE


def test_only_the_nvm_command_set_has_a_page_of_its_own() -> None:
    admin = Head(Rig(), key=host.HEAD_KEY).admin
    for command_set, status in ((0, 0), (1, Status.INVALID_FIELD), (2, Status.INVALID_FIELD)):
        sqe = admin_sqe(AdminOpcode.IDENTIFY, cdw10=6, cdw11=command_set << 24)
        assert admin.ask(sqe, room=4096, signed=False).status == status
