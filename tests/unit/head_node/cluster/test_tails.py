"""The longest log leads: whom a candidate asks, how long it waits, and which answers count (F5, D1)."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from kit.cluster import BLOCK, KitHead, Rack, record_of, run, until, with_rack
from kit.lost_tail import lose_last_batches

from head_node.cluster import tails
from head_node.cluster.errors import LinkClosed, LinkError, TakeoverImpossible
from head_node.cluster.frames import FrameType, Purpose, Tail
from head_node.cluster.lease import MS, LeaseTerms, MemberPromise
from head_node.cluster.states import VolumeState
from head_node.cluster.tails import TailQuestions, TailSurvey, ask_tail, hindrance
from head_node.cluster.takeover import Step
from head_node.store.records import Member, VolumeRecord
from head_node.store.records import VolumeState as RecordState
from head_node.volume.engine import LogPosition

ONE, TWO = (bytes([value]) * BLOCK for value in (1, 2))
FOR_EVER_MS = 600_000


async def all_members(rack: Rack) -> None:
    rack.create_volume()
    await rack.start()
    await until(lambda: rack.heads[0].serving and all(rack.is_member(head) for head in rack.heads))


async def lose_the_power(rack: Rack) -> None:
    for head in rack.heads:
        await head.crash()


def waits(head: KitHead) -> bool:
    return head.state is VolumeState.FOLLOWING and "waiting up to" in head.controller.reason


def test_f5_a_candidate_asks_the_other_members_for_their_tails() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        for lba in range(4):
            assert await first.write(lba, ONE) == 0
        await lose_the_power(rack)
        lose_last_batches(first.disk)
        rack.tail_wait_ms = FOR_EVER_MS
        await first.start()
        await until(lambda: waits(first))
        await second.start()
        await until(lambda: second.serving)
        assert [await second.read(lba) for lba in range(4)] == [ONE] * 4
        await until(lambda: rack.is_member(first))
        assert first.engine.durable >= 5
        assert ("takeover", first.id, 2) not in rack.authority.journal

    with_rack(scenario)


def test_f5_the_longest_log_of_three_leads_and_the_others_follow() -> None:
    async def scenario(rack: Rack) -> None:
        await all_members(rack)
        first, second, third = rack.heads
        for lba in range(5):
            assert await first.write(lba, ONE) == 0
        await lose_the_power(rack)
        lose_last_batches(first.disk, 2)
        lose_last_batches(second.disk, 1)
        rack.tail_wait_ms = FOR_EVER_MS
        await rack.start([first, second])
        await until(lambda: waits(first) or "has to lead" in first.controller.reason)
        await rack.start([third])
        await until(lambda: third.serving and rack.is_member(first) and rack.is_member(second))
        assert [await third.read(lba) for lba in range(5)] == [ONE] * 5
        leaders = [entry[1] for entry in rack.authority.journal if entry[0] == "takeover"]
        assert leaders[:2] == [first.id, third.id]

    with_rack(scenario, heads=3)


def test_f5_a_member_that_followed_in_this_process_waits_for_no_answer() -> None:
    async def scenario(rack: Rack) -> None:
        rack.tail_wait_ms = FOR_EVER_MS
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await until(lambda: second.engine.vouched)
        await first.crash()
        silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", first.port)
        await until(lambda: second.serving)
        silent.close()
        assert await second.read(0) == ONE
        assert second.controller.status()["led_without_tails_of"] == []

    with_rack(scenario)


def test_f5_a_restarted_member_leads_without_an_answer_only_after_a_bound_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await lose_the_power(rack)
        rack.tail_wait_ms = FOR_EVER_MS
        await first.start()
        await until(lambda: waits(first))
        assert str(second.id) in first.controller.reason
        assert rack.record.epoch == 1
        first.clock.jump(FOR_EVER_MS)
        await until(lambda: first.serving)
        assert first.controller.status()["led_without_tails_of"] == [str(second.id)]
        assert "event=takeover_without_tails" in caplog.text
        assert await first.read(0) == ONE
        await until(lambda: any(e["kind"] == "takeover-without-tails" for r in first.api.reports for e in r["events"]))

    with_rack(scenario)


def test_f5_a_peer_that_hangs_holds_a_candidate_no_longer_than_the_bound() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await lose_the_power(rack)
        silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", second.port)
        await first.start()
        await until(lambda: waits(first))
        await until(lambda: first.serving)
        silent.close()
        assert await first.read(0) == ONE

    with_rack(scenario)


def test_f5_two_members_with_equal_tails_do_not_wait_for_each_other() -> None:
    async def scenario(rack: Rack) -> None:
        first, _ = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await lose_the_power(rack)
        rack.tail_wait_ms = FOR_EVER_MS
        await rack.start()
        await until(lambda: any(head.serving for head in rack.heads))
        leader = next(head for head in rack.heads if head.serving)
        assert await leader.read(0) == ONE
        await until(lambda: all(rack.is_member(head) for head in rack.heads))

    with_rack(scenario)


def test_f5_a_log_that_was_set_up_anew_is_not_waited_for() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await lose_the_power(rack)
        second.disk.files.clear()
        rack.tail_wait_ms = FOR_EVER_MS
        await rack.start()
        await until(lambda: first.serving and rack.is_member(second))
        assert await first.read(0) == ONE

    with_rack(scenario)


def test_f5_a_candidate_that_waits_follows_a_primary_that_is_back() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await second.crash()
        first.api.gates["change_members"] = asyncio.Event()  # it stays a member
        rack.tail_wait_ms = FOR_EVER_MS
        first.head._stopping = True  # and cannot reach its primary
        late = first.write(1, TWO)
        await second.start()
        await until(lambda: waits(second))
        assert first.engine.durable == 3
        first.head._stopping = False
        assert await late == 0
        assert second.engine.durable == 3
        assert rack.record.epoch == 1
        first.api.gates["change_members"].set()

    with_rack(scenario)


def test_f5_only_heads_of_the_volume_are_told_where_its_log_ends() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        services = second.controller._services
        tail = await ask_tail(services, first.id, rack.record.volume)
        engine = first.engine
        assert (tail.log, tail.tail_opnum, tail.tail_epoch) == (engine.log_id, engine.durable, 1)
        first.controller.record = replace(rack.record, heads=(first.id,), current=rack.record.current[:1])
        with pytest.raises(LinkClosed, match="not assigned"):
            await ask_tail(services, first.id, rack.record.volume)
        first.controller.record = rack.record
        first.controller.state = VolumeState.OPENING
        with pytest.raises(LinkClosed, match="cannot be used here"):
            await ask_tail(services, first.id, rack.record.volume)
        first.controller.state = VolumeState.SERVING

    with_rack(scenario)


# the rules alone

A, B, C = (UUID(int=number) for number in (1, 2, 3))
LOGS = {head: UUID(int=head.int + 50) for head in (A, B, C)}
TERMS = LeaseTerms()


def volume(heads: tuple[UUID, ...] = (A, B, C), **changes: Any) -> VolumeRecord:
    members = tuple(Member(head, LOGS[head]) for head in heads)
    return replace(record_of(heads, [], epoch=4, primary=B, current=members, state=RecordState.ACTIVE), **changes)


def answer(head: UUID, tail: tuple[int, int], committed: tuple[int, int] = (1, 1), log: UUID | None = None) -> Tail:
    return Tail(log or LOGS[head], tail[1], tail[0], committed[1], committed[0])


class Asking:
    """A survey whose answers a test gives."""

    def __init__(self, record: VolumeRecord, *answers: Tail, free_ns: int = 0) -> None:
        self.record, self.free_ns = record, free_ns
        self.others = list(record.current[1:])
        by_log = {log: head for head, log in LOGS.items()}
        self.answers = {by_log.get(tail.log, C): tail for tail in answers}

    def free_for_ns(self, now_ns: int) -> int:
        return now_ns - self.free_ns

    def waited_ns(self, head: UUID, now_ns: int) -> int:
        return now_ns - self.free_ns


def verdict(own: tuple[int, int], *answers: Tail, vouched: bool = False, now_ms: int = 0) -> str:
    survey: Any = Asking(volume(), *answers)
    return hindrance(own, vouched, survey, now_ms * MS, turn_ns=TERMS.ttl_ns, wait_ns=5000 * MS)


def test_the_epoch_of_the_last_record_counts_before_its_number() -> None:
    assert "operation 7 of epoch 3" in verdict((2, 900), answer(B, (3, 7)), answer(C, (1, 900)))
    assert verdict((3, 7), answer(B, (2, 900)), answer(C, (3, 7))) == ""


def test_f5_a_member_behind_another_does_not_lead_however_long_it_waits() -> None:
    assert "has to lead" in verdict((2, 10), answer(B, (2, 11)), answer(C, (2, 10)), now_ms=10**9)
    assert "has to lead" in verdict((2, 10), answer(C, (2, 11)), now_ms=10**9)


def test_d1_a_member_that_lacks_what_another_knows_as_committed_does_not_lead() -> None:
    assert "knows operation 12 of epoch 2 as committed" in verdict((2, 11), answer(C, (2, 10), (2, 12)), now_ms=10**9)
    assert verdict((2, 12), answer(B, (2, 10), (2, 12)), answer(C, (2, 9))) == ""


def test_equal_tails_let_any_lead() -> None:
    assert verdict((2, 10), answer(B, (2, 10)), answer(C, (2, 10))) == ""


def test_f5_a_log_recovered_from_disk_waits_for_each_answer_up_to_the_bound() -> None:
    assert str(C) in verdict((2, 10), answer(B, (2, 10)), now_ms=4999)
    assert str(B) not in verdict((2, 10), answer(B, (2, 10)), now_ms=4999)
    assert verdict((2, 10), answer(B, (2, 10)), now_ms=5000) == ""


def test_a_vouched_candidate_waits_for_nobody_and_gives_a_longer_log_one_turn() -> None:
    assert verdict((2, 10), vouched=True) == ""
    ahead = answer(C, (2, 11))
    assert "has to lead" in verdict((2, 10), ahead, vouched=True, now_ms=TERMS.ttl_ms - 1)
    assert verdict((2, 10), ahead, vouched=True, now_ms=TERMS.ttl_ms) == ""
    assert verdict((2, 10), answer(B, (2, 11)), vouched=True) == "", "the primary of the record has had its turn"


def test_a_member_with_another_log_than_the_one_that_counts_holds_nothing_up() -> None:
    assert verdict((2, 10), answer(B, (2, 10)), answer(C, (9, 99), log=UUID(int=77))) == ""


class Bed:
    """A member's questions, with a clock and dials that a test holds."""

    def __init__(self, *, vouched: bool) -> None:
        self.now_ns = 0
        self.asked: list[UUID] = []
        env = SimpleNamespace(clock=SimpleNamespace(boottime_ns=lambda: self.now_ns))
        self.engine: Any = SimpleNamespace(
            vouched=vouched, missing=0, log_id=LOGS[A], durable=10,
            settled_tail=LogPosition(10, 2), commit_point=LogPosition(9, 2),
        )  # fmt: skip
        services: Any = SimpleNamespace(head=A, env=env, terms=TERMS, dial=self._dial, tail_wait_ms=5000)
        self.promise = MemberPromise(TERMS, started_ns=0)
        self.questions = TailQuestions(services, self.engine, self.promise, lambda: None)

    async def _dial(self, head: UUID, purpose: Purpose, volume: UUID) -> Any:
        assert purpose is Purpose.TAIL
        self.asked.append(head)
        await asyncio.get_running_loop().create_future()

    async def look(self, record: VolumeRecord, step: Step, now_ms: int) -> TailSurvey | None:
        self.now_ns = now_ms * MS
        self.questions.look_round(record, step, self.promise.bound_until_ns, self.now_ns)
        await asyncio.sleep(0)
        return self.questions._survey


