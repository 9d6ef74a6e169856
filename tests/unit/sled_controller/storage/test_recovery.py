"""Which tables are trusted: every single fault is, what none explains is not."""

from collections.abc import Sequence

import pytest
from kit.drive import fence, volume

from sled_controller.storage.content import TableContent
from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.records import Cell, CheckpointEntry, Entry, FenceEntry, TableRecord
from sled_controller.storage.recovery import CellOrRecord, Recovered, recover

SIZE = 12
Copies = list[list[CellOrRecord]]


def region(generation: int, entries: Sequence[Entry], groups: Sequence[int] = ()) -> Copies:
    """Both copies of a region: a checkpoint of 3 records, then `entries` in groups of these sizes (1 each if none)."""
    content = TableContent(boot_counter=1, members={0: b"D" * 16})
    body = content.checkpoint()
    assert len(body) == 3
    records = [TableRecord(generation, 0, 0, 1, body[0])]
    records += [TableRecord(generation, 1 + at, 1, 2, entry) for at, entry in enumerate(body[1:])]
    first = 3
    for size in groups or [1] * len(entries):
        records += [TableRecord(generation, at, first, size, entries[at - 3]) for at in range(first, first + size)]
        first += size
    cells: list[CellOrRecord] = [*records, *[Cell.ABSENT] * (SIZE - len(records))]
    return [list(cells), list(cells)]


def blank() -> Copies:
    return [[Cell.ABSENT] * SIZE, [Cell.ABSENT] * SIZE]


def judged(first: Copies, second: Copies | None = None) -> Recovered:
    other = second or blank()
    return recover([(first[0], first[1]), (other[0], other[1])])


def raises(*epochs: int) -> list[Entry]:
    return [FenceEntry(volume(1), fence(epoch)) for epoch in epochs]


def epoch_of(recovered: Recovered) -> int:
    return recovered.content.fences[volume(1)].epoch


def test_a_whole_table_is_clean_and_goes_on_where_it_ended() -> None:
    found = judged(region(2, raises(1, 2, 3)))
    assert (found.clean, found.next_index, found.region, found.damaged) == (True, 6, 0, 0)
    assert epoch_of(found) == 3


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("cell", list(Cell))
def test_any_single_block_may_be_lost_or_damaged(copy: int, index: int, cell: Cell) -> None:
    table = region(2, raises(1, 2, 3))
    table[copy][index] = cell
    found = judged(table)
    assert epoch_of(found) == 3
    assert not found.clean


@pytest.mark.parametrize("index", range(6))
def test_both_copies_damaged_are_distrusted(index: int) -> None:
    table = region(2, raises(1, 2, 3))
    table[0][index] = table[1][index] = Cell.DAMAGED
    with pytest.raises(DeviceUntrusted):
        judged(table)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("cells", [(Cell.ABSENT, Cell.ABSENT), (Cell.ABSENT, Cell.DAMAGED)])
def test_a_record_gone_in_both_copies_before_acknowledged_ones_is_distrusted(
    index: int, cells: tuple[Cell, Cell]
) -> None:
    table = region(2, raises(1, 2, 3))
    table[0][index], table[1][index] = cells
    with pytest.raises(DeviceUntrusted):
        judged(table)


def test_a_record_in_one_copy_only_at_the_end_counts_and_is_healed() -> None:
    table = region(2, raises(1, 2, 3))
    table[1][5] = Cell.ABSENT
    found = judged(table)
    assert epoch_of(found) == 3
    assert not found.clean


def test_a_torn_group_at_the_end_is_no_distrust() -> None:
    table = region(2, raises(1, 2, 3, 4), groups=[1, 3])
    table[1][4:7] = [Cell.ABSENT] * 3
    table[0][4] = table[0][5] = Cell.ABSENT
    found = judged(table)
    assert (epoch_of(found), found.next_index, found.clean) == (4, 7, False)


def test_a_hole_before_an_acknowledged_group_is_distrusted() -> None:
    table = region(2, raises(1, 2, 3, 4), groups=[1, 2, 1])
    table[0][4] = table[1][4] = Cell.ABSENT
    with pytest.raises(DeviceUntrusted, match="acknowledged ones follow"):
        judged(table)


def test_copies_that_contradict_each_other_are_distrusted() -> None:
    table = region(2, raises(1, 2, 3))
    table[1] = region(2, raises(1, 2, 9))[1]
    with pytest.raises(DeviceUntrusted, match="contradict"):
        judged(table)


def test_the_newer_generation_counts() -> None:
    found = judged(region(2, raises(1)), region(3, raises(5)))
    assert (epoch_of(found), found.region, found.generation) == (5, 1, 3)


@pytest.mark.parametrize("cell", list(Cell))
def test_one_lost_head_of_the_newer_region_is_survived(cell: Cell) -> None:
    newer = region(3, raises(5))
    newer[0][0] = cell
    assert epoch_of(judged(region(2, raises(1)), newer)) == 5


@pytest.mark.parametrize("other", [Cell.DAMAGED, Cell.ABSENT])
def test_a_newer_region_under_a_damaged_head_is_not_passed_over(other: Cell) -> None:
    newer = region(3, raises(5))
    newer[0][0], newer[1][0] = Cell.DAMAGED, other
    with pytest.raises(DeviceUntrusted, match="damaged checkpoint head"):
        judged(region(2, raises(1)), newer)


def test_a_checkpoint_that_never_got_its_head_is_passed_over_and_its_generation_not_used_again() -> None:
    newer = region(3, raises(5))
    older = region(1, raises(1))
    newer[0][0], newer[1][0] = older[0][0], older[1][0]
    found = judged(region(2, raises(4)), newer)
    assert (epoch_of(found), found.generation, found.generation_max) == (4, 2, 3)


def test_rot_in_the_old_region_is_harmless() -> None:
    older = region(1, raises(1))
    older[0] = [Cell.DAMAGED] * SIZE
    older[1] = [Cell.DAMAGED] * SIZE
    found = judged(region(2, raises(4)), older)
    assert (epoch_of(found), found.clean, found.damaged) == (4, True, 2 * SIZE)


def test_records_of_an_older_generation_end_the_log() -> None:
    newer = region(4, raises(4))
    older = region(2, raises(1, 2, 3, 3, 3))
    for copy in (0, 1):
        newer[copy][4:8] = older[copy][4:8]
    found = judged(newer, region(3, raises(3)))
    assert (epoch_of(found), found.next_index, found.clean) == (4, 4, True)


def test_rot_of_one_block_after_the_end_is_harmless_and_of_both_is_distrusted() -> None:
    table = region(2, raises(1))
    table[0][4] = Cell.DAMAGED
    assert epoch_of(judged(table)) == 1
    table[1][4] = Cell.DAMAGED
    with pytest.raises(DeviceUntrusted, match="follows the last record"):
        judged(table)


def test_a_table_without_a_head_is_distrusted() -> None:
    with pytest.raises(DeviceUntrusted, match="no valid checkpoint head"):
        judged(blank())


def test_records_newer_than_the_head_above_them_are_distrusted() -> None:
    table = region(2, raises(1))
    table[0][3] = table[1][3] = TableRecord(4, 3, 3, 1, raises(9)[0])
    with pytest.raises(DeviceUntrusted, match="newer than its checkpoint head"):
        judged(table)


def test_a_checkpoint_longer_than_its_region_is_distrusted() -> None:
    table = region(2, [])
    for copy in table:
        copy[0] = TableRecord(2, 0, 0, 1, CheckpointEntry(SIZE + 1, 1))
    with pytest.raises(DeviceUntrusted, match="longer than its region"):
        judged(table)
