"""A rack in one process for the cluster's tests: a real Head over real loopback links, with an authority and sleds that
are kept in memory, and clocks that can jump."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kit.credentials import BLOCK as BLOCK
from kit.credentials import GEOMETRY as GEOMETRY
from kit.credentials import KEY_SET as KEY_SET
from kit.credentials import ROOT_KEY as ROOT_KEY
from kit.credentials import ROOT_PUBLIC as ROOT_PUBLIC
from kit.credentials import SIGNING_KEY as SIGNING_KEY
from kit.credentials import VOLUME as VOLUME
from kit.credentials import credential_of as credential_of
from kit.credentials import record_of as record_of
from kit.memory_sled import MemorySled as MemorySled
from kit.memory_sled import MemorySledClient as MemorySledClient
from kit.skewed_clock import SkewedClock as SkewedClock
from rackctl.simulation.log_disk import MemoryDirectory, MemoryDisk

from head_node.authority import transitions
from head_node.authority.errors import AuthorityError, AuthorityUnavailable, NotEligible
from head_node.cluster.head import Head
from head_node.cluster.lease import LeaseTerms
from head_node.cluster.states import VolumeState
from head_node.cluster.volume_controller import VolumeController
from head_node.store.records import (
    Column,
    HeadRecord,
    LogEnd,
    LostRange,
    Member,
    RackView,
    SledRecord,
    VolumeRecord,
)
from head_node.store.records import VolumeState as RecordState
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogMissing
from head_node.volume.limits import Limits
from sled_controller.environment import Environment

T = TypeVar("T")
TERMS = LeaseTerms.scaled(500)
LIMITS = Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; ten seconds is for ever here."""
    return asyncio.run(asyncio.wait_for(work, 10))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    while not condition():  # noqa: ASYNC110 (the condition is state, no event marks it)
        await asyncio.sleep(0.001)


class MemoryAuthority:
    """The authority's transitions over a dictionary; every head gets its own `Api`."""

    def __init__(self) -> None:
        self.records: dict[UUID, VolumeRecord] = {}
        self.heads: dict[UUID, HeadRecord] = {}
        self.sleds: dict[UUID, SledRecord] = {}
        self.revision = 1
        self.down = False
        self.term_ms = 600_000
        self.journal: list[tuple[Any, ...]] = []
        self.evidence: list[bytes] = []
        self.ahead_ms = 0
        """Of what is issued, as an authority that follows its sleds' time."""
        self.deleted: defaultdict[UUID, set[UUID]] = defaultdict(set)
        """By head: deleted volumes whose log it has not said to have removed."""
        self.secrets: dict[UUID, bytes] = {}
        """Sealed, of volumes with hosts that authenticate."""
        self.strays: list[UUID] = []
        self.asked_sleds: list[MemorySled] = []
        self._changed = asyncio.Event()

    def put(self, record: VolumeRecord) -> VolumeRecord:
        self.records[record.volume] = record
        self.touch()
        return record

    def touch(self) -> None:
        self.revision += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self) -> None:
        await self._changed.wait()

    def view(self, head: UUID) -> RackView:
        mine = {record.volume: record for record in self.records.values() if head in record.heads}
        deleted = frozenset(self.deleted[head])
        return RackView(
            self.revision, dict(self.heads), dict(self.sleds), KEY_SET.sign(ROOT_KEY), mine, dict(self.secrets), deleted
        )  # fmt: skip


