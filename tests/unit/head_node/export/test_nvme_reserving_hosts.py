"""Hosts of one volume reserve it: what others are refused, what is reported, and who is told; on every path."""

import asyncio

import pytest
from kit.export import VOLUME_ID, MemoryVolume
from kit.nvme_export import Host, Port, at, sqe
from kit.target import Answer
from kit.volume import Bench, run, until

from head_node.export.nvme.subsystem import Access
from head_node.volume.reservations import Notice, NoticeKind, Reservations
from spdk_bindings.nvme import (
    DATASET_RANGE,
    NSID_ALL,
    AdminOpcode,
    Feature,
    IdentifyCns,
    IoOpcode,
    LogPage,
    Status,
)

A, B = b"A" * 16, b"B" * 16
REGISTER, ACQUIRE, RELEASE = IoOpcode.RESERVATION_REGISTER, IoOpcode.RESERVATION_ACQUIRE, IoOpcode.RESERVATION_RELEASE
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1 << 8, 2 << 8
PREEMPT = 1
BLOCK = bytes(range(256)) * 16
RETAIN = 1 << 15


def keys(current: int, other: int = 0) -> bytes:
    return current.to_bytes(8, "little") + other.to_bytes(8, "little")


def register(host: Host, key: int) -> None:
    assert host.ask(REGISTER, data=keys(0, key), cdw10=0).status == 0


