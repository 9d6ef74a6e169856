"""`sled-controller probe` over a made-up PCI bus and the fake SPDK."""

import asyncio
import json
from pathlib import Path

import pytest
from kit import spdk_drive

from sled_controller import probe, server
from sled_controller.config import ProbeSettings
from sled_controller.drives import CannotStart
from spdk_bindings.pci import PciDrive

KERNELS = PciDrive("0000:01:00.0", "nvme", 0, "", "A drive", "S1", 1 << 30)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> list[PciDrive]:
    drives: list[PciDrive] = []
    monkeypatch.setattr(probe, "nvme_drives", lambda sysfs: drives)
    return drives


def test_a_drive_of_the_kernels_is_shown_and_not_touched(
    bus: list[PciDrive], capsys: pytest.CaptureFixture[str]
) -> None:
    bus.append(KERNELS)
    server.main(["probe"])
    shown = capsys.readouterr().out
    assert "the kernel has it (nvme): give it to vfio-pci" in shown
    assert "1.0 GiB" in shown
    assert "devices =" not in shown


def test_a_free_drive_is_asked_how_it_is_and_named_for_the_configuration(
    bus: list[PciDrive], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, _ = spdk_drive.fake()
    monkeypatch.setattr(probe, "start_spdk", lambda settings: environment)
    bus.append(KERNELS)
    found = asyncio.run(probe.look(ProbeSettings(devices=[spdk_drive.FAKE_ADDRESS])))
    (drive,) = [each for each in found if each.usable]
    assert drive.size_bytes == spdk_drive.FAKE_BLOCKS * 4096
    assert "media errors" in drive.note
    text = probe.as_text(found)
    assert f'devices = ["{spdk_drive.FAKE_ADDRESS}"]' in text
    assert json.loads(json.dumps([each.as_json() for each in found]))[0]["address"] == "0000:01:00.0"


def test_what_a_drive_warns_of_is_said() -> None:
    smart = {
        "critical_warning": 0b1001, "percentage_used": 97, "available_spare_percent": 3, "media_errors": 5,
        "composite_temperature_kelvin": 313,
    }  # fmt: skip
    assert probe.health(smart) == (
        "warning: spare capacity is low, read-only; used 97 %, spare 3 %, 5 media errors, 40 C"
    )


def test_without_spdk_it_says_what_to_install(
    bus: list[PciDrive], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_built(settings: ProbeSettings) -> None:
        raise CannotStart("run python -m spdk_bindings.spdk.build where SPDK is installed")

    monkeypatch.setattr(probe, "start_spdk", not_built)
    with pytest.raises(SystemExit) as ended:
        server.main(["probe", "--devices", '["0000:02:00.0"]'])
    assert ended.value.code == 1
    assert "python -m spdk_bindings.spdk.build" in capsys.readouterr().err


def test_a_sleds_own_configuration_may_be_given(bus: list[PciDrive], tmp_path: Path) -> None:
    config = tmp_path / "sled.toml"
    config.write_text('state_dir = "/nowhere"\ndevices = ["/some/file"]\nspdk_memory_mib = 128\n')
    server.main(["probe", "--config", str(config)])  # files are no drives: there is nothing to attach
