"""What a volume does when the authority, sleds, logs or operators take something away."""

import asyncio
from dataclasses import replace

import pytest
from kit.cluster import (
    BLOCK,
    TERMS,
    VOLUME,
    KitHead,
    MemorySledClient,
    Rack,
    credential_of,
    until,
    with_rack,
)
from kit.memory_sled import MemoryAttachment

from head_node.authority import transitions
from head_node.cluster import primary
from head_node.cluster.primary import End
from head_node.cluster.states import VolumeState
from head_node.store.records import VolumeState as RecordState
from head_node.volume.geometry import Geometry
from sled_controller.credential import parse_credential
from sled_controller.errors import CommandFailed

ONE, TWO = (bytes([value]) * BLOCK for value in (1, 2))


def test_a_lost_takeover_answer_burns_the_epoch() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        second.api.lose_replies.add("takeover")
        await first.crash()
        await until(lambda: second.serving)
        assert rack.record.epoch == 3
        assert all(sled.fences[VOLUME][0] == 3 for sled in rack.sleds.values())

    with_rack(scenario)


def test_a_candidate_without_sleds_never_bumps_the_epoch() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        second.sleds_cut = True
        for sled in rack.sleds.values():
            for client in list(sled.clients):
                client.cut()
        await until(lambda: second.head.sleds.reachable(rack.sleds) == 0)
        await first.crash()
        await until(lambda: "sleds are reachable" in second.controller.reason)
        assert rack.record.epoch == 1
        second.sleds_cut = False
        await until(lambda: second.serving)
        assert rack.record.epoch == 2

    with_rack(scenario)


def test_an_authority_outage_stops_no_volume() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        rack.authority.down = True
        rack.authority.touch()
        await until(lambda: not first.head.watch.reachable)
        for lba in range(5):
            assert await first.write(lba, ONE) == 0
        rack.authority.down = False
        await until(lambda: first.head.watch.reachable)

    with_rack(scenario)


def test_a_primary_that_is_stopped_hands_over_without_waiting_for_the_lease() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        stopping = loop.create_task(first.stop())
        await until(lambda: second.serving)
        assert loop.time() - begun_s < TERMS.ttl_ms / 1000 * 0.8
        await stopping
        first.api.cut_off = True
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_f7_a_primary_that_hands_over_answers_nobody_any_more() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        unanswered = first.write(0, ONE)
        await until(lambda: bool(held))
        stopping = asyncio.get_running_loop().create_task(first.stop())  # it waits for the member to catch up
        await asyncio.sleep(0)
        second.disk.gate = None
        held[0]()
        await until(lambda: second.serving)
        assert not unanswered.done()
        await stopping
        first.api.cut_off = True
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_a_lone_primary_destages_when_it_is_stopped() -> None:
    async def scenario(rack: Rack) -> None:
        first = rack.heads[0]
        rack.create_volume()
        await first.start()
        await until(lambda: first.serving)
        assert await first.write(0, ONE) == 0
        await first.stop()
        first.api.cut_off = True
        assert sum(len(sled.writes) for sled in rack.sleds.values()) >= 3

    with_rack(scenario, heads=1)


def test_a_lone_primary_serves_within_its_term_only() -> None:
    async def scenario(rack: Rack) -> None:
        rack.authority.term_ms = 60_000
        first = rack.heads[0]
        rack.create_volume()
        await first.start()
        await until(lambda: first.serving)
        assert await first.write(0, ONE) == 0
        first.api.gates["renew"] = asyncio.Event()
        first.clock.jump(60_000)
        late = first.write(1, ONE)
        await until(lambda: first.engine.status()["requests"]["lease_waits"] > 0)
        assert not late.done()
        first.api.gates.pop("renew").set()
        assert await late == 0

    with_rack(scenario, heads=1)


def test_a_sled_that_comes_back_is_attached_again_with_a_higher_number() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        sled = next(iter(rack.sleds.values()))
        sled.kill()
        role = first.controller._role
        assert role is not None
        await until(lambda: role.attachments.receipts == 2)
        assert await first.write(0, ONE) == 0
        sled.dead = False
        await until(lambda: role.attachments.receipts == 3)
        assert sled.fences[VOLUME][:2] == (1, 2)

    with_rack(scenario)


def test_a_volume_is_taken_over_with_a_sled_missing() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        next(iter(rack.sleds.values())).kill()
        await first.crash()
        await until(lambda: second.serving)
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_a_frozen_volume_is_not_served() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        record = rack.record
        rack.authority.put(replace(record, state=RecordState.FROZEN, version=record.version + 1))
        await until(lambda: first.state is VolumeState.FOLLOWING)
        await asyncio.sleep(TERMS.ttl_ms * 1.2 / 1000)  # as long as a takeover would take
        assert rack.record.epoch == 1
        assert not second.serving

    with_rack(scenario)


