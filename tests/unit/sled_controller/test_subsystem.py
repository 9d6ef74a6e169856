"""Fences as hosts meet them: F1, F2 and F3 over the whole target, with drives that a test holds up."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from kit import host
from kit.target import BLOCK, BLOCKS, Head, HeldDevice, Rig, other_volume

from sled_controller.association import REFUSALS_KEPT_MAX, REFUSED_ATTACHES, Refusal
from sled_controller.credential import CREDENTIAL_BYTES, SIGNING_DOMAIN, Rights
from sled_controller.fabric import vendor
from sled_controller.keyset import KeySet
from sled_controller.receipt import DeviceState
from spdk_bindings.device import PENDING
from spdk_bindings.nvme import AdminOpcode, LogPage, Status, VendorIo

OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


def reopened(rig: Rig) -> Rig:
    """The same drives after a restart of the sled."""
    return Rig(*rig.devices)


def test_a_write_is_read_back() -> None:
    head = Rig().attached()
    assert head.write(3, NEW + OLD).status == 0
    assert head.read(3, 2).data == NEW + OLD
    assert head.read(5).data == bytes(BLOCK)


def test_f2_equal_epoch_other_holder() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    second = rig.head(host.OTHER_HEAD_KEY)
    for number in (1, 2, 9):
        answer = second.try_attach(5, number)
        assert (answer.status, answer.dw0, answer.dnr) == (Status.REFUSED, Refusal.OTHER_HOLDER, True)
    assert first.write(0, NEW).status == 0
    again = reopened(rig)
    assert again.head(host.OTHER_HEAD_KEY).try_attach(5, 1).dw0 == Refusal.OTHER_HOLDER
    assert again.head().try_attach(5, 1).status == 0


def test_the_fence_outlives_a_restart_and_the_namespace() -> None:
    rig = Rig()
    head = rig.attached(epoch=8)
    delete = vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=head.slot, nsid=head.nsid)
    assert head.admin.ask(delete).status == 0
    again = reopened(rig).head(host.OTHER_HEAD_KEY)
    answer = again.try_attach(7, 1)
    assert (answer.status, answer.epoch) == (Status.FENCED_OFF, 8)
    assert again.try_attach(9, 1).status == 0


def test_a_receipt_waits_for_the_durable_fence() -> None:
    rig = Rig()
    head = rig.attached(epoch=5)

    async def scenario() -> None:
        rig.device.holding_table = True
        head.start_attach(6, 1)
        assert head.admin.answers() == []
        assert head.write(0, NEW).status == Status.FENCED_OFF, "the former slot is fenced off at once"
        former, head.slot = head.slot, head.slot + 1
        assert head.write(0, NEW).status == Status.NOT_ATTACHED, "the new one waits for its receipt"
        assert former != head.slot
        while rig.device.held:
            rig.device.release()
        (answer,) = head.admin.answers()
        assert answer.status == 0

    asyncio.run(scenario())
    assert head.write(0, NEW).status == 0


def test_f2_a_receipt_waits_for_its_own_fence_not_for_the_one_below_it() -> None:
    rig = Rig()
    rig.attached(epoch=5)
    second, third = rig.head(host.OTHER_HEAD_KEY), rig.head()

    async def scenario() -> None:
        rig.device.holding_table = True
        second.start_attach(6, 1)
        third.start_attach(7, 1)
        answers = third.admin.answers()
        while not answers and rig.device.held:
            rig.device.release()
            answers = third.admin.answers()
        assert [answer.status for answer in answers] == [0]

    asyncio.run(scenario())
    rig.device.held.clear()  # the power goes with the receipt: what the device has not taken is lost
    rig.device.holding_table = False
    answer = reopened(rig).head(host.OTHER_HEAD_KEY).try_attach(6, 2)
    assert (answer.status, answer.epoch) == (Status.FENCED_OFF, 7)


def test_a_higher_epoch_fences_the_former_head_off_and_shows_its_credential() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    second = rig.head(host.OTHER_HEAD_KEY)
    second.attach(6)
    answer = first.write(0, NEW)
    assert (answer.status, answer.epoch, answer.dnr) == (Status.FENCED_OFF, 6, True)
    page = vendor.get_log_page(LogPage.FENCE, CREDENTIAL_BYTES, specific=first.slot)
    raised_by = host.signed(epoch=6, head=host.OTHER_HEAD_KEY)
    assert first.admin.ask(page, room=CREDENTIAL_BYTES, signed=False).data == raised_by
    assert first.try_attach(5, 7).status == Status.FENCED_OFF
    page = vendor.get_log_page(LogPage.FENCE, CREDENTIAL_BYTES, specific=REFUSED_ATTACHES)
    assert first.admin.ask(page, room=CREDENTIAL_BYTES, signed=False).data == raised_by
    assert rig.subsystem.counters.fenced_off == 2


def refusals(head: Head, count: int) -> list[bytes]:
    """The credentials that the sled shows to be in the way of the head's ATTACHes."""
    page = vendor.get_log_page(LogPage.FENCE, count * CREDENTIAL_BYTES, specific=REFUSED_ATTACHES)
    data = bytes(head.admin.ask(page, room=count * CREDENTIAL_BYTES, signed=False).data)
    return [data[at : at + CREDENTIAL_BYTES] for at in range(0, len(data), CREDENTIAL_BYTES)]


