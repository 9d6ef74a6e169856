"""Where the logs of the other members end: asked before the authority is asked for the next epoch (F5, D1).

Every member of `current` has everything committed, unless its disk lost what it said to be durable. So the longest log
is always safe, and a shorter one only if its process made everything durable itself (`vouched`). A log that was
recovered from disk since asks the others, and waits for their answers for a while.

An answer stays true for the version of the record under which it was given. Whoever appends later follows a primary of
that version, which acknowledges nothing without a promise of this member, and this member has been free of promises
since before it asked. A primary that has removed it, or another candidate, has changed the version, and then the
authority refuses (F4).
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final
from uuid import UUID

from head_node.cluster.errors import ClusterError, LinkClosed, LinkError, TakeoverImpossible
from head_node.cluster.frames import FrameType, Purpose, Tail
from head_node.cluster.lease import MS, MemberPromise
from head_node.cluster.services import Services
from head_node.cluster.takeover import Step
from head_node.store.records import Member, VolumeRecord
from head_node.volume.engine import VolumeEngine
from sled_controller.backoff import Backoff
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)

ANSWER_SECONDS_MAX: Final = 1.0
"""A head that was dialled and says nothing for this long is asked again: it may have been stopped in between."""
ASK_AHEAD_PERCENT: Final = 30
"""Of a TTL before the promise ends: long enough for answers, and well after the last heartbeat of a live primary."""
PAUSE_SECONDS_MIN: Final = 0.1
PAUSE_SECONDS_MAX: Final = 1.0
"""Between two questions to the same head: quick at first, for it may just be starting."""


async def ask_tail(services: Services, head: UUID, volume: UUID) -> Tail:
    """Where the log of `volume` on `head` ends now. Raises ClusterError when there is no answer."""
    connection = await services.dial(head, Purpose.TAIL, volume)
    answer: asyncio.Future[Tail] = asyncio.get_running_loop().create_future()

    def frame(kind: FrameType, payload: Buffer) -> None:
        if kind is not FrameType.TAIL:
            raise LinkError(f"{kind.name} is no answer to a question for a tail")
        if not answer.done():
            answer.set_result(Tail.decode(payload))

    def closed(reason: str) -> None:
        if not answer.done():
            answer.set_exception(LinkClosed(reason))

    try:
        if connection.closed:
            raise LinkClosed("closed before it answered")
        connection.on_frame, connection.on_closed = frame, closed
        connection.resume_receiving()
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await answer
    except TimeoutError:
        raise LinkClosed(f"no answer within {ANSWER_SECONDS_MAX:g} s") from None
    finally:
        answer.cancel()
        connection.close("asked")


class TailSurvey:
    """Asks the other members of one version of a record, again and again, until `stop`. `wake` is called at answers."""

    def __init__(self, services: Services, record: VolumeRecord, wake: Callable[[], None]) -> None:
        self.record = record
        self.others = [member for member in record.current if member.head != services.head]
        self.answers: dict[UUID, Tail] = {}
        self.free_ns: int | None = None
        """Since when no promise binds this head: waiting for answers counts from then."""
        self._heard_ns: dict[UUID, int] = {}
        self._services = services
        self._wake = wake
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep_asking(member.head)) for member in self.others]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def free_for_ns(self, now_ns: int) -> int:
        """For how long this head has been free to take over."""
        return 0 if self.free_ns is None else now_ns - self.free_ns

    def waited_ns(self, head: UUID, now_ns: int) -> int:
        """For how long this free head has waited for a (further) answer of `head`."""
        return min(self.free_for_ns(now_ns), now_ns - self._heard_ns.get(head, 0))

    async def _keep_asking(self, head: UUID) -> None:
        backoff = Backoff(self._services.env, PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX)
        while True:
            try:
                self.answers[head] = await ask_tail(self._services, head, self.record.volume)
            except ClusterError:
                self.answers.pop(head, None)
            else:
                self._heard_ns[head] = self._services.env.clock.boottime_ns()
                self._wake()
            await asyncio.sleep(backoff.next_s())


class TailQuestions:
    """What one member asks about its volume, from record to record."""

    def __init__(
        self, services: Services, engine: VolumeEngine, promise: MemberPromise, wake: Callable[[], None]
    ) -> None:
        self._services = services
        self._engine = engine
        self._promise = promise
        self._wake = wake
        self._survey: TailSurvey | None = None
        self.done_without: list[str] = []
        """Heads without whose answers the last takeover was begun, though this log was recovered from disk."""

    def end(self) -> None:
        """Ask no more."""
        if self._survey is not None:
            self._survey.stop()
            self._survey = None

    def look_round(self, record: VolumeRecord, step: Step, look_again_ns: int | None, now_ns: int) -> int | None:
        """Ask the other members as a candidate, and, where no answer is waited for, shortly before this head may become
        one: ordinary failover takes no longer for it. Returns when to look again."""
        member, candidate = record.member(self._services.head), step is Step.CANDIDATE
        if member is None or member.log != self._engine.log_id or len(record.current) < 2:
            self.end()
            return look_again_ns
        ahead_ns = self._promise.bound_until_ns - self._services.terms.ttl_ns * ASK_AHEAD_PERCENT // 100
        if not candidate and (look_again_ns is None or not self._engine.vouched or now_ns < ahead_ns):
            self.end()
            return ahead_ns if look_again_ns is not None and self._engine.vouched else look_again_ns
        former = self._survey
        if former is None or former.record.version != record.version:
            self.end()
            self._survey = TailSurvey(self._services, record, self._wake)
            if former is not None and (former.record.epoch, former.record.current) == (record.epoch, record.current):
                self._survey.free_ns = former.free_ns
        assert self._survey is not None
        if candidate and self._survey.free_ns is None:
            self._survey.free_ns = now_ns
        return look_again_ns

    def check(self, record: VolumeRecord, now_ns: int) -> None:
        """Raise TakeoverImpossible while this head must not take the next epoch, as far as the logs go."""
        engine, services = self._engine, self._services
        lost, tail = engine.commit_point, engine.settled_tail
        if engine.missing and record.forced_epoch <= lost.epoch:
            raise TakeoverImpossible(
                f"this log ends at operation {tail.opnum} of epoch {tail.epoch}, but operation {lost.opnum} of epoch"
                f" {lost.epoch} was committed: another member has to lead, or an operator has to choose this log"
            )
        if self._survey is not None:
            own, wait_ns = (tail.epoch, tail.opnum), services.tail_wait_ms * MS
            found = hindrance(own, engine.vouched, self._survey, now_ns, turn_ns=services.terms.ttl_ns, wait_ns=wait_ns)
            if found:
                raise TakeoverImpossible(found)

    def do_without(self) -> None:
        """The takeover begins now: say whose answers it does without."""
        self.done_without = []
        if self._survey is None or self._engine.vouched:
            return
        self.done_without = [str(head) for head in unanswered(self._survey)]
        if self.done_without:
            record, heads = self._survey.record, ",".join(self.done_without)
            log.warning(
                "event=takeover_without_tails volume=%s epoch=%d tail=%d heads=%s waited_ms=%d",
                record.volume, record.epoch + 1, self._engine.durable, heads, self._services.tail_wait_ms,
            )  # fmt: skip
            self._services.note("takeover-without-tails", {"volume": str(record.volume), "heads": self.done_without})


def tail_of(engine: VolumeEngine) -> Tail:
    """What a head answers that is asked."""
    tail, committed = engine.settled_tail, engine.commit_point
    return Tail(engine.log_id, tail.opnum, tail.epoch, committed.opnum, committed.epoch)


def hindrance(
    own: tuple[int, int], vouched: bool, survey: TailSurvey, now_ns: int, *, turn_ns: int, wait_ns: int
) -> str:  # fmt: skip
    """Why a head whose log ends at `own` must not take the next epoch yet, for people; empty when it may.

    The highest (epoch of the last record, opnum) leads. A vouched candidate waits for no answer, and gives a longer log
    its turn of `turn_ns`, for what is longer there was never acknowledged. Any other waits `wait_ns` for each answer.
    """
    for member in survey.others:
        found = longer(own, member, survey.answers.get(member.head))
        had_turn = member.head == survey.record.primary or survey.free_for_ns(now_ns) >= turn_ns
        if found and not (vouched and had_turn):
            return found
    if vouched:
        return ""
    waiting = [head for head in unanswered(survey) if survey.waited_ns(head, now_ns) < wait_ns]
    if not waiting:
        return ""
    return (
        f"waiting up to {wait_ns // MS} ms for where the logs of heads {', '.join(map(str, waiting))} end, because this"
        " log was recovered from disk"
    )


def longer(own: tuple[int, int], member: Member, answer: Tail | None) -> str:
    """Says in which way a member's log has more than `own`, or knows that more was committed; empty if it has not."""
    if answer is None or answer.log != member.log:
        return ""  # another log than the one that counts: what it had is gone
    tail, committed = (answer.tail_epoch, answer.tail_opnum), (answer.committed_epoch, answer.committed_opnum)
    if tail > own:
        has = f"ends at operation {tail[1]} of epoch {tail[0]}"
    elif committed > own:
        has = f"knows operation {committed[1]} of epoch {committed[0]} as committed"
    else:
        return ""
    return f"the log of head {member.head} {has}, this one ends at {own[1]} of epoch {own[0]}: that head has to lead"


def unanswered(survey: TailSurvey) -> list[UUID]:
    """The other members whose logs nothing is known of."""
    return [member.head for member in survey.others if member.head not in survey.answers]
