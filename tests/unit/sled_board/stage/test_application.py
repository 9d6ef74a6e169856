"""An application is unpacked within bounds, and nothing of it escapes its folder."""

import io
import tarfile
from pathlib import Path

import pytest
from kit.applications import packed
from sled_board.errors import DamagedImage
from sled_board.stage import application
from sled_board.stage.application import unpack


def test_an_application_is_unpacked_anew(tmp_path: Path) -> None:
    folder = tmp_path / "application"
    unpack(memoryview(packed("old = 1", {"gone.py": b""})), folder)
    unpack(memoryview(packed("new = 2", {"package/module.py": b"x"})), folder)
    assert (folder / "__main__.py").read_text() == "new = 2"
    assert (folder / "package/module.py").read_bytes() == b"x"
    assert not (folder / "gone.py").exists()


@pytest.mark.parametrize("archive", [b"", b"no archive", packed("x" * 5000)[:100]])
def test_what_is_no_archive_is_a_damaged_image(tmp_path: Path, archive: bytes) -> None:
    with pytest.raises(DamagedImage, match="cannot be unpacked"):
        unpack(memoryview(archive), tmp_path / "application")


@pytest.mark.parametrize("name", ["../outside", "/absolute/../../outside", "link/../../../outside"])
def test_nothing_leaves_its_folder(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DamagedImage):
        unpack(memoryview(buffer.getvalue()), tmp_path / "inside" / "application")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_are_taken(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        member = tarfile.TarInfo("odd")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DamagedImage, match="'odd', which is no plain file"):
        unpack(memoryview(buffer.getvalue()), tmp_path / "application")
    assert not list((tmp_path / "application").iterdir())


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "UNPACKED_BYTES_MAX", 100)
    with pytest.raises(DamagedImage, match="more than 100 bytes"):
        unpack(memoryview(packed("x" * 200)), tmp_path / "application")
