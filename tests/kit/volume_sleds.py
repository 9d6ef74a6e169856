"""A volume whose sleds go and come."""

import asyncio

from kit.volume import GEOMETRY, Bench, fill, until
from kit.volume_columns import MemoryColumn

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits

FULL = GEOMETRY.stripe_blocks
SMALL_OVERLAY = Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20, overlay_bytes_max=3 * FULL * BLOCK_BYTES)


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def striped(bench: Bench, blocks: int = FULL, limits: Limits = SMALL_OVERLAY) -> dict[int, bytes]:
    await bench.create(limits)
    await bench.lead(1)
    content = await fill(bench, 0, blocks, seed=1)
    await until(lambda: not len(bench.engine.state.overlay))
    return content


def lose(bench: Bench, *columns: int) -> None:
    for index in columns:
        bench.engine.set_column(index, None)


def attach(bench: Bench, *columns: int) -> None:
    for index in columns:
        bench.engine.set_column(index, MemoryColumn(bench.stores[index]))
