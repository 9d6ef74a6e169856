"""Sleds die and come back; up to two of six may be missing."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.evidence import engine_of_primary, wait_destaged
from rackctl.rack import wait_until

Tell = Callable[[Coroutine[Any, Any, None]], None]


def test_what_dead_sleds_held_is_reconstructed(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        async with writing(volume) as writer:
            await writer.wait_acknowledged(3000)
            await writer.stop()
            await asyncio.to_thread(wait_destaged, rack, volume.name)
            for sled in ("sled-1", "sled-4"):
                await asyncio.to_thread(rack.kill, sled)
            await assert_nothing_lost(writer)
            await asyncio.to_thread(
                wait_until,
                lambda: engine_of_primary(rack, volume.name).get("blocks_reconstructed"),
                "blocks to be reconstructed",
                10.0,
            )

    tell(story())


def test_writing_goes_on_while_a_sled_is_away(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, "sled-2")
            await writer.wait_acknowledged(3000)
            await asyncio.to_thread(rack.restart, "sled-2")
            await writer.wait_acknowledged(3000)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_failover_succeeds_while_a_sled_is_away(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with writing(volume) as writer:
            await writer.wait_acknowledged(2000)
            await asyncio.to_thread(rack.kill, "sled-0")
            await asyncio.to_thread(rack.kill, before.primary)
            await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            await writer.wait_acknowledged(1000)
            await assert_nothing_lost(writer)

    tell(story())