class Api:
    """What one head process may ask (the cluster's Authority protocol)."""

    def __init__(self, authority: MemoryAuthority, head: UUID, public: bytes) -> None:
        self._authority = authority
        self._head = head
        self._public = public
        self._claims: dict[UUID, int] = {}
        self.cut_off = False
        self.refusal: AuthorityError | None = None
        """What every call is answered with."""
        self.said_expired = 0
        self.lose_replies: set[str] = set()
        """Names of calls whose next answer is lost after they were carried out."""
        self.gates: dict[str, asyncio.Event] = {}
        """Calls wait here before they are carried out."""
        self.reports: list[Mapping[str, Any]] = []

    async def view(self, after: int | None = None, wait_ms: int = 0) -> RackView:
        await self._enter("view")
        authority = self._authority
        while after is not None and authority.revision <= after:
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes as its work is done.
                async with asyncio.timeout(wait_ms / 1000):
                    await authority.changed()
            except TimeoutError:
                break
            await self._enter("view")
        return authority.view(self._head)

    async def takeover(
        self, volume: UUID, *, expected_version: int, log_id: UUID, in_doubt: bool = False
    ) -> tuple[VolumeRecord, bytes]:
        await self._enter("takeover")
        old = self._authority.records[volume]
        taken = transitions.take_over(old, self._head, log_id, expected_version, in_doubt=in_doubt)
        record = self._authority.put(taken)
        self._authority.journal.append(("takeover", self._head, record.epoch))
        self._leave("takeover")
        self._claims[volume] = record.epoch
        return record, self._credential(record)

    async def change_members(
        self, volume: UUID, *, epoch: int, expected_version: int, add: Member | None = None,
        remove: Member | None = None, lost: bool = False,
    ) -> VolumeRecord:  # fmt: skip
        self._authority.journal.append(("asked", add, remove))
        await self._enter("change_members")
        self._claim(volume, epoch)
        old = self._authority.records[volume]
        record = self._authority.put(
            transitions.change_members(old, self._head, epoch, expected_version, add=add, remove=remove, lost=lost)
        )
        self._authority.journal.append(("members", add, remove))
        self._leave("change_members")
        return record

    async def set_columns(
        self, volume: UUID, *, epoch: int, expected_version: int, columns: Sequence[Column]
    ) -> VolumeRecord:  # fmt: skip
        await self._enter("set_columns")
        self._claim(volume, epoch)
        old = self._authority.records[volume]
        record = self._authority.put(
            transitions.set_columns(old, self._head, epoch, expected_version, columns, self._authority.sleds)
        )
        self._leave("set_columns")
        return record

    async def lost_declared(
        self, volume: UUID, *, epoch: int, expected_version: int, lost: LostRange
    ) -> VolumeRecord:  # fmt: skip
        await self._enter("lost_declared")
        self._claim(volume, epoch)
        old = self._authority.records[volume]
        record = self._authority.put(transitions.lost_declared(old, self._head, epoch, expected_version, lost))
        self._leave("lost_declared")
        return record

    async def renew(self, volume: UUID, *, epoch: int, expired: bool = False) -> bytes:
        await self._enter("renew")
        self.said_expired += expired
        if expired:
            self._authority.ahead_ms = max(sled.ahead_ms for sled in self._authority.asked_sleds)
        record = self._authority.records[volume]
        transitions.check_renewal(record, self._head, epoch)
        self._authority.journal.append(("renewed", epoch))
        return self._credential(record)

    async def confirm_log_removed(self, volume: UUID) -> None:
        await self._enter("confirm_log_removed")
        self._authority.deleted[self._head].discard(volume)
        self._authority.touch()

    async def confirm_deleted(self, volume: UUID, *, epoch: int, strays: Collection[UUID] = ()) -> None:
        await self._enter("confirm_deleted")
        self._authority.strays = list(strays)
        transitions.check_deleted(self._authority.records[volume], self._head, epoch)
        del self._authority.records[volume]
        self._authority.touch()

    async def report_credential(self, credential: bytes) -> VolumeRecord:
        await self._enter("report_credential")
        self._authority.evidence.append(credential)
        return self._authority.records[VOLUME]

    async def report_divergence(
        self, volume: UUID, *, epoch: int, parted: int, logs: Sequence[LogEnd]
    ) -> VolumeRecord:  # fmt: skip
        await self._enter("report_divergence")
        self._claim(volume, epoch)
        self._authority.journal.append(("diverged", parted, logs))
        record = self._authority.records[volume]
        if record.state is not RecordState.FROZEN:
            record = self._authority.put(transitions.freeze(record))
        self._leave("report_divergence")
        return record

    async def report(self, status: Mapping[str, Any]) -> None:
        await self._enter("report")
        self.reports.append(status)

    def _credential(self, record: VolumeRecord) -> bytes:
        authority = self._authority
        return credential_of(
            record.epoch, volume=record.volume, head=self._public, term_ms=authority.term_ms,
            ahead_ms=authority.ahead_ms,
        )  # fmt: skip

    def _claim(self, volume: UUID, epoch: int) -> None:
        if self._claims.get(volume) != epoch:
            raise NotEligible("another process took this epoch")

    async def _enter(self, name: str) -> None:
        await asyncio.sleep(0)
        gate = self.gates.get(name)
        if gate is not None:
            await gate.wait()
        if self.cut_off or self._authority.down:
            raise AuthorityUnavailable("out of reach")
        if self.refusal is not None:
            raise self.refusal

    def _leave(self, name: str) -> None:
        if name in self.lose_replies:
            self.lose_replies.discard(name)
            raise AuthorityUnavailable("the answer was lost")


