"""Who must have a record before it is committed (F5), as the primary knows it: pure bookkeeping, then the changes.

An addition counts before its put is sent; a removal only after its success is known. A put whose outcome is unknown
is repeated with the same expected version until the answer is definite: success, or a changed record, after which the
first try can never take effect any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol
from uuid import UUID

from head_node.authority.errors import AuthorityError, AuthorityUnavailable, RecordChanged, Unauthorised
from head_node.cluster.errors import Deposed
from head_node.store.records import Member, VolumeRecord
from sled_controller.backoff import Backoff
from sled_controller.environment import Environment

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.1
RETRY_SECONDS_MAX: Final = 2.0
"""Between two tries of a change whose outcome is unknown; the authority is one request away or restarting."""


READY_SECONDS_MAX: Final = 0.3
"""A member that counts, but has not said that it holds everything, is waited for so long, with every client: less than
the silence time."""
READY_LOOKS: Final = 100


class Membership:
    """The members that a commit of this epoch waits for."""

    def __init__(self, own: UUID, record: VolumeRecord) -> None:
        self.own = own
        self.record = record
        self._adding: Member | None = None

    @property
    def required(self) -> frozenset[UUID]:
        """Heads other than this one whose durability a commit needs, and whose answers the lease needs."""
        heads = {member.head for member in self.record.current}
        if self._adding is not None:
            heads.add(self._adding.head)
        return frozenset(heads - {self.own})

    @property
    def adding(self) -> Member | None:
        return self._adding

    @property
    def exposed(self) -> bool:
        """Only one member holds the newest writes."""
        return self.record.exposed

    @property
    def enough(self) -> bool:
        """As many members as the volume's policy asks for hold every acknowledged write (D1)."""
        return len(self.record.current) >= self.record.min_current

    @property
    def may_shrink(self) -> bool:
        """Whether a member may be removed: one that is only away is kept where the policy needs it (D1)."""
        return len(self.record.current) > self.record.min_current

    def shortage(self, silent: Collection[UUID]) -> str:
        """Why a volume is stopped while `silent` members do not answer; empty when it is not."""
        needed = self.record.min_current
        answering = sum(member.head not in silent for member in self.record.current)
        return "" if answering >= needed else f"{answering} of at least {needed} members answer; requests wait"

    def log_of(self, head: UUID) -> UUID | None:
        """The log that counts for `head`: another log of the same head is another member (F5)."""
        if self._adding is not None and self._adding.head == head:
            return self._adding.log
        member = self.record.member(head)
        return None if member is None else member.log

    def begin_add(self, member: Member) -> None:
        """From now on `member` counts; call before the put is sent."""
        assert self._adding is None
        assert self.record.member(member.head) is None
        self._adding = member

    def settled(self, record: VolumeRecord) -> None:
        """A put has a definite outcome and `record` is what holds now: additions that are not in it are over."""
        self._adding = None
        self.observed(record)

    def observed(self, record: VolumeRecord) -> None:
        """A record came from the authority. Older ones are ignored."""
        if record.version > self.record.version:
            self.record = record


class DurableProgress:
    """Which members get nowhere: they answer heartbeats, but have made nothing durable for `patience_ns` though they
    owe it (a log disk that hangs, or is full). Times are handed in, in nanoseconds of CLOCK_BOOTTIME."""

    def __init__(self, patience_ns: int) -> None:
        self._patience_ns = patience_ns
        self._seen: dict[UUID, tuple[int, int]] = {}

    def observe(self, head: UUID, durable: int, lag: int, now_ns: int) -> None:
        """Note what `head` has durable now, and how many records it owes."""
        before = self._seen.get(head)
        if not lag:
            self.forget(head)  # time in which nothing was owed is not held against it
        elif before is None or durable != before[0]:
            self._seen[head] = (durable, now_ns)

    def stalled(self, head: UUID, now_ns: int) -> bool:
        """Whether `head` has owed the same record for the whole patience."""
        seen = self._seen.get(head)
        return seen is not None and now_ns >= seen[1] + self._patience_ns

    def forget(self, head: UUID) -> None:
        """It owes nothing, or its link is gone: what comes next is counted anew."""
        self._seen.pop(head, None)


