"""A sled's time as its heads meet it: wrong issue times and clocks, statements of time, weeks without power."""

import asyncio

import pytest
from kit import host
from kit.target import Head, Rig, other_volume

from sled_controller.association import Refusal
from sled_controller.credential import Credential, Rights
from sled_controller.fabric import vendor
from sled_controller.keyset import KeySet
from sled_controller.retirement import Retirement
from sled_controller.storage.records import TimeEntry
from sled_controller.time_statement import TimeStatement
from spdk_bindings.nvme import AdminOpcode, LogPage, Status

MINUTE, DAY, YEAR = 60_000, 86_400_000, 365 * 86_400_000
FAR_MS = [host.NOW_MS + DAY, host.NOW_MS + YEAR, 253_402_300_799_999, 1 << 63, (1 << 64) - 2]


def attach_of(head: Head, volume: int, issued_ms: int, expires_ms: int, epoch: int = 1) -> int:
    """The status of an ATTACH with a credential of these times."""
    credential = Credential(
        7,
        other_volume(volume),
        host.public_key(host.HEAD_KEY),
        epoch,
        Rights(7),
        issued_ms,
        expires_ms,
        1,
        sleds=(host.SLED,),
    )
    raw = credential.sign(host.private_key(host.AUTHORITY))
    return head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), raw).status


def state(head: Head, statement: TimeStatement, root: int = host.ROOT) -> tuple[int, int]:
    """(status, DW0) of a TIME STATEMENT."""
    raw = statement.sign(host.private_key(root))
    answer = head.admin.ask(vendor.vendor_sqe(AdminOpcode.TIME_STATEMENT), raw)
    return answer.status, answer.dw0


def told_ms(head: Head) -> int:
    """Sled time as log page C2h says it."""
    sqe = vendor.get_log_page(LogPage.SLED_STATUS, vendor.STATUS.size)
    page = head.admin.ask(sqe, room=vendor.STATUS.size, signed=False)
    return int(vendor.STATUS.unpack(page.data)[2])


@pytest.mark.parametrize("far_ms", FAR_MS)
@pytest.mark.parametrize("restarted", [False, True])
def test_expiry_a_credential_of_a_far_time_ends_no_sled(far_ms: int, restarted: bool) -> None:
    """A stolen signing key, or an authority whose clock was wrong: what is issued after it is taken as before."""
    rig = Rig()
    rig.attached()
    assert attach_of(rig.head(), 1, far_ms, far_ms + 1) == 0
    if restarted:
        rig = Rig(*rig.devices)
    head = rig.head(host.OTHER_HEAD_KEY)
    assert head.try_attach(6, 1).status == 0
    assert host.NOW_MS <= told_ms(head) <= host.NOW_MS + MINUTE


def test_expiry_a_sled_without_a_battery_takes_nothing_after_a_week_that_expired_before_it() -> None:
    rig = Rig()
    rig.attached(epoch=5)
    without = host.FixedClock(now_ms=0, boot_ns=0)
    rig = Rig(*rig.devices, clock=without)
    head = rig.head()
    assert head.try_attach(5, 2).status == Status.CREDENTIAL_EXPIRED
    assert head.try_attach(5, 2, issued_ms=host.NOW_MS - MINUTE).status == Status.CREDENTIAL_EXPIRED
    week_ms = host.NOW_MS + 7 * DAY
    assert head.try_attach(5, 2, issued_ms=week_ms).status == 0
    assert told_ms(head) == week_ms
    assert attach_of(head, 2, week_ms - DAY, week_ms - DAY + host.TERM_MS) == Status.CREDENTIAL_EXPIRED
    again = Rig(*rig.devices, clock=host.FixedClock(now_ms=0, boot_ns=0))
    assert again.head().try_attach(5, 3, issued_ms=week_ms).status == Status.CREDENTIAL_EXPIRED


def test_expiry_a_restart_with_a_clock_needs_no_newer_credential() -> None:
    rig = Rig()
    rig.attached(epoch=5)
    assert Rig(*rig.devices).head().try_attach(5, 2).status == 0


def test_expiry_a_statement_of_time_brings_a_sled_back_also_over_a_restart() -> None:
    rig = Rig()
    rig.attached()
    rig.subsystem.time.keep(host.NOW_MS + YEAR)  # a start, and an hour, with every clock a year ahead
    rig.subsystem.keep_time()
    rig = Rig(*rig.devices)
    head = rig.head()
    assert head.try_attach(6, 1).status == Status.CREDENTIAL_EXPIRED
    boot_counter = rig.storage.boot_counter
    assert state(head, TimeStatement(3, host.NOW_MS, host.SLED, boot_counter)) == (0, 0)
    assert told_ms(head) == host.NOW_MS
    assert head.try_attach(6, 1).status == 0
    rig = Rig(*rig.devices)
    assert rig.head().try_attach(7, 1).status == 0
    assert rig.storage.time == TimeEntry(3, host.NOW_MS, 0)


