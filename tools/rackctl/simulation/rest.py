"""What must be true of a rack that is at rest: who serves, what is kept, and that nothing is left over."""

import gc
import json

from head_node.authority.ledger import KEYS_KEY
from head_node.cluster.states import VolumeState
from head_node.store.records import VolumeRecord
from rackctl.consistency.history import Violation
from rackctl.simulation.nodes import HeadNode
from rackctl.simulation.tenants import Tenant, Tenants
from rackctl.simulation.world import World


def serving(world: World, tenant: Tenant) -> HeadNode | None:
    """The head that serves the volume, None when there is none, or when two believe so."""
    found = [
        head
        for head in world.heads
        if head.head is not None
        and (controller := head.head.controllers.get(tenant.volume)) is not None
        and controller.state is VolumeState.SERVING
    ]
    return found[0] if len(found) == 1 else None


def restored(world: World, tenants: Tenants) -> bool:
    """Everybody runs; each volume has all its members and somebody who serves it; every sled has the newest keys."""
    return (
        all(sled.subsystem is not None for sled in world.sleds)
        and keys_carried(world)
        and all(
            (record := world.record(tenant.volume)) is not None
            and world.redundant(record)
            and serving(world, tenant) is not None
            for tenant in tenants.live
        )
    )


def keys_carried(world: World) -> bool:
    """Every sled has the newest key set."""
    version = json.loads(world.authority.store.peek(KEYS_KEY) or b"{}")["version"]
    key_sets = [None if sled.subsystem is None else sled.subsystem.key_set for sled in world.sleds]
    return all(key_set is not None and key_set.version == version for key_set in key_sets)


def restart_failed(world: World) -> None:
    """Do what an operator does about a head one of whose log disks hung: restart it. Other volumes that failed begin
    again by themselves."""
    for head in world.heads:
        controllers = {} if head.head is None else head.head.controllers
        failed = [controller for controller in controllers.values() if controller.state is VolumeState.FAILED]
        if any(controller.ended and not controller.may_begin_again for controller in failed):
            world.note("director", f"restarts {head.name}, whose log disk hung")
            head.kill()
            head.start()


def check_rack(world: World, tenants: Tenants) -> None:
    """The rack at rest holds what it should and nothing else. Raises Violation."""
    records = {record.volume: record for record in world.records()}
    for record in records.values():
        _check_nobody_revoked(world, record)
    for sled in world.sleds:
        if sled.subsystem is None:
            raise Violation(f"{sled.name} does not run at rest")
        columns = [(entry.volume, entry.column) for entry in sled.subsystem.storage.namespaces.values()]
        allowed = {(record.volume, column.index) for record in records.values() for column in record.columns}
        for volume, column in columns:
            if columns.count((volume, column)) > 1:
                raise Violation(f"{sled.name} has several namespaces for column {column} of {volume}: leaked space")
        excused = {tenant.volume for tenant in tenants.gone if _may_have_strays(world, tenant, sled.name)}
        left = [entry for entry in columns if entry not in allowed and entry[0] not in excused]
        if left:
            raise Violation(f"{sled.name} has namespaces that no volume names: {left}: leaked space")
    for tenant in tenants.gone:
        logs = [head.name for head in world.heads if str(tenant.volume) in head.log_names()]
        if logs and tenant.removed_calmly:
            raise Violation(f"the log of {tenant.name}, which was deleted, is still on {logs}")
    for tenant in tenants.live:
        _check_slots(world, tenant)


def _may_have_strays(world: World, tenant: Tenant, sled: str) -> bool:
    """A sled that could not be reached when the volume was deleted keeps its namespace, and the head says so."""
    return not tenant.removed_calmly and sled in world.watchers.strays.get(tenant.volume, ())


def _check_nobody_revoked(world: World, record: VolumeRecord) -> None:
    revoked = {former for head in world.heads for former in head.former_ids}
    named = revoked & {*record.heads, *(member.head for member in record.current), record.primary}
    if named:
        raise Violation(f"volume {record.volume} still names heads that were revoked: {named}")


def _check_slots(world: World, tenant: Tenant) -> None:
    primary = serving(world, tenant)
    assert primary is not None
    assert primary.head is not None
    engine = primary.head.controllers[tenant.volume]._engine
    assert engine is not None
    entries = engine.state.stripes.entries
    leaked = int(((entries["epoch"] != 0) & (entries["live"] == 0)).sum())
    if leaked:
        raise Violation(f"{primary.name}: {leaked} slots hold stripes of which no block is alive: leaked space")


def check_nothing_left(world: World) -> None:
    """Everything was stopped in good order. Raises Violation."""
    gc.collect()  # a task whose exception nobody took says so when it is collected
    if world.loop.errors:
        context = world.loop.errors[0]
        raise Violation(f"{context.get('message')}: {context.get('exception')!r}")
    if world.network.endpoints:
        left = [f"{end.process.name} {end.own_address} to {end.peer_address}" for end in world.network.endpoints]
        raise Violation(f"leaked sockets: {left}")
    for node in world.nodes:
        process = node.process
        if process is not None and not process.dead and process.tasks:
            raise Violation(f"leaked tasks of {process.name}: {[repr(task) for task in process.tasks]}")
