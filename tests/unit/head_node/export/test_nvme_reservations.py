"""Reservations on the wire: what a command's bytes mean, what Report shows, and the notices that a controller keeps."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.export import MemoryVolume

from head_node.export.nvme import reservations as wire
from head_node.export.nvme.reservations import NOTICES_MAX, NoticeLog
from head_node.volume.interface import never_gone
from head_node.volume.reservations import (
    Acquire,
    AcquireAction,
    Command,
    NoticeKind,
    Register,
    RegisterAction,
    Release,
    ReleaseAction,
    ReservationType,
)
from spdk_bindings.nvme import IoOpcode, Status

A, B = b"A" * 16, b"B" * 16
REGISTER, ACQUIRE, RELEASE = IoOpcode.RESERVATION_REGISTER, IoOpcode.RESERVATION_ACQUIRE, IoOpcode.RESERVATION_RELEASE
KEYS = bytes(range(1, 17))
FIRST, SECOND = 0x0807060504030201, 0x100F0E0D0C0B0A09


@pytest.mark.parametrize(
    ("opcode", "cdw10", "data", "command"),
    [
        (REGISTER, 0, KEYS, Register(RegisterAction.REGISTER, FIRST, SECOND)),
        (REGISTER, 1, KEYS, Register(RegisterAction.UNREGISTER, FIRST, SECOND)),
        (REGISTER, 0xC000_000A, KEYS, Register(RegisterAction.REPLACE, FIRST, SECOND, True, True)),
        (REGISTER, 0x8000_0000, KEYS, Register(RegisterAction.REGISTER, FIRST, SECOND, False, False)),
        (ACQUIRE, 0x0100, KEYS, Acquire(AcquireAction.ACQUIRE, ReservationType.WRITE_EXCLUSIVE, FIRST, SECOND)),
        (
            ACQUIRE,
            0x0602,
            KEYS,
            Acquire(AcquireAction.PREEMPT_AND_ABORT, ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, FIRST, SECOND),
        ),
        (RELEASE, 0x0300, KEYS[:8], Release(ReleaseAction.RELEASE, 3, FIRST)),
        (RELEASE, 0x0001, KEYS, Release(ReleaseAction.CLEAR, 0, FIRST)),
    ],
)
def test_what_the_bytes_of_a_command_say(opcode: IoOpcode, cdw10: int, data: bytes, command: Command) -> None:
    assert wire.parse(opcode, cdw10, data) == command
    assert wire.data_bytes(opcode) == (8 if opcode == RELEASE else 16)


@pytest.mark.parametrize(
    ("opcode", "cdw10", "data"),
    [
        (REGISTER, 3, KEYS),
        (REGISTER, 0x4000_0000, KEYS),
        (REGISTER, 0, KEYS[:8]),
        (ACQUIRE, 0x0000, KEYS),
        (ACQUIRE, 0x0700, KEYS),
        (ACQUIRE, 0x0103, KEYS),
        (ACQUIRE, 0x0108, KEYS),
        (RELEASE, 0x0102, KEYS[:8]),
        (RELEASE, 0x0108, KEYS[:8]),
        (RELEASE, 0x0100, KEYS[:7]),
    ],
)
def test_a_reserved_value_or_too_little_is_an_invalid_field(opcode: IoOpcode, cdw10: int, data: bytes) -> None:
    answers: list[tuple[Status, bytes]] = []
    volume = MemoryVolume(1 << 20)
    wire.change(volume, A, opcode, cdw10, data, lambda *answer: answers.append(answer), never_gone)
    assert answers == [(Status.INVALID_FIELD, b"")]
    assert volume.reserved.generation == 0


@given(st.sampled_from([REGISTER, ACQUIRE, RELEASE]), st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_whatever_comes_is_a_command_or_an_invalid_field(opcode: IoOpcode, cdw10: int, data: bytes) -> None:
    command = wire.parse(opcode, cdw10, data)
    assert command is None or len(data) >= wire.data_bytes(opcode)


def asked(ask: Callable[[wire.Complete], None]) -> tuple[Status, bytes]:
    answers: list[tuple[Status, bytes]] = []
    ask(lambda status, data: answers.append((status, data)))
    (answer,) = answers
    return answer


def changed(volume: MemoryVolume, host: bytes, opcode: IoOpcode, cdw10: int, *keys: int) -> Status:
    data = b"".join(key.to_bytes(8, "little") for key in keys)
    return asked(lambda complete: wire.change(volume, host, opcode, cdw10, data, complete, never_gone))[0]


def test_hosts_register_acquire_preempt_and_see_it_reported() -> None:
    volume = MemoryVolume(1 << 20)
    assert changed(volume, A, REGISTER, 0, 0, 0x11) is Status.SUCCESS
    assert changed(volume, B, REGISTER, 0xC000_0000, 0, 0x22) is Status.SUCCESS
    assert changed(volume, A, ACQUIRE, 0x0300, 0x11, 0) is Status.SUCCESS
    assert changed(volume, B, ACQUIRE, 0x0300, 0x22, 0) is Status.RESERVATION_CONFLICT

    present = [(7, A), (9, A), (11, b"C" * 16)]
    status, page = asked(lambda complete: wire.report(volume, 256, 1, present, complete, never_gone))
    assert status is Status.SUCCESS
    assert page[:64] == bytes.fromhex("02000000 03 0300 0000 01") + bytes(54)
    rows = [page[at : at + 32] for at in (64, 128, 192)]
    assert rows[0] == bytes.fromhex("0700 01 0000000000 1100000000000000") + A
    assert rows[1] == bytes.fromhex("0900 01 0000000000 1100000000000000") + A
    # B has no controller here: it may have one on another head.
    assert rows[2] == bytes.fromhex("ffff 00 0000000000 2200000000000000") + B

    assert changed(volume, B, ACQUIRE, 0x0301, 0x22, 0x11) is Status.SUCCESS
    assert changed(volume, B, RELEASE, 0x0300, 0x22) is Status.SUCCESS


def test_a_report_is_cut_to_what_is_asked_for_and_padded_with_zeroes() -> None:
    volume = MemoryVolume(1 << 20)
    changed(volume, A, REGISTER, 0, 0, 0x11)
    assert len(asked(lambda done: wire.report(volume, 8, 1, (), done, never_gone))[1]) == 8
    page = asked(lambda done: wire.report(volume, 4096, 1, (), done, never_gone))[1]
    assert page[64:66] == b"\xff\xff"
    assert page[128:] == bytes(4096 - 128)


def test_a_report_needs_the_extended_form() -> None:
    volume = MemoryVolume(1 << 20)
    short = asked(lambda done: wire.report(volume, 256, 0, (), done, never_gone))
    assert short == (Status.HOST_IDENTIFIER_INCONSISTENT, b"")


def test_a_host_whose_identifier_is_zero_reserves_nothing() -> None:
    volume = MemoryVolume(1 << 20)
    assert changed(volume, bytes(16), REGISTER, 0, 0, 0x11) is Status.INVALID_FIELD
    assert volume.reserved.registrants == {}


def test_notices_are_read_one_by_one_oldest_first() -> None:
    notices = NoticeLog(1)
    assert notices.page() == bytes(64)
    notices.add(NoticeKind.REGISTRATION_PREEMPTED)
    notices.add(NoticeKind.RESERVATION_RELEASED)
    first = bytes.fromhex("0100000000000000 01 01 0000 01000000") + bytes(48)
    assert notices.page() == notices.page() == first
    notices.taken()
    assert notices.page() == bytes.fromhex("0200000000000000 02 00 0000 01000000") + bytes(48)
    notices.taken()
    notices.taken()
    assert (notices.page(), len(notices)) == (bytes(64), 0)


def test_the_oldest_notices_go_and_their_numbers_with_them() -> None:
    notices = NoticeLog(1)
    for _ in range(NOTICES_MAX + 3):
        notices.add(NoticeKind.RESERVATION_RELEASED)
    assert len(notices) == NOTICES_MAX
    assert notices.page()[:10] == (4).to_bytes(8, "little") + bytes((2, NOTICES_MAX - 1))
