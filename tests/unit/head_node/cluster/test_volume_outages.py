"""What a volume does when the authority, sleds, logs or operators take something away."""

import asyncio
from dataclasses import replace

from kit.cluster import BLOCK, TERMS, VOLUME, Rack, until, with_rack

from head_node.cluster.states import VolumeState
from head_node.store.records import VolumeState as RecordState

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


def test_a_failed_log_ends_the_volume_here_and_the_other_head_takes_over() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        first.disk.fail_commits = True
        first.write(0, TWO)
        await until(lambda: first.state is VolumeState.FAILED)
        await until(lambda: second.serving)
        assert await second.read(0) in (ONE, TWO)

    with_rack(scenario)


def test_below_min_current_a_volume_stops_instead_of_serving_alone() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        rack.authority.put(replace(rack.record, min_current=2, version=rack.record.version + 1))
        await second.crash()
        late = first.write(1, TWO)
        await until(lambda: rack.authority.journal[-1][0] == "asked")
        role = first.controller._role
        assert role is not None
        await until(lambda: not role._may_serve())
        assert not late.done()
        assert rack.is_member(second)
        await second.start()
        assert await late == 0

    with_rack(scenario)
