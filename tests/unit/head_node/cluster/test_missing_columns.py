"""A column that could not be made at creation is added in the running epoch, before the first shard goes there."""

import asyncio

import pytest
from kit.cluster import BLOCK, VOLUME, KitHead, MemorySled, Rack, until, with_rack
from kit.memory_sled import MemoryAttachment

from head_node.authority import transitions
from head_node.cluster import missing_columns
from head_node.cluster.takeover import WHOLE_PLACEMENT_MS
from head_node.volume.geometry import Geometry
from sled_controller.errors import CommandFailed

ONE = bytes([1]) * BLOCK
REDUNDANT_WITH_TWO = Geometry(data_shards=1, parity_shards=2, shard_blocks=4)


async def serve_without(rack: Rack, away: MemorySled) -> KitHead:
    """A volume whose sled `away` could not be reached when it was made."""
    away.kill()
    rack.create_volume(geometry=REDUNDANT_WITH_TWO)
    first, second = rack.heads[:2]
    await rack.start()
    await until(lambda: "sleds are reachable" in first.controller.reason)
    first.clock.jump(WHOLE_PLACEMENT_MS)
    await until(lambda: first.serving and rack.is_member(second))
    assert [column.index for column in rack.record.columns] == [0, 1]
    return first


def third(rack: Rack) -> MemorySled:
    return list(rack.sleds.values())[2]


def test_a_sled_that_was_away_at_creation_gets_its_column_in_the_same_epoch() -> None:
    async def scenario(rack: Rack) -> None:
        first = await serve_without(rack, third(rack))
        assert await first.write(0, ONE) == 0
        third(rack).dead = False
        await until(lambda: len(rack.record.columns) == 3)
        assert rack.record.columns[2].sled == third(rack).id
        await until(lambda: first.engine.status()["columns_missing"] == 0)
        for lba in range(16):
            assert await first.write(lba, ONE) == 0
        await until(lambda: bool(third(rack).writes))
        assert {epoch for epoch, _ in third(rack).writes} == {1}
        assert rack.record.epoch == 1

    with_rack(scenario)


def test_no_shard_goes_to_a_column_before_the_record_names_it() -> None:
    async def scenario(rack: Rack) -> None:
        first = await serve_without(rack, third(rack))
        gate = first.api.gates["set_columns"] = asyncio.Event()
        third(rack).dead = False
        await until(lambda: bool(third(rack).namespaces))
        for lba in range(16):
            assert await first.write(lba, ONE) == 0
        await until(lambda: first.engine.status()["stripes_written"] > 0)
        assert third(rack).writes == []
        gate.set()
        await until(lambda: first.engine.status()["columns_missing"] == 0)

    with_rack(scenario)


def test_a_put_whose_answer_is_lost_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing_columns, "PAUSE_MS", 20)

    async def scenario(rack: Rack) -> None:
        first = await serve_without(rack, third(rack))
        first.api.lose_replies.add("set_columns")
        third(rack).dead = False
        await until(lambda: first.engine.status()["columns_missing"] == 0)
        assert len(rack.record.columns) == 3
        assert len(third(rack).namespaces) == 1

    with_rack(scenario)


def test_a_record_that_changed_meanwhile_is_read_and_the_put_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing_columns, "PAUSE_MS", 20)

    async def scenario(rack: Rack) -> None:
        first = await serve_without(rack, third(rack))
        gate = first.api.gates["set_columns"] = asyncio.Event()
        third(rack).dead = False
        await until(lambda: bool(third(rack).namespaces))
        await rack.heads[1].crash()
        await until(lambda: not rack.is_member(rack.heads[1]))
        gate.set()
        await until(lambda: first.engine.status()["columns_missing"] == 0)
        assert len(rack.record.columns) == 3
        assert rack.record.epoch == 1

    with_rack(scenario)


def test_a_sled_without_room_is_asked_again_and_hurts_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(missing_columns, "PAUSE_MS", 20)
    create, full = MemoryAttachment.create_namespace, [True]

    async def scenario(rack: Rack) -> None:
        async def refuse(attachment: MemoryAttachment, column: int, blocks: int) -> int:
            if full and attachment._sled is third(rack):
                raise CommandFailed(0x115, "no room")
            return await create(attachment, column, blocks)

        monkeypatch.setattr(MemoryAttachment, "create_namespace", refuse)
        first = await serve_without(rack, third(rack))
        third(rack).dead = False
        await until(lambda: caplog.text.count("event=column_not_made") > 1)
        assert await first.write(0, ONE) == 0
        full.clear()
        await until(lambda: len(rack.record.columns) == 3)

    with_rack(scenario)


def test_a_column_that_is_being_made_while_the_volume_is_deleted_leaves_no_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = MemoryAttachment.create_namespace

    async def scenario(rack: Rack) -> None:
        first = await serve_without(rack, third(rack))
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slowly(attachment: MemoryAttachment, column: int, blocks: int) -> int:
            asked.set()
            await answer.wait()
            return await create(attachment, column, blocks)

        monkeypatch.setattr(MemoryAttachment, "create_namespace", slowly)
        third(rack).dead = False
        await asked.wait()
        confirm = first.api.gates["confirm_deleted"] = asyncio.Event()
        rack.authority.put(transitions.delete(rack.record))
        await until(lambda: not any(sled.namespaces for sled in rack.sleds.values()))
        answer.set()
        for _ in range(10):
            await asyncio.sleep(0)
        confirm.set()
        await until(lambda: VOLUME not in rack.authority.records)
        assert not any(sled.namespaces for sled in rack.sleds.values())

    with_rack(scenario)
