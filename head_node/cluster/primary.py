"""The primary of one epoch on this head: takes office, serves under the lease, and knows when to stop.

Everything here ends with an `Outcome`; the controller cleans up and becomes a follower again. In doubt the role holds:
it acknowledges nothing (F6) until it knows.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from uuid import UUID

from head_node.authority.errors import AuthorityError, AuthorityUnavailable, RecordChanged
from head_node.cluster.attachments import SledColumn, VolumeAttachments
from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import ClusterError, Deposed, TakeoverImpossible
from head_node.cluster.frames import Join
from head_node.cluster.lease import MS, PrimaryLease
from head_node.cluster.lost_blocks import LostBlocks
from head_node.cluster.member_links import MemberLinks
from head_node.cluster.member_watch import MemberWatch
from head_node.cluster.membership import DurableProgress, Membership, MembershipChanges
from head_node.cluster.missing_columns import MissingColumns
from head_node.cluster.pace import VolumePace
from head_node.cluster.replication import LogSender
from head_node.cluster.services import Services
from head_node.cluster.states import VolumeState
from head_node.cluster.stepdown import End as End
from head_node.cluster.stepdown import Judgement, Outcome, Verdict, judge
from head_node.cluster.takeover import Grant, credential_term_ns, receipts_needed
from head_node.store.records import LogEnd, Member, VolumeRecord
from head_node.store.records import VolumeState as RecordState
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import VolumeError
from head_node.volume.policy import SledPolicy
from sled_controller.backoff import Backoff
from sled_controller.errors import CredentialExpired, CredentialMalformed, CredentialRefused, FencedOff, SledError
from sled_controller.keyset import KeySet
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)

ATTACH_SECONDS_MAX: Final = 3.0
"""Without enough receipts by then the head gives the epoch up, so that another member may try."""
STRAGGLER_SECONDS: Final = 0.05
"""A sled that answers this late is given to the engine after serving has begun."""
DEPOSED_PROBE_SECONDS: Final = 1.0
"""A deposed primary waits this long for a sled to show it the newer credential before it takes the record's word."""
PROBE_PAUSE_MS: Final = 500
HANDOVER_SECONDS_MAX: Final = 0.5
OWN_PATIENCE: Final = 2
"""Times the patience with a member's log disk: of two that hang together the member's goes first, since a takeover
costs more."""
DELETE_SECONDS_MAX: Final = 5.0


