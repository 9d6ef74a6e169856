"""Costly steps of strangers get a share of the loop's time, and each source its turn."""

import asyncio
from functools import partial
from itertools import pairwise

import pytest
from kit.virtual_time import run_virtual

from head_node.export.handshake_turns import LOOP_SHARE, STEP_NS_MAX, HandshakeTurns

MANY = 40
COUNT = 5


class Clock:
    """The loop's time, moved on by what steps take."""

    def __init__(self) -> None:
        self.worked_ns = 0

    def boottime_ns(self) -> int:
        return round(asyncio.get_running_loop().time() * 1e9) + self.worked_ns

    def wall_ms(self) -> int:
        return 0


def test_a_source_with_many_handshakes_holds_nobody_else_up() -> None:
    async def scenario() -> None:
        turns, order, done = HandshakeTurns(Clock()), list[str](), asyncio.Event()
        for number in range(MANY):
            turns.ask("flood", partial(order.append, f"flood {number}"))
        turns.ask("client", lambda: (order.append("client"), done.set())[0])
        await done.wait()
        assert order == ["flood 0", "client"]
        turns.close()

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("took_ns", "pause_ns"),
    [
        (100_000, (LOOP_SHARE - 1) * 100_000),
        (STEP_NS_MAX, (LOOP_SHARE - 1) * STEP_NS_MAX),
        (8 * STEP_NS_MAX, (LOOP_SHARE - 1) * STEP_NS_MAX),
    ],
    ids=["short", "long", "preempted"],
)
def test_handshakes_take_one_part_in_so_many_of_the_loops_time(took_ns: int, pause_ns: int) -> None:
    async def scenario() -> None:
        clock, begun, done = Clock(), list[int](), asyncio.Event()
        turns = HandshakeTurns(clock)

        def step() -> None:
            begun.append(clock.boottime_ns())
            clock.worked_ns += took_ns
            if len(begun) == COUNT:
                done.set()

        for _ in range(COUNT):
            turns.ask("a", step)
        await done.wait()
        pauses = [later - earlier - took_ns for earlier, later in pairwise(begun)]
        assert pauses == pytest.approx([pause_ns] * (COUNT - 1), rel=0.05)
        turns.close()

    run_virtual(scenario())


def test_a_step_that_breaks_stops_no_other() -> None:
    async def scenario() -> None:
        broken = list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: broken.append(context["exception"]))
        turns, done = HandshakeTurns(Clock()), asyncio.Event()
        turns.ask("a", partial(dict[str, int]().__getitem__, "none"))  # type: ignore[arg-type]
        turns.ask("a", done.set)
        await done.wait()
        assert [type(error) for error in broken] == [KeyError]
        turns.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))
