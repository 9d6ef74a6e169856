"""Everything is switched off and on again, one by one and all at once."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.processes import ProcessState
from rackctl.rack import Rack, RackSize
from rackctl.verified_writer import DEPTH

Tell = Callable[[Coroutine[Any, Any, None]], None]
# Long enough for a takeover that would not wait.
LEASE_PAST_S = 3.0


def test_both_heads_are_killed_at_once_and_started_again(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        heads = [str(before.primary), *before.secondaries]
        async with writing(volume) as writer:
            for head in heads:
                await asyncio.to_thread(rack.kill, head)
            for head in heads:
                await asyncio.to_thread(rack.restart, head)
            after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            assert after.epoch > before.epoch
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_heads_are_restarted_in_good_order_one_after_the_other(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        async with writing(volume) as writer:
            for head in ("head-0", "head-1"):
                await asyncio.to_thread(rack.restart, head)
                await asyncio.to_thread(rack.wait_members, volume.name, 2)
                await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_volume_is_served_while_the_authority_is_away(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, "authority")
            await writer.wait_acknowledged(3000)
            await asyncio.to_thread(rack.restart, "authority")
            await writer.wait_acknowledged(500)
            roles = await asyncio.to_thread(rack.wait_members, volume.name, 2)
            assert (roles.primary, roles.epoch) == (before.primary, before.epoch)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_takeover_waits_for_the_authority(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        (secondary,) = before.secondaries
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, "authority")
            await asyncio.to_thread(rack.kill, before.primary)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.wait_acknowledged(2 * DEPTH), LEASE_PAST_S)
            await asyncio.to_thread(rack.restart, "authority")
            after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            assert after.primary == secondary
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_rack_that_lost_power_as_a_whole_starts_again(tmp_path: Path, tell: Tell) -> None:
    with Rack.running(tmp_path / "rack", RackSize(sleds=6, heads=2)) as rack:
        rack.create_volume("data", 64 << 20)
        volume = Volume(rack, "data", 64 << 20, rack.wait_members("data", 2))

        async def story() -> None:
            async with writing(volume) as writer:
                await writer.wait_acknowledged(2000)
                for node in rack.state.nodes:
                    await asyncio.to_thread(rack.kill, node.name)
                assert all(node.state is ProcessState.GONE for node in rack.state.nodes)
                again = await asyncio.to_thread(Rack.create, rack.directory, RackSize())
                try:
                    after = await asyncio.to_thread(again.wait_epoch_above, "data", volume.roles.epoch)
                    assert after.state == "active"
                    await writer.wait_acknowledged(500)
                    await assert_nothing_lost(writer)
                finally:
                    await asyncio.to_thread(again.stop)

        tell(story())
