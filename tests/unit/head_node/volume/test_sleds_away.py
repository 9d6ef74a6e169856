"""Sleds away: what still goes on, what waits for them, and what is said meanwhile (D1)."""

import asyncio

import pytest
from kit.volume import Bench, check, fill, pattern, run, until
from kit.volume_pair import Pair
from kit.volume_sleds import FULL, SMALL_OVERLAY, attach, lose, striped, turns

from head_node.volume import destage
from head_node.volume.errors import LogCorrupt
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from head_node.volume.policy import SledPolicy
from sled_controller.errors import CommandFailed
from spdk_bindings.nvme import Status

WAIT = SledPolicy(exposed_stripes=False)


async def fill_up(bench: Bench, first: int) -> "list[asyncio.Future[int]]":
    """Write until writes wait for room; the last ones are not answered."""
    writes = []
    for lba in range(first, first + 6 * FULL):
        writes.append(bench.write(lba, pattern(lba)))
        await turns(3)
    await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
    await turns()
    assert not writes[-1].done()
    return writes


# --- reads, trims and queries do not wait behind writes ---------------------------------------------------------------


def test_reads_queries_trims_and_flushes_do_not_wait_behind_writes_that_wait_for_room() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        bench.engine.set_policy(WAIT)
        lose(bench, 0, 1)
        writes = await fill_up(bench, FULL)
        assert bench.engine.status()["requests"]["waiting_for_room"] > 0
        assert await bench.read(0) == content[0], "from the four sleds that are left"
        assert await bench.read(FULL) == pattern(FULL), "from the overlay"
        assert await bench.read(250) == bytes(BLOCK_BYTES)
        answers: list[int] = []
        bench.engine.served.extents(0, FULL * BLOCK_BYTES, lambda error, found: answers.append(len(found)))
        bench.engine.served.flush(answers.append)
        assert answers == [1, 0]
        assert not writes[-1].done()
        assert await bench.trim(0, FULL) == 0
        assert await bench.read(0) == bytes(BLOCK_BYTES)
        assert not writes[-1].done(), "what was trimmed was no room for them"
        assert await bench.trim(FULL, 3 * FULL) == 0
        await until(lambda: sum(write.done() for write in writes) > 4 * FULL)
        await bench.engine.close()

    run(scenario())


def test_a_write_that_waits_does_not_undo_a_trim_that_was_answered_before_it() -> None:
    """Requests that are unanswered together have no order; each is seen once it is answered."""

    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        bench.engine.set_policy(WAIT)
        lose(bench, 0, 1)
        await fill_up(bench, FULL)
        late = bench.write(5, pattern(77))
        await turns()
        assert not late.done()
        assert await bench.trim(5, 1) == 0
        assert await bench.read(5) == bytes(BLOCK_BYTES)
        attach(bench, 0)
        assert await late == 0
        assert await bench.read(5) == pattern(77)
        await bench.engine.close()

    run(scenario())


def test_what_came_while_nothing_may_be_begun_is_begun_in_order_and_each_waits_for_its_own_room() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        bench.engine.set_policy(WAIT)
        lose(bench, 0, 1)
        await fill_up(bench, FULL)
        lease = False
        bench.engine.lease = lambda: lease
        write, read, trim = bench.write(3, pattern(9)), bench.reading(0), bench.trim(1, 1)
        await turns()
        assert not any(one.done() for one in (write, read, trim))
        lease = True
        assert await read == (0, content[0])
        assert await trim == 0
        assert not write.done()
        attach(bench, 0, 1)
        assert await write == 0
        await bench.engine.close()

    run(scenario())


def test_the_volume_takes_requests_while_few_writes_wait_and_no_more_writes_than_it_has_bounds_for() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=4096)
        limits = Limits(8 << 20, 32 << 20, overlay_bytes_max=FULL * BLOCK_BYTES, unanswered_bytes_max=1 << 20)
        await striped(bench, limits=limits)
        bench.engine.set_policy(WAIT)
        lose(bench, 0, 1)
        for at in range(0, 4 * 256, 64):
            bench.write(at, pattern(at, 64))
            await turns(5)
            waiting = bench.engine._service._waiting_bytes
            assert bench.engine.served.ready() == (waiting <= 1 << 20)
        assert not bench.engine.served.ready()
        woken: list[bool] = []
        bench.engine.served.on_ready(lambda: woken.append(True))
        attach(bench, 0, 1)
        await until(lambda: bool(woken))
        await bench.engine.close()

    run(scenario())


# --- stripes of exactly k shards (D1) ---------------------------------------------------------------------------------


def test_d1_with_k_sleds_left_writes_go_on_and_their_stripes_count_as_exposed() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        assert bench.engine.status()["stripes_exposed"] == 0
        lose(bench, 2, 5)
        for first in range(FULL, 12 * FULL, FULL):
            content |= await fill(bench, first, FULL, seed=2)
        status = bench.engine.status()
        assert status["stripes_exposed"] == status["stripes_without_spare"] > 5
        await check(bench, content)
        attach(bench, 2, 5)
        content |= await fill(bench, 200, FULL, seed=3)
        await until(lambda: not len(bench.engine.state.overlay.leaving))
        exposed = bench.engine.status()["stripes_exposed"]
        await bench.engine.close()
        await bench.open(SMALL_OVERLAY)
        assert bench.engine.status()["stripes_exposed"] == exposed, "after a restart"
        await bench.lead(2)
        await check(bench, content)
        assert bench.engine.status()["stripes_exposed"] == exposed
        assert await bench.trim(0, 256) == 0
        assert bench.engine.status()["stripes_exposed"] == bench.engine.status()["stripes_without_spare"] == 0
        await bench.engine.close()

    run(scenario())


