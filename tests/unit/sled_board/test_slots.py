"""A new image is tried, confirmed or rolled back; what was confirmed is never lost and nothing older comes back."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sled_board.errors import SlotRefused
from sled_board.slots import ATTEMPTS, TRANSITIONS, Slot, SlotEvent, SlotRecord, Slots, SlotState

A, B = Slot.A, Slot.B
ID = {A: "aa" * 32, B: "bb" * 32}


def filled(slots: Slots, slot: Slot, counter: int = 1) -> Slots:
    """An image was written into the slot and is to be tried."""
    return slots.erase(slot).store(slot, image_id=ID[slot], version="1.0.0", counter=counter).activate(slot)


def started(slots: Slots, slot: Slot) -> Slots:
    """Start, which takes `slot`."""
    slots, chosen = slots.start()
    assert chosen is slot
    return slots


def in_use(counter: int = 1) -> Slots:
    """A runs and was confirmed."""
    return started(filled(Slots(), A, counter), A).confirm(A)


def test_a_new_board_has_nothing_to_start() -> None:
    assert Slots().start() == (Slots(), None)
    assert Slots().spare is A


def test_a_healthy_image_is_confirmed_and_the_former_one_kept() -> None:
    slots = started(filled(in_use(), B), B)
    assert slots[B] == SlotRecord(SlotState.TEST, ATTEMPTS - 1, 1, ID[B], "1.0.0")
    slots = slots.confirm(B)
    assert slots[B].state is SlotState.CONFIRMED
    assert slots[A].state is SlotState.INACTIVE
    assert slots.spare is A
    assert slots.settled


def test_an_image_that_fails_three_starts_is_rolled_back() -> None:
    slots = filled(in_use(), B)
    for _ in range(ATTEMPTS):
        slots = started(slots, B)
    slots = started(slots, A)
    assert slots[B].state is SlotState.BAD
    assert slots.spare is B


def test_a_watchdog_reset_rolls_back_at_once() -> None:
    slots, chosen = started(filled(in_use(), B), B).start(watchdog=True)
    assert chosen is A
    assert slots[B].state is SlotState.BAD


def test_a_watchdog_reset_of_what_ran_before_is_not_held_against_an_image_not_yet_started() -> None:
    slots, chosen = filled(in_use(), B).start(watchdog=True)
    assert chosen is B
    assert slots[B].attempts_left == ATTEMPTS - 1


def test_a_confirmed_image_is_given_up_only_for_another_one() -> None:
    alone = in_use()
    for _ in range(3 * ATTEMPTS):
        alone = started(alone, A)
    assert alone[A].state is SlotState.CONFIRMED
    both = started(filled(in_use(), B), B).confirm(B)
    for _ in range(ATTEMPTS):
        both = started(both, B)
    both = started(both, A)
    assert both[B].state is SlotState.BAD
    assert both[A].state is SlotState.TEST


def test_the_last_image_that_verifies_is_never_given_up() -> None:
    slots = started(filled(in_use(), B), B).confirm(B)
    for _ in range(10 * ATTEMPTS):
        slots, slot = slots.start()
        assert slot is not None
    slots = started(filled(in_use().reject(A), B), B)
    for _ in range(3 * ATTEMPTS):
        slots, slot = slots.start(watchdog=True)
        assert slot is B


def test_what_ended_in_good_order_is_no_failed_attempt_of_a_confirmed_image() -> None:
    slots = in_use()
    for _ in range(3 * ATTEMPTS):
        slots = started(slots, A).end_in_order(A)
    assert slots == slots.end_in_order(A)
    assert slots[A].attempts_left == ATTEMPTS
    tried = started(filled(slots, B), B)
    assert tried.end_in_order(B) == tried


def test_a_confirmed_image_is_not_given_up_for_one_of_an_older_generation() -> None:
    slots = started(filled(in_use(counter=1), B, counter=2), B).confirm(B)
    for _ in range(3 * ATTEMPTS):
        slots = started(slots, B)
    assert slots[B].state is SlotState.CONFIRMED


def test_with_both_slots_bad_the_board_recovers() -> None:
    slots = in_use().reject(A)
    slots = filled(slots, B).reject(B)
    assert slots.start() == (slots, None)
    assert slots.spare is B
    assert started(filled(slots, B), B)[B].state is SlotState.TEST


def test_an_image_that_does_not_verify_gives_way_to_the_other_one() -> None:
    slots = started(filled(in_use(), B), B).reject(B)
    assert started(slots, A)[A].state is SlotState.CONFIRMED


def test_confirming_ends_all_older_generations() -> None:
    slots = started(filled(in_use(counter=3), B, counter=5), B)
    assert slots.counter_min == 3
    slots = slots.confirm(B)
    assert slots.counter_min == 5
    with pytest.raises(SlotRefused, match="counter is below 5"):
        slots.activate(A)
    with pytest.raises(SlotRefused, match="rollback counter 4 is below 5"):
        slots.erase(A).store(A, image_id=ID[A], version="1.0.0", counter=4)
    assert filled(slots, A, counter=5)[A].state is SlotState.TEST


def test_confirming_keeps_the_newest_key_set() -> None:
    slots = started(filled(in_use(), B), B).confirm(B, b"keys")
    assert slots.key_set == b"keys"
    assert started(slots, B).confirm(B).key_set == b"keys"


def test_activating_the_image_in_use_calls_off_the_one_in_test() -> None:
    slots = filled(in_use(), B).activate(A)
    assert slots[B].state is SlotState.INACTIVE
    assert slots.settled
    started(slots, A)


def test_a_confirmed_image_is_never_overwritten() -> None:
    with pytest.raises(SlotRefused, match="slot a is confirmed: it cannot be overwritten"):
        in_use().erase(A)


def test_only_one_image_is_in_test() -> None:
    slots = filled(filled(Slots(), A), B)
    assert slots[A].state is SlotState.INACTIVE
    assert slots[B].state is SlotState.TEST


def test_nothing_is_settled_before_this_start_was_found_healthy() -> None:
    assert not Slots().settled
    assert in_use().settled
    again = started(in_use(), A)
    assert not again.settled
    assert again.confirm(A).settled


@pytest.mark.parametrize(("state", "event"), list(product(SlotState, SlotEvent)))
def test_what_the_table_does_not_have_is_refused(state: SlotState, event: SlotEvent) -> None:
    slots = Slots(a=SlotRecord(state, 1, 1, ID[A], "1.0.0"), active=A)
    acts = {
        SlotEvent.ERASE: slots.erase,
        SlotEvent.STORE: lambda slot: slots.store(slot, image_id=ID[A], version="1.0.0", counter=1),
        SlotEvent.ACTIVATE: slots.activate,
        SlotEvent.CONFIRM: slots.confirm,
        SlotEvent.REJECT: slots.reject,
        SlotEvent.RETIRE: lambda slot: replace(slots, b=SlotRecord(SlotState.TEST, 1, 1, ID[B], "1")).confirm(B),
    }
    after = TRANSITIONS.get((state, event))
    if after is None:
        with pytest.raises(SlotRefused, match=f"slot a is {state.value}"):
            acts[event](A)
    else:
        assert acts[event](A)[A].state is after


ACTS = st.sampled_from(["erase", "store", "activate", "confirm", "reject", "start", "watchdog"])


@given(st.lists(st.tuples(ACTS, st.sampled_from(Slot), st.integers(0, 3)), max_size=40))
def test_whatever_happens_the_rules_hold(acts: list[tuple[str, Slot, int]]) -> None:
    slots = Slots()
    for act, slot, counter in acts:
        before = slots
        try:
            if act in ("start", "watchdog"):
                slots, chosen = slots.start(watchdog=act == "watchdog")
                if chosen is None:
                    assert not any(slots[each].state in (SlotState.TEST, SlotState.CONFIRMED) for each in Slot)
                else:
                    assert slots[chosen].counter >= slots.counter_min
                    assert slots[chosen].state in (SlotState.TEST, SlotState.CONFIRMED)
                    assert slots.active is chosen
            elif act == "store":
                slots = slots.store(slot, image_id=ID[slot], version="1", counter=counter)
            else:
                slots = getattr(slots, act)(slot)
        except SlotRefused:
            assert slots is before
        states = [slots[each].state for each in Slot]
        assert slots.counter_min >= before.counter_min
        assert states.count(SlotState.TEST) <= 1
        assert states.count(SlotState.CONFIRMED) <= 1
        assert all(0 <= slots[each].attempts_left <= ATTEMPTS for each in Slot)
        confirmed = [each for each in Slot if before[each].state is SlotState.CONFIRMED]
        assert all(slots[each].image_id == before[each].image_id for each in confirmed)
