"""A link between heads stands only while the record gives both of its ends a part in the volume: judged as it begins,
and again with every view."""

import asyncio
import itertools
from dataclasses import replace
from uuid import UUID

import pytest
from kit.cluster import BLOCK, VOLUME, KitHead, Rack, record_of, until, with_rack
from kit.relay_link import RelayLink

from head_node.authority.errors import Unenrolled
from head_node.cluster.errors import LinkClosed, NotServing
from head_node.cluster.frames import Purpose
from head_node.cluster.link_rights import LinkUse, refusal
from head_node.cluster.relay_transport import LinkRelayTransport
from head_node.export.interface import RemoteExport, Security
from head_node.store.records import HeadRecord, VolumeRecord


async def link_to(to: KitHead, by: KitHead, purpose: Purpose) -> RelayLink:
    return await RelayLink.open(("127.0.0.1", to.port), (to.id, to.public), by.key, purpose, VOLUME)


async def serving(rack: Rack, assigned: int = 2) -> tuple[KitHead, KitHead, KitHead]:
    """Three heads; the volume is assigned to the first `assigned`, served by one and followed by two."""
    rack.authority.put(record_of([head.id for head in rack.heads[:assigned]], list(rack.sleds)))
    await rack.start()
    first, second, third = rack.heads
    await until(lambda: first.serving and rack.is_member(second))
    await until(lambda: first.head.watch.view is not None and third.id in first.head.watch.view.heads)
    return first, second, third


async def relaying(to: KitHead, by: KitHead) -> RelayLink:
    """A standing relay over which one write was acknowledged."""
    link = await link_to(to, by, Purpose.RELAY)
    link.begin()
    link.write(0)
    await until(lambda: link.acknowledged == 1)
    return link


def revoke(rack: Rack, head: KitHead) -> None:
    """What a revocation of a head that is not primary leaves in the store."""
    record, member = rack.record, rack.record.member(head.id)
    rack.authority.heads[head.id] = replace(rack.authority.heads[head.id], revoked=True)
    heads = tuple(other for other in record.heads if other != head.id)
    current = tuple(other for other in record.current if other != member)
    rack.authority.put(replace(record, heads=heads, current=current, version=record.version + 1))


async def seen(rack: Rack, head: KitHead) -> None:
    """Until the head has the newest view."""
    await until(lambda: head.head.watch.view is not None and head.head.watch.view.revision == rack.authority.revision)


@pytest.mark.parametrize("purpose", list(Purpose))
def test_rights_a_head_without_a_part_in_the_volume_gets_no_link_of_any_purpose(purpose: Purpose) -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack)
        link = await link_to(first, third, purpose)
        await until(lambda: link.lost is not None)
        assert link.lost == f"refused: head {third.id} is not assigned to volume {VOLUME}"
        assert link.frames == []
        assert first.head.nbd.status()["relays_accepted"] == 0

    with_rack(scenario, heads=3)


def test_rights_an_assigned_head_that_is_no_member_may_relay() -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        link.connection.abort()
        await until(lambda: first.head.nbd.status()["relays_open"] == 0)
        assert Purpose.RELAY not in {use.purpose for use in first.head._links._links.values()}, "an ended link is kept"

    with_rack(scenario, heads=3)


def test_rights_no_write_is_acknowledged_over_a_standing_relay_once_its_head_is_revoked() -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        revoke(rack, third)
        await seen(rack, first)
        for lba in range(1, 20):
            link.write(lba)
        await until(lambda: link.lost is not None)
        assert link.acknowledged == 1
        with pytest.raises(LinkClosed):
            await link_to(first, third, Purpose.RELAY)
        assert await first.write(0, bytes(BLOCK)) == 0, "the volume goes on"

    with_rack(scenario, heads=3)


def test_rights_a_write_in_flight_over_a_relay_is_not_acknowledged_after_the_revocation() -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        held = first.hold_commits()
        link.write(1)
        await until(lambda: bool(held))
        revoke(rack, third)
        await seen(rack, first)
        first.disk.gate = None
        for finish in held:
            finish()
        await until(lambda: link.lost is not None)
        assert await first.write(2, bytes(BLOCK)) == 0
        assert link.acknowledged == 1

    with_rack(scenario, heads=3)


def test_rights_a_relay_ends_when_its_head_only_loses_the_volume() -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        heads = tuple(head for head in rack.record.heads if head != third.id)
        rack.authority.put(replace(rack.record, heads=heads, version=rack.record.version + 1))
        await until(lambda: link.lost is not None)
        link = await link_to(first, third, Purpose.RELAY)
        await until(lambda: link.lost is not None)
        assert "not assigned" in str(link.lost)

    with_rack(scenario, heads=3)


def test_rights_a_revoked_members_log_link_gets_no_record_after_the_view() -> None:
    async def scenario(rack: Rack) -> None:
        first, second, _ = await serving(rack)
        role = first.controller._role
        assert role is not None
        second.api.cut_off = True  # it does not hear of its revocation, and would follow on
        revoke(rack, second)
        await seen(rack, first)
        assert not role.links.linked(second.id)
        tail = second.engine.tail.opnum
        for lba in range(5):
            assert await first.write(lba, bytes(BLOCK)) == 0
        assert second.engine.tail.opnum == tail
        assert not [use for use in first.head._links._links.values() if use.peer == second.id]
        second.api.cut_off = False

    with_rack(scenario, heads=3)