def report(host: Host, length: int = 256) -> bytes:
    answer = host.ask(IoOpcode.RESERVATION_REPORT, room=length, cdw10=length // 4 - 1, cdw11=1)
    assert (answer.status, len(answer.data)) == (0, length)
    return answer.data


def requests(host: Host) -> dict[str, Answer]:
    """One of each command that reads or changes the volume."""
    one_range = DATASET_RANGE.pack(0, 1, 0)
    return {
        "write": host.write(0, BLOCK),
        "zeroes": host.ask(IoOpcode.WRITE_ZEROES, **at(1, 1)),
        "deallocate": host.ask(IoOpcode.DATASET_MANAGEMENT, data=one_range, cdw10=0, cdw11=1 << 2),
        "flush": host.ask(IoOpcode.FLUSH),
        "read": host.read(4, 1),
        "verify": host.ask(IoOpcode.VERIFY, **at(4, 1)),
        "compare": host.ask(IoOpcode.COMPARE, data=bytes(4096), **at(4, 1)),
    }


WRITES = {"write", "zeroes", "deallocate", "flush"}


@pytest.mark.parametrize(("type_", "refused"), [(WRITE_EXCLUSIVE, WRITES), (EXCLUSIVE_ACCESS, None)])
def test_what_a_reservation_keeps_others_from_is_a_conflict_that_is_not_to_be_retried(
    type_: int, refused: set[str] | None
) -> None:
    port = Port()
    holder, other = Host(port, host_id=A), Host(port, host_id=B)
    register(holder, 1)
    assert holder.ask(ACQUIRE, data=keys(1), cdw10=type_).status == 0
    assert {name for name, answer in requests(holder).items() if answer.status} == set()
    answers = requests(other)
    conflicts = {name for name, answer in answers.items() if answer.status == Status.RESERVATION_CONFLICT}
    assert conflicts == (refused or set(answers))
    assert all(answers[name].dnr for name in conflicts)
    assert {answers[name].status for name in set(answers) - conflicts} <= {0}


def test_a_host_is_the_same_on_every_controller_and_all_of_them_are_reported() -> None:
    port = Port()
    first, second, other = Host(port, host_id=A), Host(port, host_id=A), Host(port, host_id=B)
    register(first, 0x11)
    assert second.ask(ACQUIRE, data=keys(0x11), cdw10=EXCLUSIVE_ACCESS).status == 0
    assert first.write(0, BLOCK).status == 0
    register(other, 0x22)
    page = report(other)
    assert page[:10] == bytes.fromhex("02000000 02 0300 0000 01")
    rows = {int.from_bytes(page[at : at + 2], "little"): page[at + 2 : at + 32] for at in (64, 128, 192)}
    held, free = bytes.fromhex("01 0000000000 1100000000000000"), bytes.fromhex("00 0000000000 2200000000000000")
    assert rows == {
        first.controller_id: held + A,
        second.controller_id: held + A,
        other.controller_id: free + B,
    }


def test_commands_that_say_nonsense_are_refused() -> None:
    port = Port()
    host = Host(port, host_id=A)
    assert host.ask(REGISTER, data=keys(0, 1), cdw10=3).status == Status.INVALID_FIELD
    assert host.ask(REGISTER, data=keys(0, 1)[:8], cdw10=0).status == Status.SGL_LENGTH_INVALID
    assert host.ask(REGISTER, data=keys(0, 1), nsid=2, cdw10=0).status == Status.INVALID_NAMESPACE
    assert host.ask(RELEASE, data=keys(0), cdw10=0).status == Status.RESERVATION_CONFLICT
    too_long = host.ask(IoOpcode.RESERVATION_REPORT, room=4096, cdw10=(1 << 32) - 1, cdw11=1)
    assert too_long.status == Status.INVALID_FIELD
    short = host.ask(IoOpcode.RESERVATION_REPORT, room=64, cdw10=15, cdw11=0)
    assert (short.status, short.dnr) == (Status.HOST_IDENTIFIER_INCONSISTENT, True)
    nobody = Host(port)
    assert nobody.ask(REGISTER, data=keys(0, 1), cdw10=0).status == Status.INVALID_FIELD
    assert (
        nobody.admin_ask(AdminOpcode.SET_FEATURES, nsid=1, cdw10=Feature.RESERVATION_PERSISTENCE, cdw11=0).status
        == Status.INVALID_FIELD
    )


def test_a_host_finds_out_that_it_can_reserve() -> None:
    host = Host(Port(), host_id=A)
    controller = host.admin_ask(AdminOpcode.IDENTIFY, room=4096, nsid=0, cdw10=IdentifyCns.CONTROLLER).data
    assert controller[520] & 1 << 5
    assert controller[96] & 1  # host identifiers have 128 bits
    assert host.admin_ask(AdminOpcode.IDENTIFY, nsid=1, room=4096, cdw10=IdentifyCns.NAMESPACE).data[31] == 0xFF
    assert (
        host.admin_ask(AdminOpcode.IDENTIFY, nsid=1, room=4096, cdw10=IdentifyCns.INDEPENDENT_NAMESPACE).data[2] == 0xFF
    )
    pages = host.admin_ask(AdminOpcode.GET_LOG_PAGE, room=1024, nsid=0, cdw10=LogPage.SUPPORTED | 255 << 16).data
    assert pages[4 * LogPage.RESERVATION] == 1
    effects = host.admin_ask(
        AdminOpcode.GET_LOG_PAGE, room=4096, nsid=0, cdw10=LogPage.COMMANDS_SUPPORTED | 1023 << 16
    ).data
    assert all(effects[1024 + 4 * opcode] & 1 for opcode in (REGISTER, ACQUIRE, RELEASE, IoOpcode.RESERVATION_REPORT))


# --- notices ----------------------------------------------------------------------------------------------------------


def await_event(host: Host) -> int:
    return host.admin.start(sqe(AdminOpcode.ASYNC_EVENT_REQUEST, 0))


def notice(host: Host, flags: int = 0) -> tuple[int, int, int]:
    """(count, kind, further) of the notice that a host reads."""
    page = host.admin_ask(AdminOpcode.GET_LOG_PAGE, nsid=1, room=64, cdw10=LogPage.RESERVATION | flags | 15 << 16).data
    assert int.from_bytes(page[12:16], "little") == (1 if page[8] else 0)
    return int.from_bytes(page[:8], "little"), page[8], page[9]


def test_who_is_preempted_is_told_on_each_of_its_controllers() -> None:
    port = Port()
    paths, taker = [Host(port, host_id=A), Host(port, host_id=A)], Host(port, host_id=B)
    register(paths[0], 1)
    register(taker, 2)
    assert paths[0].ask(ACQUIRE, data=keys(1), cdw10=WRITE_EXCLUSIVE).status == 0
    asked = [await_event(path) for path in (*paths, taker)]
    assert taker.ask(ACQUIRE, data=keys(2, 1), cdw10=WRITE_EXCLUSIVE | PREEMPT).status == 0
    for path, cid in zip(paths, asked, strict=False):
        (event,) = path.admin.answers()
        assert (event.cid, event.dw0) == (cid, 6 | LogPage.RESERVATION << 16)
        assert notice(path) == (1, NoticeKind.REGISTRATION_PREEMPTED, 0)
        assert notice(path) == (0, 0, 0)
    assert taker.admin.answers() == []


def test_each_notice_is_an_event_until_all_are_read() -> None:
    port = Port()
    host, volume = Host(port, host_id=A), port.volume
    await_event(host)
    for kind in (NoticeKind.RESERVATION_RELEASED, NoticeKind.REGISTRATION_PREEMPTED):
        for watcher in volume.watchers:
            watcher(Notice(A, kind))
    assert len(host.admin.answers()) == 1
    await_event(host)
    assert host.admin.answers() == []
    assert notice(host, RETAIN) == (1, NoticeKind.RESERVATION_RELEASED, 1)
    assert notice_and_events(host) == ((1, NoticeKind.RESERVATION_RELEASED, 1), 1)
    await_event(host)
    assert notice_and_events(host) == ((2, NoticeKind.REGISTRATION_PREEMPTED, 0), 0)


def notice_and_events(host: Host) -> tuple[tuple[int, int, int], int]:
    """The notice that is read, and how many events come with the answer."""
    cid = host.admin.start(sqe(AdminOpcode.GET_LOG_PAGE, 1, cdw10=LogPage.RESERVATION | 15 << 16), room=64)
    answers = host.admin.answers()
    (page,) = [answer.data for answer in answers if answer.cid == cid]
    return (int.from_bytes(page[:8], "little"), page[8], page[9]), len(answers) - 1


def test_a_host_masks_what_it_does_not_want_to_be_told() -> None:
    port = Port()
    host, other = Host(port, host_id=A), Host(port, host_id=B)
    mask = Feature.RESERVATION_NOTIFICATION_MASK
    set_, get = AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES
    assert host.admin_ask(set_, nsid=1, cdw10=mask, cdw11=1 << NoticeKind.RESERVATION_PREEMPTED).status == 0
    assert host.admin_ask(get, nsid=1, cdw10=mask).dw0 == 1 << NoticeKind.RESERVATION_PREEMPTED
    assert host.admin_ask(set_, nsid=1, cdw10=mask, cdw11=1).status == Status.INVALID_FIELD
    assert host.admin_ask(set_, nsid=7, cdw10=mask, cdw11=0).status == Status.INVALID_NAMESPACE
    assert host.admin_ask(get, nsid=NSID_ALL, cdw10=mask).status == Status.INVALID_NAMESPACE
    register(host, 1)
    register(other, 2)
    await_event(host)
    assert other.ask(RELEASE, data=keys(2)[:8], cdw10=1).status == 0
    assert (host.admin.answers(), notice(host)) == ([], (0, 0, 0))
    assert host.admin_ask(set_, nsid=NSID_ALL, cdw10=mask, cdw11=0).status == 0
    register(host, 1)
    register(other, 2)
    assert other.ask(RELEASE, data=keys(2)[:8], cdw10=1).status == 0
    assert len(host.admin.answers()) == 1
    assert notice(host) == (1, NoticeKind.RESERVATION_PREEMPTED, 0)


# --- persistence ------------------------------------------------------------------------------------------------------


def test_persistence_is_kept_as_it_is_set() -> None:
    port = Port()
    host = Host(port, host_id=A)
    feature, set_, get = Feature.RESERVATION_PERSISTENCE, AdminOpcode.SET_FEATURES, AdminOpcode.GET_FEATURES
    assert host.admin_ask(get, nsid=1, cdw10=feature).dw0 == 1
    assert host.admin_ask(set_, nsid=1, cdw10=feature, cdw11=0).status == 0
    assert (host.admin_ask(get, nsid=1, cdw10=feature).dw0, report(host)[9]) == (0, 0)
    assert host.admin_ask(get, nsid=1, cdw10=feature | 1 << 8).dw0 == 1  # what it is at first
    assert host.admin_ask(get, nsid=1, cdw10=feature | 3 << 8).dw0 == 1 << 2  # it can be changed
    assert host.admin_ask(set_, nsid=1, cdw10=feature | 1 << 31, cdw11=1).status == Status.FEATURE_NOT_SAVEABLE
    assert host.admin_ask(set_, nsid=NSID_ALL, cdw10=feature, cdw11=1).status == Status.INVALID_NAMESPACE
    assert host.ask(REGISTER, data=keys(0, 5), cdw10=3 << 30).status == 0
    assert (host.admin_ask(get, nsid=1, cdw10=feature).dw0, report(host)[9]) == (1, 1)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "status"), [(Access.INACCESSIBLE, Status.ANA_INACCESSIBLE), (Access.CHANGE, Status.ANA_TRANSITION)]
)
def test_a_path_that_serves_nothing_says_so_and_nothing_else(access: Access, status: Status) -> None:
    port = Port()
    host = Host(port, host_id=A)
    register(host, 1)
    port.become(access)
    answers = [
        host.ask(REGISTER, data=keys(0, 1), cdw10=0),
        host.ask(ACQUIRE, data=keys(1), cdw10=WRITE_EXCLUSIVE),
        host.ask(IoOpcode.RESERVATION_REPORT, room=64, cdw10=15, cdw11=1),
        host.admin_ask(AdminOpcode.GET_FEATURES, nsid=1, cdw10=Feature.RESERVATION_PERSISTENCE),
        host.admin_ask(AdminOpcode.SET_FEATURES, nsid=1, cdw10=Feature.RESERVATION_PERSISTENCE, cdw11=0),
    ]
    assert {(answer.status, answer.dnr) for answer in answers} == {(status, False)}


