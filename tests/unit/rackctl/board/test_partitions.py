"""The board's storage after provisioning: a partition table that tools read, and file systems with what was given."""

import json
import re
from pathlib import Path

import pytest
from kit.peers import require, run
from rackctl.board.partitions import Content, is_blank, layout, write_partitions
from rackctl.errors import RackError
from sled_board.board import load_board

BOARD = load_board("qemu-virt-arm64")
BASE = {"kernel": Content(b"k" * 5000), "extlinux/extlinux.conf": Content(b"DEFAULT sled\n")}
OWN = {"board.sh": Content(b"name=one\n"), "state/identity.key": Content(b"secret", secret=True)}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    require("mkfs.ext4")
    path = tmp_path / "storage.img"
    with path.open("wb") as file:
        file.truncate(BOARD.storage.size)
    return path


def inside(storage: Path, number: int, command: str, folder: Path) -> str:
    """What `debugfs` says of a partition."""
    partition = layout(BOARD, BASE, OWN)[number]
    image = folder / f"partition-{number}"
    with storage.open("rb") as file:
        file.seek(partition.offset)
        image.write_bytes(file.read(partition.size))
    return run("debugfs", "-R", command, image)


def test_the_file_systems_hold_what_was_given(storage: Path, tmp_path: Path) -> None:
    write_partitions(storage, layout(BOARD, BASE, OWN))
    assert "DEFAULT sled" in inside(storage, 0, "cat /extlinux/extlinux.conf", tmp_path)
    assert "name=one" in inside(storage, 1, "cat /board.sh", tmp_path)
    secret = inside(storage, 1, "stat /state/identity.key", tmp_path)
    assert re.search(r"Mode:\s+0600", secret)
    assert "User:     0   Group:     0" in inside(storage, 1, "stat /", tmp_path)


def test_the_base_system_is_plain_enough_for_u_boot_and_the_boards_own_has_a_journal(
    storage: Path, tmp_path: Path
) -> None:
    write_partitions(storage, layout(BOARD, BASE, OWN))
    base, own = (inside(storage, number, "features", tmp_path) for number in (0, 1))
    assert not {"has_journal", "metadata_csum", "64bit"} & set(base.split())
    assert {"has_journal", "metadata_csum"} <= set(own.split())


def test_the_table_is_what_sfdisk_reads(storage: Path) -> None:
    sfdisk = require("sfdisk")
    assert is_blank(storage)
    write_partitions(storage, layout(BOARD, BASE, OWN))
    assert not is_blank(storage)
    table = json.loads(run(sfdisk, "--json", storage))["partitiontable"]
    place, (base, own) = BOARD.storage.base, table["partitions"]
    assert table["label"] == "dos"
    assert (base["bootable"], own.get("bootable", False)) == (True, False)
    assert base["start"] * 512 == place.offset
    assert (own["start"] + own["size"]) * 512 == place.offset + place.size


def test_slots_and_their_state_are_left_alone(storage: Path) -> None:
    marks = [place.offset for place in (BOARD.storage.slot_a, BOARD.storage.slot_b)] + [*BOARD.storage.state.offsets]
    with storage.open("r+b") as file:
        for offset in marks:
            file.seek(offset)
            file.write(b"mine")
    write_partitions(storage, layout(BOARD, BASE, OWN))
    with storage.open("rb") as file:
        for offset in marks:
            file.seek(offset)
            assert file.read(4) == b"mine"


def test_a_base_system_that_is_too_large_is_refused() -> None:
    with pytest.raises(RackError, match="too small for this one"):
        layout(BOARD, {"kernel": Content(bytes(BOARD.storage.base.size))}, OWN)
