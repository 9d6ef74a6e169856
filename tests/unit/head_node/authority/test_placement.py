"""Where volumes go."""

from uuid import UUID

import pytest

from head_node.authority.errors import Unplaceable
from head_node.authority.placement import place_columns, place_heads
from head_node.store.records import HeadRecord, SledRecord, VolumeRecord, column_blocks
from head_node.volume.geometry import Geometry

SIZE = 1 << 30
BLOCKS = column_blocks(SIZE, Geometry())


def sled(number: int, capacity_blocks: int = 0) -> SledRecord:
    return SledRecord(UUID(int=number), f"sled-{number}", b"", "", ("127.0.0.1", 1), capacity_blocks)


def head(number: int) -> HeadRecord:
    return HeadRecord(UUID(int=number), f"head-{number}", b"")


def volume(number: int, **fields: tuple[UUID, ...]) -> VolumeRecord:
    return VolumeRecord(UUID(int=number), f"v{number}", SIZE, **fields)  # type: ignore[arg-type]


def test_columns_go_to_distinct_sleds_with_the_most_free_space() -> None:
    sleds = [sled(number, BLOCKS * number) for number in range(1, 10)]
    placed = place_columns(sleds, [], lambda _: None, SIZE, Geometry())
    assert [entry.int for entry in placed] == [9, 8, 7, 6, 5, 4]


def test_space_of_other_volumes_counts() -> None:
    sleds = [sled(number, BLOCKS * 2 + 1) for number in range(1, 8)]
    other = volume(1, sleds=tuple(UUID(int=number) for number in range(1, 7)))
    placed = place_columns(sleds, [other], lambda _: None, SIZE, Geometry())
    assert placed[0].int == 7
    full = [other, volume(2, sleds=other.sleds)]
    with pytest.raises(Unplaceable, match="of 7 enrolled, 1 have room"):
        place_columns(sleds, full, lambda _: None, SIZE, Geometry())


def test_a_sled_that_heads_cannot_reach_is_used_only_when_there_is_no_other() -> None:
    sleds = [sled(number) for number in range(1, 8)]
    placed = place_columns(sleds, [], lambda sled_id: sled_id.int != 3, SIZE, Geometry())
    assert UUID(int=3) not in placed
    placed = place_columns(sleds[:6], [], lambda sled_id: sled_id.int != 3, SIZE, Geometry())
    assert [entry.int for entry in placed] == [1, 2, 4, 5, 6, 3]


def test_preferred_primaries_are_spread_over_heads() -> None:
    heads = [head(number) for number in range(1, 4)]
    volumes: list[VolumeRecord] = []
    for number in range(6):
        volumes.append(volume(number, heads=place_heads(heads, volumes, lambda _: True, 2)))
    assert sorted(entry.heads[0].int for entry in volumes) == [1, 1, 2, 2, 3, 3]
    assert all(len(set(entry.heads)) == 2 for entry in volumes)


def test_live_heads_come_first_and_one_head_is_enough() -> None:
    heads = [head(1), head(2)]
    assert [entry.int for entry in place_heads(heads, [], lambda entry: entry.int == 2, 2)] == [2, 1]
    assert [entry.int for entry in place_heads(heads[:1], [], lambda _: False, 2)] == [1]
    with pytest.raises(Unplaceable):
        place_heads([], [], lambda _: True, 2)


@pytest.mark.parametrize(
    ("size_bytes", "blocks"),
    [(4096, (2 + 64) * 64), (252 * 4096, (2 + 64) * 64), (253 * 4096, (4 + 64) * 64), (1 << 30, (2 * 1041 + 64) * 64)],
)
def test_column_blocks_of_a_volume(size_bytes: int, blocks: int) -> None:
    assert column_blocks(size_bytes, Geometry()) == blocks
