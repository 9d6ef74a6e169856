"""A coroutine on virtual time: seconds pass when nothing is left to do."""

from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

from rackctl.simulation.loop import SimulationLoop

T = TypeVar("T")


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end on a loop of its own."""
    loop = SimulationLoop(Random(1))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
