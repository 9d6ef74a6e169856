"""Whole racks whose wall clocks all go a day wrong at once, each its own way, while heads and sleds come and go."""

import pytest
from rackctl.simulation.faults import PRIMARY, Fault, Kind
from rackctl.simulation.run import BEGIN_S, simulate


@pytest.mark.parametrize("seed", ["clocks-1", "clocks-2"])
def test_expiry_every_clock_is_a_day_off_and_right_again_and_the_rack_serves(seed: str) -> None:
    faults = [
        Fault(0, BEGIN_S + 0.2, 6.0, Kind.DAY_JUMP, ()),
        Fault(1, BEGIN_S + 1.0, 0.5, Kind.KILL, (PRIMARY,)),
        Fault(2, BEGIN_S + 2.5, 0.5, Kind.POWER_LOSS, ("sled-0",)),
        Fault(3, BEGIN_S + 3.5, 0.5, Kind.KILL, ("sled-1",)),
        Fault(4, BEGIN_S + 7.0, 0.5, Kind.KILL, (PRIMARY,)),
    ]
    report = simulate(seed, faults=faults)
    assert report.failure is None, report.failure
    assert report.operations