def test_f6_attaches_of_several_volumes_refused_at_once_each_have_their_evidence() -> None:
    rig = Rig()
    stale, newer = rig.head(), rig.head(host.OTHER_HEAD_KEY)
    volumes = [other_volume(number) for number in range(1, REFUSALS_KEPT_MAX + 2)]
    for volume in volumes:
        newer.attach(6, volume=volume)
        assert stale.try_attach(5, 1, volume=volume).status == Status.FENCED_OFF
    raised_by = [host.signed(epoch=6, head=host.OTHER_HEAD_KEY, volume=volume) for volume in volumes]
    assert refusals(stale, REFUSALS_KEPT_MAX + 1) == [*raised_by[:0:-1], bytes(CREDENTIAL_BYTES)]
    assert stale.try_attach(5, 2, volume=volumes[3]).status == Status.FENCED_OFF
    assert refusals(stale, 2) == [raised_by[3], raised_by[-1]]


def test_f3_r2t_data_after_fence() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    assert first.write(0, OLD).status == 0
    cid = first.start_long_write(0, NEW * 8)
    ((same, ttag, length),) = first.io.r2ts()
    assert (same, length) == (cid, 8 * BLOCK)
    first.send_data(cid, ttag, NEW * 4, last=False)
    second = rig.head(host.OTHER_HEAD_KEY)
    second.attach(6)  # does not wait: nothing of the first was admitted
    first.send_data(cid, ttag, NEW * 4, offset=4 * BLOCK)
    (answer,) = first.io.answers()
    assert (answer.cid, answer.status, answer.epoch) == (cid, Status.FENCED_OFF, 6)
    second.nsid = first.nsid
    assert second.read(0).data == OLD


def test_r2t_data_belongs_to_the_attach_that_it_was_sent_under() -> None:
    head = Rig().attached(number=1)
    cid = head.start_long_write(0, NEW * 8)
    ((_, ttag, _),) = head.io.r2ts()
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.DETACH, slot=head.slot)).status == 0
    former = head.slot
    head.attach(number=2)
    assert head.slot != former
    head.send_data(cid, ttag, NEW * 8)
    (answer,) = head.io.answers()
    assert answer.status == Status.SUPERSEDED
    assert head.read(0).data == bytes(BLOCK)