def test_d1_every_member_counts_the_same_exposed_stripes() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        pair.primary.columns[4].error = lambda: CommandFailed(Status.WRITE_FAULT, "write fault")
        await fill(pair.primary, 0, 2 * FULL, seed=1)
        await until(lambda: pair.follower.engine.committed == pair.primary.engine.tail.opnum)
        await until(lambda: not len(pair.follower.engine.state.overlay))
        for bench in (pair.primary, pair.follower):
            status = bench.engine.status()
            assert (status["stripes_exposed"], status["stripes_without_spare"]) == (2, 0)
        await pair.close()

    run(scenario())


def test_d1_a_lack_of_sleds_shorter_than_a_restart_exposes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench, limits=Limits(8 << 20, 32 << 20))
        lose(bench, 0, 1)
        content |= await fill(bench, FULL, 2 * FULL, seed=2)
        await turns()
        assert len(bench.engine.state.overlay) == 2 * FULL
        attach(bench, 0)
        await until(lambda: not len(bench.engine.state.overlay))
        assert bench.engine.status()["stripes_without_spare"] == 0
        lose(bench, 0)
        monkeypatch.setattr(destage, "EXPOSED_AFTER_SECONDS", 0.01)
        content |= await fill(bench, 4 * FULL, FULL, seed=3)
        await until(lambda: not len(bench.engine.state.overlay))
        assert bench.engine.status()["stripes_without_spare"] == 1
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_d1_a_stripe_has_one_shard_more_than_k_where_that_many_columns_are_there() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 3)
        for first in range(FULL, 10 * FULL, FULL):
            content |= await fill(bench, first, FULL, seed=2)
        await until(lambda: not len(bench.engine.state.overlay.leaving))
        status = bench.engine.status()
        assert (status["stripes_without_spare"], status["stripes_given_up"]) == (0, 0)
        assert status["stripes_exposed"] > 5
        lose(bench, 1)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_d1_policy_may_forbid_exposed_stripes_and_may_be_changed_while_writes_wait() -> None:
    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        bench.engine.set_policy(WAIT)
        lose(bench, 0, 1)
        writes = await fill_up(bench, FULL)
        assert bench.engine.status()["stripes_exposed"] == 0
        bench.engine.set_policy(SledPolicy())
        assert not any(await asyncio.gather(*writes))
        assert bench.engine.status()["stripes_without_spare"] > 0
        await bench.engine.close()

    run(scenario())


def test_d1_drives_that_refuse_every_write_count_as_missing_although_they_are_attached() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        for index in (0, 1):
            bench.columns[index].error = lambda: CommandFailed(Status.WRITE_FAULT, "write fault")
        for first in range(FULL, 8 * FULL, FULL):
            content |= await fill(bench, first, FULL, seed=2)
        await until(lambda: bench.engine.status()["stripes_without_spare"] > 0)
        bench.columns[0].error = None
        content |= await fill(bench, 200, 3 * FULL, seed=3)
        await until(lambda: len(bench.engine.state.overlay) < FULL)
        spare = bench.engine.status()["stripes_without_spare"]
        content |= await fill(bench, 100, FULL, seed=4)
        await until(lambda: len(bench.engine.state.overlay) < FULL)
        assert bench.engine.status()["stripes_without_spare"] <= spare, "with five that take shards each has five"
        bench.columns[1].error = None
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_d1_a_stripe_with_fewer_than_k_shards_is_no_stripe() -> None:
    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        state = bench.engine.state
        made = []
        bench.engine._destager._append_stripe = lambda record: made.append(record) or 10**6  # type: ignore[union-attr]
        await fill(bench, FULL, FULL, seed=2)
        await until(lambda: bool(made))
        record = made[0]
        shards = tuple((column, index < 3, at) for index, (column, _, at) in enumerate(record.shards))
        with pytest.raises(LogCorrupt, match="3 shards"):
            state.stripe(10**6, type(record)(record.epoch, record.sequence, record.slot, shards, record.blocks))
        await bench.engine.step_down()
        await bench.engine.close()

    run(scenario())


def test_below_k_sleds_writes_gather_in_the_log_and_reads_of_what_can_be_had_go_on() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 0, 1, 2)
        writes = await fill_up(bench, FULL)
        answered = [lba for lba, write in enumerate(writes, FULL) if write.done()]
        assert answered
        for lba in answered:
            assert await bench.read(lba) == pattern(lba)
        reads = {lba: bench.reading(lba) for lba in content}
        await turns()
        # Slot 0: shard i is in column i, three rows each, so that shard 3 is whole.
        assert {lba for lba, read in reads.items() if read.done()} == {9, 10, 11}
        attach(bench, 1)
        assert {lba: await read for lba, read in reads.items()} == {lba: (0, data) for lba, data in content.items()}
        assert not any(await asyncio.gather(*writes))
        await bench.engine.close()

    run(scenario())
