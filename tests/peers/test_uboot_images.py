"""Firmware images before U-Boot: its tools list them, and the boot loader itself checks their hash on a board."""

import hashlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import pytest
from kit import firmware
from kit.peers import require, run
from sled_board.image import fit

UBOOT: Final = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
ADDRESS: Final = 0x44000000  # where the board's description loads images too
TIMEOUT_S: Final = 120.0
SIZES: Final = (0, 1, 2, 3, 5000)


def image_of(size: int) -> bytes:
    """A signed image whose payload has `size` bytes: what follows it is aligned in four ways."""
    return firmware.signed(firmware.recipe(payloads={"application": (b"application." * size)[:size]}))


@pytest.fixture(params=SIZES)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(image_of(request.param))
    return path


@pytest.mark.parametrize("lists", [("mkimage", "-l"), ("dumpimage", "-l")])
def test_the_tools_of_uboot_list_an_image_and_its_hash(image: Path, lists: tuple[str, str]) -> None:
    said = run(*lists, image)
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}
    inner = fit.unwrap(image.read_bytes())
    assert found["Architecture"] == "AArch64"
    assert found["Type"] == "Firmware"
    assert found["Hash algo"] == "sha256"
    assert found["Data Size"].startswith(f"{len(inner)} Bytes")
    assert found["Hash value"] == hashlib.sha256(inner).hexdigest()
    assert found["FIT description"] == "Palisade sled firmware"


def test_dumpimage_takes_out_what_is_inside(image: Path, tmp_path: Path) -> None:
    run("dumpimage", "-T", "flat_dt", "-p", "0", "-o", tmp_path / "inside", image)
    assert (tmp_path / "inside").read_bytes() == fit.unwrap(image.read_bytes())


def test_the_device_tree_compiler_finds_nothing_wrong_with_the_wrapping(image: Path) -> None:
    told = run("dtc", "-I", "dtb", "-O", "dts", image)
    assert 'type = "firmware"' in told
    assert "Warning" not in told


class Console:
    """U-Boot on QEMU's `virt` board, interrupted before it boots anything."""

    PROMPT: Final = b"=> "

    def __init__(self, *loaded: tuple[Path, int]) -> None:
        argv = [require("qemu-system-aarch64"), "-machine", "virt", "-cpu", "cortex-a57", "-m", "256", "-nic", "none"]
        argv += ["-display", "none", "-monitor", "none", "-serial", "stdio", "-bios", str(UBOOT)]
        for path, address in loaded:
            argv += ["-device", f"loader,file={path},addr={address:#x},force-raw=on"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        self._read_to(b"Hit any key to stop autoboot")
        self.command("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def command(self, text: str) -> str:
        """Give a command; what U-Boot answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        return self._read_to(self.PROMPT)

    def _read_to(self, end: bytes) -> str:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + TIMEOUT_S
        received = b""
        while end not in received:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 4096) if ready else b""
            assert part, f"U-Boot said nothing more than {received!r}"
            received += part
        return received.decode("ascii", "replace")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Console, int, int]]:
    """A board with a whole image and a damaged one in its memory, and where they are."""
    require("qemu-system-aarch64")
    if not UBOOT.exists():
        pytest.skip(f"{UBOOT} is not there: apt-get install u-boot-qemu, or make peers")
    folder = tmp_path_factory.mktemp("images")
    whole, damaged = folder / "whole", folder / "damaged"
    data = bytearray(image_of(5000))
    whole.write_bytes(data)
    data[fit.DATA_OFFSET + 3000] ^= 1
    damaged.write_bytes(data)
    with Console((whole, ADDRESS), (damaged, ADDRESS + 0x100000)) as console:
        yield console, ADDRESS, ADDRESS + 0x100000


def test_uboot_verifies_the_hash_of_an_image_in_its_memory(board: tuple[Console, int, int]) -> None:
    console, whole, _ = board
    told = console.command(f"iminfo {whole:#x}")
    assert "FIT description: Palisade sled firmware" in told
    assert "sha256+" in told
    assert "Verifying Hash Integrity" in told or "Checking hash(es)" in told
    assert "error" not in told.lower()


def test_uboot_sees_that_an_image_in_its_memory_is_damaged(board: tuple[Console, int, int]) -> None:
    console, _, damaged = board
    told = console.command(f"iminfo {damaged:#x}")
    assert "sha256 error" in told or "Bad hash" in told
