"""The table of a volume's states, against what must never be possible."""

import pytest

from head_node.cluster.errors import IllegalTransition
from head_node.cluster.states import PRIMARY_STATES, TRANSITIONS, VolumeState, check


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(VolumeState)


def test_the_epoch_is_only_reached_through_the_seal() -> None:
    into = {old for old, new in TRANSITIONS.items() if new & PRIMARY_STATES and old not in PRIMARY_STATES}
    assert into == {VolumeState.SEALED}


def test_serving_is_only_reached_with_a_committed_epoch_record_or_after_a_hold() -> None:
    assert {old for old, new in TRANSITIONS.items() if VolumeState.SERVING in new} == {
        VolumeState.LEADING,
        VolumeState.HOLDING,
    }


def test_a_primary_ends_by_stepping_down() -> None:
    for state in PRIMARY_STATES:
        assert TRANSITIONS[state] - PRIMARY_STATES == {VolumeState.STEPPING_DOWN}


def test_a_step_that_is_not_in_the_table_is_a_bug() -> None:
    with pytest.raises(IllegalTransition):
        check(VolumeState.FOLLOWING, VolumeState.SERVING)
