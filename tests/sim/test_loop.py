"""The simulated loop: virtual time, processes that stand still or die, and an order that a seed decides."""

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest
from rackctl.simulation.loop import Process, SimulationLoop, Stuck


def run(loop: SimulationLoop, work: Coroutine[Any, Any, None]) -> None:
    try:
        loop.run_until_complete(Process(loop, "10.0.0.1", "test").spawn(work))
    finally:
        loop.close()


def test_an_hour_passes_at_once() -> None:
    loop = SimulationLoop(Random(1))

    async def work() -> None:
        await asyncio.sleep(3600)
        assert 3600 <= loop.time() < 3600.001

    run(loop, work())


def test_a_paused_process_does_later_what_fell_due_in_order() -> None:
    loop = SimulationLoop(Random(1))
    told: list[int] = []

    async def work() -> None:
        other = Process(loop, "10.0.0.2", "other")
        for number in (3, 1, 2):
            loop.call_later(number, told.append, number, context=other.context)
        other.pause()
        await asyncio.sleep(10)
        assert told == []
        other.resume()
        await asyncio.sleep(0.001)
        assert told == [1, 2, 3]

    run(loop, work())


def test_a_killed_process_does_nothing_any_more_not_even_its_finally() -> None:
    loop = SimulationLoop(Random(1))
    told: list[str] = []

    async def victim() -> None:
        try:
            await asyncio.sleep(1)
            told.append("woke")
        finally:
            told.append("finally")

    async def work() -> None:
        process = Process(loop, "10.0.0.2", "victim")
        process.spawn(victim())
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(5)
        assert told == []

    run(loop, work())


def test_the_order_of_processes_comes_from_the_seed_and_that_within_one_is_kept() -> None:
    def order(seed: int) -> list[tuple[str, int]]:
        loop = SimulationLoop(Random(seed))
        told: list[tuple[str, int]] = []

        async def work() -> None:
            for name in "abcdef":
                process = Process(loop, f"10.0.0.{ord(name)}", name)
                for number in range(3):
                    process.call(told.append, (name, number))
            await asyncio.sleep(1)

        run(loop, work())
        return told

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(8)}) > 1
    for name in "abcdef":
        assert [number for who, number in order(3) if who == name] == [0, 1, 2]


def test_a_world_with_nothing_left_to_do_says_so() -> None:
    loop = SimulationLoop(Random(1))

    async def work() -> None:
        await loop.create_future()

    with pytest.raises(Stuck, match="nothing is left"):
        run(loop, work())
