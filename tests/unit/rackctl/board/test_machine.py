"""A board's folder: made once, found again, and powered on by one at a time."""

import socket
from pathlib import Path

import pytest
from rackctl.board.machine import Machine
from rackctl.cli import main
from rackctl.errors import RackError

MIB = 1 << 20


def test_a_bare_board_is_found_again(tmp_path: Path) -> None:
    made = Machine.create(tmp_path / "board", 2, 16 * MIB)
    found = Machine(tmp_path / "board")
    assert found.console_url == made.console_url
    assert found.nvme_address == made.nvme_address
    assert found.capacity_blocks == 2 * 16 * MIB // 4096
    assert found.identity is None
    assert not found.runs
    with pytest.raises(RackError, match="holds a board already"):
        Machine.create(tmp_path / "board", 2, 16 * MIB)


@pytest.mark.parametrize(("drives", "size"), [(0, 16 * MIB), (9, 16 * MIB), (1, MIB), (1, 16 * MIB + 512)])
def test_a_board_that_cannot_be_is_refused(tmp_path: Path, drives: int, size: int) -> None:
    with pytest.raises(RackError, match="drive"):
        Machine.create(tmp_path / "board", drives, size)
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"process": 1}', '{"process": null, "odd": 1}'])
def test_a_state_that_is_none_is_said_to_be(tmp_path: Path, text: str) -> None:
    Machine.create(tmp_path, 1, 16 * MIB)
    (tmp_path / "board.json").write_text(text)
    with pytest.raises(RackError, match=r"board.json: cannot be read as a board's state"):
        Machine(tmp_path)


def test_a_folder_without_a_board_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("board", "down", "--board-dir", str(tmp_path))) == 2
    assert "holds no board: make one with `rackctl board up`" in capsys.readouterr().err


def test_a_console_port_that_somebody_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rackctl.board.machine.UBOOT_ARM64", tmp_path)  # something that is there
    machine = Machine.create(tmp_path / "board", 1, 16 * MIB)
    with socket.socket() as other:
        other.bind(machine.console_address)
        other.listen()
        with pytest.raises(RackError, match="is not free"):
            machine.power_on()


def test_qemu_that_ends_at_once_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rackctl.board.machine.UBOOT_ARM64", tmp_path)
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("rackctl.board.machine.program", lambda name: program)
    machine = Machine.create(tmp_path / "board", 1, 16 * MIB)
    with pytest.raises(RackError, match=r"status 1; its log ends with:\n    no such machine"):
        machine.power_on()
    assert not machine.runs
    machine.power_off()


@pytest.mark.parametrize(("more", "told"), [((), "--root"), (("--root", "root.pub"), "image")])
def test_a_board_keeps_its_power_when_what_it_would_be_flashed_with_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Machine.create(tmp_path / "board", 1, 16 * MIB)
    Path("image").write_bytes(b"no image")
    Path("root.pub").write_text("ab" * 32)
    cuts: list[Machine] = []
    monkeypatch.setattr(Machine, "power_off", cuts.append)
    assert main(("board", "flash", "image", *more)) == 2
    assert told in capsys.readouterr().err
    assert not cuts


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--name", "one"), "name the root key"),
        (("--name", "a b"), "is no name"),
        (("--name", "one", "--network", "10.0.0.1"), "'10.0.0.1' is not dhcp|ADDRESS/PREFIX"),
        (("--name", "one", "--rack-root", "00"), "is not 64 hexadecimal digits"),
    ],
)
def test_what_is_missing_or_wrong_in_provisioning_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], complaint: str
) -> None:
    Machine.create(tmp_path, 1, 16 * MIB)
    try:
        status = main(("board", "provision", "--board-dir", str(tmp_path), *arguments))
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert complaint in capsys.readouterr().err
