"""The record's rules as pure functions: what no sequence of requests may bring about."""

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from head_node.authority import transitions
from head_node.authority.errors import AuthorityError, Conflict, Frozen, NotEligible, RecordChanged, RequestRefused
from head_node.store.errors import RecordMalformed
from head_node.store.records import Column, LostRange, Member, NbdExport, VolumeRecord, VolumeState, column_blocks

HEADS = [UUID(int=number) for number in range(1, 5)]
LOGS = [UUID(int=number) for number in range(101, 104)]
SLEDS = tuple(UUID(int=number) for number in range(201, 207))
FRESH = VolumeRecord(UUID(int=1000), "v", 1 << 20, heads=(HEADS[0], HEADS[1]), sleds=SLEDS)
COLUMNS = [Column(index, sled, 1, column_blocks(1 << 20, FRESH.geometry)) for index, sled in enumerate(SLEDS)]

heads, logs = st.sampled_from(HEADS), st.sampled_from(LOGS)
members = st.builds(Member, heads, logs)
nearby = st.integers(-1, 1)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, UUID, Member, Member | None, int, int]:
    kind = draw(st.sampled_from(["takeover", "add", "remove", "columns", "revoke", "freeze", "recover", "delete"]))
    return kind, draw(heads), draw(members), draw(st.none() | members), draw(nearby), draw(nearby)


def apply(record: VolumeRecord, asked: tuple[str, UUID, Member, Member | None, int, int]) -> VolumeRecord:
    kind, head, member, other, version_off, epoch_off = asked
    version, epoch = record.version + version_off, record.epoch + epoch_off
    if kind == "takeover":
        return transitions.take_over(record, member.head, member.log, version)
    if kind == "add":
        return transitions.change_members(record, head, epoch, version, add=member, remove=other)
    if kind == "remove":
        return transitions.change_members(record, head, epoch, version, add=None, remove=member)
    if kind == "columns":
        return transitions.set_columns(record, head, epoch, version, COLUMNS, SLEDS)
    if kind == "revoke":
        return transitions.revoke(record, head, HEADS) or record
    if kind == "freeze":
        return transitions.freeze(record)
    if kind == "recover":
        return transitions.recover(record, epoch, VolumeState.ACTIVE)
    return transitions.delete(record)


def check_step(
    before: VolumeRecord, after: VolumeRecord, asked: tuple[str, UUID, Member, Member | None, int, int]
) -> None:
    kind, head, member, _, version_off, epoch_off = asked
    assert after.epoch >= before.epoch
    assert after is before or after.version == before.version + 1
    assert len({entry.head for entry in after.current}) == len(after.current)
    if after.primary is not None and after.current:
        assert after.member(after.primary) is not None
    if kind == "takeover":
        assert version_off == 0
        assert after.epoch == before.epoch + 1
        assert member in before.current or (not before.current and before.state is VolumeState.CREATING)
        assert after.primary == member.head
    if kind in ("add", "remove", "columns"):
        assert (before.primary, epoch_off, version_off) == (head, 0, 0)
        assert (after.epoch, after.primary) == (before.epoch, before.primary)
        assert before.state is not VolumeState.FROZEN
    if after.epoch == before.epoch and before.epoch:
        assert after.primary == before.primary
    if set(before.columns) - set(after.columns):
        raise AssertionError("a column that may hold shards was moved")


@settings(max_examples=300, deadline=None)
@given(st.lists(requests(), max_size=25))
def test_no_sequence_of_requests_breaks_the_record(
    sequence: list[tuple[str, UUID, Member, Member | None, int, int]],
) -> None:
    """Epochs never fall, one epoch has one primary, the primary is a member, only members take over."""
    record = FRESH
    primaries: dict[int, UUID | None] = {}
    for asked in sequence:
        try:
            after = apply(record, asked)
        except AuthorityError:
            continue
        check_step(record, after, asked)
        assert primaries.setdefault(after.epoch, after.primary) == after.primary
        assert VolumeRecord.from_json(after.to_json()) == after
        record = after


def test_epochs_do_not_wrap() -> None:
    record = replace(FRESH, epoch=transitions.EPOCH_MAX, current=(Member(HEADS[0], LOGS[0]),), primary=HEADS[0])
    with pytest.raises(Conflict, match="epochs"):
        transitions.take_over(record, HEADS[0], LOGS[0], record.version)


def test_a_head_that_is_not_assigned_cannot_make_the_volume() -> None:
    with pytest.raises(NotEligible, match="not assigned"):
        transitions.take_over(FRESH, HEADS[2], LOGS[0], FRESH.version)


def test_a_primary_cannot_remove_itself_nor_change_nothing() -> None:
    record = transitions.take_over(FRESH, HEADS[0], LOGS[0], FRESH.version)
    with pytest.raises(NotEligible, match="itself"):
        transitions.change_members(record, HEADS[0], 1, record.version, add=None, remove=Member(HEADS[0], LOGS[0]))
    with pytest.raises(RequestRefused):
        transitions.change_members(record, HEADS[0], 1, record.version, add=None, remove=None)


