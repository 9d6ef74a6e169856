"""Where faults happen: the world, its nodes by name, the budget, and the timers of what is to come."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from rackctl.simulation.budget import Budget
from rackctl.simulation.faults import Fault
from rackctl.simulation.loop import NOBODY
from rackctl.simulation.nodes import HeadNode, Node, SledNode

if TYPE_CHECKING:
    from rackctl.simulation.world import World


class Site:
    """What all groups of faults share."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.budget = Budget(world)
        self.nodes: dict[str, Node] = {node.name: node for node in world.nodes}
        self.due: list[asyncio.TimerHandle] = []
        """What is to happen yet."""
        self.closed = False
        """Nothing more begins."""

    def later(self, seconds: float, act: Callable[..., None], *args: object) -> None:
        """Do something in a while, outside of any process."""
        self.due.append(self.world.loop.call_later(seconds, act, *args, context=NOBODY))

    def close(self) -> None:
        """Let nothing happen that has not happened yet."""
        self.closed = True
        for handle in self.due:
            handle.cancel()

    def targets(self, fault: Fault) -> list[Node]:
        """Its nodes; all without any."""
        return [self.nodes[name] for name in fault.targets] or self.world.nodes

    def head(self, fault: Fault) -> HeadNode:
        """Its first target, which is a head."""
        node = self.nodes[fault.targets[0]]
        assert isinstance(node, HeadNode)
        return node

    def sled(self, fault: Fault) -> SledNode:
        """Its first target, which is a sled."""
        node = self.nodes[fault.targets[0]]
        assert isinstance(node, SledNode)
        return node
