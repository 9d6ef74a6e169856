"""An engine on its own: write, destage, read, restart."""

import asyncio

import pytest
from kit.volume import Bench, check, fill, pattern, run, until

from head_node.volume.engine import Role
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


def _raise(*_: object) -> None:
    raise RuntimeError("a bug of somebody else")


def _failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().rpartition("callback=")[2] for record in caplog.records if record.exc_info]


def test_what_clients_and_callbacks_raise_keeps_nothing_else_from_being_done(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        engine.on_append = engine.on_durable = engine.on_committed = _raise
        engine.served.write(0, pattern(1), False, _raise)
        committed = engine.wait_committed(engine.tail.opnum)
        content = await fill(bench, 1, 12, seed=1)
        await committed
        await until(lambda: not engine.state.overlay.leaving and len(engine.state.overlay) == 1)
        failures = _failures(caplog)
        assert failures.count("done") == 1
        assert {"on_append", "on_durable", "on_committed", "done"} == set(failures)
        assert engine.role is Role.PRIMARY
        await check(bench, {0: pattern(1)} | content)
        await engine.close()

    run(scenario())


def test_what_a_waiting_request_raises_costs_that_request_only(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        await fill(bench, 0, 12, seed=1)
        await until(lambda: not len(engine.state.overlay))
        engine.hold()
        served, woken = engine.served, asyncio.Event()
        served.read(100 * BLOCK_BYTES, BLOCK_BYTES, _raise)
        served.read(0, BLOCK_BYTES, _raise)
        served.on_ready(_raise)
        served.on_ready(woken.set)
        write = bench.write(50, pattern(50))
        engine.resume()
        await woken.wait()
        assert await write == 0
        await until(lambda: len(_failures(caplog)) == 3)
        assert sorted(_failures(caplog)) == ["done", "on_ready", "request"]
        assert await bench.read(50) == pattern(50)
        await engine.close()

    run(scenario())


def test_a_record_that_cannot_be_applied_ends_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    """Applied in part, its state is in doubt: nothing is acknowledged from there on."""

    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        failed: list[Exception] = []
        engine.on_failed = failed.append
        engine.state.write = _raise  # type: ignore[method-assign]
        write = bench.write(0, pattern(1))
        await until(lambda: bool(failed))
        assert engine.role is Role.FAILED
        assert isinstance(failed[0], RuntimeError)
        assert not write.done()
        assert engine.committed == 1
        await engine.close()

    run(scenario())