def test_f3_reattach_drains() -> None:
    rig = Rig()
    first = rig.attached(epoch=5, number=1)
    rig.device.holding = True
    cid = first.start_write(0, OLD)
    assert first.io.answers() == []
    second = rig.head()
    attach_cid = second.start_attach(5, 2)
    assert second.admin.answers() == [], "no receipt while a command of the former attach may still take effect"
    assert first.write(1, OLD).status == Status.SUPERSEDED
    flushes = rig.device.flushes
    rig.device.holding = False
    rig.device.release()
    (answer,) = first.io.answers()
    assert (answer.cid, answer.status) == (cid, Status.SUCCESS)
    (answer,) = second.admin.answers()
    assert (answer.cid, answer.status) == (attach_cid, Status.SUCCESS)
    assert rig.device.flushes == flushes + 1
    second.slot, second.nsid = answer.dw0, first.nsid
    assert second.receipt().attach_number == 2
    assert second.write(0, NEW).status == 0
    assert second.read(0).data == NEW


def test_a_command_of_an_association_that_is_gone_is_drained_too() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    rig.device.holding = True
    first.start_write(0, OLD)
    rig.device.holding = False
    first.admin.queue.lost("pulled out")
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    assert second.admin.answers() == []
    rig.device.release()
    (answer,) = second.admin.answers()
    assert answer.status == 0


def test_f3_a_namespace_that_is_being_made_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    waiting: list[Callable[[int], None]] = []

    def held(lba: int, count: int, done: Callable[[int], None]) -> int:
        waiting.append(done)
        return PENDING

    monkeypatch.setattr(rig.device, "deallocate", held)
    first.admin.start(vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=first.slot, nlb=1, slba=BLOCKS))
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    assert len(waiting) == 1
    assert second.admin.answers() == [], "the blocks of a namespace of epoch 5 may still be wiped"
    waiting.pop()(Status.SUCCESS)
    (made,), (receipt,) = first.admin.answers(), second.admin.answers()
    assert (made.status, receipt.status) == (0, 0)


def test_a_drive_that_hangs_is_reset_and_the_receipt_says_so() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    rig.device.holding = True
    first.start_write(0, OLD)
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    rig.device.holding = False
    rig.timers.fire()
    (answer,) = second.admin.answers()
    assert answer.status == 0
    second.slot, second.nsid = answer.dw0, first.nsid
    assert second.receipt().devices == ((0, DeviceState.RESET),)
    rig.device.release()
    assert second.read(0).data == bytes(BLOCK), "what was reset never takes effect"


def test_a_drive_whose_reset_never_ends_goes_offline_and_the_receipt_says_so() -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"))
    first = rig.attached(epoch=5)
    stuck = rig.storage.namespaces[first.nsid].device_index
    device = rig.subsystem.served[first.nsid].device
    assert isinstance(device, HeldDevice)
    device.holding, device.reset_status = True, None
    first.start_write(0, OLD)
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    rig.timers.fire()
    assert second.admin.answers() == []
    rig.timers.fire()
    (answer,) = second.admin.answers()
    assert answer.status == 0
    second.slot, second.nsid = answer.dw0, first.nsid
    assert dict(second.receipt().devices) == {stuck: DeviceState.OFFLINE, 1 - stuck: DeviceState.DRAINED}
    assert second.write(0, NEW).status == Status.INTERNAL_PATH_ERROR


def test_f3_a_drive_that_cannot_be_reset_goes_offline_and_the_receipt_says_so() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    rig.device.holding, rig.device.reset_status = True, Status.INTERNAL_ERROR
    first.start_write(0, OLD)
    rig.device.holding = False
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    rig.timers.fire()
    (answer,) = second.admin.answers()
    assert answer.status == 0, "an offline drive lets nothing take effect any more"
    second.slot, second.nsid = answer.dw0, first.nsid
    assert second.receipt().devices == ((0, DeviceState.OFFLINE),)
    assert second.write(0, NEW).status == Status.INTERNAL_PATH_ERROR


