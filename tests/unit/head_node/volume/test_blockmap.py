"""An entry moves to a higher opnum, or by a MOVE while it still names the place that the block moves out of."""

import numpy as np

from head_node.volume.blockmap import BlockMap


def place(volume_map: BlockMap, lba: int, opnum: int, slot: int) -> int:
    one = np.array([lba]), np.array([opnum]), np.array([opnum]), slot, np.array([0])
    return volume_map.place(*one)[1]


def move(volume_map: BlockMap, lba: int, opnum: int, slot: int, source: int) -> int:
    one = np.array([lba]), np.array([opnum]), np.array([opnum]), slot, np.array([0])
    return volume_map.move(*one, np.array([source]))[1]


def slot_of(volume_map: BlockMap, lba: int) -> int | None:
    found = volume_map.find(lba)
    return None if found is None else found.slot


def test_a_move_needs_both_the_version_and_the_place_that_it_moves_from() -> None:
    volume_map = BlockMap(64)
    assert place(volume_map, 3, opnum=10, slot=5) == 1
    assert move(volume_map, 3, opnum=10, slot=7, source=4) == 0, "it was moved out of slot 4 by somebody else before"
    assert move(volume_map, 3, opnum=9, slot=7, source=5) == 0, "a newer version is there"
    assert move(volume_map, 3, opnum=11, slot=7, source=5) == 0
    assert slot_of(volume_map, 3) == 5
    assert move(volume_map, 3, opnum=10, slot=7, source=5) == 1
    assert slot_of(volume_map, 3) == 7


def test_an_older_or_equal_version_never_replaces_what_is_there() -> None:
    volume_map = BlockMap(64)
    place(volume_map, 3, opnum=10, slot=5)
    assert place(volume_map, 3, opnum=10, slot=6) == 0
    assert place(volume_map, 3, opnum=9, slot=6) == 0
    assert slot_of(volume_map, 3) == 5


def test_a_tombstone_keeps_older_versions_out_and_lets_newer_ones_in() -> None:
    volume_map = BlockMap(64)
    place(volume_map, 3, opnum=10, slot=5)
    assert volume_map.bury(0, 64, opnum=20).tolist() == [5]
    assert place(volume_map, 3, opnum=15, slot=6) == 0
    assert move(volume_map, 3, opnum=10, slot=6, source=5) == 0
    assert slot_of(volume_map, 3) is None
    assert place(volume_map, 3, opnum=21, slot=6) == 1


def test_a_snapshot_does_not_change_with_the_map() -> None:
    volume_map = BlockMap(64)
    place(volume_map, 3, opnum=10, slot=5)
    kept = BlockMap(64)
    kept.restore(volume_map.snapshot())
    place(volume_map, 3, opnum=11, slot=6)
    assert (slot_of(kept, 3), slot_of(volume_map, 3)) == (5, 6)
