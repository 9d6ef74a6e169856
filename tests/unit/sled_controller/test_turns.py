"""Whose turn it is: shares of the loop's time, the order among strangers, costly steps. On virtual time."""

import asyncio
from collections.abc import Callable

from kit.host import FixedClock
from kit.virtual_time import run_virtual

from sled_controller import turns as module
from sled_controller.turns import (
    BURST_NS,
    PIECE_NS_MIN,
    SOURCES_KEPT_MAX,
    STEPS_BURST,
    STEPS_PER_SECOND,
    STRANGER_PERCENT,
    TRUSTED_PERCENT,
    Turn,
    Turns,
)


class Hog:
    """A connection that always has more to do."""

    def __init__(self, turns: Turns, source: str = "10.0.0.1", *, steps: int = 0, trusted: bool = False) -> None:
        self.pieces = 0
        self._steps = steps
        self.turn: Turn = turns.place(source, self._take)
        self.turn.trusted = trusted

    def _take(self) -> bool:
        self.pieces += 1
        self.turn.charge(self._steps)
        return True


def hogs(turns: Turns, count: int, source: str = "10.0.0.1", *, steps: int = 0) -> list[Hog]:
    made = [Hog(turns, source, steps=steps) for _ in range(count)]
    for hog in made:
        hog.turn.ask()
    return made


def story(tell: Callable[[Turns], object]) -> None:
    async def work() -> None:
        waited = tell(Turns(FixedClock()))
        if asyncio.iscoroutine(waited):
            await waited

    run_virtual(work())


def test_strangers_that_always_have_more_get_their_share_of_the_time_and_leave_the_rest() -> None:
    async def tell(turns: Turns) -> None:
        crowd = hogs(turns, 20)
        await asyncio.sleep(2)
        spent = sum(hog.pieces for hog in crowd) * PIECE_NS_MIN
        assert abs(spent - 2_000_000_000 * STRANGER_PERCENT // 100) <= BURST_NS + PIECE_NS_MIN
        assert max(hog.pieces for hog in crowd) - min(hog.pieces for hog in crowd) <= 2, (
            "each has as much as the others"
        )

    story(tell)


def test_what_the_trusted_have_beyond_their_piece_is_done_in_a_share_too_and_not_behind_strangers() -> None:
    async def tell(turns: Turns) -> None:
        crowd = hogs(turns, 20)
        hog = Hog(turns, trusted=True)
        hog.turn.ask()
        await asyncio.sleep(1)
        assert hog.pieces >= 900, "one piece for each time that the timer runs"
        assert hog.pieces * PIECE_NS_MIN <= 1_000_000_000 * TRUSTED_PERCENT // 100 + BURST_NS
        assert sum(each.pieces for each in crowd) * PIECE_NS_MIN <= 1_000_000_000 * STRANGER_PERCENT // 100 + BURST_NS

    story(tell)


def test_a_newcomer_is_served_before_those_who_had_much() -> None:
    async def tell(turns: Turns) -> None:
        crowd = hogs(turns, 20)
        await asyncio.sleep(1)
        before, done = sum(hog.pieces for hog in crowd), asyncio.Event()
        newcomer = turns.place("10.0.0.1", lambda: bool(done.set()))
        newcomer.ask()
        await done.wait()
        assert sum(hog.pieces for hog in crowd) - before <= 6, "what one timer does"

    story(tell)


def test_sources_share_alike_however_many_connections_each_has() -> None:
    async def tell(turns: Turns) -> None:
        crowd = hogs(turns, 40)
        (lone,) = hogs(turns, 1, "10.0.0.2")
        await asyncio.sleep(1)
        others = sum(hog.pieces for hog in crowd)
        assert lone.pieces >= 0.9 * others

    story(tell)


def test_costly_steps_are_bounded_per_second_and_source() -> None:
    async def tell(turns: Turns) -> None:
        costly = hogs(turns, 20, steps=1)
        (other,) = hogs(turns, 1, "10.0.0.2", steps=1)
        await asyncio.sleep(2)
        for taken in (sum(hog.pieces for hog in costly), other.pieces):
            assert STEPS_BURST + 2 * STEPS_PER_SECOND - 2 <= taken <= STEPS_BURST + 2 * STEPS_PER_SECOND + 2

    story(tell)


def test_a_source_that_hangs_up_and_comes_back_has_not_got_its_steps_back() -> None:
    async def tell(turns: Turns) -> None:
        taken = 0
        for _ in range(500):
            hog = Hog(turns, steps=1)
            hog.turn.ask()
            await asyncio.sleep(0.002)
            taken += hog.pieces
            hog.turn.end()
        assert STEPS_BURST <= taken <= STEPS_BURST + STEPS_PER_SECOND + 2

    story(tell)


def test_what_is_remembered_of_sources_is_bounded() -> None:
    def tell(turns: Turns) -> None:
        for number in range(3 * SOURCES_KEPT_MAX):
            turns.place(str(number), lambda: False).end()
        assert len(turns._sources) <= SOURCES_KEPT_MAX

    story(tell)


def test_one_that_has_nothing_in_its_way_is_served_at_once() -> None:
    def tell(turns: Turns) -> None:
        hog = Hog(turns)
        hog.turn.ask()
        assert hog.pieces == 1

    story(tell)


def test_a_piece_that_the_machine_held_up_does_not_keep_strangers_waiting_for_long() -> None:
    async def tell(turns: Turns) -> None:
        clock = FixedClock()
        measured = Turns(clock)

        def held_up() -> bool:
            clock.boot_ns += 60_000_000_000
            return False

        measured.place("10.0.0.1", held_up).ask()
        (hog,) = hogs(measured, 1)
        await asyncio.sleep(module.PIECE_NS_MAX / 1e9 * 100 / STRANGER_PERCENT + 0.01)
        assert hog.pieces

    story(tell)


def test_what_is_overdrawn_does_not_keep_strangers_waiting_for_long() -> None:
    async def tell(turns: Turns) -> None:
        turns._strangers.spend(60_000_000_000)
        (hog,) = hogs(turns, 1)
        await asyncio.sleep(module.DEBT_NS_MAX / 1e9 * 100 / STRANGER_PERCENT + 0.01)
        assert hog.pieces

    story(tell)


def test_the_piece_in_which_one_proved_itself_costs_other_strangers_little() -> None:
    def tell(turns: Turns) -> None:
        clock = FixedClock()
        measured = Turns(clock)

        def prove() -> bool:
            clock.boot_ns += 1_000_000_000
            proven.trusted = True
            return False

        proven = measured.place("10.0.0.1", prove)
        proven.ask()
        hog = Hog(measured)
        hog.turn.ask()
        assert hog.pieces == 1

    story(tell)


def test_who_has_gone_is_not_served_any_more_and_a_bug_costs_its_connection_only() -> None:
    async def tell(turns: Turns) -> None:
        gone = Hog(turns)
        gone.turn.ask()
        gone.turn.end()
        had = gone.pieces

        def broken() -> bool:
            raise RuntimeError("a bug")

        turns.place("10.0.0.3", broken).ask()
        (hog,) = hogs(turns, 1)
        await asyncio.sleep(0.1)
        assert gone.pieces == had
        assert hog.pieces > 1

    story(tell)
