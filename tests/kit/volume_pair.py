"""A primary and a follower joined in memory, the way the cluster joins them over a link."""

from collections.abc import Sequence
from uuid import UUID

from kit.volume import Bench

from spdk_bindings.device import Buffer

FOLLOWER = UUID(int=2)


class Pair:
    """`link` streams appends; `acks` lets the follower's durability count at the primary."""

    def __init__(self, size_blocks: int = 256) -> None:
        self.primary = Bench(size_blocks)
        self.follower = Bench(size_blocks)
        self.acks = True
        self.announce = True
        """Tell the follower what is committed."""

    async def start(self) -> None:
        """Both created, the primary leads epoch 1 and needs the follower."""
        primary, follower = await self.primary.create(), await self.follower.create()
        await follower.see_epoch(1)
        self.join()
        primary.set_required(frozenset({FOLLOWER}))
        await self.primary.lead(1)

    def join(self) -> None:
        """Stream from the primary's next append on."""
        primary, follower = self.primary.engine, self.follower.engine

        def appended(first: int, last: int, buffers: Sequence[Buffer]) -> None:
            follower.follow_append(b"".join(buffers))

        def durable(opnum: int) -> None:
            if self.acks:
                primary.member_durable(FOLLOWER, opnum)

        def committed(opnum: int) -> None:
            if self.announce:
                follower.follow_committed(min(opnum, follower.tail.opnum))

        primary.on_append, follower.on_durable, primary.on_committed = appended, durable, committed

    def catch_up(self) -> None:
        """Let the follower's durability count now."""
        self.acks = True
        self.primary.engine.member_durable(FOLLOWER, self.follower.engine.durable)

    async def close(self) -> None:
        """Both down."""
        await self.primary.engine.close()
        await self.follower.engine.close()