def test_rights_what_a_head_relays_to_another_ends_when_that_one_is_no_primary_by_the_record() -> None:
    async def scenario(rack: Rack) -> None:
        first, second, _ = await serving(rack)
        export = second.head.directory.find("vol")
        assert isinstance(export, RemoteExport)
        transport = await export.dial()
        assert isinstance(transport, LinkRelayTransport)
        record = rack.record
        first.api.cut_off = True
        changed = replace(record, primary=second.id, epoch=record.epoch + 1, version=record.version + 1)
        rack.authority.put(changed)
        await seen(rack, second)
        assert transport._connection.closed
        first.api.cut_off = False

    with_rack(scenario, heads=3)


def test_rights_a_link_that_is_dialled_while_the_view_changes_is_given_up() -> None:
    async def scenario(rack: Rack) -> None:
        first, second, third = await serving(rack, assigned=3)
        dialling = asyncio.ensure_future(third.head._dial(first.id, Purpose.RELAY, VOLUME))
        await asyncio.sleep(0)
        rack.authority.heads[first.id] = replace(rack.authority.heads[first.id], revoked=True)
        view = third.head.watch.view
        assert view is not None
        third.head.watch.view = replace(view, heads=dict(rack.authority.heads))
        with pytest.raises(LinkClosed, match="not enrolled"):
            await dialling
        rack.authority.heads[first.id] = replace(rack.authority.heads[first.id], revoked=False)
        assert second.id

    with_rack(scenario, heads=3)


def test_rights_a_primary_whose_view_names_the_volume_no_more_acknowledges_nothing_from_that_turn_on() -> None:
    async def scenario(rack: Rack) -> None:
        first, _, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        held = first.hold_commits()
        late = first.write(1, bytes(BLOCK))
        link.write(2)
        await until(lambda: bool(held))
        heads = tuple(head for head in rack.record.heads if head != first.id)
        current = tuple(member for member in rack.record.current if member.head != first.id)
        changed = replace(
            rack.record, heads=heads, current=current, primary=current[0].head, epoch=rack.record.epoch + 1,
            version=rack.record.version + 1,
        )  # fmt: skip
        rack.authority.put(changed)
        await seen(rack, first)
        with pytest.raises(NotServing):
            first.controller.served()
        first.disk.gate = None
        for finish in held:
            finish()
        await until(lambda: link.lost is not None)
        assert not late.done()
        assert link.acknowledged == 1
        assert "vol" not in first.head.directory.names(Security.AUTHENTICATED)
        await until(lambda: VOLUME not in first.head.controllers or first.controller.ended)

    with_rack(scenario, heads=3)


def test_rights_a_revoked_head_ends_everything_of_its_own_accord() -> None:
    async def scenario(rack: Rack) -> None:
        first, second, third = await serving(rack, assigned=3)
        link = await relaying(first, third)
        late = second.head.watch._ask()
        old = second.head.watch.view
        assert old is not None
        for head in (first, second):
            head.api.refusal = Unenrolled("revoked")
        rack.authority.touch()
        await until(lambda: first.head.watch.unenrolled and second.head.watch.unenrolled)
        await until(lambda: link.lost is not None)
        await until(lambda: all(controller.ended for controller in first.head.controllers.values()))
        assert not first.head.ready
        assert first.head.directory.names(Security.AUTHENTICATED) == []
        assert not first.head.nvme.subsystems
        assert not len(first.head._links)
        assert not first.head.sleds.status()
        with pytest.raises(LinkClosed):
            await link_to(second, third, Purpose.TAIL)
        # What was asked for before says nothing any more.
        second.head.watch._take(replace(old, revision=old.revision + 100), late)
        assert second.head.watch.view is not None
        assert not second.head.watch.view.volumes

    with_rack(scenario, heads=3)


def test_rights_every_combination_of_enrolment_assignment_and_purpose() -> None:
    peer, other, key = UUID(int=1), UUID(int=2), b"k" * 32
    enrolled = HeadRecord(peer, "head", key)
    records: list[VolumeRecord | None] = [None, *(record_of(heads, []) for heads in ([other], [other, peer]))]
    for purpose, dialled, record, revoked, known in itertools.product(
        Purpose, (False, True), records, (False, True), (key, b"o" * 32, None)
    ):
        use = LinkUse(purpose, VOLUME, peer, key, dialled)
        head = None if known is None else replace(enrolled, public_key=known, revoked=revoked)
        assigned = record is not None and peer in record.heads
        to_primary = dialled and purpose is Purpose.RELAY  # which this head is not
        allowed = known == key and not revoked and assigned and not to_primary
        assert (refusal(use, head, record) == "") is allowed
        if record is not None:
            led = replace(record, primary=peer)
            assert (refusal(use, head, led) == "") is (known == key and not revoked and assigned)
