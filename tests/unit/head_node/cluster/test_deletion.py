"""A volume is deleted while a sled or a head is away: what is left is named, and goes when they are back."""

from dataclasses import replace

import pytest
from kit.cluster import BLOCK, VOLUME, Rack, until, with_rack

from head_node.cluster import primary
from head_node.store.records import VolumeState as RecordState


def delete(rack: Rack) -> None:
    rack.authority.put(replace(rack.record, state=RecordState.DELETING, version=rack.record.version + 1))


def test_sleds_that_cannot_be_asked_are_named_when_the_deletion_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "DELETE_SECONDS_MAX", 0.1)

    async def scenario(rack: Rack) -> None:
        await rack.start_serving()
        away = next(iter(rack.sleds.values()))
        away.kill()
        delete(rack)
        await until(lambda: VOLUME not in rack.authority.records)
        assert rack.authority.strays == [away.id]
        assert away.namespaces
        assert not any(sled.namespaces for sled in rack.sleds.values() if sled is not away)

    with_rack(scenario)


def test_a_head_that_was_away_removes_the_log_of_a_deleted_volume_and_says_so() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, bytes(BLOCK)) == 0
        await second.crash()
        delete(rack)
        await until(lambda: VOLUME not in rack.authority.records)
        rack.authority.deleted[second.id].add(VOLUME)
        assert second.disk.files
        second.api.gates.clear()
        await second.start()
        await until(lambda: not rack.authority.deleted[second.id])
        assert not second.disk.files
        assert second.head.watch.view is not None
        await until(lambda: second.head._remover is None)

    with_rack(scenario)


def test_a_log_that_cannot_be_removed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("head_node.cluster.head.REPORT_SECONDS", 0.02)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await second.crash()
        delete(rack)
        await until(lambda: VOLUME not in rack.authority.records)
        rack.authority.deleted[second.id].add(VOLUME)
        tries, remove = 0, second._remove

        async def failing(volume: object) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError("busy")
            await remove(VOLUME)

        second._remove = failing  # type: ignore[method-assign]
        await second.start()
        await until(lambda: not rack.authority.deleted[second.id])
        assert tries == 3
        assert not first.disk.files

    with_rack(scenario)