def test_f3_a_drive_that_cannot_flush_goes_offline_and_the_receipt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"))
    first = rig.attached(epoch=5)
    broken = rig.storage.namespaces[first.nsid].device_index
    monkeypatch.setattr(rig.subsystem.served[first.nsid].device, "flush", lambda done: Status.INTERNAL_ERROR)
    second = rig.head(host.OTHER_HEAD_KEY)
    second.attach(6)
    assert dict(second.receipt().devices) == {broken: DeviceState.OFFLINE, 1 - broken: DeviceState.DRAINED}


def test_a_higher_pair_overtakes_an_attach_that_still_drains() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    rig.device.holding = True
    first.start_write(0, OLD)
    rig.device.holding = False
    second, third = rig.head(host.OTHER_HEAD_KEY), rig.head()
    second.start_attach(6, 1)
    third.start_attach(7, 1)
    (answer,) = second.admin.answers()
    assert (answer.status, answer.epoch) == (Status.FENCED_OFF, 7)
    assert refusals(second, 1) == [host.signed(epoch=7)]
    assert third.admin.answers() == []
    rig.device.release()
    (answer,) = third.admin.answers()
    assert answer.status == 0


def test_the_same_pair_with_a_newer_credential_renews_the_slot_only() -> None:
    rig = Rig()
    head = rig.attached(epoch=5, number=1)
    rig.clock.now_ms += host.TERM_MS - 1000
    answer = head.try_attach(5, 1, issued_ms=rig.clock.now_ms, serial=10)
    assert (answer.status, answer.dw0) == (0, head.slot)
    rig.clock.now_ms += 2000
    assert head.write(0, NEW).status == 0
    rig.clock.now_ms += host.TERM_MS
    answer = head.write(0, NEW)
    assert (answer.status, answer.dnr) == (Status.CREDENTIAL_EXPIRED, True)


def test_the_same_pair_from_another_association_is_superseded() -> None:
    rig = Rig()
    rig.attached(epoch=5, number=1)
    assert rig.head().try_attach(5, 1).status == Status.SUPERSEDED


def test_a_clock_set_back_does_not_bring_an_expired_credential_to_life() -> None:
    rig = Rig()
    head = rig.head()
    rig.clock.now_ms = 1000
    newer = other_volume(9)
    assert head.try_attach(1, 1, volume=newer, issued_ms=host.NOW_MS + 2 * host.TERM_MS).status == 0
    assert head.try_attach(5, 1).status == Status.CREDENTIAL_EXPIRED


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (host.signed(head=host.OTHER_HEAD_KEY), Refusal.OTHER_HEAD),
        (host.signed()[:-1], Refusal.MALFORMED),
        (bytes(CREDENTIAL_BYTES), Refusal.MALFORMED),
        (host.signed()[:-1] + bytes([host.signed()[-1] ^ 1]), Refusal.SIGNATURE),
        (host.credential().sign(host.private_key(host.HEAD_KEY)), Refusal.SIGNATURE),
    ],
)
def test_a_credential_that_proves_nothing_is_refused(raw: bytes, refusal: Refusal) -> None:
    head = Rig().head()
    answer = head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), raw)
    assert (answer.status, answer.dw0, answer.dnr) == (Status.REFUSED, refusal, True)


def test_an_attach_number_of_zero_is_refused() -> None:
    assert Rig().head().try_attach(5, 0).dw0 == Refusal.ATTACH_NUMBER


def test_a_credential_without_the_right_is_refused_per_command() -> None:
    rig = Rig()
    head = rig.attached()
    raw = replace(host.credential(epoch=6), rights=Rights.READ).sign(host.private_key(host.AUTHORITY))
    head.slot = head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), raw).dw0
    for opcode in (VendorIo.WRITE_ZEROES, VendorIo.DEALLOCATE):
        answer = head.io.ask(head.sqe(opcode))
        assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.NO_RIGHT)
    assert head.write(0, NEW).dw0 == Refusal.NO_RIGHT
    assert head.read(0).status == 0
    create = vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=head.slot, nlb=1, slba=8)
    assert head.admin.ask(create).dw0 == Refusal.NO_RIGHT


