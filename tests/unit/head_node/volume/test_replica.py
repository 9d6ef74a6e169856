"""How much of its log a member keeps (D1)."""

import errno

import pytest
from kit.volume import Bench, pattern, run, until
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