def test_only_who_waits_for_no_answer_asks_while_its_promise_still_binds_it() -> None:
    async def scenario() -> None:
        vouched, recovered = Bed(vouched=True), Bed(vouched=False)
        for bed in (vouched, recovered):
            assert await bed.look(volume(), Step.FOLLOW, 699) is None
            await bed.look(volume(), Step.FOLLOW, 700)
        assert vouched.asked == [B, C]
        assert recovered.asked == []
        await recovered.look(volume(), Step.CANDIDATE, 1000)
        assert recovered.asked == [B, C]
        for bed in (vouched, recovered):
            bed.questions.end()

    run(scenario())


def test_f5_an_answer_counts_only_for_the_version_of_the_record_under_which_it_was_given() -> None:
    async def scenario() -> None:
        bed = Bed(vouched=False)
        survey = await bed.look(volume(), Step.CANDIDATE, 1000)
        assert survey is not None
        survey.answers = {B: answer(B, (2, 10)), C: answer(C, (2, 10))}
        bed.questions.check(volume(), bed.now_ns)
        newer = volume(version=2)
        again = await bed.look(newer, Step.CANDIDATE, 2000)
        assert again is not None
        assert again.answers == {}
        with pytest.raises(TakeoverImpossible, match="waiting up to 5000 ms"):
            bed.questions.check(newer, bed.now_ns)
        bed.now_ns = 6000 * MS
        bed.questions.check(newer, bed.now_ns)
        await bed.look(volume(version=3, primary=C), Step.FOLLOW, 6000)
        assert bed.questions._survey is None, "whoever follows again asks again"

    run(scenario())


