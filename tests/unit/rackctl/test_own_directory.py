"""`rackctl up --dir` and every later command use a directory of this user only: a rack's token and keys lie there."""

import os
from pathlib import Path

import pytest
from kit.other_user import give_to_another
from rackctl import state
from rackctl.cli import main
from rackctl.errors import RackError
from rackctl.files import write_file
from rackctl.launch import Command, start
from rackctl.programs import make_root_key
from rackctl.rack import Rack, RackSize


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """A rack that is not started."""
    return Rack.lay_out(tmp_path / "rack", RackSize(sleds=1, heads=1))


def test_up_refuses_a_directory_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made-before"
    folder.mkdir()
    give_to_another(folder, monkeypatch)
    assert main(["up", "--detach", "--dir", str(folder), "--sleds", "1", "--heads", "1"]) == 2
    assert f"{folder}: belongs to user" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_up_refuses_a_directory_that_others_may_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(RackError, match="chmod go-w"):
        Rack.lay_out(folder, RackSize(sleds=1, heads=1))


def test_a_directory_that_up_makes_is_this_users_alone(laid_out: Path) -> None:
    assert laid_out.stat().st_mode & 0o777 == 0o700
    assert (laid_out / "rack.json").stat().st_mode & 0o777 == 0o600


def test_every_later_command_looks_again(laid_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_to_another(laid_out, monkeypatch)
    for use in (state.load, Rack.open):
        with pytest.raises(RackError, match="belongs to user"):
            use(laid_out)
    with pytest.raises(RackError, match="belongs to user"), state.locked(laid_out):
        pass


def test_the_state_is_not_written_through_what_lies_in_its_place(laid_out: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (laid_out / "rack.json.new").symlink_to(precious)
    state.save(laid_out, state.load(laid_out))
    assert precious.read_text() == "precious"
    assert not (laid_out / "rack.json").is_symlink()


def test_keys_and_logs_are_not_written_through_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    node = tmp_path / "node"
    node.mkdir()
    (node / "root.key").symlink_to(precious)
    make_root_key(node)
    assert (node / "root.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node.log").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        start(Command("node", ["true"], {}, node, tmp_path / "logs" / "node.log"), leashed=False)
    assert precious.read_text() == "precious"


def test_a_link_of_another_user_is_no_output_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "mine").symlink_to(precious)
    write_file(tmp_path / "mine", b"through a link of one's own")
    assert precious.read_bytes() == b"through a link of one's own"
    give_to_another(tmp_path / "mine", monkeypatch)
    with pytest.raises(RackError, match="is a link of user"):
        write_file(tmp_path / "mine", b"no")
    assert os.path.lexists(tmp_path / "mine")
