"""What a volume does while sleds are away, as its record says; and what its status says meanwhile."""

import asyncio

import pytest
from kit.cluster import BLOCK, KitHead, MemorySled, Rack, until, with_rack

from head_node.authority import transitions
from head_node.cluster import lost_blocks
from head_node.cluster.sled_notes import sled_notes
from head_node.store.records import LostRange
from head_node.volume.policy import SledPolicy

DATA = bytes([7]) * BLOCK


def reading(head: KitHead, lba: int) -> "asyncio.Future[tuple[int, bytes]]":
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
    served = head.controller.served()
    served.read(lba * BLOCK, BLOCK, lambda error, buffers: future.set_result((error, b"".join(buffers))))
    return future


async def serving(rack: Rack) -> tuple[KitHead, list[MemorySled]]:
    """A volume of 2 + 1 with one stripe of six blocks in slot 0."""
    rack.create_volume()
    first, second = rack.heads[:2]
    await rack.start()
    await until(lambda: first.serving and rack.is_member(second))
    for lba in range(6):
        assert await first.write(lba, DATA) == 0
    await until(lambda: first.engine.status()["stripes_written"] == 1)
    return first, list(rack.sleds.values())


def test_the_primary_does_what_the_record_says_and_what_it_says_later() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume(exposed_stripes=False, read_wait_s=9)
        first, second = rack.heads[:2]
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        assert first.engine.policy == SledPolicy(exposed_stripes=False, read_wait_s=9)
        rack.authority.put(transitions.set_sled_policy(rack.record, exposed_stripes=True, read_wait_s=None))
        await until(lambda: first.engine.policy == SledPolicy())

    with_rack(scenario)


def test_a_read_waits_for_sleds_says_so_and_is_answered_when_they_are_back() -> None:
    async def scenario(rack: Rack) -> None:
        first, sleds = await serving(rack)
        assert first.controller.status()["reason"] == ""
        for sled in sleds[:2]:
            sled.kill()
        await until(lambda: first.engine.status()["columns_missing"] == 2)
        read = reading(first, 0)
        await until(lambda: first.engine.status()["sled_waits"]["reads"] == 1)
        status = first.controller.status()
        assert status["reason"] == (
            "degraded: 2 of 3 sleds are away (sled-0, sled-1); reads waiting for sled-0, sled-1: 1, the oldest for 0 s"
        )
        assert status["serving"]
        assert not read.done()
        sleds[1].dead = False
        assert await read == (0, DATA)
        await until(lambda: "wait" not in first.controller.status()["reason"])

    with_rack(scenario)


def test_stripes_without_a_shard_to_spare_make_a_volume_exposed_on_every_head() -> None:
    async def scenario(rack: Rack) -> None:
        first, sleds = await serving(rack)
        sleds[2].kill()
        await until(lambda: first.engine.status()["columns_missing"] == 1)
        assert not first.controller.status()["exposed"]
        first.engine._destager._short_since_s = -1e9  # type: ignore[union-attr]
        for lba in range(6):
            assert await first.write(lba, DATA) == 0
        await until(lambda: bool(first.controller.status()["exposed"]))
        assert "exposed: stripes that would not survive one more sled: 1" in first.controller.status()["reason"]
        second = rack.heads[1]
        await until(lambda: bool(second.controller.status()["exposed"]))

    with_rack(scenario)


@pytest.mark.parametrize("trouble", ["none", "reply lost", "record changed"])
def test_what_an_operator_declares_lost_is_lost_and_leaves_the_record(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_blocks, "PAUSE_MS", 20)

    async def scenario(rack: Rack) -> None:
        first, sleds = await serving(rack)
        for sled in sleds[:2]:
            sled.kill()
        await until(lambda: first.engine.status()["columns_missing"] == 2)
        read = reading(first, 0)
        if trouble == "reply lost":
            first.api.lose_replies.add("lost_declared")
        elif trouble == "record changed":
            first.api.gates["lost_declared"] = asyncio.Event()
        rack.authority.put(transitions.declare_lost(rack.record, LostRange(0, 8, sleds_away=True)))
        await until(lambda: first.engine.status()["blocks_lost"] > 0)
        if trouble == "record changed":
            rack.authority.put(transitions.set_sled_policy(rack.record, exposed_stripes=True, read_wait_s=5))
            first.api.gates["lost_declared"].set()
        await until(lambda: not rack.record.lost)
        for sled in sleds[:2]:
            sled.dead = False
        error, _ = await read
        assert error
        assert await first.write(0, DATA) == 0
        assert await reading(first, 0) == (0, DATA)

    with_rack(scenario)


def test_a_range_that_was_asked_of_a_former_primary_is_done_by_the_next_one() -> None:
    async def scenario(rack: Rack) -> None:
        first, sleds = await serving(rack)
        gate = first.api.gates["lost_declared"] = asyncio.Event()
        rack.authority.put(transitions.declare_lost(rack.record, LostRange(0, 8)))
        await until(lambda: "lost" in first.controller._role._tasks)  # type: ignore[union-attr]
        assert not gate.is_set()
        await first.crash()
        second = rack.heads[1]
        await until(lambda: second.serving and not rack.record.lost)
        assert await reading(second, 0) == (0, DATA), "it can be read"
        assert sleds

    with_rack(scenario)


def test_notes_name_what_waits_and_what_is_in_danger() -> None:
    quiet = {
        "sled_waits": {"reads": 0, "oldest_s": 0.0, "columns": []},
        "requests": {"waiting_for_room": 0},
        "columns_away": [],
        "stripes_wait_for_sleds": False,
        "stripes_without_spare": 0,
        "blocks_unreadable": 0,
        "blocks_unreadable_more": False,
    }
    assert sled_notes(quiet, 6, str) == []
    full = {**quiet, "requests": {"waiting_for_room": 3}}
    assert sled_notes(full, 6, str) == ["writes waiting for room in the log: 3"]
    short = {**full, "stripes_wait_for_sleds": True, "blocks_unreadable": 4096, "blocks_unreadable_more": True}
    assert sled_notes(short, 6, str) == [
        "writes waiting for room in the log: 3; they go on when sleds are back",
        "blocks that no sleds can give: more than 4096",
    ]