class KitHead:
    """One head process: `start`, `stop` in order, `crash` as kill -9 would."""

    def __init__(self, rack: "Rack", number: int) -> None:
        self.rack = rack
        self.number = number
        self.id = UUID(int=100 + number)
        self.key = Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
        self.public = self.key.public_key().public_bytes_raw()
        self.clock = SkewedClock()
        self.disk = MemoryDisk()
        self.aside: list[MemoryDisk] = []
        """Logs that were set aside, oldest first."""
        self.held: list[Callable[[], None]] = []
        """What finishes the commits of `hold_commits`, once each."""
        self.port = 0
        self.sleds_cut = False
        self.dropped = 0
        self.api: Api
        self.head: Head

    @property
    def controller(self) -> VolumeController:
        return self.head.controllers[VOLUME]

    @property
    def engine(self) -> VolumeEngine:
        engine = self.controller._engine
        assert engine is not None
        return engine

    @property
    def state(self) -> VolumeState | None:
        controller = self.head.controllers.get(VOLUME)
        return None if controller is None else controller.state

    @property
    def serving(self) -> bool:
        return self.state is VolumeState.SERVING

    async def start(self) -> None:
        env = Environment(clock=self.clock)
        self.api = Api(self.rack.authority, self.id, self.public)
        self.head = Head(
            self.id, self.key, self.api, root_public=lambda: ROOT_PUBLIC, make_client=self._client,
            open_engine=self._open, remove_log=self._remove, set_log_aside=self._set_aside, terms=TERMS, env=env,
            tail_wait_ms=self.rack.tail_wait_ms,
        )  # fmt: skip
        host, self.port = await self.head.listener.start("127.0.0.1", self.port)
        authority = self.rack.authority
        addresses = {"peer": (host, self.port), "nvme": (host, 4420 + self.number)}
        authority.heads[self.id] = HeadRecord(self.id, "head", self.public, addresses, number=self.number + 1)
        authority.touch()
        await self.head.start()

    async def stop(self) -> None:
        await self.head.stop()

    async def crash(self) -> None:
        """Everything of this process ends where it is; only the disk stays."""
        self.disk.crash()
        self.api.cut_off = True
        head = self.head
        tasks = [controller._task for controller in head.controllers.values()]
        for controller in head.controllers.values():
            role = controller._role
            if role is not None and role._timer is not None:
                role._timer.cancel()
            if controller._engine is not None:
                await controller._engine._idle_note.close(wait=False)
            controller._engine = None  # a killed process closes nothing
        await head.listener.close()
        for task in tasks:
            assert task is not None
            task.cancel()
        await asyncio.wait([task for task in tasks if task is not None])
        await head.watch.close()
        await head.sleds.close()
        if head._reporter is not None:
            head._reporter.cancel()

    def hold_commits(self) -> list[Callable[[], None]]:
        """From now on the log disk hangs: what would finish each commit is put into the list instead."""
        held = self.held

        def hold(finish: Callable[[], None]) -> None:
            waiting = [finish]
            held.append(lambda: waiting.pop()() if waiting else None)

        self.disk.gate = hold
        return held

    def write(self, lba: int, data: bytes) -> "asyncio.Future[int]":
        """A client's write here; the future may never be done (F6, F7)."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.controller.served().write(lba * BLOCK, data, False, future.set_result)
        return future

    async def read(self, lba: int) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.controller.served().read(
            lba * BLOCK, BLOCK, lambda error, buffers: future.set_result(b"".join(buffers) if not error else b"")
        )
        return await future

    def _client(self, sled: SledRecord) -> Any:
        return MemorySledClient(self.rack.sleds[sled.id], lambda: self.sleds_cut)

    async def _open(self, record: VolumeRecord) -> VolumeEngine:
        env = Environment(clock=self.clock)
        try:
            return await VolumeEngine.open(MemoryDirectory(self.disk), volume=record.volume, env=env, limits=LIMITS)
        except LogMissing:
            self.disk = MemoryDisk()  # a full resync that was not finished leaves no log
            return await VolumeEngine.create(
                MemoryDirectory(self.disk), volume=record.volume, geometry=record.geometry,
                size_blocks=record.size_bytes // BLOCK, env=env, limits=LIMITS,
            )  # fmt: skip

    async def _remove(self, volume: UUID) -> None:
        self.disk = MemoryDisk()

    async def _set_aside(self, volume: UUID) -> None:
        self.aside.append(self.disk)
        self.disk = MemoryDisk()


class Rack:
    """Heads, sleds and an authority."""

    def __init__(self, heads: int = 2, sleds: int = 3) -> None:
        self.authority = MemoryAuthority()
        self.sleds = {sled.id: sled for sled in map(MemorySled, range(sleds))}
        self.authority.sleds = {sled.id: sled.record for sled in self.sleds.values()}
        self.authority.asked_sleds = list(self.sleds.values())
        self.heads = [KitHead(self, number) for number in range(heads)]
        self.tail_wait_ms = 2 * TERMS.ttl_ms

    @property
    def record(self) -> VolumeRecord:
        return self.authority.records[VOLUME]

    def create_volume(self, **changes: Any) -> None:
        heads = [head.id for head in self.heads]
        self.authority.put(record_of(heads, list(self.sleds), **changes))

    def is_member(self, head: KitHead) -> bool:
        return self.record.member(head.id) is not None

    async def start(self, heads: Iterable[KitHead] | None = None) -> None:
        for head in heads if heads is not None else self.heads:
            await head.start()

    async def start_serving(self) -> tuple[KitHead, KitHead]:
        """A volume served by the first head and followed by the second, which is a member."""
        self.create_volume()
        await self.start()
        first, second = self.heads[:2]
        await until(lambda: first.serving and self.is_member(second))
        return first, second

    async def stop(self, heads: Iterable[KitHead]) -> None:
        for head in heads:
            await head.stop()


def with_rack(scenario: Callable[[Rack], Coroutine[Any, Any, None]], heads: int = 2) -> None:
    """Run a scenario; whatever still runs afterwards is stopped, for which a disk that hangs goes on."""

    async def work() -> None:
        rack = Rack(heads)
        try:
            await scenario(rack)
        finally:
            for head in rack.heads:
                head.disk.gate = None
                for finish in head.held:
                    finish()
                if hasattr(head, "head") and not head.api.cut_off:
                    await asyncio.wait_for(head.stop(), 5)

    run(work())


RECORD_ACTIVE = RecordState.ACTIVE