def test_notices_come_from_the_volume_that_is_served_and_from_no_former_one() -> None:
    port = Port()
    host, former = Host(port, host_id=A), port.volume
    port.server.set_access(VOLUME_ID, Access.OPTIMIZED, former)
    assert len(former.watchers) == 1
    port.server.drop_clients(VOLUME_ID)
    assert former.watchers == []
    newer = MemoryVolume(former.size_bytes)
    port.server.set_access(VOLUME_ID, Access.OPTIMIZED, newer)
    (watcher,) = newer.watchers
    watcher(Notice(A, NoticeKind.RESERVATION_RELEASED))
    assert notice(host) == (1, NoticeKind.RESERVATION_RELEASED, 0)
    port.server.update([], 1, {})
    assert newer.watchers == []


def test_an_answer_that_comes_after_the_path_was_given_up_is_nobodys() -> None:
    port = Port()
    host, volume = Host(port, host_id=A), port.volume
    volume.hold = True
    begun = [
        (host.io, host.start(REGISTER, data=keys(0, 1), cdw10=0)),
        (host.admin, host.admin.start(sqe(AdminOpcode.SET_FEATURES, 1, cdw10=Feature.RESERVATION_PERSISTENCE))),
        (host.admin, host.admin.start(sqe(AdminOpcode.GET_FEATURES, 1, cdw10=Feature.RESERVATION_PERSISTENCE))),
    ]
    port.server.drop_clients(VOLUME_ID)
    for wire in (host.io, host.admin):
        given_up = {(one.cid, one.status) for one in wire.answers()}
        assert given_up == {(cid, Status.ANA_INACCESSIBLE) for asked, cid in begun if asked is wire}
    volume.release()
    assert host.io.answers() == host.admin.answers() == []


