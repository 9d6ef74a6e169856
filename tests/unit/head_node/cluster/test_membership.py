"""Who counts for a commit, and when (F5)."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest
from kit.cluster import record_of, run, until

from head_node.authority.errors import AuthorityUnavailable, NotEligible, RecordChanged
from head_node.cluster.errors import Deposed
from head_node.cluster.membership import DurableProgress, Membership, MembershipChanges
from head_node.store.records import Member, VolumeRecord

A, B = UUID(int=100), UUID(int=101)
SELF, OTHER = Member(A, UUID(int=1)), Member(B, UUID(int=2))
ALONE = record_of([A, B], [], epoch=3, primary=A, current=(SELF,), version=5)
BOTH = replace(ALONE, current=(SELF, OTHER))


def yes() -> bool:
    return True


def no() -> bool:
    return False


def later(record: VolumeRecord, **changes: object) -> VolumeRecord:
    return replace(record, version=record.version + 1, **changes)  # type: ignore[arg-type]


class Script:
    """Answers change_members with what the test says, one after the other."""

    def __init__(self, membership: Membership, *answers: VolumeRecord | Exception) -> None:
        self.membership = membership
        self.answers = list(answers)
        self.required_when_asked: list[frozenset[UUID]] = []
        self.versions: list[int] = []
        self.changes = 0

    async def change_members(
        self, volume: UUID, *, epoch: int, expected_version: int, add: Member | None = None,
        remove: Member | None = None, lost: bool = False,
    ) -> VolumeRecord:  # fmt: skip
        self.required_when_asked.append(self.membership.required)
        self.versions.append(expected_version)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def reread(self) -> VolumeRecord:
        answer = self.answers.pop(0)
        assert isinstance(answer, VolumeRecord)
        return answer

    def changed(self) -> None:
        self.changes += 1

    def runner(self) -> MembershipChanges:
        return MembershipChanges(self, self.membership, 3, self.reread, self.changed)


def test_f5_the_put_is_sent_when_a_member_that_counts_already_holds_everything() -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership, later(BOTH))
        counted: list[bool] = []

        def ready() -> bool:
            assert not script.versions, "the put was sent before the member held everything"
            counted.append(B in membership.required)
            return len(counted) == 3

        assert await script.runner().add(OTHER, yes, ready)
        assert counted == [True] * 3

    run(work())


def test_a_member_that_does_not_get_ready_counts_no_more_and_no_put_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("head_node.cluster.membership.READY_SECONDS_MAX", 0.01)

    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership)
        assert not await script.runner().add(OTHER, yes, no)
        assert B not in membership.required
        assert not script.versions
        assert script.changes == 2

    run(work())


def test_an_addition_counts_before_its_put() -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership, later(BOTH))
        assert await script.runner().add(OTHER, yes, yes)
        assert script.required_when_asked == [{B}]
        assert membership.required == {B}
        assert membership.adding is None

    run(work())


def test_a_member_that_is_not_ready_in_that_turn_is_not_added() -> None:
    async def work() -> None:
        script = Script(Membership(A, ALONE))
        assert not await script.runner().add(OTHER, no, yes)
        assert script.changes == 0

    run(work())


def test_a_removal_counts_only_after_its_success() -> None:
    async def work() -> None:
        membership = Membership(A, BOTH)
        script = Script(membership, later(ALONE))
        assert await script.runner().remove(OTHER, lambda: True)
        assert script.required_when_asked == [{B}]
        assert membership.required == frozenset()

    run(work())


@pytest.mark.parametrize("last", [later(BOTH), RecordChanged(later(BOTH))], ids=["at the second try", "by the first"])
def test_an_unknown_outcome_is_asked_again_with_the_same_version(last: VolumeRecord | Exception) -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership, AuthorityUnavailable("lost"), last)
        assert await script.runner().add(OTHER, yes, yes)
        assert script.versions == [5, 5]
        assert script.required_when_asked == [{B}, {B}]

    run(work())


def test_a_refused_addition_counts_no_more_once_the_record_says_so() -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership, NotEligible("no"), later(ALONE))
        assert not await script.runner().add(OTHER, yes, yes)
        assert membership.required == frozenset()

    run(work())


def test_a_record_of_another_epoch_deposes_and_changes_nothing() -> None:
    async def work() -> None:
        membership = Membership(A, BOTH)
        script = Script(membership, RecordChanged(later(BOTH, epoch=4, primary=B)))
        with pytest.raises(Deposed):
            await script.runner().remove(OTHER, lambda: True)
        assert membership.required == {B}

    run(work())


def test_an_addition_without_a_definite_outcome_goes_on_counting_and_is_not_begun_again() -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        newer = later(ALONE, epoch=4, primary=B)
        script = Script(membership, NotEligible("epoch 4"), newer, RecordChanged(newer))
        changes = script.runner()
        for _ in range(2):
            with pytest.raises(Deposed):
                await changes.add(OTHER, yes, yes)
        assert script.changes == 1
        assert not await changes.add(Member(B, UUID(int=3)), yes, yes), "nor is another of the same head"
        assert membership.required == {B}

    run(work())


def test_changes_come_one_at_a_time() -> None:
    async def work() -> None:
        membership = Membership(A, ALONE)
        script = Script(membership, later(BOTH), later(later(ALONE)))
        changes = script.runner()
        added, removed = await asyncio.gather(changes.add(OTHER, yes, yes), changes.remove(OTHER, lambda: True))
        assert (added, removed) == (True, True)
        assert script.versions == [5, 6]
        await until(lambda: not changes.busy)

    run(work())


def test_the_log_that_counts_is_the_records_or_the_one_being_added() -> None:
    membership = Membership(A, ALONE)
    assert membership.log_of(B) is None
    membership.begin_add(OTHER)
    assert membership.log_of(B) == OTHER.log
    assert Membership(A, BOTH).log_of(B) == OTHER.log


def test_one_member_is_exposed_two_are_not() -> None:
    assert Membership(A, ALONE).exposed
    assert not Membership(A, BOTH).exposed


def test_an_older_record_is_ignored() -> None:
    membership = Membership(A, later(BOTH))
    membership.observed(ALONE)
    assert membership.required == {B}


def test_only_a_member_that_owes_the_same_record_for_the_whole_patience_is_stalled() -> None:
    progress = DurableProgress(patience_ns=100)
    progress.observe(B, durable=5, lag=0, now_ns=0)
    progress.observe(B, durable=5, lag=3, now_ns=50)
    assert not progress.stalled(B, 99)
    progress.observe(B, durable=6, lag=3, now_ns=90)
    assert not progress.stalled(B, 189)
    progress.observe(B, durable=6, lag=9, now_ns=180)
    assert progress.stalled(B, 190)
    progress.forget(B)
    assert not progress.stalled(B, 1000)


def test_a_member_that_owed_nothing_while_nobody_looked_is_not_stalled_by_its_next_record() -> None:
    progress = DurableProgress(patience_ns=100)
    progress.observe(B, durable=5, lag=0, now_ns=0)
    progress.observe(B, durable=5, lag=1, now_ns=500)
    assert not progress.stalled(B, 500)
    assert progress.stalled(B, 600)
