"""The course of a run: build up, work under faults, mend, rest, read everything through each head, check, tear down."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from head_node.export.nbd_client import NbdClient
from rackctl.consistency.workload import Tally, read_all
from rackctl.simulation import rest
from rackctl.simulation.faults import Fault, Kind
from rackctl.simulation.injector import Injector
from rackctl.simulation.tenants import Habits, Tenant, Tenants
from rackctl.simulation.world import World

BEGIN_S: Final = 1.0
"""When the first fault may begin: the rack is up by then, or faults find it starting."""
LEAD_SECONDS: Final = 0.3
"""Of work after the last fault."""
CALM_SECONDS: Final = 2.0
"""What silence may still be noticed is noticed by then."""
START_SECONDS_MAX: Final = 30.0
OPERATOR_SECONDS_MAX: Final = 180.0
"""A recovery waits for the term of credentials, several pieces of work for each other."""
REST_SECONDS_MAX: Final = 120.0
"""Within this time after the last fault everything must be as it was."""


class Director:
    """Does it for one world. Raises Violation, Stuck, ExportError from `main`."""

    def __init__(
        self, world: World, seconds: float, clients: int, habits: Habits, faults: Sequence[Fault], tally: Tally,
        drawn: Collection[Kind],
    ) -> None:  # fmt: skip
        self._world = world
        self._seconds = seconds
        self._clients = clients
        self._faults = faults
        self.tenants = Tenants(world, habits, tally)
        self.injector = Injector(world, self.tenants, drawn)

    async def main(self) -> None:
        """See the module."""
        world, loop, tenants = self._world, self._world.loop, self.tenants
        await world.start()
        volumes = world.shape.volumes
        for number in range(volumes):
            await tenants.add(f"volume-{number}", max(1, (self._clients - number) // volumes))
        await world.until(lambda: rest.restored(world, tenants), START_SECONDS_MAX, "the rack is up")
        self.injector.schedule(self._faults)
        end_s = BEGIN_S + self._seconds + LEAD_SECONDS
        await world.until(lambda: loop.time() >= end_s or self._client_ended(), 600, "the work is done")
        world.note("director", "mends everything")
        self.injector.mend()
        await world.until(lambda: world.operator.idle, OPERATOR_SECONDS_MAX, "the operator has done everything")
        await self._rest()
        for tenant in tenants.live:
            await tenants.end(tenant)
        await self._read_through_each()
        rest.check_rack(world, tenants)
        await world.stop()
        await asyncio.sleep(1.0)
        rest.check_nothing_left(world)
        tenants.check()

    def _client_ended(self) -> bool:
        return any(tenant.ended for tenant in self.tenants.live)

    async def _rest(self) -> None:
        """Wait until everything is as it was, and nobody has changed that for a while."""
        world = self._world
        versions: list[int] = []
        since_s = 0.0

        def at_rest() -> bool:
            nonlocal versions, since_s
            rest.restart_failed(world)
            found = [record.version for record in world.records()]
            if not rest.restored(world, self.tenants) or found != versions:
                versions, since_s = found, world.loop.time()
            return world.loop.time() - since_s > CALM_SECONDS

        await world.until(at_rest, REST_SECONDS_MAX, "redundancy and service are restored")

    async def _read_through_each(self) -> None:
        """Read everything from each primary in turn, killing one after the other: every member has everything."""
        world = self._world
        reads = world.shape.heads_per_volume
        for number in range(reads):
            for tenant in self.tenants.live:
                await self._read(tenant, f"reader-{number}")
            if number + 1 == reads:
                return
            primary = rest.serving(world, self.tenants.live[number % len(self.tenants.live)])
            assert primary is not None
            world.note("director", f"kills {primary.name}, which was read")
            primary.kill()
            await world.until(self._served_without_it, REST_SECONDS_MAX, "other heads serve")
            primary.start()
            await self._rest()

    def _served_without_it(self) -> bool:
        return all(rest.serving(self._world, tenant) is not None for tenant in self.tenants.live)

    async def _read(self, tenant: Tenant, reader: str) -> None:
        world = self._world
        primary = rest.serving(world, tenant)
        assert primary is not None
        async with asyncio.timeout(REST_SECONDS_MAX):
            nbd = await NbdClient.connect([primary.nbd_address], tenant.name)
            await read_all(nbd, world.shape.volume_blocks, reader, tenant.history, lambda: world.loop.now_ns)
            await nbd.close()
