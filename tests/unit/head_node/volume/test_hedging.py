"""How long a read is waited for before the other shards are asked, and how often that may be."""

from random import Random

import pytest

from head_node.volume.hedging import EXTRA_MAX, EXTRA_SHARE, HEDGE_SECONDS_MAX, HEDGE_SECONDS_MIN, Hedging


@pytest.mark.parametrize("fast_s", [0.01, 0.1])
def test_about_one_read_in_a_hundred_is_slower_than_what_is_waited(fast_s: float) -> None:
    hedging, chance = Hedging(), Random(1)
    slower = 0
    for number in range(60_000):
        seconds = chance.lognormvariate(0, 0.5) * fast_s
        slower += number >= 20_000 and seconds > hedging.wait_s
        hedging.took(seconds)
    assert 200 < slower < 800


def test_the_wait_has_bounds() -> None:
    hedging = Hedging()
    for _ in range(100_000):
        hedging.took(0.0)
    assert hedging.wait_s == HEDGE_SECONDS_MIN
    for _ in range(1000):
        hedging.took(60.0)
    assert hedging.wait_s == HEDGE_SECONDS_MAX


def test_extra_reads_are_a_share_of_the_others() -> None:
    hedging = Hedging()
    spent = 0
    while hedging.spend(4):
        spent += 4
    assert spent == EXTRA_MAX
    for _ in range(100_000):
        hedging.asked()
        spent += 4 * hedging.spend(4)
    assert spent <= EXTRA_MAX + EXTRA_SHARE * 100_000
    assert spent >= EXTRA_SHARE * 100_000 * 0.9