class MembersApi(Protocol):
    """What this module asks of the authority."""

    async def change_members(
        self, volume: UUID, *, epoch: int, expected_version: int, add: Member | None = None,
        remove: Member | None = None, lost: bool = False,
    ) -> VolumeRecord: ...  # fmt: skip


class MembershipChanges:
    """Carries out one change at a time, as primary of `epoch`. `on_change` is called in the same loop turn in which
    `required` changes; set_required and the lease follow it."""

    def __init__(
        self,
        api: MembersApi,
        membership: Membership,
        epoch: int,
        reread: Callable[[], Awaitable[VolumeRecord]],
        on_change: Callable[[], None],
        env: Environment | None = None,
    ) -> None:
        self._env = env
        self._api = api
        self._reread = reread
        self._membership = membership
        self._epoch = epoch
        self._on_change = on_change
        self._lock = asyncio.Lock()

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    async def add(self, member: Member, near: Callable[[], bool], ready: Callable[[], bool]) -> bool:
        """Add a member. One that is `near` begins to count: nothing more is committed without it. So it soon holds
        everything committed, also under load, which `ready` says, and only then is the put sent. False: not near, not
        ready in time, or refused. Raises Deposed."""
        async with self._lock:
            adding = self._membership.adding  # of a former try without a definite outcome
            if adding not in (None, member) or self._membership.record.member(member.head) is not None:
                return False
            if adding is None:
                if not near():
                    return False
                self._membership.begin_add(member)
                self._on_change()
                if not await self._becomes(ready):
                    # No put was sent, so it counts no more.
                    self._membership.settled(self._membership.record)
                    self._on_change()
                    return False
            elif not ready():
                return False
            return await self._put(add=member)

    async def _becomes(self, ready: Callable[[], bool]) -> bool:
        """Whether it is ready within READY_SECONDS_MAX."""
        for _ in range(READY_LOOKS):
            if ready():
                return True
            await asyncio.sleep(READY_SECONDS_MAX / READY_LOOKS)
        return ready()

    async def remove(self, member: Member, wanted: Callable[[], bool], *, lost: bool = False) -> bool:
        """Remove a member; it counts until the put has succeeded. `lost`: its log is gone. False: not wanted any more,
        or refused. Raises Deposed."""
        async with self._lock:
            if member not in self._membership.record.current or not wanted():
                return False
            return await self._put(remove=member, lost=lost)

    async def _put(self, *, add: Member | None = None, remove: Member | None = None, lost: bool = False) -> bool:
        membership = self._membership
        volume = membership.record.volume
        backoff = Backoff(self._env, RETRY_SECONDS, RETRY_SECONDS_MAX)
        while True:
            expected = membership.record.version
            try:
                record = await self._api.change_members(
                    volume, epoch=self._epoch, expected_version=expected, add=add, remove=remove, lost=lost
                )
            except RecordChanged as error:
                record = error.record
            except (AuthorityUnavailable, Unauthorised) as error:
                log.warning("event=membership_outcome_unknown volume=%s epoch=%d error=%s", volume, self._epoch, error)
                await asyncio.sleep(backoff.next_s())
                continue
            except AuthorityError as error:
                log.warning("event=membership_refused volume=%s epoch=%d error=%s", volume, self._epoch, error)
                record = await self._reread()
            return self._settle(record, add, remove)

    def _settle(self, record: VolumeRecord, add: Member | None, remove: Member | None) -> bool:
        if record.epoch != self._epoch:
            raise Deposed(record)
        self._membership.settled(record)
        self._on_change()
        done = add in record.current if add is not None else remove not in record.current
        log.info(
            "event=membership volume=%s epoch=%d version=%d added=%s removed=%s done=%s",
            record.volume, record.epoch, record.version,
            add and add.head, remove and remove.head, done,
        )  # fmt: skip
        return done
