"""Who has a place at a sled: what a head holds now decides, keys share, and who is on the way gets in."""

import asyncio

import pytest
from kit import host
from kit.guarded import GuardedRig
from kit.target import BLOCK, Head, Rig, Wire, other_volume

from sled_controller.association import ATTACH_STEP_MAX, Refusal
from sled_controller.fabric import vendor
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.target import QueueState
from sled_controller.keyset import KeySet
from sled_controller.places import KEY_ASSOCIATIONS_MAX
from sled_controller.session import HELLO_BYTES, HeadHandshake
from sled_controller.subsystem import ASSOCIATIONS_MAX
from spdk_bindings import log_pages
from spdk_bindings.nvme import AdminOpcode, Status

THIEF, FENCER = 40, 41
HOLDERS_MAX = ASSOCIATIONS_MAX - ASSOCIATIONS_MAX // 4


def alive(head: Head) -> bool:
    return head.admin.queue.state is QueueState.LIVE


def standing(head: Head) -> Standing:
    return head.admin.queue.standing


def attached(rig: Rig, key: int, volume: int = 1, epoch: int = 5, number: int = 1, **fields: int) -> Head:
    head = rig.head(key)
    head.attach(epoch, number, volume=other_volume(volume), **fields)
    return head


def full_of_holders(rig: Rig) -> list[Head]:
    """As many heads as keep a place, each with a volume of its own."""
    return [attached(rig, 50 + number, volume=100 + number) for number in range(HOLDERS_MAX)]


# --- what holds now


def test_f1_a_superseded_slot_is_no_standing() -> None:
    rig = Rig()
    first, second = attached(rig, THIEF), attached(rig, THIEF, number=2)
    assert (standing(first), standing(second)) == (Standing.SESSION, Standing.TRUSTED)


def test_f1_a_slot_that_is_fenced_off_is_no_standing_and_its_head_is_told_by_whom() -> None:
    rig = Rig()
    first = attached(rig, THIEF)
    second = attached(rig, FENCER, epoch=6)
    assert (standing(first), standing(second)) == (Standing.SESSION, Standing.TRUSTED)
    assert alive(first)
    assert first.try_attach(5, 2, volume=other_volume(1)).status == Status.FENCED_OFF


def test_f1_an_expired_slot_is_no_standing_until_it_is_renewed() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    rig.clock.now_ms += host.TERM_MS + 1
    assert standing(head) is Standing.SESSION
    head.attach(5, 1, volume=other_volume(1), issued_ms=rig.clock.now_ms)
    assert standing(head) is Standing.TRUSTED


def test_f1_a_retired_key_is_no_standing_until_the_slot_is_renewed_or_the_key_is_back() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    keys = host.key_set().keys
    for version, held, expected in ((2, {8: b"k" * 32}, Standing.SESSION), (3, keys, Standing.TRUSTED)):
        key_set = KeySet(version, held, host.NOW_MS).sign(host.private_key(host.ROOT))
        asyncio.run(_update(rig, key_set))
        assert standing(head) is expected


async def _update(rig: Rig, key_set: bytes) -> None:
    rig.subsystem.update_key_set(key_set, lambda status, code: None)


def test_f1_a_slot_given_up_is_no_standing() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.DETACH, slot=head.slot)).status == 0
    assert standing(head) is Standing.SESSION


def test_f1_what_is_held_of_one_volume_outlasts_the_loss_of_another() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    head.attach(5, 1, volume=other_volume(2))
    attached(rig, FENCER, epoch=6, volume=2)
    assert standing(head) is Standing.TRUSTED


# --- keys share


def test_a_key_has_few_associations_the_newest_of_them() -> None:
    rig = Rig()
    heads = [attached(rig, THIEF, number=number) for number in range(1, 2 * KEY_ASSOCIATIONS_MAX + 1)]
    assert [alive(head) for head in heads] == [False] * KEY_ASSOCIATIONS_MAX + [True] * KEY_ASSOCIATIONS_MAX