def test_d1_a_log_that_lost_its_end_asks_in_vain_until_an_operator_chose_it() -> None:
    async def scenario() -> None:
        bed = Bed(vouched=False)
        bed.engine.missing, bed.engine.commit_point = 2, LogPosition(12, 3)
        alone = volume(heads=(A,))
        assert await bed.look(alone, Step.CANDIDATE, 10**9) is None
        for forced in (0, 3):
            with pytest.raises(
                TakeoverImpossible, match="ends at operation 10 of epoch 2, but operation 12 of epoch 3"
            ):
                bed.questions.check(replace(alone, forced_epoch=forced), bed.now_ns)
        bed.questions.check(replace(alone, forced_epoch=4), bed.now_ns)

    run(scenario())


class Link:
    """A connection to a head that answers as a test says."""

    def __init__(self, *frames: tuple[FrameType, bytes]) -> None:
        self.frames, self.closed, self.reason = frames, False, ""
        self.on_frame: Any = None
        self.on_closed: Any = None

    def resume_receiving(self) -> None:
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        for kind, payload in self.frames:
            try:
                self.on_frame(kind, memoryview(payload))
            except LinkError as error:
                self.close(str(error))

    def close(self, reason: str) -> None:
        if not self.closed:
            self.closed, self.reason = True, reason
            self.on_closed(reason)


def asked(link: Link) -> Tail:
    async def dial(head: UUID, purpose: Purpose, volume: UUID) -> Link:
        return link

    services: Any = SimpleNamespace(dial=dial)
    return run(ask_tail(services, B, UUID(int=7)))


def test_an_answer_is_one_tail_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "ANSWER_SECONDS_MAX", 0.01)
    said = answer(B, (2, 10))
    link = Link((FrameType.TAIL, said.encode()))
    assert asked(link) == said
    assert link.closed
    for frames, why in (
        ([(FrameType.HEARTBEAT, b"")], "no answer to a question"),
        ([(FrameType.TAIL, b"short")], "TAIL has 5 bytes"),
        ([], "no answer within"),
    ):
        link = Link(*frames)
        with pytest.raises(LinkClosed, match=why):
            asked(link)
        assert link.closed
