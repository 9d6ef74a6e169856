"""When a head follows, waits or asks for the epoch."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn
from uuid import UUID

import pytest
from kit.cluster import KitHead, Rack, SkewedClock, credential_of, record_of, run, until, with_rack

from head_node.authority.errors import AuthorityUnavailable, Conflict, RecordChanged
from head_node.cluster.errors import TakeoverImpossible
from head_node.cluster.lease import MS
from head_node.cluster.takeover import (
    FIRST_TURN_MS,
    WHOLE_PLACEMENT_MS,
    Situation,
    Step,
    ask,
    check_sleds,
    next_step,
)
from head_node.cluster.volume_controller import UNREACHABLE_SECONDS_MAX
from head_node.store.records import Column, Member, VolumeRecord, VolumeState
from head_node.volume.geometry import Geometry
from sled_controller.backoff import JITTER
from sled_controller.environment import Environment

A, B = UUID(int=100), UUID(int=101)
LOG = UUID(int=55)
SLEDS = [UUID(int=1000 + number) for number in range(3)]
CREATING = record_of([A, B], SLEDS)
ACTIVE = replace(
    CREATING, state=VolumeState.ACTIVE, epoch=1, primary=A, current=(Member(A, UUID(int=54)), Member(B, LOG)),
    columns=tuple(Column(index, sled, 1, 100) for index, sled in enumerate(SLEDS)),
)  # fmt: skip


def step(record: VolumeRecord, head: UUID = B, now_ms: int = 500, bound_ms: int = 1000) -> Step:
    return next_step(Situation(record, head, LOG, now_ms * MS, bound_ms * MS, 0))[0]


def test_a_member_follows_while_its_promise_binds_it_and_then_is_a_candidate() -> None:
    assert step(ACTIVE) is Step.FOLLOW
    assert step(ACTIVE, now_ms=1000) is Step.CANDIDATE


def test_it_looks_again_when_its_promise_ends() -> None:
    assert next_step(Situation(ACTIVE, B, LOG, 500 * MS, 1000 * MS, 0))[1] == 1000 * MS


def test_a_head_with_another_log_than_the_record_names_never_asks() -> None:
    wiped = replace(ACTIVE, current=(ACTIVE.current[0], Member(B, UUID(int=56))))
    assert step(wiped, now_ms=10_000) is Step.FOLLOW


def test_a_head_that_is_no_member_never_asks() -> None:
    assert step(replace(ACTIVE, current=ACTIVE.current[:1]), now_ms=10_000) is Step.FOLLOW


def test_a_restarted_primary_waits_for_its_own_start_and_asks_for_a_new_epoch() -> None:
    own = replace(ACTIVE, primary=B)
    assert step(own) is Step.IDLE
    assert step(own, now_ms=1000) is Step.CANDIDATE


def test_a_new_volume_is_begun_by_heads_in_their_order() -> None:
    assert step(CREATING, head=A, now_ms=0, bound_ms=0) is Step.CANDIDATE
    assert step(CREATING, head=B, now_ms=FIRST_TURN_MS - 1) is Step.IDLE
    assert step(CREATING, head=B, now_ms=FIRST_TURN_MS) is Step.CANDIDATE


@pytest.mark.parametrize("change", [{"state": VolumeState.FROZEN}, {"heads": (A,)}])
def test_nothing_is_done_about_a_volume_that_is_frozen_or_not_ours(change: dict[str, object]) -> None:
    assert step(replace(ACTIVE, **change), now_ms=10_000) is Step.IDLE  # type: ignore[arg-type]


class Reach:
    def __init__(self, count: int) -> None:
        self.count = count

    def reachable(self, sleds: tuple[UUID, ...]) -> int:
        return self.count


def test_enough_sleds_are_n_minus_m_and_all_for_a_new_volume() -> None:
    check_sleds(ACTIVE, Reach(2), 0)
    check_sleds(CREATING, Reach(3), 0)
    for record, count in ((ACTIVE, 1), (CREATING, 2)):
        with pytest.raises(TakeoverImpossible):
            check_sleds(record, Reach(count), 0)


def test_a_new_volume_waits_for_all_its_sleds_and_then_begins_with_enough_for_a_redundant_stripe() -> None:
    new = replace(CREATING, geometry=Geometry(data_shards=1, parity_shards=2))
    waited_ns = WHOLE_PLACEMENT_MS * MS
    with pytest.raises(TakeoverImpossible):
        check_sleds(new, Reach(2), waited_ns - 1)
    check_sleds(new, Reach(2), waited_ns)
    with pytest.raises(TakeoverImpossible):
        check_sleds(new, Reach(1), waited_ns)


class Granting:
    def __init__(self, clock: SkewedClock, error: Exception | None = None) -> None:
        self.clock = clock
        self.error = error

    async def takeover(
        self, volume: UUID, *, expected_version: int, log_id: UUID, in_doubt: bool = False
    ) -> tuple[VolumeRecord, bytes]:
        self.clock.jump(3000)
        if self.error is not None:
            raise self.error
        return replace(ACTIVE, epoch=2, primary=B, version=2), credential_of(2, volume=volume, term_ms=60_000)


def test_the_term_is_counted_from_before_asking() -> None:
    clock = SkewedClock()
    before_ns = clock.boottime_ns()
    grant = run(ask(Granting(clock), ACTIVE, LOG, Environment(clock=clock)))
    assert 60_000 * MS <= grant.term_end_ns - before_ns < 61_000 * MS
    assert grant.record.epoch == 2


@pytest.mark.parametrize("error", [RecordChanged(ACTIVE), AuthorityUnavailable("gone")])
def test_a_refusal_and_no_answer_are_both_no_grant(error: Exception) -> None:
    clock = SkewedClock()
    with pytest.raises(TakeoverImpossible):
        run(ask(Granting(clock, error), ACTIVE, LOG, Environment(clock=clock)))


# --- tries that fail


class Refusing:
    """An authority that grants no epoch, and when it was asked."""

    def __init__(self, head: KitHead, error: Exception) -> None:
        self.asked_s: list[float] = []
        self.error = error
        head.api.takeover = self._takeover  # type: ignore[method-assign]

    async def _takeover(self, *_: object, **__: object) -> NoReturn:
        self.asked_s.append(asyncio.get_running_loop().time())
        raise self.error

    @property
    def pauses_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self.asked_s)]


def test_a_member_that_is_refused_asks_for_an_epoch_less_and_less_often_and_says_so() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        refusing = Refusing(second, Conflict("another member has to lead"))
        await first.crash()
        await until(lambda: len(refusing.asked_s) == 5)
        for number, pause in enumerate(refusing.pauses_s):
            assert pause >= 0.1 * 2**number * (1 - JITTER)
        await until(lambda: second.controller.status()["takeover_refusals"] == 5)
        status = second.controller.status()
        assert status["takeover_paused_ms"] > 1000
        assert "another member has to lead" in status["reason"]

    with_rack(scenario)


def test_a_newer_record_is_worth_asking_at_once() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        refusing = Refusing(second, Conflict("another member has to lead"))
        await first.crash()
        await until(lambda: len(refusing.asked_s) == 5)
        del second.api.takeover  # type: ignore[attr-defined]
        rack.authority.put(replace(rack.record, version=rack.record.version + 1))
        begun = asyncio.get_running_loop().time()
        await until(lambda: second.serving)
        assert asyncio.get_running_loop().time() - begun < 1.0, "the next pause would have been longer"

    with_rack(scenario)


def test_an_authority_that_is_away_is_asked_again_within_a_second_of_its_return() -> None:
    assert UNREACHABLE_SECONDS_MAX <= 1.0

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        refusing = Refusing(second, AuthorityUnavailable("nobody is there"))
        await first.crash()
        await until(lambda: len(refusing.asked_s) == 2)
        second.controller._asks.failures = 10
        await until(lambda: len(refusing.asked_s) == 4)
        assert max(refusing.pauses_s[1:]) < 2 * UNREACHABLE_SECONDS_MAX

    with_rack(scenario)
