"""What must be true of a rack that is at rest: who serves, what is kept, and that nothing is left over."""

import gc
from uuid import UUID

from head_node.cluster.states import VolumeState
from rackctl.consistency.history import Violation
from rackctl.simulation.nodes import HeadNode
from rackctl.simulation.world import World


def serving(world: World, volume: UUID) -> HeadNode | None:
    """The head that serves the volume; two of them at once are a violation."""
    found = [
        head
        for head in world.heads
        if head.head is not None
        and (controller := head.head.controllers.get(volume)) is not None
        and controller.state is VolumeState.SERVING
    ]
    return found[0] if len(found) == 1 else None


def restart_failed(world: World) -> None:
    """Do what an operator does about a head that has given a volume up because its log failed: restart it."""
    for head in world.heads:
        controllers = {} if head.head is None else head.head.controllers
        if any(controller.state is VolumeState.FAILED for controller in controllers.values()):
            world.note("director", f"restarts {head.name}, whose log has failed")
            head.kill()
            head.start()


def check_rack(world: World, volume: UUID) -> None:
    """The rack at rest holds what it should and nothing else. Raises Violation."""
    for sled in world.sleds:
        if sled.subsystem is None:
            raise Violation(f"{sled.name} does not run at rest")
        count = len(sled.subsystem.storage.namespaces)
        if count > 1:
            raise Violation(f"{sled.name} has {count} namespaces for one column: leaked space")
    primary = serving(world, volume)
    assert primary is not None
    assert primary.head is not None
    engine = primary.head.controllers[volume]._engine
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
