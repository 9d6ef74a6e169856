"""Admission and replies: the lease at both ends (F7), hold (F6), bounds, ranges."""

import asyncio
import errno

import pytest
from kit.volume import Bench, check, fill, pattern, run, until
from kit.volume_pair import FOLLOWER

from head_node.volume.errors import VolumeStopped
from head_node.volume.interface import BLOCK_BYTES, EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO
from head_node.volume.limits import Limits


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_requests_wait_for_the_lease_and_are_answered_when_it_is_back() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 2, seed=1)
        lease = False
        bench.engine.lease = lambda: lease
        write, read = bench.write(5, pattern(5)), bench.reading(0)
        await turns()
        assert not write.done()
        assert not read.done()
        assert bench.engine.tail.opnum == 3
        lease = True
        assert await read == (0, content[0])
        assert await write == 0
        await bench.engine.close()

    run(scenario())


def test_a_waiting_request_is_forgotten_when_its_client_is_gone_before_its_turn() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 1, seed=1)
        lease, left = False, False
        bench.engine.lease = lambda: lease
        tail = bench.engine.tail
        answers: list[object] = []
        served = bench.engine.served
        served.write(0, pattern(5), False, answers.append, lambda: left)
        served.trim(0, BLOCK_BYTES, answers.append, lambda: left)
        served.write_zeroes(0, BLOCK_BYTES, no_hole=True, done=answers.append, gone=lambda: left)
        served.read(0, BLOCK_BYTES, lambda error, buffers: answers.append(buffers), lambda: left)
        served.extents(0, BLOCK_BYTES, lambda error, extents: answers.append(extents), lambda: left)
        stays = bench.reading(0)
        left = lease = True
        assert await stays == (0, content[0])
        assert bench.engine.tail == tail
        assert answers == []
        assert bench.engine.status()["requests"]["forgotten"] == 5
        await bench.engine.close()

    run(scenario())


def test_f7_no_reply_without_the_lease_even_if_it_was_held_at_admission() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 12, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        lease = True
        bench.engine.lease = lambda: lease
        write, read = bench.write(5, pattern(5)), bench.reading(0)
        lease = False
        await until(lambda: bench.engine.committed == bench.engine.tail.opnum)
        await turns()
        assert not write.done()
        assert not read.done()
        lease = True
        assert await write == 0
        assert (await read)[0] == 0
        await bench.engine.close()

    run(scenario())


def test_f7_nothing_is_served_or_committed_before_the_epoch_record_is() -> None:
    """What an earlier epoch left uncommitted counts only once this epoch's first record is on every member."""

    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 2, seed=1)
        bench.engine.set_required(frozenset({FOLLOWER}))
        bench.write(0, pattern(9))
        await until(lambda: bench.engine.durable == 4)
        assert bench.engine.committed == 3
        await bench.engine.close()
        await bench.open()
        bench.engine.set_required(frozenset({FOLLOWER}))
        opnum = await bench.engine.lead(2, bench.attach())
        read, write = bench.reading(0), bench.write(1, pattern(1))
        await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
        bench.engine.member_durable(FOLLOWER, opnum - 1)
        await turns()
        assert bench.engine.committed == opnum - 2
        assert not read.done()
        assert not write.done()
        bench.engine.member_durable(FOLLOWER, opnum)
        assert await read == (0, pattern(9))
        await until(lambda: bench.engine.durable > opnum)
        bench.engine.member_durable(FOLLOWER, bench.engine.tail.opnum)
        assert await write == 0
        await bench.engine.close()

    run(scenario())


def test_f7_flush_and_extents_are_not_answered_without_the_lease() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        answers: list[str] = []
        # The lease ends between admission and reply: the first asking says yes, all later ones no.
        asked = iter([True])
        bench.engine.lease = lambda: next(asked, lease)
        lease = False
        bench.engine.served.extents(0, BLOCK_BYTES, lambda error, found: answers.append("extents"))
        bench.engine.served.flush(lambda error: answers.append("flush"))
        await turns()
        assert answers == []
        lease = True
        await until(lambda: answers == ["extents", "flush"])
        await bench.engine.close()

    run(scenario())


def test_f6_hold_acknowledges_nothing_and_step_down_drops_unanswered() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        write = bench.write(5, pattern(5))
        bench.engine.hold()
        later, read = bench.write(6, pattern(6)), bench.reading(1)
        await turns()
        assert not any(one.done() for one in (write, later, read))
        bench.engine.resume()
        assert await write == 0
        assert await later == 0
        assert (await read)[0] == 0
        bench.engine.hold()
        dropped = [bench.write(7, pattern(7)), bench.reading(7)]
        waiting = bench.engine.wait_committed(99)
        await bench.engine.step_down()
        with pytest.raises(VolumeStopped):
            await waiting
        bench.engine.resume()
        await turns()
        assert not any(one.done() for one in dropped)
        with pytest.raises(VolumeStopped):
            await bench.engine.wait_committed(99)
        await bench.engine.close()

    run(scenario())