def test_what_a_key_holds_is_the_last_to_go() -> None:
    rig = Rig()
    holder = attached(rig, THIEF)
    sessions = [rig.head(THIEF) for _ in range(KEY_ASSOCIATIONS_MAX)]
    assert alive(holder)
    assert [alive(head) for head in sessions] == [False] + [True] * (KEY_ASSOCIATIONS_MAX - 1)


def test_a_head_that_comes_back_while_its_former_associations_hang_gets_in() -> None:
    rig = Rig()
    for number in range(1, 20):
        head = attached(rig, THIEF, number=number)
        assert standing(head) is Standing.TRUSTED


def test_the_authoritys_fencer_gets_in_whatever_heads_and_strangers_hold() -> None:
    rig = Rig()
    holders = full_of_holders(rig)
    sessions = [rig.head(150 + number) for number in range(ASSOCIATIONS_MAX)]
    for _ in range(2 * ASSOCIATIONS_MAX):
        assert rig.connection().connect().status == 0
    fencer = attached(rig, FENCER, volume=100, epoch=6)
    assert fencer.receipt().epoch == 6
    assert all(map(alive, holders))
    assert not any(map(alive, sessions[:HOLDERS_MAX])), "keys that anyone can make leave room"


def test_keys_that_anyone_can_make_leave_room_for_hosts_on_their_way() -> None:
    rig = Rig()
    full_of_holders(rig)
    for number in range(ASSOCIATIONS_MAX // 2):
        rig.head(150 + number)
    late = rig.connection()
    assert late.connect().status == 0
    for _ in range(ASSOCIATIONS_MAX // 8 - 1):
        assert rig.connection().connect().status == 0
    assert late.queue.state is QueueState.LIVE


def test_a_head_that_is_not_there_yet_takes_a_place_of_the_key_that_has_most() -> None:
    rig = Rig()
    holders = [attached(rig, 50 + n, volume=100 + n) for n in range(HOLDERS_MAX - KEY_ASSOCIATIONS_MAX)]
    greedy = [attached(rig, THIEF, volume=n) for n in range(1, KEY_ASSOCIATIONS_MAX + 1)]
    strangers = [rig.connection() for _ in range(ASSOCIATIONS_MAX // 4)]
    assert all(wire.connect().status == 0 for wire in strangers)
    late = attached(rig, FENCER, volume=99)
    assert standing(late) is Standing.TRUSTED
    assert [standing(head) for head in greedy] == [Standing.SESSION] + [Standing.TRUSTED] * (KEY_ASSOCIATIONS_MAX - 1)
    assert all(standing(head) is Standing.TRUSTED for head in holders)


def test_a_sled_full_of_heads_serves_one_more_as_long_as_there_is_room() -> None:
    rig = Rig()
    holders = full_of_holders(rig)
    assert all(rig.connection().connect().status == 0 for _ in range(ASSOCIATIONS_MAX // 4 - 1))
    more = attached(rig, FENCER, volume=99)
    assert standing(more) is Standing.SESSION
    more.nsid = more.create()
    assert more.write(0, bytes(BLOCK)).status == 0
    holders[0].admin.queue.lost("it left")
    more.attach(5, 2, volume=other_volume(99))
    assert standing(more) is Standing.TRUSTED


# --- a fence raised above a holder


def test_f6_a_fence_above_a_holder_ends_its_other_associations_but_not_what_holds_another_volume() -> None:
    rig = Rig()
    superseded, other, holder = attached(rig, THIEF), attached(rig, THIEF, volume=2), attached(rig, THIEF, number=2)
    attached(rig, FENCER, epoch=6)
    assert (alive(superseded), alive(other), alive(holder)) == (False, True, True)
    assert holder.try_attach(5, 3, volume=other_volume(1)).status == Status.FENCED_OFF


# --- attach numbers


def test_f3_attach_numbers_alone_do_not_let_an_old_holder_back_in() -> None:
    rig = Rig()
    old, new = attached(rig, THIEF), attached(rig, THIEF, number=2)
    answer = old.try_attach(5, 3, volume=other_volume(1))
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.OLD_HOLDER)
    assert standing(new) is Standing.TRUSTED
    old.attach(5, 3, volume=other_volume(1), serial=10)
    assert (standing(old), standing(new)) == (Standing.TRUSTED, Standing.SESSION)


@pytest.mark.parametrize("renewed", [False, True], ids=["attached", "renewed"])
def test_f3_an_older_credential_does_not_supersede_a_newer_one_whatever_its_attach_number(renewed: bool) -> None:
    rig = Rig()
    head = attached(rig, THIEF, serial=9 if renewed else 10)
    if renewed:
        head.attach(5, 1, volume=other_volume(1), serial=10)
    answer = rig.head(THIEF).try_attach(5, 9, volume=other_volume(1), serial=9)
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.OLD_HOLDER)
    assert standing(head) is Standing.TRUSTED
    attached(rig, THIEF, number=2, serial=10)


def test_f3_an_association_attaches_again_what_it_holds_itself() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    head.attach(5, 2, volume=other_volume(1))
    assert standing(head) is Standing.TRUSTED


def test_f3_an_attach_number_does_not_jump_to_the_end() -> None:
    rig = Rig()
    head = attached(rig, THIEF)
    answer = head.try_attach(5, 2 + ATTACH_STEP_MAX, volume=other_volume(1))
    assert (answer.status, answer.dw0) == (Status.REFUSED, Refusal.ATTACH_NUMBER)
    head.attach(5, 1 + ATTACH_STEP_MAX, volume=other_volume(1))


def test_managers_share_as_heads_do() -> None:
    """A host that has proved to manage the sled keeps its place, and one name has few of them."""
    rig = GuardedRig()
    wires: list[Wire] = [rig.live()[0] for _ in range(KEY_ASSOCIATIONS_MAX + 1)]
    assert [wire.queue.state is QueueState.LIVE for wire in wires] == [False] + [True] * KEY_ASSOCIATIONS_MAX
    assert wires[-1].queue.standing is Standing.TRUSTED


def test_a_manager_that_opens_sessions_has_no_more_associations_than_a_head() -> None:
    rig = GuardedRig()
    for _ in range(2 * KEY_ASSOCIATIONS_MAX):
        open_session(rig, *rig.live())
        assert len(rig.guarded.hosts) <= KEY_ASSOCIATIONS_MAX
    for association in list(rig.guarded.hosts.values()):
        association.end("a test says so")
    assert not rig.guarded.places._of_key, "what has ended is not counted"


def open_session(rig: Rig, admin: Wire, controller_id: int) -> None:
    """A session, with a head's key, of a host that has both."""
    handshake = HeadHandshake(
        host.private_key(THIEF), host.SLED, host.public_key(host.SLED_KEY), host.NQN, controller_id, rig.env
    )
    hello = admin.ask(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), room=HELLO_BYTES)
    reply = handshake.reply(hello.data)
    assert admin.ask(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), reply).status == 0


# --- pages that any host may read in parts


def test_the_namespace_page_is_made_once_for_all_its_readers_until_namespaces_change() -> None:
    rig = Rig()
    head = rig.attached()
    page = rig.subsystem.namespace_page()
    assert rig.subsystem.namespace_page() is page
    assert head.create(column=1) != head.nsid
    longer = rig.subsystem.namespace_page()
    assert len(longer) == len(page) + len(page) // 2
    assert head.admin.ask(vendor.vendor_sqe(AdminOpcode.NAMESPACE_DELETE, slot=head.slot, nsid=head.nsid)).status == 0
    assert len(rig.subsystem.namespace_page()) == len(page)


def test_the_rows_of_the_discovery_page_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [log_pages.DiscoveryEntry(f"nqn.2014-08.org.nvmexpress:uuid:once-{n}", "192.0.2.1", n) for n in range(8)]
    rows = [log_pages.discovery_row(1, entry) for entry in entries]
    monkeypatch.setattr(log_pages, "DISCOVERY_ENTRY_FORMAT", None)
    assert [log_pages.discovery_row(1, entry) for entry in entries] == rows
