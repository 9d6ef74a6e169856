"""A file system that was copied into a volume comes out of it in order."""

import filecmp
from collections.abc import Callable
from pathlib import Path

from kit.peers import run
from kit.volumes import Failover, Volume

MIB = 1 << 20
SIZE_BYTES = 64 * MIB


def an_image(tmp_path: Path) -> Path:
    """An ext4 file system with files in it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(50):
        (tree / f"file-{number}").write_bytes(bytes([number]) * 20_000)
    image = tmp_path / "in.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    run("mkfs.ext4", "-q", "-F", "-d", tree, image)
    return image


def test_ext4_is_clean_when_it_comes_out(new_volume: Callable[[int], Volume], tmp_path: Path) -> None:
    volume = new_volume(SIZE_BYTES)
    image = an_image(tmp_path)
    run("nbdcopy", "--flush", image, volume.uri)
    run("nbdcopy", volume.lasting_uri, tmp_path / "out.img")
    run("e2fsck", "-f", "-n", tmp_path / "out.img")
    assert filecmp.cmp(image, tmp_path / "out.img", shallow=False)


def test_ext4_is_clean_when_it_comes_out_after_a_failover(
    new_volume: Callable[[int], Volume], failover: Failover, tmp_path: Path
) -> None:
    volume = new_volume(SIZE_BYTES)
    image = an_image(tmp_path)
    run("nbdcopy", "--flush", image, volume.uri)
    failover.kill_primary(volume)
    run("nbdcopy", volume.uri, tmp_path / "out.img")
    run("e2fsck", "-f", "-n", tmp_path / "out.img")
    assert filecmp.cmp(image, tmp_path / "out.img", shallow=False)