def test_f6_what_a_primary_has_not_answered_when_it_steps_down_is_left_to_the_next_one() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        port = Port(served=bench.engine.served)
        host = Host(port, host_id=A)
        cid = host.start(REGISTER, data=keys(0, 1), cdw10=0)
        await until(lambda: bench.engine.committed == 2)
        assert [(answer.cid, answer.status) for answer in host.io.answers()] == [(cid, 0)]
        begun = {host.start(ACQUIRE, data=keys(1), cdw10=WRITE_EXCLUSIVE)}
        feature = sqe(AdminOpcode.SET_FEATURES, 1, cdw10=Feature.RESERVATION_PERSISTENCE)
        asked = {host.admin.start(feature)}
        port.server.drop_clients(VOLUME_ID)
        await bench.engine.step_down()
        for wire, cids in ((host.io, begun), (host.admin, asked)):
            assert {(one.cid, one.status) for one in wire.answers()} == {(cid, Status.ANA_INACCESSIBLE) for cid in cids}
        await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
        await bench.lead(2)
        port.server.set_access(VOLUME_ID, Access.OPTIMIZED, bench.engine.served)
        # Both were in the log, and so they are done: to hosts it is as if the answers had been lost.
        begun = {host.start(IoOpcode.RESERVATION_REPORT, room=64, cdw10=15, cdw11=1)}
        await asyncio.sleep(0)
        (answer,) = host.io.answers()
        assert answer.data[:10] == bytes.fromhex("01000000 01 0100 0000 00")
        state = bench.engine.state.reservations
        assert (state.holder, state.persist) == (A, False)
        assert isinstance(state, Reservations)
        await bench.engine.close()

    run(scenario())
