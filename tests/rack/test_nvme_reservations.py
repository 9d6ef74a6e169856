"""Two hosts and a reserved volume: whatever becomes of its heads, the one that is shut out stays out."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from kit.export import until
from kit.nvme_host import CommandRefused, MultipathHost, standard
from kit.volumes import Failover, Volume

from spdk_bindings.nvme import IoOpcode, Status

Tell = Callable[[Coroutine[Any, Any, None]], None]
HOLDER, OTHER = UUID(int=0xA), UUID(int=0xB)
EXCLUSIVE_ACCESS = 2
PREEMPT = 1
BLOCK = bytes(range(256)) * 16


@asynccontextmanager
async def connected(volume: Volume, host_id: UUID) -> AsyncIterator[MultipathHost]:
    """A host with a path to every head."""
    paths = await asyncio.to_thread(volume.rack.paths, volume.name)
    host = MultipathHost(paths.nvme, paths.nqn, host_id=host_id)
    await host.open()
    try:
        yield host
    finally:
        await host.close()


async def register(host: MultipathHost, key: int) -> None:
    await host.io(standard(IoOpcode.RESERVATION_REGISTER, 1), keys(0, key))


async def acquire(host: MultipathHost, key: int, action: int = 0, victim: int = 0) -> None:
    await host.io(standard(IoOpcode.RESERVATION_ACQUIRE, 1, cdw10=action | EXCLUSIVE_ACCESS << 8), keys(key, victim))


def keys(first: int, second: int) -> bytes:
    return first.to_bytes(8, "little") + second.to_bytes(8, "little")


async def report(host: MultipathHost) -> tuple[int, int, dict[UUID, bool]]:
    """(generation, type, which registrants hold it)."""
    page = await host.io(standard(IoOpcode.RESERVATION_REPORT, 1, cdw10=255, cdw11=1), into=1024)
    rows = [page[at : at + 64] for at in range(64, 64 + 64 * page[5], 64)]
    return int.from_bytes(page[:4], "little"), page[4], {UUID(bytes=row[16:32]): bool(row[2]) for row in rows}


async def shut_out(host: MultipathHost) -> None:
    """Neither writes nor reads get through."""
    for attempt in (host.write(4096, BLOCK), host.read(0, 4096)):
        with pytest.raises(CommandRefused) as refused:
            await attempt
        assert refused.value.status == Status.RESERVATION_CONFLICT


def test_a_host_stays_shut_out_when_the_primary_is_killed_and_when_the_power_goes(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        async with connected(volume, HOLDER) as holder, connected(volume, OTHER) as other:
            await register(holder, 1)
            await register(other, 2)
            await acquire(holder, 1)
            held = (2, EXCLUSIVE_ACCESS, {HOLDER: True, OTHER: False})
            await holder.write(0, BLOCK)
            await shut_out(other)
            await asyncio.to_thread(rack.kill, before.primary)
            await shut_out(other)
            assert await report(other) == held

            heads = [before.primary, *before.secondaries]
            await asyncio.to_thread(rack.restart, before.primary)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            for head in heads:
                await asyncio.to_thread(rack.kill, head)
            await asyncio.to_thread(Failover(rack).repair)
            await shut_out(other)
            assert await report(holder) == held
            assert await holder.read(0, 4096) == BLOCK

            await acquire(other, 2, PREEMPT, 1)
            await shut_out(holder)
            assert await other.read(0, 4096) == BLOCK
            assert await report(holder) == (3, EXCLUSIVE_ACCESS, {OTHER: True})

    tell(story())


def test_what_a_host_had_under_way_when_it_was_preempted_is_done_before_or_refused(volume: Volume, tell: Tell) -> None:
    """Once the preempt is answered, the volume holds still but for its new holder."""

    async def story() -> None:
        async with connected(volume, HOLDER) as holder, connected(volume, OTHER) as other:
            await register(holder, 1)
            await register(other, 2)
            await acquire(holder, 1)
            answered = dict.fromkeys(range(16), 0)

            async def write_on(number: int) -> None:
                while True:
                    await holder.write(number * 4096, block(answered[number]))
                    answered[number] += 1

            async def write_until_refused(number: int) -> None:
                with pytest.raises(CommandRefused) as refused:
                    await write_on(number)
                assert refused.value.status == Status.RESERVATION_CONFLICT

            writers = [asyncio.create_task(write_until_refused(number)) for number in answered]
            await until(lambda: min(answered.values()) >= 3)
            await acquire(other, 2, PREEMPT, 1)
            found = [await other.read(number * 4096, 4096) for number in answered]
            await asyncio.gather(*writers)
            assert found == [block(count - 1) for count in answered.values()]
            assert [await other.read(number * 4096, 4096) for number in answered] == found

    tell(story())


def block(number: int) -> bytes:
    return bytes([number % 256]) * 4096
