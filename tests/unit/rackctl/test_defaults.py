"""Flags over the environment over a file; a message names the source."""

from pathlib import Path

import pytest
from rackctl.cli import build_parser, main
from rackctl.defaults import Defaults, Given, read_defaults
from rackctl.errors import RackError


def written(folder: Path, text: str) -> str:
    path = folder / "rack.toml"
    path.write_text(text)
    return str(path)


def test_a_flag_is_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'sleds = 7\nheads = 3\ndevice_size = "1GiB"\ndetach = true\n')
    argv = ["--config", path, "up", "--heads", "1"]
    arguments = build_parser(read_defaults(argv, {"RACKCTL_SLEDS": "8"})).parse_args(argv)
    assert (arguments.sleds, arguments.heads, arguments.device_size, arguments.detach) == (8, 1, 1 << 30, True)


def test_the_file_may_be_named_by_a_variable_and_hold_volumes(tmp_path: Path) -> None:
    path = written(tmp_path, 'volume = ["a:1MiB", "b:2MiB"]\n')
    assert read_defaults(["run"], {"RACKCTL_CONFIG": path}).given("RACKCTL_VOLUME") == Given(
        "a:1MiB,b:2MiB", f"{path}: volume"
    )


def test_what_follows_the_command_is_the_commands(tmp_path: Path) -> None:
    assert read_defaults(["run", "--", "cmd", "--config", "elsewhere"], {}) == Defaults({}, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sleds = [", "is not TOML"),
        ("slets = 3", "slets: is no setting; remove it, or use one of: detach, device_size"),
        ("sleds = 0", "sleds: '0' is not a whole number from 1"),
        ("detach = 'perhaps'", "detach: 'perhaps' is neither yes nor no"),
        ("timeout = -1", "timeout: '-1' is not a positive number of seconds"),
        ("dir = {}", "dir: must be a text"),
    ],
)
def test_a_wrong_file_is_named_with_its_key_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = written(tmp_path, text)
    assert main(["--config", path, "up"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"rackctl: {path}: ")
    assert message in error


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RackError, match="cannot be read: No such file or directory; name a readable file"):
        read_defaults(["--config", str(tmp_path / "none.toml")], {})
