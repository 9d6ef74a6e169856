"""A member that was away longer than the log lasts gets back, also under load, and a failing resync is not repeated
without pause."""

import asyncio
from uuid import UUID

import pytest
from kit.cluster import BLOCK, KitHead, Rack, until, with_rack

from head_node.cluster.replication import RESYNC_PAUSE_NS, RESYNC_PAUSE_NS_MAX, RESYNCS_AT_ONCE, Resyncs
from head_node.volume.limits import SEGMENT_BYTES_MIN, Limits
from spdk_bindings.device import Buffer

PIECE = bytes(range(256)) * 16 * 16
HEAD = UUID(int=1)
S = 1_000_000_000


@pytest.fixture(autouse=True)
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that a few writes fill."""
    monkeypatch.setattr(
        "kit.cluster.LIMITS",
        Limits(SEGMENT_BYTES_MIN, 4 * SEGMENT_BYTES_MIN, held_log_bytes_max=16 * SEGMENT_BYTES_MIN),
    )


async def outgrow(first: KitHead) -> None:
    """Write until the log no longer begins at its beginning."""
    await asyncio.gather(*(first.write(lba % 32, PIECE) for lba in range(200)))
    await until(lambda: first.engine.read_log(1, BLOCK) is None)


async def load(first: KitHead, stop: asyncio.Event) -> int:
    """Eight writers that write as fast as they are answered."""

    async def one(number: int) -> int:
        count = 0
        while not stop.is_set():
            assert await first.write((8 * count + number) % 32, PIECE) == 0
            count += 1
        return count

    return sum(await asyncio.gather(*(one(number) for number in range(8))))


def resyncs_of(first: KitHead) -> Resyncs:
    role = first.controller._role
    assert role is not None
    return role.links.resyncs


def test_the_log_outlives_a_full_resync_under_load() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        await outgrow(first)
        stop, begun = asyncio.Event(), []
        export = first.engine.export_checkpoint

        async def slowly() -> list[Buffer]:
            """What follows the checkpoint would be trimmed while it is on its way."""
            exported = await export()
            covered, trimmed = first.engine.committed, first.engine._checkpoint_count + 3
            await until(lambda: first.engine._checkpoint_count >= trimmed)
            begun.append(covered)
            assert first.engine.read_log(covered + 1, BLOCK) is not None
            return exported

        first.engine.export_checkpoint = slowly  # type: ignore[method-assign]
        writing = asyncio.create_task(load(first, stop))
        await second.start()
        await until(lambda: rack.is_member(second))
        stop.set()
        assert await writing > 0
        assert len(begun) == 1, "it began again"
        assert resyncs_of(first).counts() == {}
        await until(lambda: first.engine.log_hold.oldest is None)
        await until(lambda: first.engine.status()["log_held_bytes"] == 0)

    with_rack(scenario)


def test_a_member_that_is_gone_holds_nothing() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        await outgrow(first)
        gate = asyncio.Event()
        export = first.engine.export_checkpoint

        async def stuck() -> list[Buffer]:
            await gate.wait()
            return await export()

        first.engine.export_checkpoint = stuck  # type: ignore[method-assign]
        await second.start()
        await until(lambda: first.engine.log_hold.oldest is not None)
        await second.stop()
        second.api.cut_off = True
        await until(lambda: first.engine.log_hold.oldest is None)
        gate.set()

    with_rack(scenario)


def test_full_resyncs_that_come_to_nothing_wait_longer_each_time() -> None:
    resyncs, now_ns = Resyncs(), 0
    for _ in range(RESYNCS_AT_ONCE):
        assert resyncs.wait_s(HEAD, now_ns) == 0
        resyncs.begun(HEAD, now_ns)
    waits = []
    for _ in range(12):
        waits.append(resyncs.wait_s(HEAD, now_ns))
        now_ns += int(waits[-1] * S)
        assert resyncs.wait_s(HEAD, now_ns) == 0
        resyncs.begun(HEAD, now_ns)
    assert waits[:3] == [RESYNC_PAUSE_NS / S * factor for factor in (1, 2, 4)]
    assert waits[-1] == RESYNC_PAUSE_NS_MAX / S
    resyncs.succeeded(HEAD)
    assert resyncs.wait_s(HEAD, now_ns) == 0


def test_a_resync_that_is_due_begins_over_the_link_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("head_node.cluster.replication.RESYNCS_AT_ONCE", 1)
    monkeypatch.setattr("head_node.cluster.replication.RESYNC_PAUSE_NS", 100_000_000)

    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        await outgrow(first)
        export, tries = first.engine.export_checkpoint, 0

        async def failing() -> list[Buffer]:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError("no memory")
            return await export()

        first.engine.export_checkpoint = failing  # type: ignore[method-assign]
        await second.start()
        await until(lambda: tries == 2)
        assert first.controller.status()["members_resyncs"] == {str(second.id): 2}
        await until(lambda: rack.is_member(second))
        assert tries == 3

    with_rack(scenario)