def test_min_current_is_kept() -> None:
    record = transitions.take_over(FRESH, HEADS[0], LOGS[0], FRESH.version)
    added = Member(HEADS[1], LOGS[1])
    record = transitions.change_members(record, HEADS[0], 1, record.version, add=added, remove=None)
    record = replace(record, min_current=2)
    with pytest.raises(NotEligible, match="keep 2"):
        transitions.change_members(record, HEADS[0], 1, record.version, add=None, remove=added)
    gone = transitions.change_members(record, HEADS[0], 1, record.version, add=None, remove=added, lost=True)
    assert len(gone.current) == 1
    back = transitions.change_members(gone, HEADS[0], 1, gone.version, add=added, remove=None)
    assert len(back.current) == 2


def test_members_are_added_one_by_one_up_to_min_current() -> None:
    record = replace(FRESH, min_current=3)
    record = transitions.take_over(record, HEADS[0], LOGS[0], record.version)
    added = Member(HEADS[1], LOGS[1])
    record = transitions.change_members(record, HEADS[0], 1, record.version, add=added, remove=None)
    assert len(record.current) == 2


def test_what_a_volume_does_while_sleds_are_away_may_be_changed_within_bounds() -> None:
    changed = transitions.set_sled_policy(FRESH, exposed_stripes=False, read_wait_s=30)
    assert (changed.exposed_stripes, changed.read_wait_s, changed.version) == (False, 30, FRESH.version + 1)
    assert transitions.set_sled_policy(changed, exposed_stripes=False, read_wait_s=30) is changed
    assert VolumeRecord.from_json(changed.to_json()) == changed
    for seconds in (-1, transitions.READ_WAIT_S_MAX + 1):
        with pytest.raises(RequestRefused, match="read_wait_s"):
            transitions.set_sled_policy(FRESH, exposed_stripes=True, read_wait_s=seconds)


def test_a_record_says_by_what_clients_reach_it_and_an_older_one_by_both() -> None:
    chosen = transitions.choose_exports(FRESH, NbdExport.TLS, nvme=False)
    assert (chosen.nbd, chosen.nvme, chosen.version) == (NbdExport.TLS, False, FRESH.version + 1)
    assert transitions.choose_exports(chosen, NbdExport.TLS, nvme=False) is chosen
    assert VolumeRecord.from_json(chosen.to_json()) == chosen
    older = {key: value for key, value in chosen.to_json().items() if key not in ("nbd", "nvme")}
    assert VolumeRecord.from_json(older) == replace(chosen, nbd=NbdExport.ON, nvme=True)
    with pytest.raises(RecordMalformed):
        VolumeRecord.from_json(chosen.to_json() | {"nbd": "sometimes"})


def test_a_record_of_an_older_authority_allows_exposed_stripes_and_waits_for_ever() -> None:
    old = {
        key: value for key, value in FRESH.to_json().items() if key not in ("exposed_stripes", "read_wait_s", "lost")
    }
    assert VolumeRecord.from_json(old) == FRESH
    assert (FRESH.exposed_stripes, FRESH.read_wait_s, FRESH.lost) == (True, None, ())


def test_ranges_are_declared_lost_within_the_volume_and_taken_off_by_the_primary_of_the_epoch_only() -> None:
    active = replace(FRESH, state=VolumeState.ACTIVE, primary=HEADS[0], epoch=3)
    lost = LostRange(10, 5, sleds_away=True)
    asked = transitions.declare_lost(active, lost)
    assert asked.lost == (lost,)
    assert transitions.declare_lost(asked, lost) is asked
    assert VolumeRecord.from_json(asked.to_json()) == asked
    for wrong in (LostRange(255, 2), LostRange(0, 0), LostRange(-1, 1)):
        with pytest.raises(RequestRefused, match="blocks 0 to 255"):
            transitions.declare_lost(active, wrong)
    with pytest.raises(Frozen):
        transitions.declare_lost(transitions.freeze(active), lost)
    with pytest.raises(Conflict, match="creating"):
        transitions.declare_lost(FRESH, lost)
    many = replace(active, lost=tuple(LostRange(at, 1) for at in range(transitions.LOST_RANGES_MAX)))
    with pytest.raises(Conflict, match="64 ranges"):
        transitions.declare_lost(many, lost)
    for head, epoch in ((HEADS[1], 3), (HEADS[0], 2)):
        with pytest.raises(NotEligible):
            transitions.lost_declared(asked, head, epoch, asked.version, lost)
    with pytest.raises(RecordChanged):
        transitions.lost_declared(asked, HEADS[0], 3, asked.version - 1, lost)
    assert transitions.lost_declared(asked, HEADS[0], 3, asked.version, lost).lost == ()
    assert transitions.lost_declared(active, HEADS[0], 3, active.version, lost) is active
