"""The application image with the dependencies that it really has: the same twice, for its machine, and it serves."""

import json
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from kit import host
from kit.sources import ROOT
from rackctl.cli import main
from rackctl.firmware.elf import HEADER, MAGIC
from rackctl.firmware.wheels import PYTHON
from sled_board.image import Image, read_image
from sled_board.stage.application import unpack

ELF_MACHINES: Final = {"arm64": 183, "x86_64": 62}
PAYLOAD_BYTES_MAX: Final = 10 << 20  # at 115200 baud each MiB takes one and a half minutes
DEVICE_BYTES: Final = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory) -> None:
    if sys.version_info[:2] != PYTHON:
        pytest.skip("images are built with the Python of the base system, 3.11")
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--constraint", ROOT / "constraints.txt"]
    folder = tmp_path_factory.mktemp("index")
    if subprocess.run([*asked, "--dest", folder, "annotated-types"], capture_output=True, check=False).returncode:
        pytest.skip("pip reaches no package index")


def build(folder: Path, architecture: str) -> Path:
    folder.mkdir()
    path = folder / "image"
    assert main(("firmware", "build", str(path), "--hardware", "any", "--architecture", architecture)) == 0
    return path


def unpacked(image: Image, folder: Path) -> Path:
    unpack(image.payload("application"), folder)
    return folder


def machines(folder: Path) -> set[int]:
    """What the shared objects below `folder` are for."""
    starts = [path.read_bytes()[: HEADER.sizeof()] for path in folder.rglob("*.so*")]
    return {HEADER.parse(start).machine for start in starts if start.startswith(MAGIC)}


@pytest.mark.timeout(300)
def test_two_builds_for_another_machine_are_equal_and_fit_a_serial_line(tmp_path: Path) -> None:
    first, second = build(tmp_path / "one", "arm64"), build(tmp_path / "two", "arm64")
    assert first.read_bytes() == second.read_bytes()
    image = read_image(first.read_bytes())
    assert len(image.payload("application")) < PAYLOAD_BYTES_MAX
    assert machines(unpacked(image, tmp_path / "application")) == {ELF_MACHINES["arm64"]}
    bill = json.loads(first.with_name("image.cdx.json").read_bytes())
    names = {component["name"]: component for component in bill["components"]}
    assert {"construct", "cryptography", "gmpy2", "uvloop", "pydantic"} <= names.keys()
    assert "openssl" in {inside["name"] for inside in names["cryptography"]["components"]}


@pytest.mark.timeout(300)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="is built for x86_64 to be started here")
def test_a_sled_controller_serves_from_the_application_alone(tmp_path: Path) -> None:
    image = read_image(build(tmp_path / "made", "x86_64").read_bytes())
    application = unpacked(image, tmp_path / "application")
    assert machines(application) == {ELF_MACHINES["x86_64"]}
    argv = [
        sys.executable, "-I", "-S", application, "--state-dir", tmp_path / "state", "--listen-port", "0",
        "--devices", json.dumps([str(tmp_path / "device")]), "--device-bytes", str(DEVICE_BYTES),
        "--root-public-key", host.public_key(host.ROOT).hex(),
    ]  # fmt: skip
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd="/")
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "event=serving" in line:
                break
        assert "event=serving" in said[-1], said
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
