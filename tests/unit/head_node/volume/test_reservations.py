"""Reservations: each rule of NVM Express Base 2.0, 8.19 by itself, then all of them against a second opinion."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kit.reservation_model import Model

from head_node.volume.reservations import (
    NO_HOST,
    REGISTRANTS_MAX,
    Acquire,
    AcquireAction,
    Command,
    Notice,
    NoticeKind,
    Outcome,
    Persist,
    Register,
    RegisterAction,
    Release,
    ReleaseAction,
    Reservations,
    ReservationType,
    decide,
)
from spdk_bindings.nvme import Status

A, B, C, STRANGER = (bytes([number]) * 16 for number in range(1, 5))
OK, CONFLICT, INVALID = Status.SUCCESS, Status.RESERVATION_CONFLICT, Status.INVALID_FIELD
Type = ReservationType
SINGLE = [type_ for type_ in Type if not type_.held_by_all]
ALL = [type_ for type_ in Type if type_.held_by_all]


def register(key: int, **more: bool) -> Register:
    return Register(RegisterAction.REGISTER, new_key=key, **more)


def unregister(key: int, ignore_key: bool = False) -> Register:
    return Register(RegisterAction.UNREGISTER, current_key=key, ignore_key=ignore_key)


def substitute(old: int, new: int, ignore_key: bool = False) -> Register:
    return Register(RegisterAction.REPLACE, old, new, ignore_key)


def acquire(type_: Type, key: int) -> Acquire:
    return Acquire(AcquireAction.ACQUIRE, type_, key)


def preempt(type_: Type, key: int, victim: int) -> Acquire:
    return Acquire(AcquireAction.PREEMPT, type_, key, victim)


def release(type_: int, key: int) -> Release:
    return Release(ReleaseAction.RELEASE, type_, key)


def clear(key: int) -> Release:
    return Release(ReleaseAction.CLEAR, 0, key)


def after(*commands: tuple[bytes, Command]) -> Reservations:
    """The state that `commands`, none of which may fail, lead to."""
    state = Reservations()
    for host, command in commands:
        outcome = decide(state, host, command)
        assert outcome.status is OK, command
        state = outcome.state
    return state


def registered(type_: Type | None = None) -> Reservations:
    """A, B and C registered with keys 1, 2 and 3; A holds a reservation of `type_`."""
    commands: list[tuple[bytes, Command]] = [(A, register(1)), (B, register(2)), (C, register(3))]
    return after(*commands, *([(A, acquire(type_, 1))] if type_ else []))


def said(outcome: Outcome) -> dict[bytes, NoticeKind]:
    return {notice.host: notice.kind for notice in outcome.notices}


def refused(state: Reservations, host: bytes, command: Command, status: Status = CONFLICT) -> None:
    assert decide(state, host, command) == Outcome(status, state)


# --- which command conflicts with which reservation -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "holder", "registrant", "other"),
    [
        (None, "rw", "rw", "rw"),
        (Type.WRITE_EXCLUSIVE, "rw", "r", "r"),
        (Type.EXCLUSIVE_ACCESS, "rw", "", ""),
        (Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, "rw", "rw", "r"),
        (Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, "rw", "rw", ""),
        (Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, "rw", "rw", "r"),
        (Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, "rw", "rw", ""),
    ],
)
def test_the_table_of_conflicting_commands(type_: Type | None, holder: str, registrant: str, other: str) -> None:
    state = registered(type_)
    for host, rights in ((A, holder), (B, registrant), (STRANGER, other), (NO_HOST, other)):
        assert (state.may_read(host), state.may_write(host)) == ("r" in rights, "w" in rights), host


# --- register ---------------------------------------------------------------------------------------------------------


def test_registering_needs_no_key_and_counts_a_generation() -> None:
    state = after((A, register(1)))
    assert state == Reservations(1, registrants={A: 1})
    assert decide(state, B, register(1)).state == Reservations(2, registrants={A: 1, B: 1})


def test_the_same_key_may_be_registered_again_and_another_may_not() -> None:
    state = after((A, register(1)))
    again = decide(state, A, register(1))
    assert (again.status, again.state) == (OK, Reservations(2, registrants={A: 1}))
    refused(state, A, register(2))
    refused(state, A, register(2, ignore_key=True))


def test_unregistering_needs_the_key_or_ignores_it() -> None:
    state = registered()
    assert decide(state, A, unregister(1)).state == Reservations(4, registrants={B: 2, C: 3})
    assert decide(state, A, unregister(9, ignore_key=True)).state.registrants == {B: 2, C: 3}
    refused(state, A, unregister(2))
    refused(state, STRANGER, unregister(1))
    refused(state, STRANGER, unregister(1, ignore_key=True))


def test_a_key_is_replaced_with_the_old_one_or_regardless() -> None:
    state = registered(Type.WRITE_EXCLUSIVE)
    replaced = decide(state, A, substitute(1, 7))
    assert replaced.state == Reservations(4, Type.WRITE_EXCLUSIVE, A, {A: 7, B: 2, C: 3})
    assert decide(state, A, substitute(9, 7, ignore_key=True)).state == replaced.state
    refused(state, A, substitute(2, 7))
    refused(state, STRANGER, substitute(0, 7))


def test_replacing_regardless_of_the_key_registers_who_was_not() -> None:
    assert decide(registered(), STRANGER, substitute(0, 7, ignore_key=True)).state.registrants[STRANGER] == 7


def test_persistence_is_set_by_the_way_and_only_by_success() -> None:
    state = after((A, register(1, persist=False)))
    assert not state.persist
    assert not decide(state, B, register(2)).state.persist
    assert decide(state, B, register(2, persist=True)).state.persist
    refused(state, A, register(9, persist=True))


def test_persistence_set_as_a_feature_is_no_new_generation() -> None:
    state = registered()
    outcome = decide(state, STRANGER, Persist(False))
    assert (outcome.status, outcome.state.persist, outcome.state.generation) == (OK, False, state.generation)
    assert decide(state, A, Persist(True)).state is state


def test_there_is_room_for_so_many_registrants_and_no_more() -> None:
    hosts = [(number + 1).to_bytes(16, "big") for number in range(REGISTRANTS_MAX)]
    full = after(*((host, register(5)) for host in hosts))
    refused(full, b"n" * 16, register(5), Status.INTERNAL_ERROR)
    refused(full, b"n" * 16, substitute(0, 5, ignore_key=True), Status.INTERNAL_ERROR)
    assert decide(full, hosts[0], register(5)).status is OK
    assert decide(decide(full, hosts[0], unregister(5)).state, b"n" * 16, register(5)).status is OK


def test_the_generation_wraps_round() -> None:
    assert decide(Reservations(0xFFFF_FFFF), A, register(1)).state.generation == 0


@pytest.mark.parametrize("host", [NO_HOST, bytes(16), b"short"])
def test_a_host_without_an_identifier_is_not_asked_what_it_wants(host: bytes) -> None:
    with pytest.raises(ValueError, match="identifier"):
        decide(Reservations(), host, register(1))


# --- unregistering a holder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", SINGLE)
def test_a_reservation_goes_with_its_holder(type_: Type) -> None:
    outcome = decide(registered(type_), A, unregister(1))
    assert outcome.state == Reservations(4, registrants={B: 2, C: 3})
    told = dict.fromkeys((B, C), NoticeKind.RESERVATION_RELEASED) if type_.admits_registrants else {}
    assert said(outcome) == told


@pytest.mark.parametrize("type_", SINGLE)
def test_a_reservation_stays_when_another_registrant_goes(type_: Type) -> None:
    outcome = decide(registered(type_), B, unregister(2))
    assert outcome == Outcome(OK, Reservations(4, type_, A, {A: 1, C: 3}))


@pytest.mark.parametrize("type_", ALL)
def test_a_reservation_of_all_goes_with_the_last_of_them(type_: Type) -> None:
    state = registered(type_)
    for host, key in ((A, 1), (B, 2)):
        outcome = decide(state, host, unregister(key))
        assert (outcome.state.type, said(outcome)) == (type_, {})
        state = outcome.state
    assert state.holds(C)
    assert decide(state, C, unregister(3)) == Outcome(OK, Reservations(6))


@pytest.mark.parametrize("type_", ALL)
def test_who_registers_later_holds_a_reservation_of_all_too(type_: Type) -> None:
    state = decide(registered(type_), STRANGER, register(4)).state
    assert state.holds(STRANGER)
    assert state.may_write(STRANGER)


# --- acquire ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", Type)
def test_a_registrant_acquires_with_its_key(type_: Type) -> None:
    state = registered()
    outcome = decide(state, B, acquire(type_, 2))
    assert outcome == Outcome(OK, Reservations(3, type_, NO_HOST if type_.held_by_all else B, state.registrants))
    assert [host for host in (A, B, C, STRANGER) if outcome.state.holds(host)] == ([A, B, C] if type_ in ALL else [B])
    refused(state, B, acquire(type_, 1))
    refused(state, STRANGER, acquire(type_, 1))


@pytest.mark.parametrize("type_", Type)
def test_a_holder_may_acquire_the_same_again_and_nothing_else(type_: Type) -> None:
    state = registered(type_)
    assert decide(state, A, acquire(type_, 1)).state is state
    for other in Type:
        if other != type_:
            refused(state, A, acquire(other, 1))


@pytest.mark.parametrize("type_", SINGLE)
def test_what_is_held_is_not_acquired_by_another(type_: Type) -> None:
    refused(registered(type_), B, acquire(type_, 2))


# --- preempt ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [AcquireAction.PREEMPT, AcquireAction.PREEMPT_AND_ABORT])
@pytest.mark.parametrize("new", Type)
@pytest.mark.parametrize("type_", SINGLE)
def test_the_holders_key_takes_its_reservation(type_: Type, new: Type, action: AcquireAction) -> None:
    outcome = decide(registered(type_), B, Acquire(action, new, 2, 1))
    assert outcome.state == Reservations(4, new, NO_HOST if new.held_by_all else B, {B: 2, C: 3})
    told = {A: NoticeKind.REGISTRATION_PREEMPTED}
    if new != type_:
        told[C] = NoticeKind.RESERVATION_RELEASED
    assert said(outcome) == told


def test_everybody_with_the_holders_key_goes_except_the_host_that_preempts() -> None:
    state = after((A, register(1)), (B, register(1)), (C, register(1)), (A, acquire(Type.WRITE_EXCLUSIVE, 1)))
    outcome = decide(state, B, preempt(Type.WRITE_EXCLUSIVE, 1, 1))
    assert outcome.state == Reservations(4, Type.WRITE_EXCLUSIVE, B, {B: 1})
    assert said(outcome) == dict.fromkeys((A, C), NoticeKind.REGISTRATION_PREEMPTED)


@pytest.mark.parametrize("type_", SINGLE)
def test_a_holder_preempts_itself_to_change_the_type(type_: Type) -> None:
    outcome = decide(registered(type_), A, preempt(Type.EXCLUSIVE_ACCESS, 1, 1))
    assert outcome.state == Reservations(4, Type.EXCLUSIVE_ACCESS, A, {A: 1, B: 2, C: 3})
    changed = type_ is not Type.EXCLUSIVE_ACCESS
    assert said(outcome) == (dict.fromkeys((B, C), NoticeKind.RESERVATION_RELEASED) if changed else {})


@pytest.mark.parametrize("type_", [None, *Type])
def test_another_key_takes_registrations_and_leaves_the_reservation(type_: Type | None) -> None:
    outcome = decide(registered(type_), A, preempt(Type.WRITE_EXCLUSIVE, 1, 2))
    assert outcome.state.registrants == {A: 1, C: 3}
    assert (outcome.state.type, outcome.state.generation) == (type_, 4)
    assert outcome.state.holds(A) == (type_ is not None)
    assert said(outcome) == {B: NoticeKind.REGISTRATION_PREEMPTED}


@pytest.mark.parametrize("type_", [None, *Type])
def test_a_key_that_nobody_has_preempts_nobody(type_: Type | None) -> None:
    refused(registered(type_), A, preempt(Type.WRITE_EXCLUSIVE, 1, 9))


@pytest.mark.parametrize("type_", SINGLE)
def test_key_zero_preempts_no_single_holder(type_: Type) -> None:
    refused(registered(type_), B, preempt(Type.WRITE_EXCLUSIVE, 2, 0), INVALID)


@pytest.mark.parametrize("new", Type)
@pytest.mark.parametrize("type_", ALL)
def test_key_zero_takes_a_reservation_of_all_from_everybody(type_: Type, new: Type) -> None:
    outcome = decide(registered(type_), B, preempt(new, 2, 0))
    assert outcome.state == Reservations(4, new, NO_HOST if new.held_by_all else B, {B: 2})
    assert said(outcome) == dict.fromkeys((A, C), NoticeKind.REGISTRATION_PREEMPTED)


@pytest.mark.parametrize("type_", [None, *ALL])
def test_a_host_that_preempts_its_own_key_unregisters_itself_where_that_takes_no_reservation(
    type_: Type | None,
) -> None:
    state = after((A, register(1)), *([(A, acquire(type_, 1))] if type_ else []))
    assert decide(state, A, preempt(Type.WRITE_EXCLUSIVE, 1, 1)) == Outcome(OK, Reservations(2))


def test_preempting_needs_the_own_key() -> None:
    refused(registered(Type.WRITE_EXCLUSIVE), B, preempt(Type.WRITE_EXCLUSIVE, 3, 1))
    refused(registered(Type.WRITE_EXCLUSIVE), STRANGER, preempt(Type.WRITE_EXCLUSIVE, 2, 1))


# --- release and clear ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", Type)
def test_a_holder_releases_and_all_stay_registered(type_: Type) -> None:
    outcome = decide(registered(type_), A, release(type_, 1))
    assert outcome.state == registered()
    assert said(outcome) == (dict.fromkeys((B, C), NoticeKind.RESERVATION_RELEASED) if type_.admits_registrants else {})


@pytest.mark.parametrize("type_", ALL)
def test_any_registrant_releases_a_reservation_of_all(type_: Type) -> None:
    outcome = decide(registered(type_), C, release(type_, 3))
    assert outcome.state == registered()
    assert said(outcome) == dict.fromkeys((A, B), NoticeKind.RESERVATION_RELEASED)


@pytest.mark.parametrize("type_", Type)
def test_a_release_names_the_type_that_is_held(type_: Type) -> None:
    for other in {0, 7, *Type} - {type_}:
        refused(registered(type_), A, release(other, 1), INVALID)


@pytest.mark.parametrize("type_", [None, *SINGLE])
def test_a_registrant_that_holds_nothing_releases_nothing(type_: Type | None) -> None:
    state = registered(type_)
    assert decide(state, B, release(1, 2)) == Outcome(OK, state)
    refused(state, B, release(1, 1))
    refused(state, STRANGER, release(1, 1))


@pytest.mark.parametrize("type_", [None, *Type])
def test_any_registrant_clears_everything(type_: Type | None) -> None:
    outcome = decide(registered(type_), B, clear(2))
    assert outcome.state == Reservations(4)
    assert said(outcome) == dict.fromkeys((A, C), NoticeKind.RESERVATION_PREEMPTED)
    refused(registered(type_), B, clear(1))
    refused(registered(type_), STRANGER, clear(1))


def test_clearing_keeps_what_was_said_of_persistence() -> None:
    state = after((A, register(1, persist=False)))
    assert not decide(state, A, clear(1)).state.persist


# --- all of it --------------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from([A, B, C, STRANGER])
KEYS = st.integers(0, 2)
"""So few that hosts share them."""
OWN = st.sampled_from([None, None, None, None, 0, 1])
"""None: the key that the host has, or a command would hardly ever succeed."""
TYPES = st.sampled_from(list(Type))
STATUSES = {"ok": OK, "conflict": CONFLICT, "invalid": INVALID}
SAYINGS = {
    "registration preempted": NoticeKind.REGISTRATION_PREEMPTED,
    "released": NoticeKind.RESERVATION_RELEASED,
    "reservation preempted": NoticeKind.RESERVATION_PREEMPTED,
}


class AgainstTheModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = Reservations()
        self.model = Model()

    def key_of(self, host: bytes, key: int | None) -> int:
        return self.model.keys.get(host, 0) if key is None else key

    def compare(self, host: bytes, command: Command, expected: str) -> None:
        outcome = decide(self.state, host, command)
        assert outcome.status is STATUSES[expected]
        assert sorted(outcome.notices, key=lambda notice: notice.host) == sorted(
            (Notice(told, SAYINGS[what]) for told, what in self.model.said), key=lambda notice: notice.host
        )
        if outcome.status is not OK:
            assert outcome.state is self.state
        self.state = outcome.state

    @initialize(keys=st.lists(KEYS, min_size=4, max_size=4), type_=TYPES)
    def begins(self, keys: list[int], type_: Type) -> None:
        for host, key in zip((A, B, C, STRANGER), keys, strict=True):
            self.registers(host, RegisterAction.REGISTER, 0, key, False, None)
        self.acquires(A, type_, None)

    @rule(
        host=HOSTS, action=st.sampled_from(list(RegisterAction)), current=OWN, new=KEYS, ignore=st.booleans(),
        persist=st.sampled_from([None, False, True]),
    )  # fmt: skip
    def registers(
        self, host: bytes, action: RegisterAction, current: int | None, new: int, ignore: bool, persist: bool | None
    ) -> None:
        key = self.key_of(host, current)
        expected = self.model.register(host, action.name.lower(), key, new, ignore, persist)
        self.compare(host, Register(action, key, new, ignore, persist), expected)

    @rule(host=HOSTS, type_=TYPES, key=OWN)
    def acquires(self, host: bytes, type_: Type, key: int | None) -> None:
        own = self.key_of(host, key)
        self.compare(host, acquire(type_, own), self.model.acquire(host, type_, own))

    @rule(host=HOSTS, type_=TYPES, key=OWN, victim=KEYS, abort=st.booleans())
    def preempts(self, host: bytes, type_: Type, key: int | None, victim: int, abort: bool) -> None:
        action = AcquireAction.PREEMPT_AND_ABORT if abort else AcquireAction.PREEMPT
        own = self.key_of(host, key)
        self.compare(host, Acquire(action, type_, own, victim), self.model.preempt(host, type_, own, victim))

    @rule(host=HOSTS, type_=st.integers(0, 7), key=OWN)
    def releases(self, host: bytes, type_: int, key: int | None) -> None:
        own = self.key_of(host, key)
        self.compare(host, release(type_, own), self.model.release(host, type_, own))

    @rule(host=HOSTS, key=st.sampled_from([None, 8, 8, 8, 8, 8, 8]))
    def clears(self, host: bytes, key: int | None) -> None:
        own = self.key_of(host, key)
        self.compare(host, clear(own), self.model.clear(host, own))

    @invariant()
    def both_agree(self) -> None:
        model, state = self.model, self.state
        assert (state.generation, state.type or 0, state.persist) == (model.generation, model.type, model.persist)
        assert state.registrants == model.keys
        for host in (A, B, C, STRANGER):
            assert state.holds(host) == (host in model.holders)
            rights = model.rights(host)
            assert (state.may_read(host), state.may_write(host)) == ("r" in rights, "w" in rights)


AgainstTheModel.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAgainstTheModel = AgainstTheModel.TestCase
