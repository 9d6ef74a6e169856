"""Sleds die and come back; up to two of six may be missing."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kit.volumes import Failover, Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.evidence import engine_of_primary, wait_destaged
from rackctl.rack import Rack, wait_until
from rackctl.status import status_of

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


def test_a_sled_that_was_away_when_a_volume_was_made_joins_it_without_a_takeover(rack: Rack) -> None:
    rack.kill("sled-5")
    rack.create_volume("early", 16 << 20, timeout_s=60)
    try:
        assert sorted(columns(rack, "early")) == ["sled-0", "sled-1", "sled-2", "sled-3", "sled-4"]
        rack.restart("sled-5")
        wait_until(lambda: len(columns(rack, "early")) == 6 or None, "the sixth column", 30)
        assert rack.roles("early").epoch == 1
    finally:
        Failover(rack).repair()
        rack.delete_volume("early")


def columns(rack: Rack, volume: str) -> list[str]:
    """The sleds that `rackctl status` shows for a volume."""
    (shown,) = (v for v in status_of(rack).as_json()["volumes"] if v["name"] == volume)
    return list(shown["sleds"])
