"""Debian packages are fetched once, for the architecture that is asked for, and what can't be had is named."""

import os
from pathlib import Path

import pytest
from rackctl.board.packages import Missing, Packages, program, unpack

APT = """#!/bin/sh
# A stand-in for apt: `known` lists packages; a package that is not in it can't be had before `update`.
echo "$(basename "$0") $*" >>"{folder}/calls"
while [ "$1" = -o ]; do shift 2; done
case $1 in
update) cp "{folder}/newer" "{folder}/known" ;;
download)
    shift 2
    for name; do
        grep -qx "$name" "{folder}/known" || {{ echo "E: Unable to locate package $name" >&2; exit 100; }}
    done
    for name; do : >"${{name}}_1.0_arm64.deb"; done
    ;;
depends) grep -qx "$2" "{folder}/known" && printf '%s\\n  Depends: linux-image-6.1.0-1-%s\\n' "$2" "$2" ;;
esac
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the stand-in works in."""
    folder = tmp_path / "apt"
    folder.mkdir()
    for name in ("apt-get", "apt-cache"):
        (folder / name).write_text(APT.format(folder=folder))
        (folder / name).chmod(0o755)
    for name in ("known", "newer", "calls"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def told(apt: Path) -> list[str]:
    return (apt / "calls").read_text().splitlines()


def test_a_package_is_fetched_once(apt: Path, tmp_path: Path) -> None:
    (apt / "known").write_text("libc6\nzlib1g\n")
    packages = Packages(tmp_path / "cache")
    first = packages.fetch("libc6", "zlib1g")
    assert [path.name for path in first] == ["libc6_1.0_arm64.deb", "zlib1g_1.0_arm64.deb"]
    assert Packages(tmp_path / "cache").fetch("zlib1g", "libc6") == first[::-1]
    assert len(told(apt)) == 1


def test_lists_of_another_architecture_are_our_own_and_renewed_when_they_are_too_old(apt: Path, tmp_path: Path) -> None:
    (apt / "newer").write_text("libc6\n")
    Packages(tmp_path / "cache", "arm64").fetch("libc6")
    attempt, update, again = told(apt)
    for line in (attempt, update, again):
        assert "APT::Architecture=arm64" in line
        assert f"Dir::State={tmp_path}/cache/apt/state" in line
    assert " update" in update
    assert attempt == again


def test_the_lists_of_this_machine_are_left_alone(apt: Path, tmp_path: Path) -> None:
    (apt / "newer").write_text("libc6\n")
    with pytest.raises(Missing, match=r"can't fetch libc6; `apt-get update` or make peers may help: E: Unable"):
        Packages(tmp_path / "cache").fetch("libc6")
    assert not any(" update" in line for line in told(apt))


def test_what_apt_does_not_know_is_named_with_its_architecture(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="can't fetch nonesuch for arm64"):
        Packages(tmp_path / "cache", "arm64").fetch("nonesuch")


def test_a_kernel_is_found_by_the_name_that_stands_for_the_newest(apt: Path, tmp_path: Path) -> None:
    (apt / "known").write_text("cloud\nlinux-image-6.1.0-1-cloud\n")
    packages = Packages(tmp_path / "cache", "arm64")
    found = packages.kernel(("newer-cloud", "cloud"))
    assert found.name == "linux-image-6.1.0-1-cloud_1.0_arm64.deb"
    calls = len(told(apt))
    assert packages.kernel(("newer-cloud", "cloud")) == found
    assert len(told(apt)) == calls


def test_no_kernel_by_any_of_the_names(apt: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no package one or two for arm64"):
        Packages(tmp_path / "cache", "arm64").kernel(("one", "two"))


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    if not Path("/usr/bin/dpkg-deb").exists():
        pytest.skip("dpkg-deb is not installed")
    (tmp_path / "broken_1_all.deb").write_bytes(b"no package")
    with pytest.raises(Missing, match=r"broken_1_all.deb cannot be unpacked; remove it"):
        unpack(tmp_path / "broken_1_all.deb", tmp_path / "tree")


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("rackctl.peer_programs._SYSTEM_PATHS", "/nowhere")
    with pytest.raises(Missing, match="apt-get install qemu-system-arm"):
        program("qemu-system-aarch64")
