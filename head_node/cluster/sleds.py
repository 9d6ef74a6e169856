"""The sleds as this head reaches them: one association per sled, shared by all volumes, kept open by primaries and
secondaries alike, so that a takeover begins with ATTACH and not with a handshake."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

from head_node.store.records import SledRecord
from sled_controller.backoff import Backoff
from sled_controller.environment import Environment
from sled_controller.errors import SledError
from sled_controller.fabric.client import SledClient
from sled_controller.sled_start import SledStart

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MIN: Final = 0.05
BACKOFF_SECONDS_MAX: Final = 2.0
"""A sled that comes back is used again within this time; a dead one costs one dial per this time."""

MakeClient: TypeAlias = Callable[[SledRecord], SledClient]
Listener: TypeAlias = Callable[[UUID, SledClient | None], None]


class SledDirectory(Protocol):
    """What a volume asks of the sleds."""

    def client(self, sled: UUID) -> SledClient | None: ...
    def subscribe(self, listener: Listener) -> Callable[[], None]: ...


class _Association:
    """Keeps one sled connected, with growing pauses while it cannot be reached."""

    def __init__(self, record: SledRecord, make: MakeClient, changed: Listener, env: Environment) -> None:
        self.record = record
        self.client: SledClient | None = None
        self.reason = "not connected yet"
        self.connects_total = 0
        self.seen = record.start
        """The newest start that is known here: a sled that shows an older one has forgotten fences (F2)."""
        self.start = SledStart()
        """The one that was met last, refused or not."""
        self._make = make
        self._changed = changed
        self._env = env
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        backoff = Backoff(self._env, BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX)
        while True:
            client = self._make(self.record)
            try:
                await client.open()
            except SledError as error:
                self._note(str(error))
                await client.close()
                await asyncio.sleep(backoff.next_s())
                continue
            self.start = client.start
            if why := self.seen.went_back(client.start):
                self._note(f"{why}: it was put back to an older state; an operator has to accept it")
                await client.close()
                await asyncio.sleep(backoff.next_s())
                continue
            self.seen = client.start
            backoff.reset()
            self.connects_total += 1
            log.info("event=sled_connected sled=%s name=%s", self.record.id, self.record.name)
            self.client, self.reason = client, ""
            self._changed(self.record.id, client)
            try:
                await asyncio.wait([client.closed])
            finally:
                self.client = None
                await client.close()
            self._note("the association ended")
            self._changed(self.record.id, None)

    def follow(self, record: SledRecord) -> None:
        """The authority has noted a newer start, or an operator has accepted one that went back."""
        if record.accepted != self.record.accepted or record.start.is_after(self.seen):
            self.seen = record.start
        self.record = record

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def _note(self, reason: str) -> None:
        if reason != self.reason:
            log.warning("event=sled_unreachable sled=%s name=%s reason=%s", self.record.id, self.record.name, reason)
        self.reason = reason


class Sleds:
    """All sleds of the rack. Follows the authority's view through `update`."""

    def __init__(self, make: MakeClient, env: Environment) -> None:
        self._make = make
        self._env = env
        self._associations: dict[UUID, _Association] = {}
        self._listeners: dict[Listener, None] = {}
        self._closing: dict[asyncio.Task[None], None] = {}

    def update(self, sleds: Mapping[UUID, SledRecord]) -> None:
        """Connect to new sleds, forget those that are gone, dial those whose address or key changed anew."""
        for sled, association in list(self._associations.items()):
            record = sleds.get(sled)
            if record is None or not _same_place(record, association.record):
                del self._associations[sled]
                self._background(association.close())
                self._tell(sled, None)
            else:
                association.follow(record)
        for sled, record in sleds.items():
            if sled not in self._associations:
                self._associations[sled] = _Association(record, self._make, self._tell, self._env)

    def client(self, sled: UUID) -> SledClient | None:
        """The open association with `sled`, if there is one."""
        association = self._associations.get(sled)
        return None if association is None else association.client

    def reachable(self, sleds: Iterable[UUID]) -> int:
        """How many of `sleds` have an open association now."""
        return sum(self.client(sled) is not None for sled in sleds)

    def push_key_set(self) -> None:
        """A newer key set is here: carry it to every sled that is connected."""
        for association in self._associations.values():
            if association.client is not None:
                self._background(_push(association.client))

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(sled, client or None)` at every change; returns what ends it."""
        self._listeners[listener] = None
        return lambda: self._listeners.pop(listener, None)

    def status(self) -> dict[str, dict[str, object]]:
        """By sled id: whether it is connected, and why not."""
        return {
            str(sled): {
                "reachable": association.client is not None,
                "connects_total": association.connects_total,
                "reason": association.reason,
                "boot_counter": association.start.boot_counter,
                "boot_id": association.start.boot_id.hex(),
            }
            for sled, association in self._associations.items()
        }

    async def close(self) -> None:
        """End every association."""
        associations, self._associations = list(self._associations.values()), {}
        await asyncio.gather(*(association.close() for association in associations), *self._closing)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing[task] = None
        task.add_done_callback(self._closing.pop)

    def _tell(self, sled: UUID, client: SledClient | None) -> None:
        for listener in list(self._listeners):
            listener(sled, client)


async def _push(client: SledClient) -> None:
    with contextlib.suppress(SledError):
        await client.push_key_set()


def _same_place(left: SledRecord, right: SledRecord) -> bool:
    return (left.address, left.public_key, left.nqn) == (right.address, right.public_key, right.nqn)
