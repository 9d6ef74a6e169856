"""The lease is arithmetic (F7): every case is times in, a verdict out."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from head_node.cluster.errors import SealRefused
from head_node.cluster.lease import HEARTBEATS_KEPT_MAX, MS, LeaseTerms, MemberPromise, PrimaryLease

TERMS = LeaseTerms()
B, C = UUID(int=2), UUID(int=3)
FAR = 1 << 62


def lease(*members: UUID, term_end_ns: int = FAR) -> PrimaryLease:
    made = PrimaryLease(TERMS, now_ns=0, term_end_ns=term_end_ns)
    made.require(members)
    return made


def test_it_is_counted_from_sending_not_from_the_answer() -> None:
    held = lease(B)
    sequence = held.heartbeat_sent(B, 100 * MS)
    assert held.promised(B, sequence)
    assert held.valid(100 * MS + 900 * MS - 1)
    assert not held.valid(100 * MS + 900 * MS)


def test_f7_an_answer_counts_from_its_own_heartbeat_not_from_a_later_one() -> None:
    held = lease(B)
    first = held.heartbeat_sent(B, 100 * MS)
    second = held.heartbeat_sent(B, 500 * MS)
    held.promised(B, first)
    assert held.end_ns == 100 * MS + held.terms.serve_ns
    held.promised(B, second)
    assert held.end_ns == 500 * MS + held.terms.serve_ns


def test_every_required_member_has_to_answer() -> None:
    held = lease(B, C)
    held.promised(B, held.heartbeat_sent(B, 100 * MS))
    assert not held.valid(101 * MS)
    held.promised(C, held.heartbeat_sent(C, 50 * MS))
    assert held.valid(101 * MS)
    assert held.end_ns == 950 * MS


def test_a_member_that_is_required_anew_must_have_answered_before() -> None:
    held = lease()
    assert held.valid(5 * MS)
    assert not held.fresh(B, 5 * MS)
    held.promised(B, held.heartbeat_sent(B, 5 * MS))
    assert held.fresh(B, 6 * MS)
    held.require({B})
    assert held.valid(6 * MS)


@pytest.mark.parametrize("sequence", [0, 2, 99])
def test_a_promise_for_a_heartbeat_that_was_not_sent_counts_for_nothing(sequence: int) -> None:
    held = lease(B)
    held.heartbeat_sent(B, 100 * MS)
    assert not held.promised(B, sequence)
    assert not held.valid(101 * MS)


def test_a_stale_promise_never_moves_the_lease() -> None:
    held = lease(B)
    old, new = held.heartbeat_sent(B, 100 * MS), held.heartbeat_sent(B, 200 * MS)
    assert held.promised(B, new)
    assert not held.promised(B, old)
    assert not held.promised(B, new)
    assert held.end_ns == 1100 * MS


def test_a_promise_of_one_member_is_none_of_another() -> None:
    held = lease(B, C)
    sequence = held.heartbeat_sent(B, 100 * MS)
    assert not held.promised(C, sequence)


def test_heartbeats_of_a_lost_link_cannot_be_answered() -> None:
    held = lease(B)
    sequence = held.heartbeat_sent(B, 100 * MS)
    held.link_lost(B)
    assert not held.promised(B, sequence)


def test_unanswered_heartbeats_are_bounded() -> None:
    held = lease(B)
    first = held.heartbeat_sent(B, 0)
    for _ in range(HEARTBEATS_KEPT_MAX):
        held.heartbeat_sent(B, 1)
    assert not held.promised(B, first)


def test_an_answer_that_was_read_after_a_pause_brings_nothing_back() -> None:
    """SIGSTOP between sending and reading the answer: the clock has gone on meanwhile."""
    held = lease(B)
    sequence = held.heartbeat_sent(B, 100 * MS)
    woken_ns = 5_000 * MS
    assert held.promised(B, sequence)
    assert not held.valid(woken_ns)


def test_a_lone_primary_serves_within_its_term_only() -> None:
    held = lease(term_end_ns=1000 * MS)
    assert held.valid(999 * MS)
    assert not held.valid(1000 * MS)
    held.extend_term(2000 * MS)
    assert held.valid(1999 * MS)
    held.extend_term(1500 * MS)
    assert held.valid(1999 * MS)


def test_a_lease_that_was_given_up_stays_given_up() -> None:
    held = lease(B)
    held.end_term()
    held.promised(B, held.heartbeat_sent(B, 100 * MS))
    assert not held.valid(101 * MS)


def test_a_silent_member_is_named_before_the_lease_ends() -> None:
    held = lease(B)
    held.promised(B, held.heartbeat_sent(B, 100 * MS))
    assert held.silent(699 * MS) == []
    assert held.silent(700 * MS) == [B]
    assert held.valid(700 * MS)


def test_a_member_never_heard_is_silent_from_the_start_of_the_lease() -> None:
    assert lease(B).silent(600 * MS) == [B]


@pytest.mark.parametrize("times", [(1000, 100, 150, 900), (1000, 100, 400, 600), (1000, 500, 150, 600), (0, 0, 0, 0)])
def test_times_that_do_not_fit_together_are_refused(times: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="lease times"):
        LeaseTerms(*times)


def test_a_member_seals_only_a_ttl_after_its_last_promise() -> None:
    promise = MemberPromise(TERMS, started_ns=-10_000 * MS)
    assert promise.promise(100 * MS)
    with pytest.raises(SealRefused):
        promise.seal(1099 * MS)
    promise.seal(1100 * MS)


def test_a_member_seals_only_a_ttl_after_its_own_start() -> None:
    promise = MemberPromise(TERMS, started_ns=0)
    assert not promise.may_seal(999 * MS)
    assert promise.may_seal(1000 * MS)


def test_a_sealed_member_promises_nothing() -> None:
    promise = MemberPromise(TERMS, started_ns=-10_000 * MS)
    promise.seal(0)
    assert not promise.promise(1)
    promise.unseal()
    assert promise.promise(2)


def test_a_primary_that_stopped_for_good_releases_the_member() -> None:
    promise = MemberPromise(TERMS, started_ns=0)
    promise.promise(100 * MS)
    promise.released(150 * MS)
    assert promise.may_seal(150 * MS)


@given(
    deliveries=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.booleans()), min_size=1, max_size=30),
    sealed_after=st.integers(0, 3000),
)
def test_f7_never_serves_while_a_member_may_have_sealed(
    deliveries: list[tuple[int, int, bool]], sealed_after: int
) -> None:
    """Heartbeats sent every 150 ms, each delayed there and back at random, some answers lost."""
    held, promise = lease(B), MemberPromise(TERMS, started_ns=-10_000 * MS)
    arrivals = []
    for index, (there, back, lost) in enumerate(deliveries):
        sent_ns = index * 150 * MS
        sequence = held.heartbeat_sent(B, sent_ns)
        arrivals.append((sent_ns + there * MS, sequence, None if lost else sent_ns + (there + back) * MS))
    seal_ns = sealed_after * MS
    for at_ns, _, _ in sorted(arrivals):
        if at_ns < seal_ns:
            promise.promise(at_ns)
    for at_ns, sequence, answered_ns in arrivals:
        if at_ns < seal_ns and answered_ns is not None:
            held.promised(B, sequence)
    if promise.may_seal(seal_ns):
        assert not held.valid(seal_ns)


def test_a_lease_given_up_is_not_revived_by_a_renewal_that_was_under_way() -> None:
    lease = PrimaryLease(LeaseTerms(), now_ns=0, term_end_ns=1000)
    lease.end_term()
    lease.extend_term(2000)
    assert not lease.valid(1)