def test_a_credential_does_not_reach_another_volumes_namespace() -> None:
    rig = Rig()
    mine = rig.attached()
    theirs = rig.head(host.OTHER_HEAD_KEY)
    theirs.attach(5, volume=other_volume(9))
    theirs.nsid = mine.nsid
    for answer in (theirs.write(0, NEW), theirs.read(0)):
        assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.OTHER_VOLUME)
    delete = vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=theirs.slot, nsid=mine.nsid)
    assert theirs.admin.ask(delete).dw0 == Refusal.OTHER_VOLUME
    assert mine.read(0).data == bytes(BLOCK)


def test_a_retired_key_stops_the_slot_until_it_is_renewed() -> None:
    rig = Rig()
    head = rig.attached()
    fresh = KeySet(2, {8: host.public_key(9)}, host.NOW_MS)
    update = vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE)
    assert head.admin.ask(update, fresh.sign(host.private_key(host.ROOT))).status == 0
    answer = head.write(0, NEW)
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.KEY_RETIRED)
    renewed = replace(host.credential(issued_ms=host.NOW_MS + 1), key_id=8).sign(host.private_key(9))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), renewed).status == 0
    assert head.write(0, NEW).status == 0


def test_f1_another_key_under_the_id_of_a_retired_one_does_not_revive_its_slots() -> None:
    rig = Rig()
    head = rig.attached()
    update = vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE)
    fresh = KeySet(2, {7: host.public_key(9)}, host.NOW_MS)
    assert head.admin.ask(update, fresh.sign(host.private_key(host.ROOT))).status == 0
    assert head.write(0, NEW).dw0 == Refusal.KEY_RETIRED
    kept = KeySet(3, {7: host.public_key(9), 8: host.public_key(6)}, host.NOW_MS)
    assert (
        head.admin.ask(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), kept.sign(host.private_key(host.ROOT))).status == 0
    )
    assert head.write(0, NEW).dw0 == Refusal.KEY_RETIRED


def test_the_status_page_is_there_at_any_sled_time() -> None:
    rig = Rig()
    rig.clock.now_ms = 2**64 + 5
    page = vendor.get_log_page(LogPage.SLED_STATUS, vendor.STATUS.size)
    answer = rig.head().admin.ask(page, room=vendor.STATUS.size, signed=False)
    assert answer.status == 0
    assert vendor.STATUS.unpack(answer.data)[2] == host.NOW_MS, "no clock that far ahead is believed"


@pytest.mark.parametrize("epoch", [2**64 - 1, 2**64 - 2, 2**63, 7 << 32])
def test_f4_an_epoch_that_no_key_signs_is_refused_and_leaves_the_fence_alone(epoch: int) -> None:
    """Signed by hand: our own code refuses to sign it."""
    rig = Rig()
    head = rig.attached(epoch=5)
    body = bytearray(host.credential(epoch=6).body())
    body[64:72] = epoch.to_bytes(8, "little")
    raw = bytes(body) + host.private_key(host.AUTHORITY).sign(SIGNING_DOMAIN + bytes(body))
    answer = head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), raw)
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.MALFORMED)
    assert head.write(0, NEW).status == 0
    assert reopened(rig).head().try_attach(6, 1).status == 0


def test_f4_above_the_last_epoch_of_a_key_the_next_key_goes_on() -> None:
    rig = Rig()
    thief = rig.head(host.OTHER_HEAD_KEY)
    thief.attach((7 << 32) - 1)
    fresh = KeySet(2, {8: host.public_key(9)}, host.NOW_MS)
    head = rig.head()
    update = vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE)
    assert head.admin.ask(update, fresh.sign(host.private_key(host.ROOT))).status == 0
    recovered = replace(host.credential(epoch=7 << 32), key_id=8).sign(host.private_key(9))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.ATTACH, slba=1), recovered).status == 0