def test_a_revoked_primary_steps_down_and_the_other_head_takes_the_volume() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        record = rack.record
        member = record.member(second.id)
        assert member is not None
        changed = replace(
            record, heads=(second.id,), current=(member,), primary=second.id, epoch=record.epoch + 1,
            version=record.version + 1,
        )  # fmt: skip
        rack.authority.put(changed)
        await until(lambda: second.serving)
        assert rack.record.epoch == 3
        assert await second.read(0) == ONE
        await until(lambda: not first.serving)

    with_rack(scenario)


def test_deleting_a_volume_removes_namespaces_record_and_logs() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        record = rack.record
        rack.authority.put(replace(record, state=RecordState.DELETING, version=record.version + 1))
        await until(lambda: VOLUME not in rack.authority.records)
        assert all(not sled.namespaces for sled in rack.sleds.values())
        over = (None, VolumeState.RETIRED)
        await until(lambda: first.state in over and second.state in over)
        await until(lambda: not first.disk.files and not second.disk.files)

    with_rack(scenario)


def test_a_volume_that_is_deleted_while_its_columns_are_made_is_gone_with_the_next_epoch() -> None:
    async def scenario(rack: Rack) -> None:
        first = rack.heads[0]
        rack.create_volume()
        await rack.start()
        gate = first.api.gates["set_columns"] = asyncio.Event()
        await until(lambda: all(sled.namespaces for sled in rack.sleds.values()))
        rack.authority.put(transitions.delete(rack.record))
        gate.set()
        await until(lambda: VOLUME not in rack.authority.records)
        assert not any(sled.namespaces for sled in rack.sleds.values())
        assert [entry[2] for entry in rack.authority.journal if entry[0] == "takeover"] == [1, 2]

    with_rack(scenario)


def test_the_only_member_that_gave_an_epoch_up_waits_before_it_asks_for_another() -> None:
    async def scenario(rack: Rack) -> None:
        first = rack.heads[0]
        rack.create_volume()
        await rack.start()
        await until(lambda: first.serving)
        role, follower = first.controller._role, first.controller._follower
        assert role is not None
        assert follower is not None
        given_up_ns = first.clock.boottime_ns()
        role.end(End.GAVE_UP, "for the test")
        await first.controller.reached(VolumeState.FOLLOWING)
        assert follower.promise.bound_until_ns >= given_up_ns + TERMS.ttl_ns
        await until(lambda: first.serving)

    with_rack(scenario, heads=1)


def test_a_volume_that_leaves_the_view_and_comes_back_is_followed_again() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        before, record = second.controller, rack.record
        held = second.hold_commits()
        first.write(0, ONE)
        await until(lambda: bool(held))
        rack.authority.put(replace(record, heads=(first.id,), version=record.version + 1))
        await until(lambda: before.left_view and not rack.is_member(second))
        rack.authority.put(replace(rack.record, heads=record.heads, version=rack.record.version + 1))
        await until(lambda: second.head.watch.view is not None and VOLUME in second.head.watch.view.volumes)
        assert not before.ended, "what the test is about: it comes back while it still ends"
        second.disk.gate = None
        held[0]()
        await until(lambda: second.state is VolumeState.FOLLOWING and second.controller is not before)
        assert before.state is VolumeState.CLOSED
        await until(lambda: rack.is_member(second) and bool(second.controller.status()["following"]))
        assert await first.write(1, TWO) == 0
        await first.crash()
        await until(lambda: second.serving)
        assert await second.read(1) == TWO

    with_rack(scenario)


def test_f7_a_volume_that_comes_back_to_the_view_is_bound_by_what_was_promised_before() -> None:
    async def scenario(rack: Rack) -> None:
        _, second = await rack.start_serving()
        record = rack.record
        rack.authority.put(replace(record, heads=(rack.heads[0].id,), version=record.version + 1))
        await until(lambda: VOLUME not in second.head.controllers)
        left_ns = second.clock.boottime_ns()
        rack.authority.put(replace(record, version=record.version + 2))
        await until(lambda: second.state is VolumeState.FOLLOWING)
        follower = second.controller._follower
        assert follower is not None
        assert follower.promise.bound_until_ns >= left_ns + TERMS.ttl_ns

    with_rack(scenario)


def test_a_volume_that_is_deleted_does_not_begin_again_in_the_view_that_still_has_it() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        first.api.gates["view"] = second.api.gates["view"] = asyncio.Event()
        controller = first.controller
        role = controller._role
        assert role is not None
        rack.authority.records[VOLUME] = transitions.delete(rack.record)
        role.record_changed(rack.record)
        await until(lambda: controller.ended)
        await asyncio.sleep(0)
        assert first.controller is controller
        assert not first.disk.files
        first.api.gates.pop("view").set()
        second.api.gates.pop("view")
        await until(lambda: VOLUME not in first.head.controllers)

    with_rack(scenario)


