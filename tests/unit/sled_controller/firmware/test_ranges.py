"""What of a download has arrived is known whatever the order, in bounded memory."""

from hypothesis import given
from hypothesis import strategies as st

from sled_controller.firmware.ranges import RANGES_MAX, Ranges


def test_pieces_in_order_are_one_stretch() -> None:
    ranges = Ranges()
    for at in range(0, 100_000, 4):
        assert ranges.add(at, at + 4)
    assert ranges.whole(100_000)
    assert ranges.whole(99_997)
    assert not ranges.whole(100_001)


def test_a_gap_is_seen_until_it_is_filled() -> None:
    ranges = Ranges()
    assert ranges.add(8, 12)
    assert ranges.add(0, 4)
    assert not ranges.whole(12)
    assert ranges.add(4, 8)
    assert ranges.whole(12)


def test_there_are_only_so_many_stretches() -> None:
    ranges = Ranges()
    for number in range(RANGES_MAX):
        assert ranges.add(8 * number, 8 * number + 4)
    assert not ranges.add(8 * RANGES_MAX, 8 * RANGES_MAX + 4)
    assert ranges.add(4, 8)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=40))
def test_it_says_the_same_as_a_set_of_bytes(pieces: list[tuple[int, int]]) -> None:
    ranges, there = Ranges(), set[int]()
    for start, length in pieces:
        piece = set(range(start, start + length))
        assert ranges.overlaps(start, start + length) is bool(piece & there)
        if not piece & there:
            assert ranges.add(start, start + length)
            there |= piece
        from_zero = there == set(range(len(there)))
        assert all(ranges.whole(end) is (from_zero and len(there) >= end) for end in range(1, 51))
