"""One volume on this head, from opening its log to closing it: follower, candidate, primary, and back.

One supervising task per volume. What happens is driven by the record, by links, by time, and by what sleds say;
every change of `state` is a step of the table in states.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from uuid import UUID

from head_node.authority.errors import AuthorityError, AuthorityUnavailable
from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import NotServing, SealRefused, TakeoverImpossible
from head_node.cluster.follower import Follower
from head_node.cluster.frames import FrameType
from head_node.cluster.lease import MS, MemberPromise
from head_node.cluster.pace import NO_PACE
from head_node.cluster.primary import PrimaryRole
from head_node.cluster.services import Services
from head_node.cluster.sled_notes import sled_notes
from head_node.cluster.states import PRIMARY_STATES, VolumeState, check
from head_node.cluster.stepdown import End, Outcome
from head_node.cluster.tails import TailQuestions, tail_of
from head_node.cluster.takeover import Grant, Situation, Step, ask, check_sleds, next_step
from head_node.store.records import VolumeRecord
from head_node.store.records import VolumeState as RecordState
from head_node.volume.engine import VolumeEngine
from head_node.volume.errors import LogHangs, VolumeError
from head_node.volume.interface import ServedVolume
from sled_controller.backoff import Backoff
from sled_controller.keyset import KeySet

log = logging.getLogger(__name__)

NO_LOG_STATES: Final = frozenset({VolumeState.OPENING, VolumeState.RETIRED, VolumeState.FAILED, VolumeState.CLOSED})

RETRY_SECONDS: Final = 0.1
"""Between two takeover attempts whose pre-check or request failed, at first."""
CHECK_SECONDS_MAX: Final = 0.5
"""Between two pre-checks: they cost the others nothing, and what they wait for may come at any moment."""
UNREACHABLE_SECONDS_MAX: Final = 1.0
LEAD_SECONDS_MIN: Final = 0.5
LEAD_SECONDS_MAX: Final = 8.0
"""Between two epochs that end before this head serves in them: each costs a slot on every sled."""
ASK_SECONDS_MAX: Final = 10.0
"""Between two requests for an epoch where the authority is away, and where it refuses and the record stays the same."""
LAST_WORD_SECONDS: Final = 0.5
"""A record that vanishes may overtake the primary's word that the volume is deleted by this much."""
REOPEN_SECONDS: Final = 1.0
REOPEN_SECONDS_MAX: Final = 15.0
"""Between two tries to open a log directory (another process still holds it, or the disk is full)."""