class Slow:
    """Sleds that answer no ATTACH of one head until `open` is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.head: KitHead | None = None
        """None: of every head."""
        attach = MemorySledClient.attach

        async def slowly(client: MemorySledClient, credential: bytes, number: int) -> MemoryAttachment:
            if self.head is None or parse_credential(credential).credential.head_key == self.head.public:
                await self.open.wait()
            return await attach(client, credential, number)

        patch.setattr(MemorySledClient, "attach", slowly)


def test_a_takeover_that_got_no_receipts_does_not_spoil_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "ATTACH_SECONDS_MAX", 0.05)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        slow = Slow(monkeypatch)
        await first.crash()
        await until(lambda: second.controller.status()["last_end"] == "gave up")
        slow.open.set()
        await until(lambda: second.serving)
        assert await second.write(0, ONE) == 0

    with_rack(scenario)


def test_members_that_are_free_at_the_same_time_do_not_depose_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await first.crash()
        slow = Slow(monkeypatch)
        await first.start()
        await until(lambda: first.state is VolumeState.FOLLOWING)
        first.clock.jump(2 * TERMS.ttl_ms)
        second.clock.jump(2 * TERMS.ttl_ms)
        for head in (first, second):
            head.controller._wake()
        await until(lambda: rack.record.epoch == 2)
        winner, loser = (first, second) if rack.record.primary == first.id else (second, first)
        await until(lambda: loser.state is VolumeState.FOLLOWING and loser.controller.record.epoch > 1)
        await until(lambda: loser.controller._follower is not None and loser.controller._follower.session is not None)
        assert rack.record.epoch == 2
        slow.open.set()
        await until(lambda: winner.serving)
        assert rack.record.epoch == 2

    with_rack(scenario)


def test_a_head_that_sleds_do_not_attach_lets_another_member_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "ATTACH_SECONDS_MAX", 0.05)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        slow = Slow(monkeypatch)
        slow.head = second
        await first.crash()
        await until(lambda: rack.record.primary == second.id)
        await first.start()
        await until(lambda: first.serving)

    with_rack(scenario)


def test_a_head_that_stops_while_it_asks_for_an_epoch_does_not_begin_it() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        second.api.gates["takeover"] = asyncio.Event()
        await first.crash()
        await until(lambda: second.state is VolumeState.SEALED)
        stopping = asyncio.create_task(second.stop())
        await asyncio.sleep(0)
        second.api.gates["takeover"].set()
        await asyncio.wait_for(stopping, 2)
        assert second.state is VolumeState.CLOSED

    with_rack(scenario)


def test_a_head_stops_while_it_attaches_with_a_member_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await first.crash()
        slow = Slow(monkeypatch)
        await first.start()
        second.clock.jump(2 * TERMS.ttl_ms)
        await until(lambda: second.state is VolumeState.ATTACHING)
        await until(lambda: second.controller.status()["members_lag"] != {})
        await asyncio.wait_for(second.stop(), 2)
        assert second.state is VolumeState.CLOSED
        slow.open.set()

    with_rack(scenario)


def test_a_role_may_end_while_it_hands_over() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        first.write(0, ONE)
        await until(lambda: bool(held))
        role = first.controller._role
        assert role is not None
        stopping = asyncio.create_task(first.stop())
        await asyncio.sleep(0)
        role.end(End.FENCED, "a sled showed a newer epoch")
        second.disk.gate = None
        for finish in held:
            finish()
        await asyncio.wait_for(stopping, 2)

    with_rack(scenario)


def test_a_sled_without_room_for_a_missing_column_stops_no_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rack: Rack) -> None:
        full = list(rack.sleds.values())[2]
        create = MemoryAttachment.create_namespace

        async def refuse(attachment: MemoryAttachment, column: int, blocks: int) -> int:
            if attachment._sled is full:
                raise CommandFailed(0x115, "no room")
            return await create(attachment, column, blocks)

        rack.create_volume(geometry=Geometry(data_shards=1, parity_shards=2, shard_blocks=4))
        first, second = rack.heads
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        rack.authority.put(replace(rack.record, columns=rack.record.columns[:2], version=rack.record.version + 1))
        monkeypatch.setattr(MemoryAttachment, "create_namespace", refuse)
        await first.crash()
        await until(lambda: second.serving)

    with_rack(scenario)


def test_a_judgement_that_cannot_be_had_ends_the_role() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        rack.authority.put(replace(rack.record, heads=(second.id,), version=rack.record.version + 1))
        await until(lambda: first.controller._gone)
        for sled in rack.sleds.values():
            sled.lie = credential_of(9, key_id=5)
        role = first.controller._role
        assert role is not None
        role.attachments.probe()
        await first.controller.reached(VolumeState.CLOSED)

    with_rack(scenario)


def test_a_deletion_that_arrives_as_the_answer_to_another_change_is_carried_out() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        gate = first.api.gates["change_members"] = asyncio.Event()
        await second.crash()
        await until(lambda: ("asked", None, rack.record.member(second.id)) in rack.authority.journal)
        rack.authority.records[VOLUME] = transitions.delete(rack.record)  # no view tells of it: the answer is first
        gate.set()
        await until(lambda: VOLUME not in rack.authority.records)

    with_rack(scenario)
