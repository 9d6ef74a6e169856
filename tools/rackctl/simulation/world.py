"""A whole rack in one process: authority, sleds, heads and clients on virtual time, from one seed."""

import asyncio
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import UUID

import httpx

from head_node.authority.authority import Policy
from head_node.authority.ledger import volume_key
from head_node.cluster.lease import LeaseTerms
from head_node.store.records import VolumeRecord
from head_node.volume.geometry import Geometry
from head_node.volume.limits import Limits
from rackctl.consistency.history import Violation
from rackctl.simulation.http import HttpServers, SimulatedHttp
from rackctl.simulation.loop import PROCESS, Process, SimulationLoop, Stuck
from rackctl.simulation.network import Network
from rackctl.simulation.nodes import AUTHORITY_URL, AuthorityNode, HeadNode, Node, SledNode
from rackctl.simulation.watching import Watchers

POLL_SECONDS: Final = 0.05
LINES_MAX: Final = 20_000
"""Of the timeline; the oldest go."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a rack is made of."""

    heads: int = 2
    geometry: Geometry = field(default_factory=lambda: Geometry(4, 2, 4))
    volume_blocks: int = 256
    ttl_ms: int = 1000

    @property
    def sleds(self) -> int:
        return self.geometry.columns


@dataclass(frozen=True, slots=True)
class Line:
    """Who did what, when (virtual nanoseconds since the world began)."""

    at_ns: int
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_ns / 1e9:12.6f} {self.who:<10} {self.what}"


class World:
    """See the module. Everything random comes from streams named after who draws, so that one more draw here does not
    change the luck of everybody else."""

    def __init__(self, seed: str, shape: Shape) -> None:
        self.seed = seed
        self.shape = shape
        self.loop = SimulationLoop(self.stream("scheduler"))
        self.network = Network(self.loop, self.stream("network"))
        self.http = HttpServers(self.network)
        self.terms = LeaseTerms.scaled(shape.ttl_ms)
        self.limits = Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20)
        self.watchers = Watchers(self)
        self.violations: list[Violation] = []
        self.timeline: list[Line] = []
        self.digest = 0
        """A checksum over everything that was noted: equal for equal runs."""
        policy = Policy(heads_per_volume=shape.heads, geometry=shape.geometry)
        self.authority = AuthorityNode(self, policy)
        self.root_public = self.authority.root_public
        blocks = 4096 + 4 * shape.volume_blocks
        self.sleds = [SledNode(self, number, blocks) for number in range(shape.sleds)]
        self.heads = [HeadNode(self, number) for number in range(shape.heads)]
        self.director = Process(self.loop, "10.0.3.1", "director")

    @property
    def nodes(self) -> list[Node]:
        return [self.authority, *self.sleds, *self.heads]

    def stream(self, name: str) -> Random:
        """Random numbers of their own for whoever is named."""
        return Random(f"{self.seed}/{name}")

    def name_of(self, node: UUID) -> str:
        """The name of a sled or a head."""
        names = {sled.id: sled.name for sled in self.sleds} | {head.id: head.name for head in self.heads}
        return names[node]

    def accuse(self, violation: Violation) -> None:
        """A promise was broken: `until` and `alive` raise it."""
        self.note("violation", str(violation))
        self.violations.append(violation)

    def alive(self) -> None:
        """Raise the first violation, if there is one."""
        if self.violations:
            raise self.violations[0]

    def note(self, who: str, what: str) -> None:
        """Add a line to the timeline."""
        line = Line(self.loop.now_ns, who, what)
        self.digest = zlib.crc32(str(line).encode(), self.digest)
        self.timeline.append(line)
        if len(self.timeline) > LINES_MAX:
            del self.timeline[: LINES_MAX // 10]

    # the life of the rack; called in the director

    async def until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Wait until `condition` holds. Raises Stuck after `seconds` of virtual time."""
        end_s = self.loop.time() + seconds
        while not condition():
            self.alive()
            if self.loop.time() > end_s:
                raise Stuck(f"{what}: not after {seconds} s")
            await asyncio.sleep(POLL_SECONDS)

    async def start(self) -> None:
        """Start all nodes, enrol them."""
        self.authority.start()
        await self.until(lambda: self.authority.authority, 10, "the authority is up")
        for sled in self.sleds:
            sled.start()
        await self.until(lambda: all(sled.subsystem for sled in self.sleds), 10, "the sleds are up")
        for sled in self.sleds:
            await self.ask("POST", "/v1/sleds", sled.record())
        token = await self.ask("POST", "/v1/join-tokens", {"uses": len(self.heads), "valid_s": 3600})
        for head in self.heads:
            head.join_token = str(token["token"])
            head.start()
        await self.until(lambda: all(head.root_public for head in self.heads), 10, "the heads are enrolled")

    async def create_volume(self, name: str) -> VolumeRecord:
        """Make a volume and wait until all heads are members of it."""
        made = await self.ask("POST", "/v1/volumes", {"name": name, "size_bytes": self.shape.volume_blocks * 4096})
        record = VolumeRecord.from_json(made)
        await self.redundant(record.volume, 30)
        return record

    def record(self, volume: UUID) -> VolumeRecord:
        """The volume's record as the store has it, whoever is up."""
        value = self.authority.store.peek(volume_key(volume))
        assert value is not None
        return VolumeRecord.from_json(json.loads(value))

    def members(self, volume: UUID) -> list[str]:
        """The names of the running heads whose logs are in the volume's `current`."""
        current = {(member.head, member.log) for member in self.record(volume).current}
        return [head.name for head in self.heads if (head.id, head.log_of(volume)) in current]

    async def redundant(self, volume: UUID, seconds: float) -> None:
        """Wait until every head is a member. Raises Stuck."""
        await self.until(lambda: len(self.members(volume)) == len(self.heads), seconds, "redundancy is restored")

    async def stop(self) -> None:
        """End everything in good order: heads, then sleds, then the authority."""
        for node in (*self.heads, *self.sleds, self.authority):
            await node.stop()

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request of the operator. Raises httpx.HTTPError."""
        headers = {"authorization": f"Bearer {self.authority.operator_token}"}
        async with httpx.AsyncClient(
            transport=SimulatedHttp(self.http), base_url=AUTHORITY_URL, headers=headers, trust_env=False
        ) as client:
            reply = await client.request(method, path, json=body)
            reply.raise_for_status()
            return reply.json() if reply.content else None


class TimelineHandler(logging.Handler):
    """Puts what production code logs into the timeline, under the name of its node."""

    def __init__(self, world: World, level: int) -> None:
        super().__init__(level)
        self._world = world
        self.transitions: Counter[tuple[str, str]] = Counter()
        """(from, to) states of volumes on heads, as logged."""

    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get(None)
        who = process.name if process is not None else "world"
        message = record.getMessage()
        self._world.note(who, f"{record.levelname} {message}")
        if message.startswith("event=state "):
            fields = dict(field.split("=", 1) for field in message.split())
            self.transitions[fields["from"], fields["to"]] += 1
        if record.exc_info and record.levelno >= logging.ERROR:
            self._world.accuse(Violation(f"{who} caught a bug: {message}: {record.exc_info[1]!r}"))
