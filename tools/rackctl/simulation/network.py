"""The simulated network: nodes, one-way links with latency and cuts, and the kernels' end of TCP.

Bytes of one direction of one connection arrive in order, in segments cut at random; connections overtake each other.
What a program cannot see on a real network it cannot see here: a cut looks like silence, a power loss too (until the
node is back and answers with a reset), a killed process like an end of file or a reset.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from rackctl.simulation.loop import NOBODY, PROCESS, Process, SimulationLoop
from rackctl.simulation.stream import Endpoint

Address = tuple[str, int]

LATENCY_S: Final = (20e-6, 200e-6)
"""Of a segment on a healthy link, both ends included."""
RETRANSMIT_S: Final = (0.01, 0.4)
"""How long after a cut has healed TCP tries again."""
FIRST_FREE_PORT: Final = 40_000


@dataclass(slots=True)
class Link:
    """One direction between two nodes."""

    cut: bool = False
    slowness: float = 1.0
    bytes_per_s: float = 1.25e9


@dataclass(slots=True)
class Listener:
    """A listening socket, and the process that owns it."""

    address: Address
    factory: Callable[[], asyncio.BaseProtocol]
    process: Process


class BoundSocket:
    """What `asyncio.Server.sockets` shows of a listening socket."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        return self._address


class SimulatedServer:
    """Stands for `asyncio.Server`."""

    def __init__(self, network: "Network", listener: Listener) -> None:
        self._network = network
        self._listener = listener
        self.sockets = [BoundSocket(listener.address)]

    def close(self) -> None:
        self._network.unlisten(self._listener)

    def is_serving(self) -> bool:
        return self._network.listens(self._listener)

    async def wait_closed(self) -> None:
        return


class Network:
    """All nodes and what connects them. Nodes are named by their addresses."""

    def __init__(self, loop: SimulationLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self._links: dict[tuple[str, str], Link] = {}
        self._listeners: dict[Address, Listener] = {}
        self._down: set[str] = set()
        self._next_port = FIRST_FREE_PORT
        self._next_number = 0
        self._waiting: list[tuple[tuple[str, str], Callable[[], None]]] = []
        self.without_descriptors: set[str] = set()
        """Nodes on which no process gets another socket."""
        self.endpoints: dict[Endpoint, None] = {}
        """Every socket that is connected and whose process has not closed it."""
        loop.network = self

    # links

    def link(self, source: str, target: str) -> Link:
        """The link from one node to another, made when first asked for."""
        link = self._links.get((source, target))
        if link is None:
            link = self._links[source, target] = Link()
        return link

    def latency(self, source: str, target: str) -> float:
        """A segment's time on the link, without its bytes."""
        if source == target:
            return 5e-6
        return self.random.uniform(*LATENCY_S) * self.link(source, target).slowness

    def passable(self, source: str, target: str) -> bool:
        """Whether a segment sent now would arrive."""
        return not self.link(source, target).cut and not self._down & {source, target}

    def cut(self, source: str, target: str) -> None:
        """From now on nothing arrives from `source` at `target`; what is under way waits (TCP sends it again)."""
        self.link(source, target).cut = True

    def heal(self, source: str, target: str) -> None:
        """Segments arrive again; what waited comes within half a second."""
        link = self.link(source, target)
        link.slowness, link.bytes_per_s = 1.0, 1.25e9
        if link.cut:
            link.cut = False
            self._retry()

    def power_loss(self, node: str) -> None:
        """The node is gone with its connections; nobody is told."""
        self._down.add(node)
        for endpoint in list(self.endpoints):
            if endpoint.node == node:
                endpoint.vanish()
        for address in [address for address in self._listeners if address[0] == node]:
            del self._listeners[address]

    def power_on(self, node: str) -> None:
        """The node answers again; connections of its former life with a reset."""
        self._down.discard(node)
        self._retry()

    def process_ended(self, process: Process) -> None:
        """The kernel closes what a process had open."""
        for address in [at for at, listener in self._listeners.items() if listener.process is process]:
            del self._listeners[address]
        for endpoint in list(self.endpoints):
            if endpoint.process is process:
                endpoint.close()

    def when_passable(self, source: str, target: str, act: Callable[[], None]) -> None:
        """Run `act` (outside of any process) soon after the link carries segments again."""
        self._waiting.append(((source, target), act))

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, []
        for pair, act in waiting:
            if self.passable(*pair):
                self.loop.call_later(self.random.uniform(*RETRANSMIT_S), act, context=NOBODY)
            else:
                self._waiting.append((pair, act))

    def deliver(self, source: str, target: str, act: Callable[[], None], delay_s: float = 0.0) -> None:
        """Run `act` (outside of any process) when a message sent now, or `delay_s` later, arrives."""

        def arrive() -> None:
            if self.passable(source, target):
                act()
            else:
                self.when_passable(source, target, arrive)

        self.loop.call_later(delay_s + self.latency(source, target), arrive, context=NOBODY)

    # sockets

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], address: Address) -> SimulatedServer:
        """Listen for the calling process. Raises OSError when the address is in use."""
        process = PROCESS.get()
        host, port = address
        if not port:
            port = self._free_port()
        if (host, port) in self._listeners:
            raise OSError(98, f"address {host}:{port} in use")
        listener = Listener((host, port), factory, process)
        self._listeners[host, port] = listener
        return SimulatedServer(self, listener)

    def listens(self, listener: Listener) -> bool:
        """Whether that socket is open still."""
        return self._listeners.get(listener.address) is listener

    def unlisten(self, listener: Listener) -> None:
        """Close a listening socket."""
        if self.listens(listener):
            del self._listeners[listener.address]

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], address: Address
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect the calling process. Raises ConnectionRefusedError; waits for ever while nobody answers."""
        process = PROCESS.get()
        if process.node in self.without_descriptors:
            raise OSError(24, "too many open files")
        own: Address = (process.node, self._free_port())
        established: asyncio.Future[Endpoint | None] = self.loop.create_future()

        def answered(endpoint: Endpoint | None) -> None:
            if not established.done() and not process.dead:
                established.set_result(endpoint)
            elif endpoint is not None:
                endpoint.reset()

        def syn_arrives() -> None:
            listener = self._listeners.get(address)
            if listener is None:
                self.deliver(address[0], process.node, lambda: answered(None))
                return
            far = self._endpoint(listener.process, address, own)
            near = self._endpoint(process, own, address)
            far.peer, near.peer = near, far
            far.accept(listener.factory)
            self.deliver(address[0], process.node, lambda: answered(near))

        self.deliver(process.node, address[0], syn_arrives, process.now_s - self.loop.time())
        try:
            endpoint = await established
        except BaseException:
            if established.done() and not established.cancelled():
                left = established.result()
                if left is not None:
                    left.reset()
            raise
        if endpoint is None:
            raise ConnectionRefusedError(111, f"{address[0]}:{address[1]}: connection refused")
        protocol = factory()
        return endpoint.open(protocol), protocol

    def _endpoint(self, process: Process, own: Address, peer: Address) -> Endpoint:
        self._next_number += 1
        endpoint = Endpoint(self, process, own, peer)
        self.endpoints[endpoint] = None
        return endpoint

    def _free_port(self) -> int:
        self._next_port += 1
        return self._next_port
