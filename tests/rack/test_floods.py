"""Floods attack time, not only memory: what strangers send as fast as they can keeps no one else waiting.

No benchmark: the bounds are far above what is measured (docs/testing.md), and far below what a loop that strangers own
comes to.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.chaos.flood import Flood, Target
from rackctl.chaos.strangers import targets
from rackctl.rack import Rack
from rackctl.state import NodeKind

from spdk_bindings.nvme import uuid_nqn

Tell = Callable[[Coroutine[Any, Any, None]], None]
STALL_S_MAX = 30.0
"""Of a writer whose primary is killed: some 2 s on a machine that has nothing else to do, and 40 s without turns."""
LOG_BYTES_MAX = 512 << 10
"""What a flood may write into a sled's log: without a budget it was 2.5 MB a second from one connection."""
CONNECTIONS = 3


def every_port(rack: Rack) -> list[Target]:
    nodes = rack.state.nodes
    return [
        target
        for node in nodes
        for target in targets(node, uuid_nqn(UUID(node.id)) if node.kind is NodeKind.SLED else "")
    ]


def test_a_takeover_among_floods_of_every_port_takes_no_longer_than_one_without(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        logs = [rack.layout.log(node) for node in rack.state.nodes]
        sizes = [log.stat().st_size for log in logs]
        async with writing(volume) as writer:
            flood = Flood(every_port(rack), CONNECTIONS)
            try:
                writer.forget_stalls()
                await writer.wait_acknowledged(300)
                await asyncio.to_thread(rack.kill, before.primary)
                after = await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
                assert after.primary == before.secondaries[0]
                await writer.wait_acknowledged(300)
                assert writer.longest_stall_s < STALL_S_MAX
                assert flood.goes_on, "to the end"
            finally:
                flood.stop()
            await assert_nothing_lost(writer)
        grown = [log.stat().st_size - size for log, size in zip(logs, sizes, strict=True)]
        assert max(grown) < LOG_BYTES_MAX, grown

    tell(story())