class PrimaryRole:
    """One epoch. `to` moves the volume's state; `run` returns when this head is primary no longer."""

    def __init__(
        self, services: Services, engine: VolumeEngine, grant: Grant, to: Callable[[VolumeState], None]
    ) -> None:
        now_ns = services.env.clock.boottime_ns()
        self._services = services
        self._engine = engine
        self._to = to
        self.volume = grant.record.volume
        self.epoch = grant.record.epoch
        self.lease = PrimaryLease(services.terms, now_ns=now_ns, term_end_ns=grant.term_end_ns)
        self.membership = Membership(services.head, grant.record)
        self._own_durability = DurableProgress(OWN_PATIENCE * services.terms.stalled_ns)
        self.attachments = VolumeAttachments(grant.record, self.epoch, grant.credential, services.sleds, services.env)
        self._missing = MissingColumns(services.authority, self.attachments, self.membership, self.epoch)
        self._lost = LostBlocks(services.authority, engine, self.membership, self.epoch, services.note)
        self._renewals = Backoff(services.env, PROBE_PAUSE_MS / 1000, PROBE_PAUSE_MS / 500)
        self.fenced_total = 0
        self.last_fenced: dict[str, Any] | None = None
        self._fences_noted: set[UUID] = set()
        self._changes = MembershipChanges(
            services.authority, self.membership, self.epoch, self._reread, self._members_changed, services.env
        )
        self.links = MemberLinks(
            engine, self.lease, services.env, self.epoch, log_of=self.membership.log_of,
            on_durable=self._member_durable, on_wiped=self._member_wiped, on_diverged=self._diverged,
            on_newer_epoch=lambda epoch: self._suspect(f"a member has seen epoch {epoch}"), record=lambda: self.record,
        )  # fmt: skip
        self.pace = VolumePace(services.head, services.terms.heartbeat_ms, now_ns)
        self.members = MemberWatch(
            self.volume, self.epoch, self.membership, self._changes, self.links, self.lease,
            DurableProgress(services.terms.stalled_ns), self.pace, self._now_ns, self._begin,
        )  # fmt: skip
        self._half_term_ns = grant.half_term_ns
        self._progress = VolumeState.ATTACHING
        self._held = False
        self._enough = self.membership.enough
        self._stopped = ""
        self._led = False
        self._lease_was_valid = True
        self._probed_ns = 0
        self._refusal_pause_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    @property
    def serving(self) -> bool:
        """Whether clients may be connected here (they may have to wait)."""
        return self._progress is VolumeState.SERVING

    @property
    def stopped(self) -> str:
        """Why clients wait though this head is primary: the volume's policy asks for more members (D1)."""
        return self._stopped

    @property
    def record(self) -> VolumeRecord:
        return self.membership.record

    async def run(self) -> Outcome:
        """Take office and serve; returns when it is over and nothing more is sent anywhere. The engine is left for
        the caller to step down or close."""
        engine = self._engine
        engine.lease = self._may_serve
        engine.on_append = self._appended
        engine.on_durable = lambda opnum: self.pace.own_log.answered(opnum, self._now_ns())
        engine.on_committed = self.links.committed
        engine.on_fenced = self._column_refused
        engine.on_failed = lambda error: self.end(End.LOG_FAILED, str(error))
        self.attachments.on_column = self._column_changed
        self.attachments.on_refused = self._fenced
        self.attachments.on_credential_refused = self._credential_refused
        self._members_changed()
        self._tick()
        self._begin("office", self._take_office())
        try:
            return await asyncio.shield(self._ended)
        finally:
            await self._leave_office()

    def end(self, end: End, detail: str, credential: bytes | None = None) -> None:
        """Stop being primary, for this reason; the first one counts."""
        if not self._ended.done():
            self.lease.end_term()
            self._engine.hold()
            self._ended.set_result(Outcome(end, detail, credential))

    def accept(self, connection: PeerConnection, head: UUID) -> None:
        """A link from another head of this volume."""
        if self._ended.done():
            connection.refuse("this head is just stopping to be primary")
        else:
            self.links.accept(connection, head)

    def record_changed(self, record: VolumeRecord) -> None:
        """The authority's view of the volume has changed."""
        if record.epoch < self.epoch or record.version <= self.membership.record.version:
            return
        if record.epoch > self.epoch or record.primary != self._services.head:
            self._depose(f"the record is in epoch {record.epoch} of head {record.primary}")
            return
        self.membership.observed(record)
        self._members_changed()

    def withdrawn(self) -> None:
        """The view does not name the volume any more: this head has no part in it, and stops in this turn. Of a volume
        that is being deleted that is how its end looks."""
        if "delete" not in self._tasks:
            self._depose("this head is not assigned to the volume any more")
            self._services.drop_clients(self.volume)

    @property
    def alone(self) -> bool:
        """No other member could take over: nobody is linked that is in `current`."""
        return not self._heirs()

    @property
    def can_destage_alone(self) -> bool:
        """Whether stripes could be committed without anybody else; members that are away may have to be kept (D1)."""
        return self.alone and (self.record.min_current == 1 or not self.membership.required)

    def _heirs(self) -> list[LogSender]:
        return [sender for sender in self.links.senders() if self.record.member(sender.member.head) is not None]

    async def hand_over(self) -> None:
        """Stop serving for good; a member that has everything may take over at once, which ends the role. Without
        one the role goes on, so that its columns can be used to destage."""
        self.lease.end_term()
        self._services.drop_clients(self.volume)
        heirs = self._heirs()
        if heirs and self._led:
            deadline_ns = self._now_ns() + int(HANDOVER_SECONDS_MAX * 1000) * MS
            while any(sender.lag for sender in heirs if self.links.linked(sender.member.head)):
                if self._now_ns() >= deadline_ns:
                    break
                await asyncio.sleep(0.005)
            self.links.release()
            self.end(End.HANDED_OVER, "handed over")

    # office

    async def _take_office(self) -> None:
        self.attachments.start()
        await self._first_receipts()
        await self.attachments.wait_attempts(STRAGGLER_SECONDS)
        if not self.record.columns:
            if self.record.state is RecordState.DELETING:
                # Nothing was ever written: there is nothing to lead, but namespaces that were not named yet.
                self._begin("delete", self._delete())
                return
            await self._missing.add(self._now_ns())
        self._advance(VolumeState.LEADING)
        given = self.attachments.columns()
        opnum = await self._engine.lead(self.epoch, given, self.record.forced_epoch)
        self._led = True
        for index, column in enumerate(self.attachments.columns()):
            if column is not given[index]:
                self._engine.set_column(index, column)
        self._members_changed()
        self.links.lead()
        for member in self.record.current:
            away = member.head in self.membership.required and not self.links.linked(member.head)
            if away and self.membership.may_shrink:
                await self._changes.remove(member, lambda head=member.head: not self.links.linked(head))  # type: ignore[misc]
        await self._engine.wait_committed(opnum)
        self._advance(VolumeState.SERVING)
        log.info(
            "event=serving volume=%s epoch=%d opnum=%d receipts=%d exposed=%s",
            self.volume, self.epoch, opnum, self.attachments.receipts, self.membership.exposed,
        )  # fmt: skip
        self._obey()

    async def _first_receipts(self) -> None:
        """Wait for enough receipts; of a new volume's sleds, for all that are reachable, while it is worth it."""
        needed = receipts_needed(self.record)
        if self.record.columns:
            await self.attachments.wait_receipts(needed, ATTACH_SECONDS_MAX)
            return
        reachable = self._services.sleds.reachable(self.record.sleds)
        try:
            await self.attachments.wait_receipts(max(needed, reachable), ATTACH_SECONDS_MAX)
        except TakeoverImpossible:
            if self.attachments.receipts < needed:
                raise

    async def _add_columns(self) -> None:
        try:
            await self._missing.add(self._now_ns())
        except RecordChanged as error:
            self.record_changed(error.record)

    async def _declare_lost(self) -> None:
        try:
            await self._lost.declare(self._now_ns())
        except RecordChanged as error:
            self.record_changed(error.record)

    async def _delete(self) -> None:
        self._advance(VolumeState.DELETING)
        self.lease.end_term()
        self._engine.hold()
        self._services.drop_clients(self.volume)
        await self._cease("columns")
        try:
            await self.attachments.wait_receipts(self.attachments.count, DELETE_SECONDS_MAX)
        except ClusterError:
            pass
        strays = await self.attachments.delete_namespaces()
        if strays:
            log.warning("event=namespaces_left volume=%s sleds=%s", self.volume, ",".join(map(str, strays)))
        self.links.deleted()
        await self._services.authority.confirm_deleted(self.volume, epoch=self.epoch, strays=strays)
        self.end(End.DELETED, "deleted")

    async def _leave_office(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._to(VolumeState.STEPPING_DOWN)
        self.lease.end_term()
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        self.links.close("this head is primary no longer")

    # lease, heartbeats, membership

    def _may_serve(self) -> bool:
        serving = self._progress is VolumeState.SERVING and not self._held and self._enough
        return serving and self.lease.valid(self._services.env.clock.boottime_ns())

    def _tick(self) -> None:
        if self._ended.done():
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._services.terms.heartbeat_ms / 1000, self._tick)
        self.links.heartbeat()
        self._watch_lease()
        now_ns = self._now_ns()
        self._watch_shortage(now_ns)
        if self._led:
            self._engine.ration(self._services.terms.heartbeat_ms * MS)
            self._watch_pace(now_ns)
            self._watch_log(now_ns)
            if not self._tasks.keys() & {"deposed", "diverged"}:
                self.members.look()
        if now_ns >= self._half_term_ns:
            self._begin("renew", self._renew())
        if self.record.state is RecordState.ACTIVE and self.serving and not self._held and self._missing.due(now_ns):
            self._begin("columns", self._add_columns())
        if self.record.state is RecordState.ACTIVE and self.serving and not self._held and self._lost.due(now_ns):
            self._begin("lost", self._declare_lost())

    def _watch_lease(self) -> None:
        now_ns = self._now_ns()
        valid = self.lease.valid(now_ns)
        if self._progress is not VolumeState.SERVING:
            return
        if valid != self._lease_was_valid:
            self._lease_was_valid = valid
            log.log(
                logging.INFO if valid else logging.WARNING,
                "event=lease volume=%s epoch=%d valid=%s lags_ms=%s",
                self.volume, self.epoch, valid, self.lease.lags_ms(now_ns),
            )  # fmt: skip
        if not valid and now_ns - self._probed_ns >= PROBE_PAUSE_MS * MS:
            self._probed_ns = now_ns
            self.attachments.probe()

    def _watch_shortage(self, now_ns: int) -> None:
        stopped = self.membership.shortage(self.lease.silent(now_ns))
        if stopped != self._stopped:
            self._stopped = stopped
            log.log(
                logging.WARNING if stopped else logging.INFO,
                "event=stopped volume=%s epoch=%d reason=%s", self.volume, self.epoch, stopped or "over",
            )  # fmt: skip

    def _watch_log(self, now_ns: int) -> None:
        """A log disk that hangs here keeps every client waiting: a member, which has every acknowledged write, shall
        take over. Without one the disk is waited for."""
        own = self._services.head
        self._own_durability.observe(own, self._engine.durable, self._engine.owed, now_ns)
        if not self._heirs() or self._ended.done():
            return
        if self._own_durability.stalled(own, now_ns):
            self._yield_to_member("the log disk of this head makes nothing durable")
        elif self.pace.slow(own) and any(not self.pace.slow(heir.member.head) for heir in self._heirs()):
            self._yield_to_member("the log disk of this head is slow")

    def _yield_to_member(self, reason: str) -> None:
        self.lease.end_term()
        self.links.release()
        self.end(End.HANDED_OVER, reason)

    def _watch_pace(self, now_ns: int) -> None:
        current = {member.head for member in self.record.current}
        for head in self.pace.tick(now_ns, self.links.senders(), current, self._engine.owed > 0):
            kind = "member-slow" if self.pace.slow(head) else "member-fast"
            said = {"epoch": self.epoch, "slow_head": str(head), "delay_ms": self.pace.delay_ms(head)}
            log.warning("event=%s volume=%s said=%s", kind.replace("-", "_"), self.volume, said)
            self._services.note(kind, {"volume": str(self.volume), **said})

    def _appended(self, first: int, last: int, buffers: Sequence[Buffer]) -> None:
        self.pace.own_log.sent(last, self._now_ns())
        self.links.appended(first, last, buffers)

    def _diverged(self, member: Member, join: Join, parted: int) -> None:
        """A member holds committed records that are not in this log, and no operator gave them up: acknowledge nothing
        more, and have the volume frozen, so that an operator can choose (D1)."""
        if self.record.state is RecordState.DELETING or "diverged" in self._tasks:
            return
        log.error(
            "event=logs_diverged volume=%s epoch=%d head=%s after=%d tail=%d committed=%d member_tail=%d",
            self.volume, self.epoch, member.head, parted, self._engine.durable, join.committed_opnum, join.tail_opnum,
        )  # fmt: skip
        engine, own = self._engine, self._services.head
        tail, committed = engine.settled_tail, engine.commit_point
        ends = [
            LogEnd(own, engine.log_id, tail.opnum, tail.epoch, committed.opnum, committed.epoch),
            LogEnd(
                member.head, member.log, join.tail_opnum, join.tail_epoch, join.committed_opnum, join.committed_epoch
            ),
        ]
        self._hold()
        self._begin("diverged", self._freeze_diverged(parted, ends))

    async def _freeze_diverged(self, parted: int, ends: list[LogEnd]) -> None:
        """Until the authority has answered nothing is acknowledged."""
        while not self._ended.done():
            try:
                record = await self._services.authority.report_divergence(
                    self.volume, epoch=self.epoch, parted=parted, logs=ends
                )
            except AuthorityUnavailable as error:
                log.warning("event=freeze_failed volume=%s epoch=%d error=%s", self.volume, self.epoch, error)
            except AuthorityError as error:
                log.warning("event=freeze_refused volume=%s epoch=%d error=%s", self.volume, self.epoch, error)
                self.record_changed(await self._reread())
                self.end(End.GAVE_UP, f"the logs differ below what was committed: {error}")
            else:
                self.record_changed(record)
            await asyncio.sleep(self._renewals.next_s())

    def _member_wiped(self, head: UUID) -> None:
        if self._led:
            self.members.wiped(head)

    def _members_changed(self) -> None:
        required = self.membership.required
        self._enough = self.membership.enough
        self.lease.require(required)
        self._engine.set_required(required)
        self._engine.set_policy(SledPolicy(self.record.exposed_stripes, self.record.read_wait_s))
        for head in required:
            sender = self.links.sender(head)
            if sender is not None and sender.durable:
                self._engine.member_durable(head, sender.durable)
        self._obey()

    def _obey(self) -> None:
        """What the record's state asks for, however the record came here: by the view, or as the answer to a put."""
        if self.record.state is RecordState.FROZEN:
            self.end(End.FROZEN, "the volume is frozen until an operator recovers it")
        elif self.record.state is RecordState.DELETING and self._progress is VolumeState.SERVING:
            self._begin("delete", self._delete())

    def _member_durable(self, member: Member, opnum: int) -> None:
        if self.membership.log_of(member.head) == member.log:
            self._engine.member_durable(member.head, opnum)

    def _credential_refused(self, error: CredentialRefused) -> None:
        """Sleds take the credential for expired, or its key for retired, before its term is over: one of a later time,
        or of another key, helps; so it does against an attach with this head's key and a former credential."""
        now_ns = self._now_ns()
        over = isinstance(error, CredentialExpired)
        if (over or self.attachments.outdated(error, self._services.key_set())) and now_ns >= self._refusal_pause_ns:
            self._refusal_pause_ns = now_ns + self._renewals.next_ns()
            self._begin("renew", self._renew(expired=over))

    def keys_changed(self, key_set: KeySet) -> None:
        """Ask for another credential where the key is gone; else show it to sleds that may have heard of it since."""
        kept = self.attachments.key_id in key_set.keys
        self._begin("present" if kept else "renew", self.attachments.present() if kept else self._renew())

    async def _renew(self, *, expired: bool = False) -> None:
        asked_ns = self._now_ns()
        try:
            credential = await self._services.authority.renew(self.volume, epoch=self.epoch, expired=expired)
            term_ns = credential_term_ns(credential)
        except (AuthorityError, CredentialMalformed) as error:
            self._half_term_ns = self._now_ns() + self._renewals.next_ns()
            log.warning("event=renewal_failed volume=%s epoch=%d error=%s", self.volume, self.epoch, error)
            if not isinstance(error, AuthorityUnavailable):
                self._suspect(f"renewal refused: {error}")
            return
        self._renewals.reset()
        self._half_term_ns = asked_ns + term_ns // 2
        self.lease.extend_term(asked_ns + term_ns)
        await self.attachments.renew(credential)

    # sleds and fences

    def _column_changed(self, index: int, column: SledColumn | None) -> None:
        if self._led:
            self._engine.set_column(index, column)
        if self._led and column is None and not self._ended.done():
            log.warning("event=column_lost volume=%s epoch=%d column=%d", self.volume, self.epoch, index)

    def _column_refused(self, index: int, error: BaseException) -> None:
        if isinstance(error, SledError):
            self.attachments.refused(index, error)

    def _fenced(self, index: int, error: FencedOff) -> None:
        self.fenced_total += 1
        sled = self.attachments.sled_of(index)
        if sled not in self._fences_noted:
            self._fences_noted.add(sled)
            self.last_fenced = {
                "volume": str(self.volume), "sled": str(sled), "stale_epoch": self.epoch, "current_epoch": error.epoch,
            }  # fmt: skip
            self._services.note("fenced-off", self.last_fenced)
            log.warning(
                "event=fenced_off volume=%s epoch=%d sled=%s sled_epoch=%d", self.volume, self.epoch, sled, error.epoch
            )
        if "judge" not in self._tasks and not self._ended.done():
            self._hold()
            self._begin("judge", self._judge(index, error))

    async def _judge(self, index: int, error: FencedOff) -> None:
        found = self._weigh(error)
        if found.verdict is Verdict.UNPROVEN:
            record = await self._reread()
            found = self._weigh(error)
            if record.epoch > self.epoch or record.primary != self._services.head:
                found = Judgement(Verdict.SUCCEEDED, f"the record is in epoch {record.epoch}", record.epoch)
        if found.verdict is Verdict.SUCCEEDED:
            self.end(End.FENCED, found.reason, error.credential)
            return
        sled = self.attachments.sled_of(index)
        log.error("event=sled_faulty volume=%s epoch=%d sled=%s reason=%s", self.volume, self.epoch, sled, found.reason)
        said = {"volume": str(self.volume), "epoch": self.epoch, "sled": str(sled), "reason": found.reason}
        self._services.note("sled-faulty", said)
        self.attachments.quarantine(index)
        self._unhold()

    def _weigh(self, error: FencedOff) -> Judgement:
        return judge(error, volume=self.volume, epoch=self.epoch, key_set=self._services.key_set())

    def _suspect(self, reason: str) -> None:
        """Something hints at a newer epoch: read the record; the sleds say it by themselves when asked."""
        log.warning("event=epoch_in_doubt volume=%s epoch=%d reason=%s", self.volume, self.epoch, reason)
        self.attachments.probe()

        async def look() -> None:
            self.record_changed(await self._reread())

        self._begin("doubt", look())

    def _depose(self, reason: str) -> None:
        """Acknowledge nothing from this turn on, and see what the sleds show."""
        if not self._ended.done():
            self._hold()
            self._begin("deposed", self._deposed(reason))

    async def _deposed(self, reason: str) -> None:
        log.warning("event=deposed volume=%s epoch=%d reason=%s", self.volume, self.epoch, reason)
        self.attachments.probe()
        await asyncio.sleep(DEPOSED_PROBE_SECONDS)
        self.end(End.DEPOSED, reason)

    def _hold(self) -> None:
        self._engine.hold()
        if not self._held:
            self._held = True
            self._to(VolumeState.HOLDING)

    def _unhold(self) -> None:
        if self._held and not self._tasks.keys() & {"deposed", "diverged"}:
            self._held = False
            self._to(self._progress)
            self._engine.resume()

    # plumbing

    async def _reread(self) -> VolumeRecord:
        return await self._services.watch.record(self.volume)

    def _advance(self, progress: VolumeState) -> None:
        self._progress = progress
        if not self._held:
            self._to(progress)

    def _now_ns(self) -> int:
        return self._services.env.clock.boottime_ns()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start supervised work unless work of that name is under way."""
        if name in self._tasks or self._ended.done():
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=f"{name} {self.volume}")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._finished(name, done))

    async def _cease(self, name: str) -> None:
        """End the work of that name, if it is under way."""
        task = self._tasks.get(name)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _finished(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if isinstance(error, Deposed):
            self.record_changed(error.record)
        elif isinstance(error, ClusterError | AuthorityError | VolumeError | SledError):
            log.warning(
                "event=primary_work_failed volume=%s epoch=%d work=%s error=%s", self.volume, self.epoch, name, error
            )
            if name in ("office", "delete", "judge"):
                # Without a judgement the role would hold for good.
                self.end(End.GAVE_UP, str(error))
        else:
            log.error("event=primary_work_broke volume=%s work=%s", self.volume, name, exc_info=error)
            self.end(End.GAVE_UP, repr(error))
