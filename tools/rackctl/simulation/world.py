"""A whole rack in one process: authority, sleds, heads and clients on virtual time, from one seed."""

import asyncio
import contextlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from unittest import mock
from uuid import UUID

import httpx

from head_node.authority.authority import Policy
from head_node.authority.ledger import volume_key
from head_node.cluster.lease import LeaseTerms
from head_node.store import records
from head_node.store.records import SPARE_SLOTS, VolumeRecord, VolumeState, column_blocks
from head_node.volume.geometry import Geometry
from head_node.volume.limits import Limits
from rackctl.consistency.history import Violation
from rackctl.simulation.http import HttpServers, SimulatedHttp
from rackctl.simulation.loop import PROCESS, Process, SimulationLoop, Stuck
from rackctl.simulation.network import Network
from rackctl.simulation.nodes import AUTHORITY_URL, DRIFT_MAX, AuthorityNode, HeadNode, Node, SledNode
from rackctl.simulation.operations import Operator
from rackctl.simulation.store import Backup
from rackctl.simulation.watching import VOLUME_KEYS, Watchers

POLL_SECONDS: Final = 0.05
LINES_MAX: Final = 20_000
"""Of the timeline; the oldest go."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a rack is made of."""

    heads: int = 2
    heads_per_volume: int = 2
    geometry: Geometry = field(default_factory=lambda: Geometry(4, 2, 4))
    volumes: int = 1
    volume_blocks: int = 256
    drives_per_sled: int = 1
    ttl_ms: int = 1000
    credential_term_ms: int = 600_000
    head_drift: float = DRIFT_MAX
    """How far heads' boot clocks are from true time, as a fraction."""
    limits: Limits = field(default_factory=lambda: Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20))
    """Of each volume's engine."""
    spare_slots: int = SPARE_SLOTS
    """What columns have beyond twice the volume's size: with few of them overwriting makes compaction necessary."""

    @property
    def sleds(self) -> int:
        return self.geometry.columns

    @property
    def drive_blocks(self) -> int:
        """Room for the columns of all volumes at once, on each drive, and for one that comes and goes."""
        with self.sized():
            column = column_blocks(self.volume_blocks * 4096, self.geometry)
        return 4096 + (self.volumes + 1) * column

    @contextlib.contextmanager
    def sized(self) -> Iterator[None]:
        """Columns are as large as this rack's while the block runs."""
        with mock.patch.object(records, "SPARE_SLOTS", self.spare_slots):
            yield


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
        self.limits = shape.limits
        self.watchers = Watchers(self)
        self.violations: list[Violation] = []
        self.timeline: list[Line] = []
        self.digest = 0
        """A checksum over everything that was noted: equal for equal runs."""
        policy = Policy(
            credential_term_ms=shape.credential_term_ms,
            key_publish_ms=shape.credential_term_ms // 10,
            heads_per_volume=shape.heads_per_volume,
            geometry=shape.geometry,
        )
        self.authority = AuthorityNode(self, policy)
        self.root_public = self.authority.root_public
        self.sleds = [
            SledNode(self, number, shape.drives_per_sled, shape.drive_blocks) for number in range(shape.sleds)
        ]
        self.heads = [HeadNode(self, number, drift=shape.head_drift) for number in range(shape.heads)]
        self.director = Process(self.loop, "10.0.3.1", "director")
        self.operator = Operator(self)

    @property
    def nodes(self) -> list[Node]:
        return [self.authority, *self.sleds, *self.heads]

    def stream(self, name: str) -> Random:
        """Random numbers of their own for whoever is named."""
        return Random(f"{self.seed}/{name}")

    def name_of(self, node: UUID) -> str:
        """The name of a sled or a head."""
        names = {sled.id: sled.name for sled in self.sleds}
        for head in self.heads:
            names |= dict.fromkeys((head.id, *head.former_ids), head.name)
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
        token = await self.join_token(len(self.heads))
        for head in self.heads:
            head.join_token = token
            head.start()
        await self.until(lambda: all(head.root_public for head in self.heads), 10, "the heads are enrolled")

    async def create_volume(self, name: str) -> UUID:
        """Make a volume. Raises httpx.HTTPError."""
        made = await self.ask("POST", "/v1/volumes", self.volume_request(name))
        return UUID(made["volume"])

    def volume_request(self, name: str) -> dict[str, Any]:
        """What is asked for. The budget of damage counts on stripes of k + 1 shards, so exposed ones are refused."""
        return {"name": name, "size_bytes": self.shape.volume_blocks * 4096, "exposed_stripes": False}

    async def join_token(self, uses: int) -> str:
        """A token with which `uses` heads may enrol. Raises httpx.HTTPError."""
        made = await self.ask("POST", "/v1/join-tokens", {"uses": uses, "valid_s": 3600})
        return str(made["token"])

    def record(self, volume: UUID) -> VolumeRecord | None:
        """The volume's record as the store has it, whoever is up; None when the volume is gone."""
        value = self.authority.store.peek(volume_key(volume))
        return None if value is None else VolumeRecord.from_json(json.loads(value))

    def records(self, backup: Backup | None = None) -> list[VolumeRecord]:
        """All records in the store, or in a backup of it."""
        entries = self.authority.store.copy().entries if backup is None else backup.entries
        values = [entries[key].value for key in sorted(entries) if key.startswith(VOLUME_KEYS)]
        return [VolumeRecord.from_json(json.loads(value)) for value in values]

    def members(self, record: VolumeRecord) -> list[str]:
        """The names of the running heads whose logs are in the record's `current`."""
        current = {(member.head, member.log) for member in record.current}
        return [head.name for head in self.heads if (head.id, head.log_of(record.volume)) in current]

    def redundant(self, record: VolumeRecord) -> bool:
        """As many heads as there should be are assigned to the volume, run, and are members."""
        wanted = min(self.shape.heads_per_volume, len(self.heads))
        return len(record.heads) == wanted == len(self.members(record)) and record.state is VolumeState.ACTIVE

    def caught_up(self, record: VolumeRecord) -> bool:
        """A primary serves the volume, and every running head has durably what is committed."""
        engines = {head.id: head.engine_of(record.volume) for head in self.heads if head.id in record.heads}
        primary = None if record.primary is None else engines.get(record.primary)
        if primary is None or not primary.serving:
            return False
        return all(engine is not None and engine.durable >= primary.committed for engine in engines.values())

    async def stop(self) -> None:
        """End everything in good order: heads, then sleds, then the authority."""
        for node in (*self.heads, *self.sleds, self.authority):
            await node.stop()

    async def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 5.0) -> Any:
        """A request of the operator. Raises httpx.HTTPError."""
        headers = {"authorization": f"Bearer {self.authority.operator_token}"}
        async with httpx.AsyncClient(
            transport=SimulatedHttp(self.http),
            base_url=AUTHORITY_URL,
            headers=headers,
            trust_env=False,
            timeout=timeout_s,
        ) as client:
            reply = await client.request(method, path, json=body)
            reply.raise_for_status()
            return reply.json() if reply.content else None


class TimelineHandler(logging.Handler):
    """Puts what production code logs into the timeline, under the name of its node."""

    def __init__(self, world: World, level: int) -> None:
        super().__init__(level)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get(None)
        who = process.name if process is not None else "world"
        message = record.getMessage()
        self._world.note(who, f"{record.levelname} {message}")
        if record.exc_info and record.levelno >= logging.ERROR:
            self._world.accuse(Violation(f"{who} caught a bug: {message}: {record.exc_info[1]!r}"))