class VolumeController:
    """See the module. `start` once, then `record_changed` with each newer record, `stop` at the end. `on_ended` is
    called when nothing of the volume runs here any more."""

    def __init__(self, services: Services, record: VolumeRecord, on_ended: Callable[[UUID], None]) -> None:
        self._services = services
        self._on_ended = on_ended
        self.volume = record.volume
        self.record = record
        self.state = VolumeState.OPENING
        self.reason = ""
        self.left_view = False
        """The volume has not been in the view for a while; another controller begins when it is there again."""
        self._engine: VolumeEngine | None = None
        self._follower: Follower | None = None
        self._role: PrimaryRole | None = None
        self._tails: TailQuestions | None = None
        self._forfeited = False
        self._gone = False
        self._stopping = False
        self._wake_event = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._first_seen_ns = services.env.clock.boottime_ns()
        self._last_outcome: Outcome | None = None
        self._takeovers_total = 0
        self._checks = Backoff(services.env, RETRY_SECONDS, CHECK_SECONDS_MAX)
        self._asks = Backoff(services.env, RETRY_SECONDS, ASK_SECONDS_MAX)
        self._ask_at_ns = 0
        """Before that the authority is not asked for an epoch again."""
        self._leads = Backoff(services.env, LEAD_SECONDS_MIN, LEAD_SECONDS_MAX)
        self._lead_at_ns = 0
        """Before that no epoch is taken again, after those that ended before this head could serve."""
        self._served = False
        self._fenced_total = 0
        self._last_fenced: dict[str, Any] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"volume {self.volume}")
        self._task.add_done_callback(lambda done: self._on_ended(self.volume))

    async def stop(self) -> None:
        """Stop in good order: hand over to a member that has everything, or destage when alone."""
        self._stopping = True
        self._wake()
        role = self._role
        if role is not None:
            await role.hand_over()
            if self._engine is not None and self._role is role and role.can_destage_alone:
                with contextlib.suppress(VolumeError):
                    await self._engine.close(destage=True)
            role.end(End.HANDED_OVER, "stopped")
        if self._task is not None:
            await asyncio.wait([self._task])

    def record_changed(self, record: VolumeRecord | None) -> None:
        """The authority's view; None: the volume is not in it any more, and ends here even if it comes back."""
        if record is None:
            self._gone = self.left_view = True
            if self._role is not None:
                self._role.withdrawn()
        elif record.version > self.record.version:
            self._adopt(record)
            if self._role is not None:
                self._role.record_changed(record)
        self._wake()

    def keys_changed(self, key_set: KeySet) -> None:
        """The rack has another key set."""
        if self._role is not None:
            self._role.keys_changed(key_set)

    def accept_log(self, connection: PeerConnection, head: UUID) -> None:
        """A head wants to follow this volume here."""
        if self._role is None:
            connection.refuse(f"this head is not the primary of volume {self.volume}, it is {self.state.value}")
        else:
            self._role.accept(connection, head)

    def answer_tail(self, connection: PeerConnection) -> None:
        """A head asks where the log ends here, before it takes the next epoch."""
        engine = self._engine
        if engine is None or engine.failure is not None or self.state in NO_LOG_STATES:
            connection.refuse(f"the log of volume {self.volume} cannot be used here, it is {self.state.value}")
        else:
            connection.send(FrameType.TAIL, tail_of(engine).encode())
            connection.close("answered")

    def served(self) -> ServedVolume:
        """What a client gets. Raises NotServing."""
        if self._role is None or not self._role.serving or self._engine is None or self.left_view:
            raise NotServing(f"volume {self.record.name} is {self.state.value} on this head")
        return self._engine.served

    @property
    def ended(self) -> bool:
        """Nothing of this volume runs here any more."""
        return self._task is not None and self._task.done()

    @property
    def may_begin_again(self) -> bool:
        """It failed, and a new controller may open the log: not while a command to a disk that hangs is under way."""
        hangs = self._engine is not None and isinstance(self._engine.failure, LogHangs)
        return self.ended and self.state is VolumeState.FAILED and not hangs

    @property
    def is_primary(self) -> bool:
        return self.state in PRIMARY_STATES

    async def reached(self, state: VolumeState) -> None:
        """Wait until the volume is in `state` here."""
        while self.state is not state:
            self._changed.clear()
            await self._changed.wait()

    def status(self) -> dict[str, Any]:
        """What the authority and people are told about this volume on this head."""
        role, follower, engine = self._role, self._follower, self._engine
        now_ns = self._now_ns()
        state = {} if engine is None else engine.status()
        notes = [] if role is None else sled_notes(state, self.record.geometry.columns, partial(self._sled_name, role))
        return {
            "volume": str(self.volume),
            "name": self.record.name,
            "state": self.state.value,
            "role": "primary" if self.is_primary else "secondary",
            "serving": role is not None and role.serving and not role.stopped,
            "stopped": "" if role is None else role.stopped,
            "epoch": role.epoch if role is not None else self.record.epoch,
            "reason": "; ".join(notes) or self.reason,
            "exposed": self.record.exposed or bool(state.get("stripes_without_spare")),
            "following": follower is not None and follower.linked,
            "lease_valid": role is not None and role.lease.valid(now_ns),
            "receipts": role.attachments.receipts if role is not None else 0,
            "members_lag": {str(s.member.head): s.lag for s in role.links.senders()} if role is not None else {},
            "members_resyncs": {str(head): n for head, n in role.links.resyncs.counts().items()}
            if role is not None
            else {},
            **(role.pace.status() if role is not None else NO_PACE),
            "faulty_sleds": sorted(map(str, role.attachments.quarantined)) if role is not None else [],
            "fenced_total": self._fenced_total + (role.fenced_total if role is not None else 0),
            "last_fenced": (role.last_fenced if role is not None else None) or self._last_fenced,
            "last_end": None if self._last_outcome is None else self._last_outcome.end.value,
            "takeovers_total": self._takeovers_total,
            "takeover_refusals": self._asks.failures,
            "takeover_paused_ms": max(0, self._ask_at_ns - now_ns, self._lead_at_ns - now_ns) // MS,
            "led_without_tails_of": [] if self._tails is None else self._tails.done_without,
            "log": None if engine is None else str(engine.log_id),
            "engine": state,
        }

    def _sled_name(self, role: PrimaryRole, column: int) -> str:
        sled = role.attachments.sled_of(column)
        view = self._services.watch.view
        return str(sled) if view is None or sled not in view.sleds else view.sleds[sled].name

    # the supervising task

    async def _run(self) -> None:
        try:
            await self._open()
            while not self._stopping and not self._gone:
                try:
                    grant = await self._follow()
                finally:
                    if self._tails is not None:
                        self._tails.end()
                if self._forfeited and grant is None and not (self._stopping or self._gone):
                    await self._set_log_aside()
                # An epoch that comes while this head stops is burned: nobody is left who would end it.
                if grant is not None and not self._stopping:
                    await self._lead(grant)
                if self.state is VolumeState.FAILED:
                    break
        except Exception:
            log.exception("event=volume_broke volume=%s state=%s", self.volume, self.state.value)
            self._fail("an internal error ended this volume here; see the log")
        finally:
            await self._close()

    async def _open(self) -> None:
        backoff = Backoff(self._services.env, REOPEN_SECONDS, REOPEN_SECONDS_MAX)
        while not self._stopping:
            try:
                self._engine = await self._services.open_engine(self.record)
                break
            except (VolumeError, OSError) as error:
                self._note(f"the log cannot be opened: {error}")
            await self._sleep(backoff.next_s())
        if self._engine is None:
            return
        self._engine.on_failed = lambda error: self._fail(f"the log failed: {error}")
        # What a former run of this head promised, or a former stay of the volume here, binds for a TTL (F7). Before the
        # first epoch there was no primary to promise anything to.
        started_ns = self._first_seen_ns if self.record.epoch else -self._services.terms.ttl_ns
        promise = MemberPromise(self._services.terms, started_ns=started_ns)
        self._follower = Follower(self._services, self._engine, self.volume, promise, self._wake)
        self._follower.on_forfeited = self._forfeit
        self._tails = TailQuestions(self._services, self._engine, promise, self._wake)
        self._to(VolumeState.FOLLOWING)

    def _forfeit(self) -> None:
        self._forfeited = True
        self._wake()

    async def _set_log_aside(self) -> None:
        """Another log counts, which lacks records of this one: keep this one, and begin another (D1)."""
        engine, follower = self._engine, self._follower
        assert engine is not None
        assert follower is not None
        self._note("the log is set aside: another head's counts, and may lack acknowledged records of this one")
        self._to(VolumeState.OPENING)
        with contextlib.suppress(VolumeError):
            await engine.close()
        self._engine = self._follower = None
        try:
            await self._services.set_log_aside(self.volume)
        except OSError as error:
            self._fail(f"the log cannot be set aside: {error}")
            return
        self._forfeited = False
        bound_until_ns = follower.promise.bound_until_ns
        await self._open()
        if self._follower is not None:
            self._follower.promise.defer(bound_until_ns)

    async def _follow(self) -> Grant | None:
        """Follow until this head holds the next epoch, or the volume ends here."""
        follower, engine, tails = self._follower, self._engine, self._tails
        if follower is None or engine is None or tails is None:
            return None
        ended = False
        while not ended and self.state is VolumeState.FOLLOWING:
            now_ns = self._now_ns()
            step, look_again_ns = next_step(self._situation(follower, engine, now_ns))
            look_again_ns = tails.look_round(self.record, step, look_again_ns, now_ns)
            # A candidate that has to wait goes on dialling: the primary may be back before it asks.
            other = self.record.primary if self.record.primary != self._services.head else None
            follower.follow(None if step is Step.IDLE else other)
            if step is Step.CANDIDATE:
                grant = await self._try_takeover(follower, tails)
                if grant is not None:
                    return grant
                await self._sleep(self._checks.next_s())
            else:
                self._checks.reset()
                pause = None if look_again_ns is None else max(0.0, (look_again_ns - now_ns) / 1e9)
                await self._sleep(pause)
            ended = self._stopping or self._gone or self._forfeited
        if self._gone and not self._told_deleted() and follower.linked:
            await self._sleep(LAST_WORD_SECONDS)
        await follower.stop("the volume ends here")
        return None

    async def _try_takeover(self, follower: Follower, tails: TailQuestions) -> Grant | None:
        engine = self._engine
        assert engine is not None
        try:
            check_sleds(self.record, self._services.sleds, self._now_ns() - self._first_seen_ns)
            tails.check(self.record, self._now_ns())
            if self._now_ns() < max(self._ask_at_ns, self._lead_at_ns):
                return None
            record = (await self._services.watch.refresh()).volumes.get(self.volume)
            if record is None or not self._still_candidate(record, follower):
                return None
            # The answers count for the version under which they were given (tails.py).
            tails.look_round(record, Step.CANDIDATE, None, self._now_ns())
            tails.check(record, self._now_ns())
            tails.do_without()
            await follower.seal()
        except (TakeoverImpossible, AuthorityError, SealRefused) as error:
            if isinstance(error, AuthorityError):
                self._ask_later(error)
            if engine.failure is None:
                self._note(f"no takeover: {error}")
            return None
        if self._forfeited:
            follower.promise.unseal()  # said while this was on its way: another log counts, and this one goes aside
            return None
        self._to(VolumeState.SEALED)
        try:
            in_doubt = bool(tails.done_without)
            return await ask(self._services.authority, record, engine.log_id, self._services.env, in_doubt=in_doubt)
        except TakeoverImpossible as error:
            self._note(str(error))
            self._ask_later(error.__cause__)
            with contextlib.suppress(AuthorityError):
                await self._services.watch.refresh()
            follower.promise.unseal()
            if self.state is VolumeState.SEALED:
                self._to(VolumeState.FOLLOWING)
            return None

    def _ask_later(self, error: BaseException | None) -> None:
        """The authority was away, or refused: what it is asked for next has to be worth asking."""
        pause_s = self._asks.next_s()
        if isinstance(error, AuthorityUnavailable):
            pause_s = min(pause_s, UNREACHABLE_SECONDS_MAX)
        self._ask_at_ns = self._now_ns() + int(pause_s * 1_000_000_000)

    def _still_candidate(self, record: VolumeRecord, follower: Follower) -> bool:
        engine = self._engine
        assert engine is not None
        if record.version > self.record.version:
            self._adopt(record)
        now_ns = self._now_ns()
        return next_step(self._situation(follower, engine, now_ns))[0] is Step.CANDIDATE

    def _adopt(self, record: VolumeRecord) -> None:
        """Take a newer record. Who has just taken an epoch gets its turn: two members that are both free would
        otherwise depose each other for as long as attaching takes."""
        begun = record.epoch > self.record.epoch
        self.record = record
        self._asks.reset()
        self._ask_at_ns = 0
        if begun:
            self._give_turn()

    def _give_turn(self) -> None:
        """Let a primary that is not this head attach and be found, one TTL."""
        if self._follower is not None and self.record.primary not in (None, self._services.head):
            self._follower.promise.defer(self._now_ns() + self._services.terms.ttl_ns)

    def _stand_back(self) -> None:
        """Let another member try: each is free one TTL after its last promise to this head. The only member waits too:
        what fails at once would use up an epoch, and a slot on every sled, as often as it can ask."""
        if self._follower is not None:
            ttls = 2 if len(self.record.current) > 1 else 1
            self._follower.promise.defer(self._now_ns() + ttls * self._services.terms.ttl_ns)

    def _now_ns(self) -> int:
        return self._services.env.clock.boottime_ns()

    def _situation(self, follower: Follower, engine: VolumeEngine, now_ns: int) -> Situation:
        bound_until_ns = follower.promise.bound_until_ns
        return Situation(self.record, self._services.head, engine.log_id, now_ns, bound_until_ns, self._first_seen_ns)

    async def _lead(self, grant: Grant) -> None:
        engine, follower = self._engine, self._follower
        assert engine is not None
        assert follower is not None
        self._takeovers_total += 1
        self._asks.reset()
        self._ask_at_ns = 0
        self.record = grant.record
        self._to(VolumeState.ATTACHING)
        self._served = False
        role = PrimaryRole(self._services, engine, grant, self._to)
        self._role = role
        outcome = await role.run()
        self._last_outcome = outcome
        if not self._served:
            self._lead_at_ns = self._now_ns() + self._leads.next_ns()
        self._fenced_total += role.fenced_total
        self._last_fenced = role.last_fenced or self._last_fenced
        self._note(f"{outcome.end.value}: {outcome.detail}")
        if role.record.version > self.record.version:
            self.record = role.record
        self._role = None
        self._services.drop_clients(self.volume)
        with contextlib.suppress(VolumeError):
            await engine.step_down()
        await role.attachments.close()
        if outcome.end is End.LOG_FAILED or engine.failure is not None:
            self._fail(outcome.detail if engine.failure is None else f"the log failed: {engine.failure}")
            return
        engine.on_failed = lambda error: self._fail(f"the log failed: {error}")
        follower.promise.unseal()
        if outcome.end is End.DELETED:
            self._gone = True
            self._to(VolumeState.RETIRED)
            return
        if not self._stopping:
            self._services.note(
                "stepped-down",
                {
                    "volume": str(self.volume),
                    "epoch": role.epoch,
                    "why": outcome.end.value,
                    "detail": outcome.detail,
                },
            )
            await self._tell_authority(outcome)
        self._give_turn()
        if outcome.end in (End.GAVE_UP, End.HANDED_OVER):
            self._stand_back()
        self._to(VolumeState.FOLLOWING)

    async def _tell_authority(self, outcome: Outcome) -> None:
        """F4: a genuine credential that is newer than the record freezes the volume; the authority judges that."""
        with contextlib.suppress(AuthorityError):
            if outcome.credential is not None:
                await self._services.authority.report_credential(outcome.credential)
            await self._services.watch.refresh()

    async def _close(self) -> None:
        if self._follower is not None:
            await self._follower.stop("this head is stopping")
        if self._engine is not None:
            with contextlib.suppress(VolumeError):
                await self._engine.close()
        empty = self._engine is not None and not self._engine.tail.opnum  # it never began: there is nothing to keep
        deleted = self._gone and (empty or self.state is VolumeState.RETIRED or self._told_deleted())
        if deleted:
            if self.state is not VolumeState.RETIRED:
                self._to(VolumeState.RETIRED)
            await self._services.remove_log(self.volume)
        elif self.state not in (VolumeState.FAILED, VolumeState.RETIRED):
            self._to(VolumeState.CLOSED)

    def _told_deleted(self) -> bool:
        follower = self._follower
        return self.record.state is RecordState.DELETING or (follower is not None and follower.deleted)

    # plumbing

    def _to(self, state: VolumeState) -> None:
        check(self.state, state)
        log.info(
            "event=state volume=%s from=%s to=%s epoch=%d",
            self.volume,
            self.state.value,
            state.value,
            self.record.epoch,
        )
        self.state = state
        if state is VolumeState.SERVING:
            self._served = True
            self._leads.reset()
        self._changed.set()
        self._services.role_changed(self.volume)

    def _fail(self, reason: str) -> None:
        log.error("event=volume_failed volume=%s reason=%s", self.volume, reason)
        self.reason = reason
        if self.state is not VolumeState.FAILED:
            self.state = VolumeState.FAILED
        self._changed.set()
        self._services.role_changed(self.volume)
        self._wake()

    def _note(self, reason: str) -> None:
        if reason != self.reason:
            log.warning("event=volume_note volume=%s state=%s reason=%s", self.volume, self.state.value, reason)
        self.reason = reason

    def _wake(self) -> None:
        self._wake_event.set()

    async def _sleep(self, seconds: float | None) -> None:
        """Wait until something happens, at most `seconds`."""
        self._wake_event.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake_event.wait()
