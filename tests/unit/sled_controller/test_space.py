"""How much of a sled a credential lets its volume take (F1): over all drives, and with what is under way."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from kit import host
from kit.target import Answer, Head, HeldDevice, Rig, other_volume

from sled_controller.association import Refusal
from sled_controller.fabric import vendor
from spdk_bindings.nvme import AdminOpcode, Status

NEED = 256


def create(head: Head, column: int, blocks: int) -> Answer:
    return head.admin.ask(_create(head, column, blocks))


def _create(head: Head, column: int, blocks: int) -> bytearray:
    return vendor.vendor_sqe(AdminOpcode.NAMESPACE_CREATE, slot=head.slot, nlb=column, slba=blocks)


def attached(rig: Rig, blocks: int = NEED, namespaces: int = 1, **fields: Any) -> Head:
    head = rig.head(fields.pop("key", host.HEAD_KEY))
    head.attach(fields.pop("epoch", 5), blocks=blocks, namespaces=namespaces, **fields)
    return head


def refused(answer: Answer) -> bool:
    return (answer.status, answer.dw0, answer.dnr) == (Status.REFUSED, Refusal.NO_SPACE, True)


def held(rig: Rig) -> int:
    """Blocks that are not free any more."""
    return sum(entry.blocks for entry in rig.storage.namespaces.values())


def test_f1_a_credential_covers_so_much_of_a_sled_and_no_block_more() -> None:
    rig = Rig()
    head = attached(rig)
    assert refused(create(head, 0, NEED + 1))
    assert refused(create(head, 0, 2**64 - 1))
    assert create(head, 0, NEED).status == 0
    for column in (1, 100, 0xFFFF):
        assert refused(create(head, column, 1))
    assert create(head, 0, NEED).status == 0, "asked again after a lost answer"
    assert held(rig) == NEED


@pytest.mark.parametrize("sleds", [(), (UUID(int=1),), tuple(map(UUID, map("{:032x}".format, range(1, 25))))])
def test_f1_a_credential_counts_on_the_sleds_that_it_names_only(sleds: tuple[UUID, ...]) -> None:
    rig = Rig()
    head = rig.head()
    answer = head.try_attach(5, 1, sleds=sleds)
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.NO_PLACE)
    assert rig.storage.fences() == {}, "not even a fence is left"
    assert head.try_attach(5, 1, sleds=(*sleds[:23], host.SLED)).status == 0
    assert head.try_attach(5, 1, sleds=sleds, issued_ms=host.NOW_MS + 1).dw0 == Refusal.NO_PLACE, "renewed"


def test_f1_what_a_volume_takes_is_summed_over_all_drives_of_the_sled() -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"), HeldDevice(serial="C"))
    head = attached(rig, blocks=3 * NEED, namespaces=9)
    for column in range(3):
        assert create(head, column, NEED).status == 0
    assert len({entry.device_index for entry in rig.storage.namespaces.values()}) == 3
    assert refused(create(head, 3, 1))


def test_f1_a_drive_that_is_offline_does_not_make_room_for_more() -> None:
    rig = Rig(HeldDevice(serial="A"), HeldDevice(serial="B"))
    head = attached(rig)
    assert create(head, 0, NEED).status == 0
    (entry,) = rig.storage.namespaces.values()
    rig.storage.take_offline(entry.device_index, "a test says so")
    assert refused(create(head, 1, NEED))


def test_f1_many_small_namespaces_are_bounded_too() -> None:
    rig = Rig()
    head = attached(rig, blocks=NEED, namespaces=2)
    assert [create(head, column, 1).status for column in range(2)] == [0, 0]
    assert refused(create(head, 2, 1))


def test_f1_a_credential_that_says_nothing_takes_nothing() -> None:
    rig = Rig()
    assert refused(create(attached(rig, blocks=0, namespaces=0), 0, 1))
    assert refused(create(attached(rig, blocks=0, namespaces=9, epoch=6), 0, 1))
    assert refused(create(attached(rig, blocks=NEED, namespaces=0, epoch=7), 0, 1))
    assert held(rig) == 0


def test_f1_what_a_former_holder_took_counts_for_the_next_one() -> None:
    rig = Rig()
    create(attached(rig), 3, NEED)
    assert refused(create(attached(rig, key=host.OTHER_HEAD_KEY, epoch=6), 4, NEED))


def test_f1_other_volumes_and_another_attach_have_room_of_their_own() -> None:
    rig = Rig()
    head = attached(rig)
    assert create(head, 0, NEED).status == 0
    head.attach(5, 2, blocks=NEED, namespaces=1)
    assert refused(create(head, 1, 1)), "a new attach begins no new account"
    assert create(attached(rig, volume=other_volume(3)), 0, NEED).status == 0


def test_f1_a_renewal_changes_how_much_may_be_taken() -> None:
    rig = Rig()
    head = attached(rig)
    assert create(head, 0, NEED).status == 0
    renewed = {"issued_ms": host.NOW_MS + 1, "blocks": 2 * NEED, "namespaces": 2}
    assert head.try_attach(5, 1, **renewed).status == 0
    assert create(head, 1, NEED).status == 0
    assert refused(create(head, 2, 1))


def delete(head: Head, nsid: int) -> bytearray:
    return vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=head.slot, nsid=nsid)


@pytest.mark.parametrize("under_way", ["create", "delete"])
def test_f1_what_is_being_made_or_deleted_counts(under_way: str) -> None:
    rig = Rig()
    head = attached(rig)
    asyncio.run(_while_made(rig, head) if under_way == "create" else _while_deleted(rig, head))


async def _while_made(rig: Rig, head: Head) -> None:
    rig.device.holding_table = True
    head.admin.start(_create(head, 0, NEED))
    assert refused(create(head, 1, NEED))
    rig.device.holding_table = False
    while rig.device.held:
        rig.device.release()
    assert [answer.status for answer in head.admin.answers()] == [0]


async def _while_deleted(rig: Rig, head: Head) -> None:
    nsid = create(head, 0, NEED).dw0
    rig.device.holding_table = True
    head.admin.start(delete(head, nsid))
    assert refused(create(head, 1, NEED)), "its blocks are not given back yet"
    assert refused(create(head, 0, 8 * NEED)), "the same column, many times as large"
    rig.device.holding_table = False
    while rig.device.held:
        rig.device.release()
    assert [answer.status for answer in head.admin.answers()] == [0]
    assert create(head, 1, NEED).status == 0
