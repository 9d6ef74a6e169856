"""What a board starts is verified where it lies: whole, signed, for this board, not too old."""

from pathlib import Path

import pytest
from kit import firmware
from kit.firmware_store import SLOT_BYTES, Board, board
from sled_board.errors import (
    DamagedImage,
    DevelopmentKey,
    FirmwareStoreUnusable,
    RolledBack,
    WrongHardware,
    WrongPython,
    WrongSignature,
)
from sled_board.firmware_store import THIS_ARCHITECTURE, THIS_PYTHON, FirmwareStore
from sled_board.image.tlv import Tag
from sled_board.slots import Slot, Slots

A = Slot.A


@pytest.fixture
def empty(tmp_path: Path) -> Board:
    return board(tmp_path)


def test_an_image_is_verified_in_its_slot(empty: Board) -> None:
    empty.write(A, firmware.signed())
    image = empty.store.verified(A, Slots())
    assert image.version == "1.4.0"
    assert bytes(image.payload("application")) == firmware.APPLICATION


def test_the_slot_s_rest_does_not_matter(empty: Board) -> None:
    empty.write(A, b"\xff" * SLOT_BYTES)
    empty.write(A, firmware.signed())
    assert empty.store.verified(A, Slots()).counter == firmware.COUNTER


def test_an_empty_slot_holds_no_image(empty: Board) -> None:
    with pytest.raises(DamagedImage):
        empty.store.verified(A, Slots())


def test_an_image_that_announces_more_than_the_slot_holds_is_none(empty: Board) -> None:
    data = bytearray(firmware.signed())
    data[4:8] = (SLOT_BYTES + 1).to_bytes(4, "big")
    empty.write(A, bytes(data))
    with pytest.raises(DamagedImage, match=f"the slot has {SLOT_BYTES}"):
        empty.store.verified(A, Slots())


def test_who_signed_for_which_board_and_how_old_it_is_matter(tmp_path: Path, empty: Board) -> None:
    refused = [
        (firmware.signed(keys=(firmware.FIRST,)), Slots(), WrongSignature),
        (firmware.signed(firmware.recipe(hardware=("another-board",))), Slots(), WrongHardware),
        (firmware.signed(), Slots(counter_min=firmware.COUNTER + 1), RolledBack),
        (firmware.signed(firmware.recipe(tlvs={Tag.PYTHON: b"cp312"})), Slots(), WrongPython),
        (firmware.signed(firmware.recipe(payloads={"other": b"data"})), Slots(), DamagedImage),
    ]
    for data, slots, error in refused:
        empty.write(A, data)
        with pytest.raises(error):
            empty.store.verified(A, slots)


def test_a_key_that_the_kept_set_has_no_more_counts_no_more(empty: Board) -> None:
    empty.write(A, firmware.signed())
    newer = firmware.key_set(2, 2, (firmware.SECOND, firmware.THIRD))
    with pytest.raises(WrongSignature):
        empty.store.verified(A, Slots(key_set=newer))


def test_development_keys_count_until_the_board_is_locked(tmp_path: Path) -> None:
    under = firmware.key_set(1, 1, (firmware.DEVELOPER,))
    data = firmware.signed(keys=(firmware.DEVELOPER,), under=under)
    for locked in (False, True):
        folder = tmp_path / str(locked)
        folder.mkdir()
        one = board(folder, locked=locked)
        one.write(A, data)
        if locked:
            with pytest.raises(DevelopmentKey):
                one.store.verified(A, Slots())
        else:
            assert one.store.verified(A, Slots()).version == "1.4.0"


def test_an_image_for_another_processor_is_not_taken_wherever_it_comes_from(tmp_path: Path) -> None:
    one = board(tmp_path)
    data = firmware.signed(firmware.recipe(architecture="x86_64"))
    one.write(Slot.A, data)
    with pytest.raises(WrongHardware, match="it is for x86_64, this board has arm64"):
        one.store.verified(Slot.A, Slots())
    with pytest.raises(WrongHardware):
        one.store.loaded(Slot.A, Slots())


def test_a_store_that_names_no_architecture_is_for_the_machine_that_opens_it(tmp_path: Path) -> None:
    path = board(tmp_path).path
    path.write_text(path.read_text().replace('architecture = "arm64"', ""))
    assert FirmwareStore.open(path).architecture == THIS_ARCHITECTURE


def test_a_store_that_names_no_python_is_for_the_one_that_opens_it(tmp_path: Path) -> None:
    path = board(tmp_path).path
    path.write_text(path.read_text().replace('python = "cp311"', ""))
    assert FirmwareStore.open(path).python == THIS_PYTHON


@pytest.mark.parametrize(
    ("of", "to", "said"),
    [
        ("hardware =", "hardwares =", "hardware: is missing"),
        ('root_public_key = "', 'root_public_key = "zz', "root_public_key: is not 64 hexadecimal digits"),
        ("locked = true", "locked = 1", "locked: is missing, or no bool"),
        ('{ path = "state", offset = 0, size = 8192 }', "7", "state: is missing, or no dict"),
        ("size = 8192", "size = 8190", "state: size: two copies need 8192 bytes at least"),
        ('path = "slot-a"', 'way = "slot-a"', "slot_a.path: is missing"),
        ('"slot-b", offset = 0', '"slot-b", offset = -1', "slot_b: offset or size"),
        ('"slot-b", offset = 0', f'"slot-a", offset = {SLOT_BYTES - 1}', "slot_b: overlaps slot_a"),
        ("hardware", "hardware = ", "is not TOML"),
        ("locked = true", "locked = " + "[" * 5000 + "]" * 5000, "is not TOML"),
        ("locked = true", "locked = " + "9" * 5000, "is not TOML"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(tmp_path: Path, of: str, to: str, said: str) -> None:
    path = board(tmp_path).path
    text = path.read_text()
    assert of in text
    path.write_text(text.replace(of, to))
    with pytest.raises(FirmwareStoreUnusable, match=said):
        FirmwareStore.open(path)


def test_a_description_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FirmwareStoreUnusable, match="cannot be read"):
        FirmwareStore.open(tmp_path / "none")
