"""Log files of programs: rotated by size, with standard error beside them, or refused with one line."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from sled_controller.program_log import LogFile, LogSettings

PROGRAM = """
import logging, sys
from pathlib import Path
from sled_controller import program_log
from sled_controller.program_log import LogSettings
path = Path(sys.argv[1])
program_log.begin(LogSettings(log_file=path, log_file_mib=1, log_files=2), "info", "a-program")
for number in range(2000):
    logging.getLogger("test").info("event=line_%d text=%s" % (number, "x" * 1900))
print("the last words", file=sys.stderr, flush=True)
"""


def test_a_log_file_rotates_and_standard_error_follows_where_it_led_there(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", PROGRAM, str(path)], stdout=log, stderr=log, check=True, timeout=60)
    former = sorted(each.name for each in tmp_path.iterdir())
    assert former == ["node.log", "node.log.1", "node.log.2"]
    assert max(each.stat().st_size for each in tmp_path.iterdir()) <= 1 << 20
    assert "the last words" in path.read_text(encoding="utf-8").splitlines()


def test_standard_error_that_leads_elsewhere_stays_there(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], stderr=subprocess.PIPE, check=True, timeout=60)
    assert ended.stderr == b"the last words\n"


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, __file__, 1, text, (), None)


def test_each_file_of_a_rotation_is_its_users_alone_and_follows_no_link(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "logs" / "node.log", tmp_path / "elsewhere"
    path.parent.mkdir()
    elsewhere.write_text("not a log\n")
    handler = LogFile(path, 1000, 2)
    for _ in range(10):
        handler.handle(record("x" * 400))
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    handler.close()
    path.unlink()
    path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        handler._open()
    assert elsewhere.read_text() == "not a log\n"


def test_former_files_beyond_the_number_are_removed(tmp_path: Path) -> None:
    handler = LogFile(tmp_path / "node.log", 1000, 2)
    for _ in range(100):
        handler.handle(record("x" * 400))
    handler.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["node.log", "node.log.1", "node.log.2"]
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 3000


def test_a_file_that_cannot_be_renamed_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    handler = LogFile(tmp_path / "node.log", 1000, 2)
    monkeypatch.setattr(os, "rename", full)
    for _ in range(10):
        handler.handle(record("x" * 400))
    handler.close()
    assert (tmp_path / "node.log").stat().st_size == 4010


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        LogFile(tmp_path / "node.log", 1000, 2)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("program", ["head-node", "rack-authority", "sled-controller"])
def test_a_log_file_that_cannot_be_had_is_a_wrong_setting(tmp_path: Path, program: str) -> None:
    """With one line that names it."""
    state = ["--state-dir", str(tmp_path / "state"), "--log-file", str(tmp_path / "none" / "node.log")]
    more = {
        "head-node": ["--name", "head", "--authority-url", "http://127.0.0.1:1"],
        "rack-authority": [],
        "sled-controller": ["--devices", '["/nothing"]', "--root-public-key", "00" * 32],
    }[program]
    script = Path(sys.executable).with_name(program)
    ended = subprocess.run([script, *state, *more], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line == f"{program}: log_file: {tmp_path / 'none' / 'node.log'}: No such file or directory"


@pytest.mark.parametrize("wrong", [{"log_file_mib": 0}, {"log_files": 0}, {"log_files": 101}])
def test_bounds_of_the_settings(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        LogSettings(**wrong)  # type: ignore[arg-type]
