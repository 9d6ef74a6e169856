"""The primary is lost under a host of NVMe/TCP with multipath: it goes on by the other path, and nothing is lost."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from kit.nvme_host import CommandRefused
from kit.volumes import Volume
from kit.writing import NvmeWriter, assert_nothing_lost, nvme_writing
from rackctl.evidence import wait_fenced_off

from sled_controller.fabric.pdu import Digest
from spdk_bindings.log_pages import AnaState

Tell = Callable[[Coroutine[Any, Any, None]], None]
# Far above a lease of a second and a keep-alive timeout of another one.
STALL_S_MAX = 15.0
PATHS_S_MAX = 30.0
USABLE = [AnaState.OPTIMIZED, AnaState.INACCESSIBLE]


async def settled(writer: NvmeWriter) -> None:
    """Wait until one path is optimized and the other is there and inaccessible."""

    async with asyncio.timeout(PATHS_S_MAX):
        while sorted(state or 0 for state in writer.host.states().values()) != USABLE:
            await writer.host.moved()


@pytest.mark.parametrize("digests", [0, int(Digest.HEADER | Digest.DATA)])
def test_a_killed_primary_is_succeeded_and_its_path_comes_back(volume: Volume, tell: Tell, digests: int) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with nvme_writing(volume, digests) as writer:
            await settled(writer)
            writer.forget_stalls()
            await asyncio.to_thread(rack.kill, before.primary)
            after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            assert after.primary == before.secondaries[0]
            await writer.wait_acknowledged(500)
            assert writer.longest_stall_s < STALL_S_MAX
            await asyncio.to_thread(rack.restart, before.primary)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            await settled(writer)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_frozen_primary_is_left_and_what_it_does_on_waking_is_done_by_nobody(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with nvme_writing(volume) as writer:
            await settled(writer)
            await asyncio.to_thread(rack.pause, before.primary)
            await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            await writer.wait_acknowledged(500)  # the host gave the frozen head up by its own keep-alive
            assert writer.host.repeated > 0
            await asyncio.to_thread(rack.resume, before.primary)
            await asyncio.to_thread(wait_fenced_off, rack, before.primary, before.epoch)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            await settled(writer)
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_primary_that_hands_over_turns_its_hosts_to_the_next_one(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with nvme_writing(volume) as writer:
            await settled(writer)
            await asyncio.to_thread(rack.restart, before.primary)
            await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            await writer.wait_acknowledged(500)
            await settled(writer)
            assert AnaState.OPTIMIZED in writer.host.states().values()
            await assert_nothing_lost(writer)

    tell(story())


def test_a_host_that_is_taken_off_the_list_is_put_out_by_every_head(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        async with nvme_writing(volume) as writer:
            await settled(writer)
            await writer.stop()
            with pytest.raises(CommandRefused):
                await writer.host.read(1 << 40, 4096)
            await asyncio.to_thread(rack.api.expel_host, volume.name, "*")
            async with asyncio.timeout(PATHS_S_MAX):
                while writer.host.states():
                    await writer.host.moved()
            await asyncio.to_thread(rack.api.admit_host, volume.name, "*")
            await settled(writer)
            assert (await writer.verify()).wrong == []

    tell(story())
