"""Which members a primary adds and removes: who has caught up, who is silent, who gets nothing onto its disk, who is
slow."""

import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final
from uuid import UUID

from head_node.cluster.lease import MS, PrimaryLease
from head_node.cluster.member_links import MemberLinks
from head_node.cluster.membership import DurableProgress, Membership, MembershipChanges
from head_node.cluster.pace import VolumePace
from head_node.store.records import Member

log = logging.getLogger(__name__)

PAUSE_MS: Final = 500
"""After a change that was refused, or is not wanted any more."""

ADD_PAUSE_MS: Final = 2000
"""After an addition that came to nothing: clients have waited for the member in vain."""

Begin = Callable[[str, Coroutine[Any, Any, None]], None]
"""Starts supervised work unless work of that name is under way."""


class MemberWatch:
    """Looked after with each heartbeat of the primary of `epoch`; one change at a time."""

    def __init__(
        self, volume: UUID, epoch: int, membership: Membership, changes: MembershipChanges, links: MemberLinks,
        lease: PrimaryLease, durability: DurableProgress, pace: VolumePace, now_ns: Callable[[], int], begin: Begin,
    ) -> None:  # fmt: skip
        self._volume = volume
        self._epoch = epoch
        self._membership = membership
        self._changes = changes
        self._links = links
        self._lease = lease
        self._durability = durability
        self._pace = pace
        self._now_ns = now_ns
        self._begin = begin
        self._pause_ns = 0
        self._add_ns = 0
        """No addition is begun before."""

    def look(self) -> None:
        """Begin the change that is due, if one is."""
        now_ns = self._now_ns()
        if self._changes.busy or now_ns < self._pause_ns:
            return
        record, removable = self._membership.record, self._membership.may_shrink
        for head in self._lease.silent(now_ns):
            member = record.member(head)
            if member is not None and removable:
                log.warning("event=member_silent volume=%s epoch=%d head=%s", self._volume, self._epoch, head)
                silent = partial(self._silent, head)
                self._begin("members", self._remove(member, silent, "removed from the members for silence; join again"))
                return
        for sender in self._links.senders():
            head = sender.member.head
            self._durability.observe(head, sender.durable, sender.lag, now_ns)
            if record.member(head) == sender.member and self._stalled(head) and removable:
                log.warning("event=member_stalled volume=%s epoch=%d head=%s", self._volume, self._epoch, head)
                stalled = partial(self._stalled, head)
                self._begin("members", self._remove(sender.member, stalled, "your log makes nothing durable"))
                return
            if record.member(head) == sender.member and self._pace.slow(head) and removable:
                slow = partial(self._pace.slow, head)
                # It goes on following over this link, which is how it is seen to be fast again.
                self._begin("members", self._remove(sender.member, slow))
                return
            if (
                record.member(head) is None
                and head in record.heads
                and now_ns >= self._add_ns
                and self.near(sender.member)
            ):
                self._begin("members", self._add(sender.member))
                return

    def wiped(self, head: UUID) -> None:
        """A member has come with another log than the one that counts, which is gone."""
        member = self._membership.record.member(head)
        if member is not None:

            async def remove() -> None:
                await self._changes.remove(member, lambda: True, lost=True)

            self._begin("wiped", remove())

    def near(self, member: Member) -> bool:
        """Whether `member` may begin to count: it keeps up, its answers would keep the lease (F7), and it is fast."""
        sender = self._links.sender(member.head)
        return (
            sender is not None
            and sender.member == member
            and sender.keeps_up
            and not self._pace.slow(member.head)
            and self._lease.fresh(member.head, self._now_ns())
        )

    def ready(self, member: Member) -> bool:
        """Whether `member` holds everything committed, and its answers keep the lease (F5, F7)."""
        sender = self._links.sender(member.head)
        return (
            sender is not None
            and sender.member == member
            and sender.holds_all
            and self._lease.fresh(member.head, self._now_ns())
        )

    async def _add(self, member: Member) -> None:
        if await self._changes.add(member, lambda: self.near(member), lambda: self.ready(member)):
            log.info("event=member_added volume=%s epoch=%d head=%s", self._volume, self._epoch, member.head)
        else:
            self._add_ns = self._now_ns() + ADD_PAUSE_MS * MS

    def _silent(self, head: UUID) -> bool:
        return head in self._lease.silent(self._now_ns())

    def _stalled(self, head: UUID) -> bool:
        return self._durability.stalled(head, self._now_ns())

    async def _remove(self, member: Member, wanted: Callable[[], bool], reason: str = "") -> None:
        """With a `reason` its link is closed too."""
        if await self._changes.remove(member, wanted):
            self._durability.forget(member.head)
            if reason:
                self._links.drop(member.head, reason)
        else:
            self._pause_ns = self._now_ns() + PAUSE_MS * MS
