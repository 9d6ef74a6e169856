"""`python -m spdk_bindings.spdk` and `... .spdk.build`: what they print, and how they say what is missing."""

from pathlib import Path

import pytest
from kit import spdk_drive

from spdk_bindings.spdk import build
from spdk_bindings.spdk.__main__ import main
from spdk_bindings.spdk.environment import EnvironmentSettings

MEMORY = ("--memory-mib", "64")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> spdk_drive.Fake:
    """It was started with the settings that the program makes of MEMORY."""
    environment, levers = spdk_drive.fake()
    monkeypatch.setattr(environment, "settings", EnvironmentSettings(memory_mib=64, buffers_mib=1))
    return levers


def run(*arguments: str) -> int:
    return main([*MEMORY, *arguments], spdk_drive.fake_shim())


def test_identify_prints_the_drive_and_its_health(fake: spdk_drive.Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("identify", spdk_drive.FAKE_ADDRESS) == 0
    said = capsys.readouterr().out
    assert "serial: FAKE0" in said
    assert "percentage_used: 2" in said


def test_format_and_firmware_change_the_drive(fake: spdk_drive.Fake, tmp_path: Path) -> None:
    fake.set(block_bits=9)
    assert run("format", spdk_drive.FAKE_ADDRESS) == 0
    assert fake.block_bits == 12
    (tmp_path / "image").write_bytes(bytes(4096))
    assert run("firmware", spdk_drive.FAKE_ADDRESS, str(tmp_path / "image"), "--slot", "3") == 0
    assert (fake.firmware_bytes, fake.firmware_slot) == (4096, 3 | 1 << 3)


def test_a_refusal_and_a_wrong_address_end_with_the_reason(
    fake: spdk_drive.Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.set(next_status=0x001)
    assert run("format", spdk_drive.FAKE_ADDRESS) == 2
    assert "refused with INVALID_OPCODE (0x1)" in capsys.readouterr().err
    fake.set(dead=1)
    assert run("identify", spdk_drive.FAKE_ADDRESS) == 2
    assert "no NVMe controller answers there" in capsys.readouterr().err


def test_a_build_without_spdk_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PKG_CONFIG_PATH", str(tmp_path))
    monkeypatch.setenv("PKG_CONFIG_LIBDIR", str(tmp_path))
    assert build.main([]) == 2
    said = capsys.readouterr().err
    assert "SPDK 24.05 or newer" in said or "apt-get install pkg-config" in said


def test_a_build_without_a_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.main([]) == 2
    assert "apt-get install gcc" in capsys.readouterr().err


def test_archives_of_spdk_and_dpdk_are_linked_whole_and_once_and_others_are_not() -> None:
    flags = build.link_flags(["-L/x", "-lspdk_nvme", "-lrte_eal", "-lspdk_nvme", "-lssl", "-pthread"])
    assert flags == [
        "-L/x", "-Wl,-rpath,/x", "-Wl,--no-as-needed", "-Wl,--whole-archive", "-lspdk_nvme", "-lrte_eal",
        "-Wl,--no-whole-archive", "-lssl", "-pthread",
    ]  # fmt: skip