def test_an_older_key_set_changes_nothing_and_a_forged_one_is_refused() -> None:
    rig = Rig()
    head = rig.head()
    update = vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE)
    newer = KeySet(4, {7: host.public_key(host.AUTHORITY)}, host.NOW_MS).sign(host.private_key(host.ROOT))
    assert head.admin.ask(update, newer).status == 0
    older = KeySet(3, {8: host.public_key(9)}, host.NOW_MS).sign(host.private_key(host.ROOT))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), older).status == 0
    forged = KeySet(5, {8: host.public_key(9)}, host.NOW_MS).sign(host.private_key(9))
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.KEYSET_UPDATE), forged).dw0 == Refusal.KEY_SET
    assert rig.subsystem.key_set is not None
    assert rig.subsystem.key_set.version == 4
    again = reopened(rig)
    assert again.subsystem.key_set is not None
    assert again.subsystem.key_set.version == 4


def test_deleting_a_namespace_waits_for_the_commands_in_it() -> None:
    rig = Rig()
    head = rig.attached()
    rig.device.holding = True
    head.start_write(0, OLD)
    delete = vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=head.slot, nsid=head.nsid)
    head.admin.start(delete)
    assert head.admin.answers() == []
    assert head.write(1, NEW).status == Status.INVALID_NAMESPACE
    rig.device.holding = False
    rig.device.release()
    (answer,) = head.admin.answers()
    assert answer.status == 0
    assert rig.subsystem.served == {}


def test_f3_a_delete_that_a_drain_has_given_up_on_never_starts() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    rig.device.holding = True
    first.start_write(0, OLD)
    first.admin.start(vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=first.slot, nsid=first.nsid))
    second = rig.head(host.OTHER_HEAD_KEY)
    second.start_attach(6, 1)
    rig.device.holding = False
    rig.timers.fire()
    (receipt,) = second.admin.answers()
    rig.device.release()
    assert receipt.status == 0
    assert first.nsid in rig.storage.namespaces, "the receipt of epoch 6 vouches that nothing of epoch 5 follows"
    assert first.nsid in rig.subsystem.served


def test_a_failed_device_does_not_stop_the_others() -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"))
    head = rig.attached()
    first, second = head.nsid, head.create(column=1)
    lost = rig.storage.namespaces[first].device_index
    assert rig.storage.namespaces[second].device_index != lost
    rig.storage.take_offline(lost, "test")
    answer = head.write(0, NEW)
    assert answer.status == Status.INTERNAL_PATH_ERROR
    head.nsid = second
    assert head.write(0, NEW).status == 0
    head.attach(6)
    assert dict(head.receipt().devices)[lost] == DeviceState.OFFLINE


def test_a_fence_that_cannot_be_made_durable_gives_no_receipt() -> None:
    rig = Rig()
    first = rig.attached(epoch=5)
    second = rig.head(host.OTHER_HEAD_KEY)

    def failing(volume: UUID, fence: object, done: object) -> int:
        return Status.INTERNAL_ERROR

    rig.storage.raise_fence = failing  # type: ignore[method-assign, assignment]
    assert second.try_attach(6, 1).status == Status.INTERNAL_ERROR
    assert first.write(0, NEW).status == Status.FENCED_OFF, "in memory it stands already"
    del rig.storage.raise_fence
    assert second.try_attach(6, 2).status == 0


def test_a_command_out_of_the_namespaces_range_is_refused_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    head = rig.attached()
    blocks = rig.storage.namespaces[head.nsid].blocks
    assert head.write(blocks, OLD).status == Status.LBA_OUT_OF_RANGE
    assert head.write((1 << 64) - 1, OLD).status == Status.LBA_OUT_OF_RANGE
    assert head.read(blocks - 1, 2).status == Status.LBA_OUT_OF_RANGE
    assert rig.subsystem.counters.out_of_range == 3
    assert [record.getMessage() for record in caplog.records if "out_of_range" in record.getMessage()] == [
        f"event=out_of_range controller={head.controller_id} nsid={head.nsid} slba={blocks} blocks=1"
    ]
