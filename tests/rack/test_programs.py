"""Each program says what is wrong with its settings, and never starts on a port that somebody has."""

import json
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

KEY = "ab" * 32
# The settings with which each program would start, and the flag of a port that it listens on.
PROGRAMS = {
    "rack-authority": ({}, "port"),
    "sled-controller": (
        {"devices": '["{dir}/device"]', "device_bytes": "67108864", "root_public_key": KEY, "listen_port": "0"},
        "listen_port",
    ),
    "head-node": ({"name": "head-0", "authority_url": "http://127.0.0.1:9"}, "nbd_port"),
}


def run(
    program: str, directory: Path, settings: dict[str, str], environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    script = Path(sysconfig.get_path("scripts")) / program
    flags = [f"--{name.replace('_', '-')}={value.replace('{dir}', str(directory))}" for name, value in settings.items()]
    return subprocess.run([script, *flags], capture_output=True, text=True, timeout=30, env=environ or {})


def complete(program: str, directory: Path, **changed: str) -> dict[str, str]:
    """All settings that the program needs, with some changed."""
    return {"state_dir": str(directory / "state"), **PROGRAMS[program][0], **changed}


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("program", [*PROGRAMS, "rackctl"])
def test_help_is_given(program: str) -> None:
    argv = [Path(sysconfig.get_path("scripts")) / program, "--help"]
    shown = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"usage: {program}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_missing_setting_is_named_with_the_ways_to_give_it(program: str, tmp_path: Path) -> None:
    ended = run(program, tmp_path, {})
    assert ended.returncode == 2
    variable = program.upper().replace("-", "_") + "_STATE_DIR"
    assert variable in ended.stderr
    assert "--state-dir" in ended.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_key_names_file_key_and_remedy(program: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("stat_dir = 'x'\n", encoding="utf-8")
    ended = run(program, tmp_path, complete(program, tmp_path, config=str(file)))
    assert ended.returncode == 2
    assert f"{program}: {file}: stat_dir: " in ended.stderr
    assert "state_dir" in ended.stderr


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("value", ["70000", "-1", "http"])
def test_a_wrong_port_names_its_variable(program: str, value: str, tmp_path: Path) -> None:
    key = PROGRAMS[program][1]
    settings = {name: text for name, text in complete(program, tmp_path).items() if name != key}
    variable = f"{program}_{key}".upper().replace("-", "_")
    ended = run(program, tmp_path, settings, {variable: value})
    assert ended.returncode == 2
    assert f"environment variable {variable}: {key}: " in ended.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_port_in_use_is_named(program: str, tmp_path: Path, taken_port: int) -> None:
    ended = run(program, tmp_path, complete(program, tmp_path, **{PROGRAMS[program][1]: str(taken_port)}))
    assert ended.returncode == 1
    assert str(taken_port) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "state" / "endpoints.json").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_state_directory_that_is_a_file_is_named(program: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a directory", encoding="utf-8")
    ended = run(program, tmp_path, complete(program, tmp_path))
    assert ended.returncode in (1, 2)
    assert str(tmp_path / "state") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_root_key_that_is_none_is_refused(tmp_path: Path) -> None:
    ended = run("sled-controller", tmp_path, complete("sled-controller", tmp_path, root_public_key="xyz"))
    assert ended.returncode == 2
    assert "flag --root-public-key: root_public_key: " in ended.stderr


def test_a_join_token_that_is_none_is_refused(tmp_path: Path) -> None:
    ended = run("head-node", tmp_path, complete("head-node", tmp_path, join_token=json.dumps("please")))
    assert ended.returncode in (1, 2)
    assert "join token" in ended.stderr
