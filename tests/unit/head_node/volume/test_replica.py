"""How much of its log a member keeps (D1)."""

import asyncio
import errno
from typing import Any

import pytest
from kit.volume import Bench, TinySegments, pattern, run, until
from kit.volume_pair import FOLLOWER


def test_d1_the_log_keeps_what_is_not_committed() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        bench.engine.set_required(frozenset({FOLLOWER}))
        bench.write(0, pattern(1))
        await until(lambda: bench.engine.durable == 2)
        assert not len(bench.engine.state.overlay)
        assert bench.engine._needed_from() == bench.engine.committed + 1 == 2
        await bench.engine.close()

    run(scenario())


def test_d1_the_log_is_not_trimmed_before_the_checkpoint_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        steps: list[str] = []

        async def refuse(name: str, buffers: object) -> None:
            steps.append(name)
            raise OSError(errno.EIO, "broken")

        async def trim(sequence: int) -> None:
            steps.append("trim")

        with monkeypatch.context() as patched:
            patched.setattr(bench.engine._directory, "replace", refuse)
            patched.setattr(bench.engine._log, "trim_before", trim)
            await bench.engine._checkpoint_now()
        assert steps == ["checkpoint"]
        await bench.engine.close()

    run(scenario())


def test_a_head_that_stops_writes_one_checkpoint_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        for turns in range(60):
            bench = Bench()
            engine = await bench.create(TinySegments(segment_bytes=96 << 10, log_bytes_max=1 << 20))
            await bench.lead(1)
            replace, under_way = engine._directory.replace, set[str]()

            async def watched(name: str, *rest: Any, **named: Any) -> None:
                assert name not in under_way, f"two of {name} at once, after {turns} turns"  # noqa: B023
                under_way.add(name)  # noqa: B023
                for _ in range(20):
                    await asyncio.sleep(0)
                await replace(name, *rest, **named)  # noqa: B023
                under_way.discard(name)  # noqa: B023

            monkeypatch.setattr(engine._directory, "replace", watched)
            for lba in range(0, 240, 12):
                bench.write(lba, pattern(lba, 12))
            await until(lambda: bool(under_way))  # noqa: B023
            for _ in range(turns):
                await asyncio.sleep(0)
            await engine.close()

    run(scenario())
