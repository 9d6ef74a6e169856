"""The primary is lost in mid-write: the other head takes over, nothing acknowledged is lost, the old one comes back."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.evidence import wait_fenced_off
from rackctl.status import status_of

Tell = Callable[[Coroutine[Any, Any, None]], None]
# Far above the default lease of a second; the median is the benchmark's matter.
STALL_S_MAX = 10.0


def test_a_killed_primary_is_succeeded_and_rejoins(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with writing(volume) as writer:
            writer.forget_stalls()
            await asyncio.to_thread(rack.kill, before.primary)
            after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            assert after.primary == before.secondaries[0]
            await writer.wait_acknowledged(500)
            assert writer.longest_stall_s < STALL_S_MAX
            await asyncio.to_thread(rack.restart, before.primary)
            joined = await asyncio.to_thread(rack.wait_members, volume.name, 2)
            assert (joined.primary, joined.secondaries) == (after.primary, (before.primary,))
            await assert_nothing_lost(writer)

    tell(story())


def test_a_rejoined_head_can_take_over_in_turn(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, first = volume.rack, volume.roles
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, first.primary)
            second = await asyncio.to_thread(rack.wait_epoch_above, volume.name, first.epoch)
            await writer.wait_acknowledged(500)
            await asyncio.to_thread(rack.restart, first.primary)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            await writer.wait_acknowledged(500)
            await asyncio.to_thread(rack.kill, second.primary)
            third = await asyncio.to_thread(rack.wait_epoch_above, volume.name, second.epoch)
            assert third.primary == first.primary
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_an_awakened_primary_is_fenced_off_and_follows(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.pause, before.primary)
            after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            await writer.wait_acknowledged(500)
            await asyncio.to_thread(rack.resume, before.primary)
            fences = await asyncio.to_thread(wait_fenced_off, rack, before.primary, before.epoch)
            assert {fence.current_epoch for fence in fences} == {after.epoch}
            assert {fence.volume for fence in fences} == {volume.name}
            shown = (await asyncio.to_thread(status_of, rack)).as_json()["fences"]
            assert before.epoch in [fence["stale_epoch"] for fence in shown]
            joined = await asyncio.to_thread(rack.wait_members, volume.name, 2)
            assert joined.primary == after.primary
            await assert_nothing_lost(writer)

    tell(story())


def test_a_pause_shorter_than_the_lease_loses_nothing(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        async with writing(volume) as writer:
            for _ in range(3):
                await asyncio.to_thread(rack.pause, volume.roles.primary)
                await asyncio.to_thread(rack.resume, volume.roles.primary)
                await writer.wait_acknowledged(300)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_lost_secondary_leaves_the_volume_served_and_exposed(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        (secondary,) = before.secondaries
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, secondary)
            await writer.wait_acknowledged(1000)
            assert (await asyncio.to_thread(rack.roles, volume.name)).secondaries == ()
            (shown,) = (await asyncio.to_thread(status_of, rack)).as_json()["volumes"]
            assert shown["exposed"]
            await asyncio.to_thread(rack.restart, secondary)
            joined = await asyncio.to_thread(rack.wait_members, volume.name, 2)
            assert (joined.primary, joined.epoch) == (before.primary, before.epoch)
            await assert_nothing_lost(writer)

    tell(story())
