"""A rack's state survives between commands, in a file that only its owner reads."""

import json
import stat
from pathlib import Path

import pytest
from rackctl.errors import NodeUnknown, RackError, RackNotFound
from rackctl.processes import ProcessIdentity, ProcessState
from rackctl.state import Node, NodeKind, RackState, exists, load, locked, save


def a_rack() -> RackState:
    return RackState(
        nodes=[
            Node("authority", NodeKind.AUTHORITY, ports={"api": 7000}),
            Node("sled-0", NodeKind.SLED, id="6f", ports={"nvme": 7001}, process=ProcessIdentity(7, 8)),
        ],
        temporary=True,
        token="secret",
        device_bytes=1 << 30,
        root_public_key="ab",
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, a_rack())
    assert load(tmp_path) == a_rack()
    assert exists(tmp_path)


def test_nobody_else_reads_the_token(tmp_path: Path) -> None:
    save(tmp_path, a_rack())
    save(tmp_path, a_rack())
    assert stat.S_IMODE((tmp_path / "rack.json").stat().st_mode) == 0o600


def test_an_empty_directory_holds_no_rack(tmp_path: Path) -> None:
    with pytest.raises(RackNotFound, match="rackctl up"):
        load(tmp_path)
    assert not exists(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rack.json").write_text(text, encoding="utf-8")
    with pytest.raises(RackError, match=r"rack\.json"):
        load(tmp_path)


def test_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    save(tmp_path, a_rack())
    path = tmp_path / "rack.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}), encoding="utf-8")
    with pytest.raises(RackError, match="format 99"):
        load(tmp_path)


def test_a_node_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(NodeUnknown, match="authority, sled-0"):
        a_rack().node("sled-9")


def test_a_node_without_a_process_is_gone() -> None:
    assert a_rack().node("authority").state is ProcessState.GONE


def test_a_lock_in_a_directory_that_is_gone_finds_no_rack(tmp_path: Path) -> None:
    with pytest.raises(RackNotFound), locked(tmp_path / "gone"):
        pass