def test_a_request_that_reaches_a_former_primary_is_never_carried_out_later() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await bench.engine.step_down()
        late = [bench.write(1, pattern(1)), bench.trim(1, 1), bench.reading(1)]
        await bench.lead(2)
        await turns()
        assert not any(one.done() for one in late)
        assert bench.engine.tail.opnum == 2
        assert await bench.read(1) == bytes(BLOCK_BYTES)
        await bench.engine.close()

    run(scenario())


def test_reads_see_committed_blocks_only() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 3, 1, seed=1)
        write = bench.write(3, pattern(9))
        assert await bench.read(3) == content[3]
        assert await write == 0
        assert await bench.read(3) == pattern(9)
        await bench.engine.close()

    run(scenario())


def test_ranges_outside_the_volume_are_refused() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=10)
        await bench.create()
        await bench.lead(1)
        served = bench.engine.served
        assert served.size_bytes == 10 * BLOCK_BYTES
        results: list[int] = []
        served.write(9 * BLOCK_BYTES, bytes(2 * BLOCK_BYTES), False, results.append)
        served.write(1, bytes(BLOCK_BYTES), False, results.append)
        served.write(0, bytes(100), False, results.append)
        served.write(-4096, bytes(BLOCK_BYTES), False, results.append)
        served.trim(10 * BLOCK_BYTES, BLOCK_BYTES, results.append)
        served.write_zeroes(9 * BLOCK_BYTES, 2 * BLOCK_BYTES, no_hole=True, done=results.append)
        served.read(9 * BLOCK_BYTES, 2 * BLOCK_BYTES, lambda error, buffers: results.append(error))
        served.read(1 << 70, BLOCK_BYTES, lambda error, buffers: results.append(error))
        served.extents(0, 11 * BLOCK_BYTES, lambda error, extents: results.append(error))
        einval, enospc = errno.EINVAL, errno.ENOSPC
        assert results == [enospc, einval, einval, einval, einval, enospc, einval, einval, einval]
        results.clear()
        served.write(0, b"", False, results.append)
        served.trim(10 * BLOCK_BYTES, 0, results.append)
        served.read(10 * BLOCK_BYTES, 0, lambda error, buffers: results.append(error))
        served.flush(results.append)
        assert results == [0, 0, 0, 0]
        assert bench.engine.tail.opnum == 1
        await bench.engine.close()

    run(scenario())


def test_extents_tell_data_from_holes() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=9000)
        await bench.create()
        await bench.lead(1)
        await fill(bench, 4090, 12, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        await fill(bench, 8000, 2, seed=1)
        await bench.trim(4092, 1)
        seen: list[tuple[int, list[tuple[int, int]]]] = []
        bench.engine.served.extents(0, 9000 * BLOCK_BYTES, lambda error, found: seen.append((error, list(found))))
        hole = EXTENT_HOLE | EXTENT_ZERO
        lengths = [4090, 2, 1, 9, 3898, 2, 998]
        flags = [hole, EXTENT_DATA, hole, EXTENT_DATA, hole, EXTENT_DATA, hole]
        assert seen == [(0, [(length * BLOCK_BYTES, flag) for length, flag in zip(lengths, flags, strict=True)])]
        await bench.engine.close()

    run(scenario())


def test_trim_of_a_whole_large_volume_costs_no_memory() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=1 << 28)
        await bench.create()
        await bench.lead(1)
        await fill(bench, 5, 12, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        assert await bench.trim(0, 1 << 28) == 0
        assert await bench.read(5) == bytes(BLOCK_BYTES)
        assert bench.engine.status()["map_pages"] == 1
        assert bench.engine.state.stripes.get(0) is None
        await bench.engine.close()

    run(scenario())


def test_unanswered_bytes_are_bounded() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=4096)
        await bench.create(Limits(segment_bytes=8 << 20, log_bytes_max=64 << 20, unanswered_bytes_max=2 << 20))
        await bench.lead(1)
        finishes: list[object] = []
        bench.disk.gate = finishes.append
        writes = [bench.write(at, pattern(at, 128)) for at in range(0, 2048, 128)]
        await turns()
        assert bench.engine.tail.opnum == 1 + 4
        assert not bench.engine.served.ready()
        woken: list[bool] = []
        bench.engine.served.on_ready(lambda: woken.append(True))
        assert not woken
        bench.disk.gate = None
        for finish in finishes:
            finish()  # type: ignore[operator]
        assert not any(await asyncio.gather(*writes))
        assert woken
        await check(bench, {0: pattern(0, 128)[:BLOCK_BYTES]})
        await bench.engine.close()

    run(scenario())


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_committed_block_does_not_keep_the_buffer_that_it_came_in(blocks: int) -> None:
    """A bytearray that anybody still has a slice of cannot be resized."""

    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        buffer = bytearray(64 * BLOCK_BYTES)
        length = blocks * BLOCK_BYTES
        buffer[length : 2 * length] = pattern(1, blocks)
        answered: list[int] = []
        bench.engine.served.write(0, memoryview(buffer)[length : 2 * length], False, answered.append)
        with pytest.raises(BufferError):
            buffer.clear()
        await until(lambda: answered == [0])
        await turns()
        buffer.clear()
        assert await bench.read(0, blocks) == pattern(1, blocks)
        await bench.engine.close()

    run(scenario())
