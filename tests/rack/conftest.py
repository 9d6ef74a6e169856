"""Small steps that the stories of real racks are made of."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from kit.volumes import Failover, Volume
from rackctl.rack import Rack

STORY_SECONDS_MAX = 120
_numbers = itertools.count()


@pytest.fixture
def tell() -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a story on a loop of its own, within bounded time."""
    return lambda story: asyncio.run(asyncio.wait_for(story, STORY_SECONDS_MAX))


@pytest.fixture
def volume(rack: Rack) -> Iterator[Volume]:
    """A fresh volume of 64 MiB that both heads hold; it is deleted after the test, for which everything is repaired."""
    name = f"volume-{next(_numbers)}"
    rack.create_volume(name, 64 << 20)
    yield Volume(rack, name, 64 << 20, rack.wait_members(name, 2))
    Failover(rack).repair()
    rack.delete_volume(name)
