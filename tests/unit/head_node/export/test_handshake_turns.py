"""Costly steps of strangers get a share of the loop's time, and each source its turn."""

import asyncio
from functools import partial
from itertools import pairwise

from head_node.export.handshake_turns import LOOP_SHARE, HandshakeTurns

STEP_NS = 10_000_000
MANY = 40


class Clock:
    """The loop's time, moved on by what a step takes."""

    def __init__(self) -> None:
        self.worked_ns = 0

    def boottime_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * 1e9) + self.worked_ns

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

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_handshakes_take_one_part_in_so_many_of_the_loops_time() -> None:
    async def scenario() -> None:
        clock, done = Clock(), asyncio.Event()
        turns, begun = HandshakeTurns(clock), list[int]()

        def step() -> None:
            begun.append(clock.boottime_ns())
            clock.worked_ns += STEP_NS // 100
            if len(begun) == 3:
                done.set()

        for _ in range(3):
            turns.ask("a", step)
        await done.wait()
        gaps = [later - earlier for earlier, later in pairwise(begun)]
        assert min(gaps) >= STEP_NS // 100 * LOOP_SHARE * 9 // 10
        turns.close()

    asyncio.run(asyncio.wait_for(scenario(), 5))


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
