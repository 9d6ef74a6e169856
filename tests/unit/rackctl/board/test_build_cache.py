"""What takes long to build is built once for the same inputs, and only a few old builds stay."""

import os
from pathlib import Path

import pytest
from rackctl.board.build_cache import BuildCache, digest


def test_a_build_is_named_after_all_that_goes_into_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    names = {digest(("a",), (one,)), digest(("b",), (one,)), digest(("a",), (other,)), digest(("a",), (one, other))}
    assert len(names) == 4
    assert digest(("a",), (one,)) in names


def test_the_same_thing_is_built_once(tmp_path: Path) -> None:
    built = []

    def build(into: Path) -> None:
        built.append(into)
        (into / "result").write_text("built")

    cache = BuildCache(tmp_path, 2)
    for _ in range(2):
        assert (cache.get("0" * 16, build) / "result").read_text() == "built"
    assert len(built) == 1


def test_a_build_that_fails_leaves_nothing_to_be_taken_for_one(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").touch()
        raise OSError("disk full")

    def build(into: Path) -> None:
        assert not list(into.iterdir())

    cache = BuildCache(tmp_path, 2)
    with pytest.raises(OSError, match="disk full"):
        cache.get("0" * 16, fail)
    cache.get("0" * 16, build)


def test_only_some_old_builds_stay(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path, 2)
    for number in range(5):
        os.utime(cache.get(f"{number:016x}", lambda into: None), (number, number))
    left = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert left == [f"{number:016x}" for number in (2, 3, 4)]
