"""Board descriptions: those that come with the package hold together, and a wrong one is refused by key and reason."""

from pathlib import Path

import pytest
from sled_board.board import SCRATCH_BYTES, board_names, load_board, read_board
from sled_board.errors import BoardInvalid, BoardUnknown
from sled_board.slots import Slot

REFERENCE = "qemu-virt-arm64"
FOLDER = Path(__file__).parents[3] / "hw" / "sled_board" / "boards"


def changed(folder: Path, old: str, new: str) -> Path:
    text = (FOLDER / f"{REFERENCE}.toml").read_text(encoding="utf-8")
    assert old in text
    path = folder / "changed.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", board_names())
def test_a_board_of_the_package_is_named_like_its_file_and_can_hold_a_whole_slot_in_memory(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    assert board.sources
    assert board.nvme
    assert board.network
    assert all(board.place(slot).size + SCRATCH_BYTES <= board.uboot.load_bytes for slot in Slot)


def test_only_what_was_run_counts_as_tested() -> None:
    assert [name for name in board_names() if load_board(name).tested] == [REFERENCE]


def test_a_file_of_ones_own_is_a_board_too(tmp_path: Path) -> None:
    path = changed(tmp_path, f'name = "{REFERENCE}"', 'name = "mine"')
    assert load_board(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("baud = 115200", "baud = 115201", "console: 115201 is no baud rate"),
        ("baud = 115200", "", "console.baud: Field required"),
        ("baud = 115200", "baud = 115200\nparity = 1", "console.parity: Extra inputs"),
        ("load_bytes = 0x8000000", "load_bytes = 0x6000000", "load_bytes 100663296 is less than a slot"),
        ("[0x100000, 0x180000]", "[0x100000, 0x100000]", "copy 0 of the state ends at 1052672, where copy 1"),
        ("[0x100000, 0x180000]", "[0x100000, 0x200000]", "where slot_a has begun"),
        ("[0x100000, 0x180000]", "[0x100000, 0x180200]", "does not begin and end at a multiple of erase_bytes"),
        ("size = 0x20000000", "size = 0x1000000", "the storage at 16777216"),
        ('location = "none"', 'location = "floppy"', "environment.location"),
        ('interface = "virtio"', 'interface = "tape"', "storage.interface"),
        ('prompt = "=> "', 'prompt = ""', "uboot.prompt"),
        ('prompt = "=> "', 'prompt = "\\u2192 "', "uboot.prompt"),
        ("[console]", "[console", "is not TOML"),
        ("baud = 115200", "baud = " + "9" * 5000, "is not TOML"),
        ("load_address = 0x40200000", "load_address = 0xfffffffffffffff0", "go beyond 2^64"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(BoardInvalid) as refused:
        read_board(path)
    assert str(path) in str(refused.value)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_u_boots_environment_is_never_overlaid(tmp_path: Path) -> None:
    path = changed(tmp_path, 'interface = "virtio"', 'interface = "mmc"')
    path.write_text(
        path.read_text(encoding="utf-8").replace(
            'location = "none"', 'location = "mmc"\noffset = 0x1ff000\nsize = 0x2000'
        ),
        encoding="utf-8",
    )
    with pytest.raises(BoardInvalid, match="slot_a lies where U-Boot keeps its environment"):
        read_board(path)


def test_an_unknown_board_is_answered_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(BoardUnknown, match=f"macchiatobin, {REFERENCE}"):
        load_board("nonesuch")
    with pytest.raises(BoardUnknown, match="No such file"):
        load_board(str(tmp_path / "none.toml"))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\0")
    with pytest.raises(BoardInvalid, match="UTF-8"):
        read_board(path)
    path.write_bytes(b"#" * 70000)
    with pytest.raises(BoardInvalid, match="larger than"):
        read_board(path)
