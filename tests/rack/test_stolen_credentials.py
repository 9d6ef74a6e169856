"""A real rack whose signing key may be stolen: the keys are rotated at once, under load."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.rack import Rack
from rackctl.state import NodeKind


def test_keys_are_rotated_at_once_under_load_and_clients_see_nothing_of_it(
    rack: Rack, volume: Volume, tell: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def story() -> None:
        epoch = await asyncio.to_thread(lambda: rack.roles(volume.name).epoch)
        async with writing(volume) as writer:
            answer = await asyncio.to_thread(lambda: rack.api.rotate_keys(now=True))
            assert set(answer["sleds"].values()) == {"taken"}
            assert len(answer["sleds"]) == len(rack.state.of_kind(NodeKind.SLED))
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)
        assert await asyncio.to_thread(lambda: rack.roles(volume.name).epoch) == epoch, "nothing was taken over"
        listed = await asyncio.to_thread(lambda: rack.api.call("GET", "/v1/keys"))
        assert (listed["sleds_due"], len(listed["keys"])) == ([], 1)

    tell(story())
