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
