"""Pauses between tries: they grow, have a bound, and differ from one that retries to the other."""

from collections.abc import Iterator

import pytest
from kit.host import environment

from sled_controller.backoff import JITTER, Backoff


def pauses(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_s() for _ in range(count)]


def test_pauses_double_up_to_the_bound() -> None:
    assert pauses(Backoff(None, 0.1, 1.0), 6) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_a_loop_that_fails_for_ever_goes_on_at_the_bound() -> None:
    backoff = Backoff(None, 0.1, 10.0)
    backoff.failures = 10**6
    assert backoff.next_s() == 10.0
    assert backoff.failures == 10**6 + 1


def test_success_makes_the_next_pause_a_short_one() -> None:
    backoff = Backoff(None, 0.1, 1.0)
    pauses(backoff, 5)
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next_s() == pytest.approx(0.1)


@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_a_part_of_each_pause_is_left_to_chance_and_none_exceeds_the_bound(seed: str) -> None:
    made = pauses(Backoff(environment(seed), 0.5, 4.0), 40)
    assert all((1 - JITTER) * 0.5 <= pause <= 4.0 for pause in made)
    assert len(set(made[5:])) > 10


def test_chance_is_the_environments() -> None:
    def made() -> Iterator[float]:
        yield from pauses(Backoff(environment("same"), 0.5, 4.0), 5)

    assert list(made()) == list(made())
    assert list(made()) != pauses(Backoff(environment("other"), 0.5, 4.0), 5)
