"""What the operator of a simulated rack does in the middle of it, as faults that begin and end."""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

from rackctl.simulation.faults import Fault, Kind
from rackctl.simulation.nodes import HeadNode
from rackctl.simulation.operations import restorable
from rackctl.simulation.site import Site
from rackctl.simulation.store import Backup
from rackctl.simulation.tenants import Tenant, Tenants


class OperatorActions:
    """Has the operator begin and end them."""

    def __init__(self, site: Site, tenants: Tenants, begun: Counter[Kind]) -> None:
        """`begun` counts all faults, so that one in between shows."""
        self._site = site
        self._tenants = tenants
        self.begun = begun
        self._volumes: dict[int, asyncio.Future[Tenant]] = {}
        self._backups: dict[int, Backup] = {}
        self._freezes: dict[int, asyncio.Task[None]] = {}
        self._revocations: dict[int, asyncio.Task[None]] = {}
        self.begins: dict[Kind, Callable[[Fault, Random], None]] = {
            Kind.REVOKE: self._revoke,
            Kind.ROTATE_KEYS: self._rotate,
            Kind.VOLUME: self._add_volume,
            Kind.FREEZE: self._freeze,
            Kind.RESTORE: self._back_up,
        }
        self.ends: dict[Kind, Callable[[Fault], None]] = {
            Kind.REVOKE: self._replace,
            Kind.VOLUME: self._remove_volume,
            Kind.FREEZE: self._thaw,
            Kind.RESTORE: self._restore,
        }

    def _revoke(self, fault: Fault, random: Random) -> None:
        head, world = self._site.head(fault), self._site.world
        first = random.choice(("nothing", "pause", "isolate"))
        if first == "pause":
            head.pause()
        elif first == "isolate":
            for node in (*world.heads, world.authority):
                world.network.cut(head.address, node.address)
                world.network.cut(node.address, head.address)
        # It finds the rack again, or awakes, as a head that is none any more.
        self._site.later(random.uniform(0.0, fault.seconds), self._see_again, head)
        self._revocations[fault.number] = world.operator.begin(world.operator.revoke(head), "revocation")

    def _see_again(self, head: HeadNode) -> None:
        head.resume()
        for node in self._site.world.nodes:
            self._site.world.network.heal(head.address, node.address)
            self._site.world.network.heal(node.address, head.address)

    def _replace(self, fault: Fault) -> None:
        head, revocation = self._site.head(fault), self._revocations.pop(fault.number)

        async def replaced() -> None:
            await asyncio.wait([revocation])
            self._see_again(head)
            await self._site.world.operator.replace(head)

        self._site.world.operator.begin(replaced(), "replacement")

    def _rotate(self, fault: Fault, random: Random) -> None:
        self._site.world.operator.begin(self._site.world.operator.rotate_keys(now=random.random() < 0.5), "rotation")

    def _add_volume(self, fault: Fault, random: Random) -> None:
        made = self._volumes[fault.number] = self._site.world.loop.create_future()

        async def add() -> None:
            made.set_result(await self._tenants.add(f"guest-{fault.number}", 1))

        self._site.world.operator.begin(add(), "creation")

    def _remove_volume(self, fault: Fault) -> None:
        async def remove() -> None:
            tenant = await self._volumes.pop(fault.number)
            begun = sum(self.begun.values())
            records = [record for record in self._site.world.records() if record.volume == tenant.volume]
            # Heads that follow nobody now are not told, and keep the log on purpose.
            calm = not self._site.budget.active and all(map(self._site.world.redundant, records))
            await self._tenants.remove(tenant)
            tenant.removed_calmly = calm and sum(self.begun.values()) == begun

        self._site.world.operator.begin(remove(), "deletion")

    def _back_up(self, fault: Fault, random: Random) -> None:
        self._backups[fault.number] = self._site.world.authority.store.copy()

    def _restore(self, fault: Fault) -> None:
        backup = self._backups.pop(fault.number)
        if restorable(self._site.world, backup):
            self._site.world.operator.begin(self._site.world.operator.restore(backup), "restore")
        else:
            self._site.world.note("operator", "does not restore: other volumes are there by now")

    def _freeze(self, fault: Fault, random: Random) -> None:
        self._freezes[fault.number] = self._site.world.operator.begin(self._site.world.operator.freeze(), "freeze")

    def _thaw(self, fault: Fault) -> None:
        frozen = self._freezes.pop(fault.number)

        async def thaw() -> None:
            # An authority that hangs answers late: who recovers before it has frozen anything recovers nothing.
            await asyncio.wait([frozen])
            known = {record.volume: record for record in self._site.world.records()}
            await self._site.world.operator.recover(known)

        self._site.world.operator.begin(thaw(), "recovery")
