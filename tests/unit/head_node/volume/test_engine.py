"""An engine on its own: write, destage, read, restart."""

import asyncio

from kit.volume import Bench, check, fill, pattern, run, until

from head_node.volume.interface import BLOCK_BYTES


def test_a_write_reads_back_from_overlay_then_from_a_stripe() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 5, seed=1)
        await check(bench, content)
        assert len(bench.engine.state.overlay) == 5
        content |= await fill(bench, 5, 20, seed=2)
        await bench.settle()
        await until(lambda: len(bench.engine.state.overlay) == 1)
        await check(bench, content)
        assert await bench.read(0, 25) == b"".join(content[lba] for lba in range(25))
        assert bench.engine.status()["stripes_written"] == 2
        await bench.engine.close(destage=True)

    run(scenario())


def test_everything_survives_a_restart() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        log_id = engine.log_id
        await bench.lead(1)
        content = await fill(bench, 0, 30, seed=1)
        assert await bench.trim(3, 2) == 0
        content |= {3: bytes(BLOCK_BYTES), 4: bytes(BLOCK_BYTES)}
        content |= await fill(bench, 10, 5, seed=2)
        await bench.engine.close()
        engine = await bench.open()
        assert engine.log_id == log_id
        await bench.lead(2)
        await check(bench, content)
        assert engine.epoch_history() == [(1, 1), (2, engine.tail.opnum)]
        await engine.close(destage=True)
        await bench.open()
        await bench.lead(3)
        await check(bench, content)
        assert len(bench.engine.state.overlay) == 0
        await bench.engine.close()

    run(scenario())


def test_a_large_write_is_split_and_read_whole() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=1024)
        await bench.create()
        await bench.lead(1)
        data = pattern(1, blocks=600)
        assert await bench.write(100, data) == 0
        assert await bench.read(100, 600) == data
        await bench.settle()
        assert await bench.read(100, 600) == data
        await bench.engine.close()

    run(scenario())


def test_concurrent_writes_share_a_commit() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        before = bench.disk.commit_count
        await asyncio.gather(*(bench.write(lba, pattern(lba)) for lba in range(10)))
        assert bench.disk.commit_count - before == 1
        await bench.engine.close()

    run(scenario())
