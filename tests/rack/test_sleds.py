"""Sleds die and come back; up to two of six may be missing."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from kit.volumes import Failover, Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.evidence import engine_of_primary, wait_destaged
from rackctl.rack import Rack, wait_until
from rackctl.status import status_of

from head_node.export.nbd_client import NbdClient

MIB = 1 << 20
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


def test_two_sleds_away_stop_nothing_and_a_read_waits_for_all_of_them(volume: Volume, tell: Tell) -> None:
    """More is written than log and memory hold; then what no sled can give is waited for, not failed."""

    async def story() -> None:
        rack, block = volume.rack, random.Random(1).randbytes(MIB)
        (address,) = [(at.hostname or "", at.port or 0) for at in [urlsplit(volume.uri)]]
        client = await NbdClient.connect([address], volume.name)
        await client.write(0, block)
        await asyncio.to_thread(wait_destaged, rack, volume.name)
        for sled in ("sled-1", "sled-4"):
            await asyncio.to_thread(rack.kill, sled)
        for number in range(232):
            await asyncio.wait_for(client.write((1 + number % 15) * MIB, block), 30)
            if number % 16 == 0:
                assert await asyncio.wait_for(client.read(0, 4096), 5) == block[:4096]
        await asyncio.to_thread(wait_destaged, rack, volume.name)

        def engine() -> dict[str, Any]:
            return engine_of_primary(rack, volume.name)

        # Reports are up to a second old: one from before the sleds went may have been the newest.
        await asyncio.to_thread(wait_until, lambda: engine()["stripes_without_spare"], "stripes without a spare", 20)
        (shown,) = (v for v in status_of(rack).as_json()["volumes"] if v["name"] == volume.name)
        assert shown["exposed"]
        for sled in ("sled-0", "sled-2", "sled-3", "sled-5"):
            await asyncio.to_thread(rack.kill, sled)
        await asyncio.to_thread(wait_until, lambda: engine()["columns_missing"] == 6, "all sleds to be away", 10)
        read = asyncio.ensure_future(client.read(0, 4096))
        await asyncio.to_thread(wait_until, lambda: engine()["sled_waits"]["reads"] == 1, "the read to wait", 10)
        for number in range(6):
            await asyncio.to_thread(rack.restart, f"sled-{number}")
        assert await asyncio.wait_for(read, 20) == block[:4096]
        await client.close()

    tell(story())


def columns(rack: Rack, volume: str) -> list[str]:
    """The sleds that `rackctl status` shows for a volume."""
    (shown,) = (v for v in status_of(rack).as_json()["volumes"] if v["name"] == volume)
    return list(shown["sleds"])