def test_expiry_what_is_noted_while_a_statement_is_written_does_not_undo_it() -> None:
    """Heads attach and renew all the time, and a minute's note of sled time may fall due just then."""
    rig = Rig()
    rig.attached()
    rig.subsystem.time.keep(host.NOW_MS + YEAR)
    rig.subsystem.keep_time()
    head = rig.head()

    async def stated() -> None:
        rig.device.holding_table = True
        raw = TimeStatement(1, host.NOW_MS).sign(host.private_key(host.ROOT))
        head.admin.start(vendor.vendor_sqe(AdminOpcode.TIME_STATEMENT), raw)
        rig.subsystem.keep_time()
        head.start_attach(6, 1, issued_ms=host.NOW_MS + YEAR + 2 * MINUTE)
        old = Retirement(7, other_volume(1), 4, host.NOW_MS + YEAR - 1).sign(host.private_key(host.AUTHORITY))
        head.admin.start(vendor.vendor_sqe(AdminOpcode.RETIRE), old)
        rig.device.holding_table = False
        while rig.device.held:
            rig.device.release()

    asyncio.run(stated())
    assert [answer.status for answer in head.admin.answers()] == [Status.NAMESPACE_NOT_READY, 0, 0]
    assert rig.storage.issued_ms <= host.NOW_MS + MINUTE
    again = Rig(*rig.devices)
    assert told_ms(again.head()) <= host.NOW_MS + MINUTE
    assert again.head().try_attach(7, 1).status == 0


def test_expiry_a_statement_lets_credentials_of_the_right_time_renew_those_of_the_wrong_one() -> None:
    rig = Rig()
    head = rig.head()
    assert head.try_attach(5, 1, issued_ms=host.NOW_MS + YEAR).status == 0
    assert state(head, TimeStatement(1, host.NOW_MS)) == (0, 0)
    assert head.try_attach(5, 1, issued_ms=host.NOW_MS + 1000).status == 0
    holder = rig.subsystem.volume(host.VOLUME).holder
    assert holder is not None
    assert holder.expires_ms == host.NOW_MS + 1000 + host.TERM_MS
    assert rig.head().try_attach(5, 2, issued_ms=host.NOW_MS + 2000).status == 0, "another association of it, too"


def test_expiry_a_clock_that_is_known_to_be_ahead_counts_less_that_after_a_restart() -> None:
    clock = host.FixedClock(now_ms=host.NOW_MS + YEAR)
    rig = Rig(clock=clock)
    head = rig.head()
    assert head.try_attach(5, 1).status == Status.CREDENTIAL_EXPIRED
    assert state(head, TimeStatement(1, host.NOW_MS)) == (0, 0)
    assert head.try_attach(5, 1).status == 0
    rig = Rig(*rig.devices, clock=clock)
    assert rig.head().try_attach(5, 2).status == 0


def test_expiry_a_statement_is_taken_once_and_only_by_whom_it_is_for() -> None:
    rig = Rig()
    head = rig.head()
    assert state(head, TimeStatement(4, host.NOW_MS + DAY), host.AUTHORITY) == (Status.REFUSED, Refusal.SIGNATURE)
    assert state(head, TimeStatement(4, host.NOW_MS + DAY, host.VOLUME)) == (Status.REFUSED, Refusal.OTHER_SLED)
    other = rig.storage.boot_counter + 1
    assert state(head, TimeStatement(4, host.NOW_MS, host.SLED, other)) == (Status.REFUSED, Refusal.OTHER_SLED)
    assert told_ms(head) == host.NOW_MS
    assert state(head, TimeStatement(4, host.NOW_MS)) == (0, 0)
    assert state(head, TimeStatement(4, host.NOW_MS - DAY)) == (Status.REFUSED, Refusal.TIME_SERIAL)
    assert state(head, TimeStatement(3, host.NOW_MS - DAY)) == (Status.REFUSED, Refusal.TIME_SERIAL)
    answer = head.admin.ask(vendor.vendor_sqe(AdminOpcode.TIME_STATEMENT), b"nonsense")
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.MALFORMED)
    again = Rig(*rig.devices)
    assert state(again.head(), TimeStatement(4, host.NOW_MS - DAY)) == (Status.REFUSED, Refusal.TIME_SERIAL)


@pytest.mark.parametrize("restarted", [False, True])
def test_f2_a_forgotten_fence_stays_out_of_reach_of_old_credentials_when_time_is_set_back(restarted: bool) -> None:
    """The volume was deleted and forgotten at a time that turned out to be wrong. Its credential is unexpired again."""
    rig = Rig()
    rig.clock.now_ms += YEAR
    late_ms = rig.clock.now_ms
    head = rig.head()
    assert attach_of(head, 1, late_ms, late_ms + host.TERM_MS, epoch=4) == 0
    rig.clock.now_ms += 2 * host.TERM_MS
    statement = Retirement(7, other_volume(1), 4, late_ms + host.TERM_MS + 1).sign(host.private_key(host.AUTHORITY))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.RETIRE), statement).status == 0
    assert rig.storage.fence_of(other_volume(1)) is None
    rig.clock.now_ms = host.NOW_MS
    assert state(head, TimeStatement(1, host.NOW_MS)) == (0, 0)
    if restarted:
        rig = Rig(*rig.devices)
        head = rig.head()
    assert attach_of(head, 1, late_ms, late_ms + host.TERM_MS, epoch=4) == Status.CREDENTIAL_EXPIRED
    assert attach_of(head, 1, late_ms, late_ms + host.TERM_MS, epoch=3) == Status.CREDENTIAL_EXPIRED
    assert rig.storage.fence_of(other_volume(1)) is None
    keys = KeySet(2, {7: host.public_key(host.AUTHORITY), 8: host.public_key(9)}, host.NOW_MS)
    signed = keys.sign(host.private_key(host.ROOT))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), signed).status == 0
    fresh = Credential(
        8,
        other_volume(2),
        host.public_key(host.HEAD_KEY),
        1,
        Rights(7),
        host.NOW_MS,
        host.NOW_MS + host.TERM_MS,
        1,
        sleds=(host.SLED,),
    )
    raw = fresh.sign(host.private_key(9))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), raw).status == 0, "a key made since is good"
