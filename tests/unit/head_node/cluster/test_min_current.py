"""A volume that asks for more members than one is stopped while fewer answer, and goes on by itself (D1)."""

import asyncio

import pytest
from kit.cluster import BLOCK, Rack, until, with_rack

from head_node.cluster.states import VolumeState

ONE, TWO = (bytes([value]) * BLOCK for value in (1, 2))


def test_d1_below_min_current_a_volume_stops_instead_of_serving_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        first, second = rack.heads
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        assert await first.write(0, ONE) == 0
        said = caplog.text.count("event=stopped")
        await second.crash()
        late = first.write(1, TWO)
        await until(lambda: bool(first.controller.status()["stopped"]))
        status = first.controller.status()
        assert status["stopped"] == "1 of at least 2 members answer; requests wait"
        assert not status["exposed"]
        assert not status["serving"]
        role = first.controller._role
        assert role is not None
        await until(lambda: not role._may_serve())
        assert not late.done()
        assert rack.is_member(second), "the only other log that has every acknowledged write was given up"
        assert not [entry for entry in rack.authority.journal if entry[0] == "asked" and entry[2] is not None]
        assert caplog.text.count("event=stopped") == said + 1
        await second.start()
        assert await late == 0
        await until(lambda: not first.controller.status()["stopped"])

    with_rack(scenario)


def test_d1_a_new_volume_is_not_served_before_it_has_its_members() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        first, second = rack.heads
        await rack.start([first])
        await until(lambda: first.serving)
        early = first.write(0, ONE)
        await until(lambda: first.engine.status()["requests"]["lease_waits"] > 0)
        assert not early.done()
        await rack.start([second])
        assert await early == 0
        assert rack.is_member(second)

    with_rack(scenario)


def test_d1_a_takeover_below_min_current_serves_nothing_until_a_member_is_back() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        first, second = rack.heads
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        assert await first.write(0, ONE) == 0
        await first.crash()
        await until(lambda: bool(second.controller.status()["stopped"]))
        assert second.state is VolumeState.LEADING
        assert rack.is_member(first)
        await first.start()
        await until(lambda: second.serving)
        assert await second.read(0) == ONE
        assert await second.write(1, TWO) == 0

    with_rack(scenario)


def test_a_head_stops_although_its_volume_waits_for_a_member_that_it_must_keep() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        first, second = rack.heads
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        assert await first.write(0, ONE) == 0
        await second.crash()
        await until(lambda: bool(first.controller.status()["stopped"]))
        await asyncio.wait_for(first.stop(), 5)
        first.api.cut_off = True

    with_rack(scenario)


def test_below_min_current_a_member_whose_log_was_wiped_is_exchanged() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(min_current=2)
        first, second = rack.heads
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        old = rack.record.member(second.id)
        await second.crash()
        second.disk.files.clear()
        await second.start()
        await until(lambda: rack.record.member(second.id) not in (None, old))
        assert await first.write(0, ONE) == 0

    with_rack(scenario)
