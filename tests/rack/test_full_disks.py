"""Real file systems that are full below a head, a sled and the authority, and get room again."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kit.small_disks import SmallDisk, rack_on_small_disks
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.errors import ApiRefused
from rackctl.evidence import engine_of_primary
from rackctl.rack import Rack, wait_until

Tell = Callable[[Coroutine[Any, Any, None]], None]
MIB = 1 << 20
HEAD, SLED, AUTHORITY = "head-1", "sled-2", "authority"
SIZES = {HEAD: 400 * MIB, SLED: 128 * MIB, AUTHORITY: 16 * MIB}
"""Two volumes with two log segments of 32 MiB each and room for more; what a minute of writing destages; a database."""


@dataclass
class Small:
    """The rack of this module and its small disks; `theirs` is served by the head with the small disk, `ours` not."""

    rack: Rack
    disks: dict[str, SmallDisk]
    ours: Volume
    theirs: Volume

    def log_of(self, node: str) -> str:
        return self.rack.layout.log(self.rack.node(node)).read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with rack_on_small_disks(tmp_path_factory.mktemp("small") / "rack", SIZES) as (rack, disks):
        volumes = {}
        for name in ("one", "two"):
            rack.create_volume(name, 64 * MIB)
            volume = Volume(rack, name, 64 * MIB, rack.wait_members(name, 2))
            volumes[volume.primary] = volume
        yield Small(rack, disks, volumes["head-0"], volumes[HEAD])
        for node in rack.state.nodes:
            text = rack.layout.log(node).read_text(encoding="utf-8", errors="replace")
            assert "Traceback" not in text, node.name


async def wait(poll: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    await asyncio.to_thread(wait_until, poll, what, timeout_s)


def whole_stripes(look: Callable[[], dict[str, Any]]) -> Callable[[], bool]:
    """A poll: whether a few stripes were written one after the other without a shard missing."""
    last = look()

    def whole() -> bool:
        nonlocal last
        now = look()
        if now["stripes_exposed"] != last["stripes_exposed"]:
            last = now
        return bool(now["stripes_written"] >= last["stripes_written"] + 3)

    return whole


def test_a_secondary_whose_disk_is_full_follows_on_with_the_room_that_it_keeps(small: Small, tell: Tell) -> None:
    async def story() -> None:
        rack, name = small.rack, small.ours.name
        async with writing(small.ours) as writer:
            await asyncio.to_thread(small.disks[HEAD].fill)
            await wait(lambda: "event=log_segment_refused" in small.log_of(HEAD), "a segment to be refused")
            assert "No space left on device" in small.log_of(HEAD)
            await writer.wait_acknowledged(1000)
            assert rack.roles(small.theirs.name).primary == HEAD, "its other volume was disturbed"
            await asyncio.to_thread(small.disks[HEAD].free)
            await asyncio.to_thread(rack.wait_members, name, 2, 60)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_primary_whose_disk_is_full_serves_on_with_the_room_that_it_keeps(small: Small, tell: Tell) -> None:
    async def story() -> None:
        rack, name = small.rack, small.theirs.name
        async with writing(small.theirs) as writer:
            await asyncio.to_thread(small.disks[HEAD].fill)
            await wait(lambda: engine_of_primary(rack, name).get("log_no_room"), "the log to have no room")
            await writer.wait_acknowledged(1000)
            await asyncio.to_thread(small.disks[HEAD].free)
            await wait(lambda: not engine_of_primary(rack, name).get("log_no_room"), "the log to have room again")
            await writer.wait_acknowledged(500)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_sled_whose_disk_is_full_costs_shards_and_gets_them_again_when_there_is_room(
    small: Small, tell: Tell
) -> None:
    async def story() -> None:
        rack, name = small.rack, small.ours.name
        async with writing(small.ours) as writer:
            await asyncio.to_thread(small.disks[SLED].fill)
            await wait(lambda: engine_of_primary(rack, name).get("stripes_exposed"), "stripes without a shard")
            await writer.wait_acknowledged(500)
            assert "event=device_error" in small.log_of(SLED)
            assert "No space left on device" in small.log_of(SLED)
            await asyncio.to_thread(small.disks[SLED].free)
            await wait(whole_stripes(lambda: engine_of_primary(rack, name)), "stripes with all their shards")
            await assert_nothing_lost(writer)

    tell(story())


def test_an_authority_whose_disk_is_full_refuses_changes_and_stops_no_volume(small: Small, tell: Tell) -> None:
    def change_something() -> None:
        for _ in range(100):
            small.rack.api.join_token(1)

    async def story() -> None:
        rack = small.rack
        async with writing(small.ours) as writer:
            await asyncio.to_thread(small.disks[AUTHORITY].fill)
            with pytest.raises(ApiRefused) as refused:
                await asyncio.to_thread(change_something)
            assert refused.value.status == 503
            assert "event=store-outcome-unknown" in small.log_of(AUTHORITY)
            await writer.wait_acknowledged(500)
            await asyncio.to_thread(small.disks[AUTHORITY].free)
            await asyncio.to_thread(rack.create_volume, "later", MIB)
            await assert_nothing_lost(writer)

    tell(story())
