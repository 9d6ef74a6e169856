"""An engine with memory under it, and clients' calls as coroutines."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID

from kit.volume_columns import MemoryColumn, MemoryStore
from rackctl.simulation.log_disk import MemoryDirectory, MemoryDisk

from head_node.store.records import column_blocks
from head_node.volume.engine import VolumeEngine
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from sled_controller.environment import Environment

T = TypeVar("T")

VOLUME = UUID(int=7)
GEOMETRY = Geometry(data_shards=4, parity_shards=2, shard_blocks=4)
"""Twelve blocks make a stripe."""
SMALL = Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20)
ENV = Environment()


class TinySegments(Limits):
    """Segments far smaller than a head may have, so that a short story fills, trims and reuses many of them."""

    def __post_init__(self) -> None:
        assert self.log_bytes_max >= 4 * self.segment_bytes


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; half a minute is for ever here."""
    return asyncio.run(asyncio.wait_for(work, 30))


def pattern(seed: int, blocks: int = 1) -> bytes:
    """Bytes that differ for every seed."""
    return random.Random(seed).randbytes(blocks * BLOCK_BYTES)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until `condition` holds."""
    while not condition():  # noqa: ASYNC110 (the condition is state, no event marks it)
        await asyncio.sleep(0)


class Bench:
    """One volume: the disk of its head and the stores of its sleds."""

    def __init__(self, size_blocks: int = 256, slots: int | None = None, geometry: Geometry = GEOMETRY) -> None:
        self.geometry = geometry
        self.size_blocks = size_blocks
        self.disk = MemoryDisk()
        blocks = column_blocks(size_blocks * BLOCK_BYTES, geometry) if slots is None else slots * geometry.shard_blocks
        self.stores = [MemoryStore(blocks) for _ in range(geometry.shards)]
        self.columns: list[MemoryColumn] = []
        self.engine: VolumeEngine

    async def create(self, limits: Limits = SMALL) -> VolumeEngine:
        self.engine = await VolumeEngine.create(
            MemoryDirectory(self.disk),
            volume=VOLUME,
            geometry=self.geometry,
            size_blocks=self.size_blocks,
            env=ENV,
            limits=limits,
        )
        return self.engine

    async def open(self, limits: Limits = SMALL, accepted_loss: str = "", *, alone: bool = True) -> VolumeEngine:
        self.engine = await VolumeEngine.open(
            MemoryDirectory(self.disk),
            volume=VOLUME,
            env=ENV,
            limits=limits,
            accepted_loss=accepted_loss,
            alone=alone,
        )
        return self.engine

    def attach(self) -> list[MemoryColumn]:
        """New attaches to every sled."""
        self.columns = [MemoryColumn(store) for store in self.stores]
        return self.columns

    async def lead(self, epoch: int) -> VolumeEngine:
        """Become primary and wait until the epoch record is committed."""
        opnum = await self.engine.lead(epoch, self.attach())
        await self.engine.wait_committed(opnum)
        return self.engine

    def write(self, lba: int, data: bytes) -> "asyncio.Future[int]":
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.engine.served.write(lba * BLOCK_BYTES, data, False, future.set_result)
        return future

    def trim(self, lba: int, count: int) -> "asyncio.Future[int]":
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.engine.served.trim(lba * BLOCK_BYTES, count * BLOCK_BYTES, future.set_result)
        return future

    def reading(self, lba: int, count: int = 1) -> "asyncio.Future[tuple[int, bytes]]":
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def done(error: int, buffers: Any) -> None:
            future.set_result((error, b"".join(buffers)))

        self.engine.served.read(lba * BLOCK_BYTES, count * BLOCK_BYTES, done)
        return future

    async def read(self, lba: int, count: int = 1) -> bytes:
        error, data = await self.reading(lba, count)
        assert error == 0, f"read of block {lba} failed with errno {error}"
        return data

    async def settle(self) -> None:
        """Until nothing is being destaged."""
        await until(lambda: not self.engine.state.overlay.leaving and self.engine.durable == self.engine.tail.opnum)


async def fill(bench: Bench, first: int, count: int, seed: int) -> dict[int, bytes]:
    """Write `count` single blocks and return what they hold."""
    content = {lba: pattern(seed * 1000 + lba) for lba in range(first, first + count)}
    results = await asyncio.gather(*(bench.write(lba, data) for lba, data in content.items()))
    assert not any(results)
    return content


async def check(bench: Bench, content: dict[int, bytes]) -> None:
    """Every block reads back as expected."""
    for lba, data in content.items():
        assert await bench.read(lba) == data, f"block {lba} differs"
