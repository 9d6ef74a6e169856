"""The volumes of a simulated rack and the clients that work on them, each volume with a history of its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from head_node.export.nbd_client import NbdClient
from rackctl.consistency import flushes, linearizability
from rackctl.consistency.history import History, Violation
from rackctl.consistency.workload import Client, Programme, Tally
from rackctl.simulation.loop import Process
from rackctl.simulation.nodes import HeadNode

if TYPE_CHECKING:
    from rackctl.simulation.world import World

VALUES_PER_VOLUME: Final = 1 << 40
"""Volumes never write each other's values, so that a block of another volume shows."""
READER_PAUSES: Final = 2.0
"""How much longer than writers those pause that only read: there is one at each head."""
END_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Habits:
    """How clients work: requests under way at once, the mean pause before each, the blocks of the largest."""

    depth: int
    think_s: float
    blocks_max: int = 8


@dataclass(slots=True)
class Tenant:
    """One volume with its clients."""

    name: str
    volume: UUID
    history: History
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    clients: "list[asyncio.Task[None]]" = field(default_factory=list)
    removed_calmly: bool = False
    """It was deleted while nothing was wrong."""

    @property
    def ended(self) -> bool:
        """Some client has ended, in order or not."""
        return any(client.done() for client in self.clients)


class Tenants:
    """All volumes that there are and were."""

    def __init__(self, world: "World", habits: Habits, tally: Tally) -> None:
        self._world = world
        self._habits = habits
        self._tally = tally
        self._clients_made = 0
        self.live: list[Tenant] = []
        self.gone: list[Tenant] = []

    async def add(self, name: str, clients: int) -> Tenant:
        """Make a volume; its clients begin at once: as many as given that write, and one at each head that reads."""
        volume = await self._world.operator.create(name)
        number = len(self.live) + len(self.gone)
        tenant = Tenant(name, volume, History(last_value=number * VALUES_PER_VOLUME))
        tenant.clients = [self._writer(tenant) for _ in range(clients)]
        tenant.clients += [self._reader(tenant, head) for head in self._world.heads]
        self.live.append(tenant)
        return tenant

    async def remove(self, tenant: Tenant) -> None:
        """Delete a volume under its clients, which see it go."""
        await self._world.operator.delete(tenant.volume)
        self.live.remove(tenant)
        self.gone.append(tenant)
        await self.end(tenant)

    async def end(self, tenant: Tenant) -> None:
        """Stop the clients and wait for them; raises what one of them raised."""
        tenant.stop.set()
        async with asyncio.timeout(END_SECONDS_MAX):
            await asyncio.wait(tenant.clients)
        for client in tenant.clients:
            client.result()

    @property
    def operations(self) -> int:
        """Of all volumes."""
        return sum(tenant.history.operations for tenant in (*self.live, *self.gone))

    def check(self) -> None:
        """Check every history. Raises Violation."""
        for tenant in (*self.live, *self.gone):
            try:
                flushes.check(tenant.history)
                linearizability.check(tenant.history)
            except Violation as violation:
                raise Violation(f"{tenant.name}: {violation}") from violation

    def _writer(self, tenant: Tenant) -> "asyncio.Task[None]":
        world, habits = self._world, self._habits
        blocks = world.shape.volume_blocks
        programme = Programme(
            f"client-{self._number()}", range(blocks * 3 // 4), range(blocks * 3 // 4, blocks), habits.depth,
            habits.think_s, habits.blocks_max,
        )  # fmt: skip
        return self._spawn(tenant, programme, [head.nbd_address for head in world.heads])

    def _reader(self, tenant: Tenant, head: HeadNode) -> "asyncio.Task[None]":
        """Reads through one head whatever happens: who still believes to be primary finds somebody to believe it."""
        blocks = range(self._world.shape.volume_blocks * 3 // 4)
        think_s = self._habits.think_s * READER_PAUSES
        programme = Programme(f"reader-{self._number()}", blocks, range(0), 2, think_s, reads_only=True)
        return self._spawn(tenant, programme, [head.nbd_address])

    def _number(self) -> int:
        self._clients_made += 1
        return self._clients_made

    def _spawn(
        self, tenant: Tenant, programme: Programme, addresses: Sequence[tuple[str, int]]
    ) -> "asyncio.Task[None]":
        world = self._world
        process = Process(world.loop, f"10.0.4.{self._clients_made}", programme.name)

        async def connect() -> NbdClient:
            return await NbdClient.connect(addresses, tenant.name)

        client = Client(
            programme, tenant.history, connect, world.stream(programme.name), lambda: world.loop.now_ns, self._tally,
            self._accuse,
        )  # fmt: skip
        return process.spawn(client.run(tenant.stop), name=programme.name)

    def _accuse(self, error: Exception) -> None:
        self._world.accuse(error if isinstance(error, Violation) else Violation(repr(error)))
