"""A program's files are its own: nothing that another user put in their place is followed, used or filled."""

import os
import stat
from pathlib import Path

import pytest
from kit.other_user import give_to_another
from sled_board.durable import NEW_SUFFIX, ForeignPath, check_own_directory, open_new, open_own, put_file

WRITE = os.O_RDWR | os.O_CREAT


def test_a_directory_of_this_user_is_taken(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    check_own_directory(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    check_own_directory(tmp_path / "link")


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    give_to_another(folder, monkeypatch)
    with pytest.raises(ForeignPath, match="belongs to user"):
        check_own_directory(folder)


def test_a_link_of_another_user_is_refused_wherever_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    give_to_another(link, monkeypatch)
    with pytest.raises(ForeignPath):
        check_own_directory(link)


def test_a_link_of_ones_own_into_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    give_to_another(tmp_path / "theirs", monkeypatch)
    with pytest.raises(ForeignPath, match="belongs to user"):
        check_own_directory(tmp_path / "link")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ForeignPath, match="chmod go-w"):
        check_own_directory(tmp_path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_own_directory(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        check_own_directory(tmp_path / "missing")


@pytest.mark.parametrize("leads_to", ["precious", "not-there-yet"])
def test_a_link_where_a_file_should_be_is_not_followed(tmp_path: Path, leads_to: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "name").symlink_to(tmp_path / leads_to)
    with pytest.raises(OSError, match="symbolic links"):
        open_own(tmp_path / "name", WRITE | os.O_TRUNC)
    with pytest.raises(FileExistsError):
        open_new(tmp_path / "name")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "not-there-yet").exists()


def test_a_file_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "name"
    path.touch()
    give_to_another(path, monkeypatch)
    with pytest.raises(ForeignPath, match="belongs to user"):
        open_own(path, WRITE)


def test_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "name")
    with pytest.raises(ForeignPath, match="no plain file"):
        open_own(tmp_path / "name", os.O_RDWR)


def test_a_new_file_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        os.close(open_new(tmp_path / "secret"))
        put_file(tmp_path / "put", b"x", 0o600)
        os.close(open_own(tmp_path / "own", WRITE))
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("secret", "put", "own")} == {0o600}


def test_a_file_is_put_in_place_of_a_link_never_through_it(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in ("state.json", "state.json" + NEW_SUFFIX):
        (tmp_path / name).symlink_to(precious)
    put_file(tmp_path / "state.json", b"state", 0o600)
    assert precious.read_text() == "precious"
    assert (tmp_path / "state.json").read_bytes() == b"state"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "state.json"]
