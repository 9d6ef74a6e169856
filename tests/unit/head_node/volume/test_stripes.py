"""Which slots are handed out to be written (D1): never one that somebody still depends on."""

import numpy as np
import pytest

from head_node.volume.records import STRIPE_BLOCK, StripeRecord
from head_node.volume.stripes import StripeTable

SLOTS = 4


def record(slot: int) -> StripeRecord:
    return StripeRecord(1, 1, slot, ((0, True, 0),), np.zeros(1, STRIPE_BLOCK))


def handed_out(table: StripeTable) -> set[int]:
    """Every slot that can be had now."""
    found: set[int] = set()
    while (slot := table.allocate()) is not None:
        assert slot not in found
        found.add(slot)
    return found


@pytest.fixture
def table() -> StripeTable:
    fresh = StripeTable()
    fresh.open_slots(SLOTS)
    return fresh


def test_a_slot_that_holds_a_stripe_is_not_handed_out(table: StripeTable) -> None:
    table.add(record(1), live=2)
    table.lose(np.array([1]))
    assert table.free_count == SLOTS - 1
    assert handed_out(table) == {0, 2, 3}


def test_a_slot_is_handed_out_once_its_last_live_block_is_gone(table: StripeTable) -> None:
    table.add(record(1), live=2)
    table.lose(np.array([1, 1]))
    assert handed_out(table) == {0, 1, 2, 3}


def test_a_slot_that_is_being_written_is_not_handed_out_again(table: StripeTable) -> None:
    first = table.allocate()
    assert first is not None
    assert table.free_count == SLOTS - 1
    assert first not in handed_out(table)
    table.written(first)
    assert handed_out(table) == {first}


def test_a_slot_that_a_reader_holds_is_not_handed_out(table: StripeTable) -> None:
    table.add(record(2), live=1)
    table.hold(2)
    table.hold(2)
    table.lose(np.array([2]))
    table.release(2)
    assert table.free_count == SLOTS - 1
    assert handed_out(table) == {0, 1, 3}
    table.release(2)
    assert handed_out(table) == {2}


def test_a_slot_with_an_unanswered_command_is_not_handed_out_before_every_attach_is_gone(table: StripeTable) -> None:
    attaches = object(), object()
    slot = table.allocate()
    assert slot is not None
    table.written(slot, attaches)
    table.attach_gone(attaches[0])
    assert table.free_count == SLOTS - 1
    assert slot not in handed_out(table)
    table.attach_gone(attaches[1])
    assert handed_out(table) == {slot}


def test_nothing_is_handed_out_unless_primary(table: StripeTable) -> None:
    table.close_slots()
    assert handed_out(table) == set()
    assert handed_out(StripeTable()) == set()
