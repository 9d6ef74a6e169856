"""Sizes as people write them."""

import pytest
from rackctl.errors import SizeInvalid
from rackctl.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4096", 4096), ("4k", 4096), ("1MiB", 1 << 20), ("512M", 512 << 20), ("1 GB", 1 << 30), ("2tib", 2 << 40)],
)
def test_units_are_powers_of_1024(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "4095", "1.5G", "G", "1 PiB", "0x1000", "1GiBB", "٤k", "9" * 30])
def test_what_is_no_size_in_blocks_is_refused(text: str) -> None:
    with pytest.raises(SizeInvalid):
        parse_size(text)


@pytest.mark.parametrize("size_bytes", [4096, 1 << 20, 3 << 30, 5 << 40, (1 << 30) + 4096])
def test_what_is_shown_can_be_read_again(size_bytes: int) -> None:
    assert parse_size(show_size(size_bytes)) == size_bytes
