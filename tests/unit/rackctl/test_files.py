"""Files are written whole or not at all, and what is no file is not replaced by one."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rackctl.errors import RackError
from rackctl.files import create_file, write_file


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    before = path.stat().st_ino
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]


def test_behind_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "there"
    link.symlink_to(target)
    for data in (b"one", b"two"):
        write_file(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"data")
        assert os.read(reader, 100) == b"data"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_that_standard_output_leads_to_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    told = "from pathlib import Path\nfrom rackctl.files import write_file\nwrite_file(Path('/dev/stdout'), b'data')"
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", told], stdout=log, check=True)
    assert path.read_bytes() == b"before\ndata"


@pytest.mark.parametrize("name", ["", "no/such/folder", "loop"])
def test_what_cannot_be_written_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RackError, match="cannot be written: "):
        write_file(tmp_path / name, b"data")


def test_a_new_file_that_cannot_be_written_whole_is_not_left_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    path = tmp_path / "file"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RackError, match="No space left on device"):
            create_file(path, b"data")
    assert not path.exists()
    create_file(path, b"data")
    with pytest.raises(RackError, match="is there already"):
        create_file(path, b"other")
    assert path.read_bytes() == b"data"
