"""A whole authority in memory: manual clock, ASGI transport, heads and operator as clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.api.app import create_app
from head_node.authority.authority import Authority, Policy
from head_node.authority.cleanups import CLEANED
from head_node.authority.client import AuthorityClient
from head_node.authority.key_push import TAKEN
from head_node.authority.nodes import Fencer
from head_node.authority.reply_trust import ReplyTrust
from head_node.authority.retirement import CONFIRMED
from head_node.authority.root_key import RootKey
from head_node.authority.surplus import GIVEN_BACK
from head_node.authority.time_repair import TAKEN as TIME_TAKEN
from head_node.store.interface import Store
from head_node.store.memory import MemoryStore
from head_node.store.records import Cleanup, Column, SledRecord, VolumeRecord, column_blocks
from sled_controller.environment import Environment
from sled_controller.fabric.vendor import NamespaceEntry
from sled_controller.sled_start import SledStart

URL = "http://authority.test"


class ManualClock:
    """Moves when told."""

    def __init__(self, wall_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = wall_ms

    def boottime_ns(self) -> int:
        return self.now_ms * 1_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        self.now_ms += milliseconds


class SeededEntropy:
    """The same bytes in each run."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class LosingTransport(httpx.AsyncBaseTransport):
    """Delivers requests, and loses the next answer when `lose` is set; keeps what was sent."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.lose = False
        self.sent: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        response = await self._inner.handle_async_request(request)
        if self.lose:
            self.lose = False
            await response.aread()
            raise httpx.ReadError("connection reset", request=request)
        return response


class RecordingFencer:
    """Says that it fenced every sled."""

    def __init__(self) -> None:
        self.fenced: list[VolumeRecord] = []
        self.times_ms: list[int] = []
        self.away: set[UUID] = set()
        self.cleaned: list[tuple[UUID, UUID, int]] = []
        self.refused = 0
        self.retired: list[tuple[UUID, UUID]] = []
        self.stated: list[tuple[UUID, bytes]] = []
        self.starts: dict[UUID, SledStart] = {}
        self.pushed: list[tuple[UUID, int]] = []
        self.tables: dict[UUID, list[NamespaceEntry]] = {}
        self.given_back: list[tuple[VolumeRecord, UUID, tuple[int, ...]]] = []

    async def fence(self, record: VolumeRecord) -> dict[UUID, str]:
        self.fenced.append(record)
        return dict.fromkeys(record.sleds, "fenced")

    async def clean(self, cleanup: Cleanup, sled: UUID, next_epoch: Callable[[int], Awaitable[int]]) -> str:
        if sled in self.away:
            self.refused += 1
            return "out of reach"
        self.cleaned.append((cleanup.volume, sled, await next_epoch(0)))
        return CLEANED

    async def sled_times(self, record: VolumeRecord) -> list[int]:
        return self.times_ms

    async def start_of(self, sled: SledRecord) -> SledStart | str:
        return self.starts.get(sled.id, "out of reach")

    async def state_time(
        self, sled: SledRecord, statement: Callable[[int], Awaitable[bytes]] | None
    ) -> tuple[int, str]:
        if sled.id in self.away:
            return 0, "out of reach"
        if statement is not None:
            self.stated.append((sled.id, await statement(1)))
        return 1_700_000_000_000, TIME_TAKEN

    async def namespaces(self, sled: SledRecord) -> list[NamespaceEntry] | None:
        return None if sled.id in self.away else self.tables.get(sled.id, [])

    async def give_back(self, record: VolumeRecord, sled: SledRecord, surplus: Collection[int]) -> str:
        if sled.id in self.away:
            return "out of reach"
        self.given_back.append((record, sled.id, tuple(surplus)))
        self.tables[sled.id] = [entry for entry in self.tables[sled.id] if entry.nsid not in surplus]
        return GIVEN_BACK

    async def push_key_set(self, sled: SledRecord, version: int) -> str:
        if sled.id in self.away:
            return "out of reach"
        self.pushed.append((sled.id, version))
        return TAKEN

    async def retire(self, sled: SledRecord, statements: Mapping[UUID, bytes]) -> dict[UUID, str]:
        if sled.id in self.away:
            return dict.fromkeys(statements, "out of reach")
        self.retired += [(sled.id, volume) for volume in statements]
        return dict.fromkeys(statements, CONFIRMED)


@dataclass
class Head:
    """One head process: its key, its client and the transport that it uses."""

    id: UUID
    key: Ed25519PrivateKey
    client: AuthorityClient
    transport: LosingTransport
    log: UUID

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()


@dataclass
class Kit:
    """The rack of a test."""

    clock: ManualClock
    env: Environment
    store: Store
    root_key: Ed25519PrivateKey
    authority: Authority
    operator: httpx.AsyncClient
    app: Any
    opened: list[AuthorityClient] = field(default_factory=list)

    def process(
        self, head: UUID, key: Ed25519PrivateKey, *, root: bytes | None = None, replies: ReplyTrust | None = None
    ) -> Head:
        """A (new) process of a head."""
        transport = LosingTransport(httpx.ASGITransport(self.app))
        client = AuthorityClient(
            URL, head_id=head, head_key=key, env=self.env, root_public=root, transport=transport, replies=replies
        )
        self.opened.append(client)
        return Head(head, key, client, transport, self.env.new_uuid())

    def newcomer(self) -> Head:
        """A head that is not enrolled."""
        key = Ed25519PrivateKey.from_private_bytes(self.env.entropy.bytes(32))
        return self.process(self.env.new_uuid(), key)

    def restarted(self, head: Head) -> Head:
        """Another process of the same head with the same log."""
        fresh = self.process(head.id, head.key, root=self.authority.root_public)
        fresh.log = head.log
        return fresh

    async def token(self, uses: int = 1, valid_s: int = 3600) -> str:
        reply = await self.operator.post("/v1/join-tokens", json={"uses": uses, "valid_s": valid_s})
        assert reply.status_code == 201, reply.text
        return str(reply.json()["token"])

    async def enrolled(self, name: str) -> Head:
        head = self.newcomer()
        await head.client.enrol(await self.token(), name=name, addresses={"peer": ("127.0.0.1", 7000)})
        return head

    async def sleds(self, count: int = 6, capacity_blocks: int = 0) -> list[UUID]:
        made = []
        for number in range(count):
            key = Ed25519PrivateKey.from_private_bytes(self.env.entropy.bytes(32)).public_key().public_bytes_raw()
            sled = self.env.new_uuid()
            body = {
                "id": str(sled),
                "name": f"sled-{number}",
                "public_key": key.hex(),
                "nqn": f"nqn.2014-08.org.nvmexpress:uuid:{sled}",
                "host": "127.0.0.1",
                "port": 4420 + number,
                "capacity_blocks": capacity_blocks,
            }
            reply = await self.operator.post("/v1/sleds", json=body)
            assert reply.status_code == 201, reply.text
            made.append(sled)
        return made

    async def volume(self, name: str = "v", size_bytes: int = 1 << 20, **more: object) -> VolumeRecord:
        reply = await self.operator.post("/v1/volumes", json={"name": name, "size_bytes": size_bytes, **more})
        assert reply.status_code == 201, reply.text
        return VolumeRecord.from_json(reply.json())

    async def record(self, volume: UUID) -> VolumeRecord:
        return (await self.authority.ledger.volume(volume)).value

    async def ready(self, **more: object) -> tuple[Head, Head, VolumeRecord]:
        """Primary and secondary of an active volume in epoch 1, both in `current`; `more` is asked for it."""
        one, two = await self.enrolled("head-1"), await self.enrolled("head-2")
        await self.sleds()
        made = await self.volume(**more)
        primary, secondary = (one, two) if made.heads[0] == one.id else (two, one)
        record, _ = await primary.client.takeover(made.volume, expected_version=made.version, log_id=primary.log)
        record = await primary.client.set_columns(
            made.volume, epoch=1, expected_version=record.version, columns=columns_of(record)
        )
        member = type(record.current[0])(secondary.id, secondary.log)
        record = await primary.client.change_members(made.volume, epoch=1, expected_version=record.version, add=member)
        return primary, secondary, record


def term_and_margin_ms(kit: Kit) -> int:
    """How long after a freeze no head can serve any more, clocks that differ included."""
    return kit.authority.policy.credential_term_ms * 11 // 10


def columns_of(record: VolumeRecord) -> list[Column]:
    """All columns of a volume, one per sled of its placement."""
    blocks = column_blocks(record.size_bytes, record.geometry)
    return [Column(index, sled, 1, blocks) for index, sled in enumerate(record.sleds)]


@asynccontextmanager
async def rack(
    *,
    store: Store | None = None,
    clock: ManualClock | None = None,
    policy: Policy | None = None,
    fencer: Fencer | None = None,
    seed: int = 1,
    root_seed: int = 1,
    bootstrap: str | None = None,
    root: RootKey | None = None,
) -> AsyncIterator[Kit]:
    """An authority that runs until the block ends; the store, when given, stays open. `bootstrap`: the operator's token
    of a former run."""
    clock = clock or ManualClock()
    env = Environment(clock, SeededEntropy(seed))
    used = store or MemoryStore()
    root_key = Ed25519PrivateKey.from_private_bytes(SeededEntropy(root_seed).bytes(32))
    authority = await Authority.start(used, root or root_key, env, policy, fencer)
    app = create_app(authority)
    token = await authority.operator_token(bootstrap)
    operator = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url=URL, headers={"authorization": f"Bearer {token}"}
    )
    kit = Kit(clock, env, used, root_key, authority, operator, app)
    try:
        yield kit
    finally:
        for client in kit.opened:
            await client.close()
        await operator.aclose()
        await authority.stop()
        if store is None:
            await used.close()


def run(scenario: Callable[[Kit], Awaitable[None]], **options: Any) -> None:
    """Run `scenario` against a fresh rack."""

    async def main() -> None:
        async with asyncio.timeout(20), rack(**options) as kit:
            await scenario(kit)

    asyncio.run(main())


async def send_again(kit: Kit, head: Head, **changes: Any) -> httpx.Response:
    """Send the head's last request once more, with some of it changed."""
    last = head.transport.sent[-1]
    parts: dict[str, Any] = {
        "method": last.method, "url": last.url, "content": last.content, "headers": dict(last.headers),
    }  # fmt: skip
    parts["headers"] |= changes.pop("headers", {})
    parts |= changes
    async with httpx.AsyncClient(transport=httpx.ASGITransport(kit.app)) as http:
        return await http.request(**parts)
