"""Logs of several small segments: what the log must keep for blocks that are in no stripe yet."""

import asyncio
import random

from kit.volume import Bench, check, fill, run, until

from head_node.volume.limits import SEGMENT_BYTES_MIN, Limits
from sled_controller.errors import SledUnavailable

SMALLEST = Limits(SEGMENT_BYTES_MIN, log_bytes_max=6 * SEGMENT_BYTES_MIN)
BLOCKS_OF_A_SEGMENT = 200
"""More than a segment has room for, when each is a batch of its own."""


async def one_by_one(bench: Bench, blocks: range, seed: int) -> dict[int, bytes]:
    content: dict[int, bytes] = {}
    for lba in blocks:
        content |= await fill(bench, lba, 1, seed)
    return content


async def followed(source: Bench, member: Bench, *, committed: bool) -> None:
    """What the source's log has beyond the member's, and that it is committed."""
    while member.engine.tail.opnum < source.engine.tail.opnum:
        for piece in source.engine.read_log(member.engine.tail.opnum + 1, 1 << 20) or ():
            member.engine.follow_append(piece)
        await asyncio.sleep(0)
    if committed:
        member.engine.follow_committed(source.engine.committed)
        await until(lambda: member.engine.committed == source.engine.committed)


def test_f5_a_full_resync_brings_blocks_that_are_in_no_stripe_from_older_segments() -> None:
    async def scenario() -> None:
        source = Bench(size_blocks=2048)
        engine = await source.create(SMALLEST)
        await engine.wait_committed(await engine.lead(1, [None] * 6))
        content = await one_by_one(source, range(2 * BLOCKS_OF_A_SEGMENT), seed=1)
        assert engine.status()["log_segments"] > 2
        newcomer = Bench(size_blocks=2048)
        member = await newcomer.create(SMALLEST)
        await member.see_epoch(1)
        await member.install_checkpoint(b"".join(await engine.export_checkpoint()))
        await followed(source, newcomer, committed=True)
        await engine.close()
        await newcomer.lead(2)
        await check(newcomer, content)
        await member.close()

    run(scenario())


def test_f5_a_full_resync_drops_records_that_were_never_committed() -> None:
    async def scenario() -> None:
        former, source, member = Bench(), Bench(), Bench()
        for bench, epoch in ((former, 1), (source, 2)):
            engine = await bench.create(SMALLEST)
            await engine.wait_committed(await engine.lead(epoch, [None] * 6))
        await member.create(SMALLEST)
        await member.engine.see_epoch(1)
        await fill(former, 100, 8, seed=1)
        await followed(former, member, committed=False)
        await member.engine.see_epoch(2)
        content = await fill(source, 0, 2, seed=2)
        await member.engine.install_checkpoint(b"".join(await source.engine.export_checkpoint()))
        content |= await fill(source, 1, 12, seed=3)
        await followed(source, member, committed=True)
        await former.engine.close()
        await source.engine.close()
        await member.lead(3)
        await check(member, content)
        assert not any(await member.read(100, 8))
        await member.engine.close()

    run(scenario())


def test_d1_blocks_of_a_stripe_that_was_given_up_stay_in_the_log_until_they_are_in_another() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=2048)
        engine = await bench.create(SMALLEST)
        await bench.lead(1)
        for column in bench.columns:
            column.held = []
        content = await fill(bench, 0, 36, seed=1)
        await until(lambda: len(engine.state.overlay.leaving) == 36)
        # Newer blocks, in later segments, while the stripes hang.
        for turn in range(2):
            content |= await one_by_one(bench, range(1000, 1000 + BLOCKS_OF_A_SEGMENT), seed=turn + 2)
        assert engine.status()["log_segments"] > 2
        for column in bench.columns:
            held, column.held, column.error = column.held or [], None, lambda: SledUnavailable("gone")
            for answer in held:
                answer()
        await until(lambda: not engine.state.overlay.leaving)
        await engine._write_checkpoint()
        bench.disk.power_cut(random.Random(1))
        await bench.open(SMALLEST)
        await bench.lead(2)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_the_room_found_for_a_turn_holds_no_more_than_was_found() -> None:
    """Writes of one loop turn ask together; a log that fills up lets in what it would have let in one by one."""

    async def scenario() -> None:
        bench = Bench(size_blocks=2048)
        engine = await bench.create(SMALLEST)
        await engine.wait_committed(await engine.lead(1, [None] * 6))
        writes = [bench.write(lba % 2048, bytes(4096)) for lba in range(3 * SMALLEST.log_bytes_max // 4096)]
        await until(lambda: engine.status()["requests"]["waiting_for_room"] and engine.durable == engine.tail.opnum)
        assert engine.status()["log_bytes"] <= SMALLEST.client_log_bytes_max
        assert any(write.done() for write in writes)
        bench.attach()
        for index, column in enumerate(bench.columns):
            engine.set_column(index, column)
        assert not any(await asyncio.gather(*writes))
        await engine.close()

    run(scenario())
