"""The disk of these tests does what a program may rely on, and no more."""

import os
from pathlib import Path
from random import Random

from kit.power_fuse import Disk, Shelf
from kit.power_model import PAGE_BYTES, Kept


def found(disk: Disk, kept: Kept = Kept.NOTHING, seed: int = 0) -> dict[str, bytes]:
    """Every file after a cut, by its path."""
    disk.cut(kept, Random(seed))
    return {
        str(path.relative_to(disk.path)): path.read_bytes() for path in sorted(disk.path.rglob("*")) if path.is_file()
    }


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def made(disk: Disk, name: str, size: int) -> int:
    """A file of zeroes, durable with its name; its descriptor."""
    descriptor = os.open(disk.path / name, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, size)
    os.fsync(descriptor)
    sync_directory(disk.path)
    return descriptor


def test_what_was_written_is_read_back_and_listed(power: Shelf) -> None:
    disk = power.disk()
    (disk.path / "below").mkdir()
    content = Random(1).randbytes(3 * PAGE_BYTES + 17)
    (disk.path / "below" / "file").write_bytes(content)
    with (disk.path / "below" / "file").open("r+b") as file:
        file.seek(PAGE_BYTES - 3)
        file.write(b"across")
        file.truncate(2 * PAGE_BYTES + 5)
    expected = (content[: PAGE_BYTES - 3] + b"across" + content[PAGE_BYTES + 3 :])[: 2 * PAGE_BYTES + 5]
    assert (disk.path / "below" / "file").read_bytes() == expected
    os.rename(disk.path / "below" / "file", disk.path / "other")
    assert sorted(os.listdir(disk.path)) == ["below", "other"]
    (disk.path / "below").rmdir()
    (disk.path / "other").unlink()
    assert os.listdir(disk.path) == []


def test_data_needs_a_sync_of_its_file(power: Shelf) -> None:
    for synced, expected in ((False, b"\0"), (True, b"x")):
        disk = power.disk()
        descriptor = made(disk, "file", PAGE_BYTES)
        os.pwrite(descriptor, b"x" * PAGE_BYTES, 0)
        sync_directory(disk.path)
        if synced:
            os.fdatasync(descriptor)
        os.close(descriptor)
        assert found(disk) == {"file": expected * PAGE_BYTES}


def test_a_name_needs_a_sync_of_its_directory(power: Shelf) -> None:
    for synced in (False, True):
        disk = power.disk()
        descriptor = os.open(disk.path / "file", os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, b"x", 0)
        os.fsync(descriptor)
        os.close(descriptor)
        if synced:
            sync_directory(disk.path)
        assert found(disk) == ({"file": b"x"} if synced else {})


def test_a_directory_is_a_name_in_its_parent(power: Shelf) -> None:
    disk = power.disk()
    (disk.path / "below").mkdir()
    (disk.path / "below" / "file").touch()
    sync_directory(disk.path / "below")
    assert found(disk) == {}


def test_a_synced_write_makes_its_own_range_durable_and_no_other(power: Shelf) -> None:
    disk = power.disk()
    descriptor = made(disk, "file", 4 * PAGE_BYTES)
    os.pwrite(descriptor, b"a" * PAGE_BYTES, 0)
    os.pwritev(descriptor, [b"b" * PAGE_BYTES, b"c" * PAGE_BYTES], PAGE_BYTES, os.RWF_DSYNC)
    os.close(descriptor)
    pages = found(disk)["file"]
    assert pages == b"".join(piece * PAGE_BYTES for piece in (b"\0", b"b", b"c", b"\0"))


def test_a_rename_may_be_kept_without_the_data_of_its_file(power: Shelf) -> None:
    disk = power.disk()
    os.close(made(disk, "file", 1))
    (disk.path / "file.new").write_bytes(b"x")
    os.rename(disk.path / "file.new", disk.path / "file")
    assert found(disk, Kept.NAMES) == {"file": b""}


def test_any_subset_of_the_unsynced_is_found_and_nothing_else(power: Shelf) -> None:
    disk = power.disk()
    descriptor = made(disk, "file", 3 * PAGE_BYTES)
    for turn in (b"1", b"2"):
        for page in range(3):
            os.pwrite(descriptor, turn * PAGE_BYTES, page * PAGE_BYTES)
    os.close(descriptor)
    seen = set()
    for seed in range(300):
        content = found(power.disk(disk.recorded.medium.copied()), Kept.SOME, seed)["file"]
        seen.add(tuple(content[page * PAGE_BYTES] for page in range(3)))
        assert all(
            content[page * PAGE_BYTES :][:PAGE_BYTES].count(content[page * PAGE_BYTES]) == PAGE_BYTES
            for page in range(3)
        )
    assert len(seen) == 27


def test_a_cut_can_go_back_to_any_step(power: Shelf) -> None:
    disk = power.disk()
    for name in ("one", "two"):
        (disk.path / name).touch()
    sync_directory(disk.path)
    counts = [len(medium.after_cut(Kept.NOTHING, Random(0)).inodes[1].names) for _, medium in disk.recorded.moments()]
    assert counts == [0] * disk.steps + [2]
