"""What the guest boots: an uncompressed kernel and a first file system, built once from Debian packages and cached."""

import lzma
import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from peers.guest import packages
from rackctl.board import cpio, initramfs, kernel
from rackctl.board.build_cache import BuildCache, digest
from rackctl.board.initramfs import Contents, write_initramfs
from rackctl.board.kernel import chosen_modules, kernel_file
from rackctl.board.packages import unpack

CACHE: Final = Path(__file__).resolve().parents[3] / ".cache" / "guest"
IMAGES_KEPT: Final = 3
"""Images of other inputs that are left in the cache, for branches that come and go; each takes 200 MB."""

PROGRAMS: Final = (
    "nvme", "fio", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "blkdiscard", "fstrim", "flock", "kmod", "wipefs",
    "nbd-client",
)  # fmt: skip
# The kernel itself calls /sbin/modprobe.
LINKS: Final = {"sbin/modprobe": "/usr/sbin/kmod", "usr/sbin/modprobe": "kmod", "usr/sbin/fsck.ext4": "e2fsck"}
MODULES: Final = (
    "virtio_net", "configfs", "nvme-tcp", "nvme-loop", "nvmet", "nvmet-tcp", "null_blk", "brd", "loop", "xfs", "dm-mod",
    "nbd", "vfio-pci", "vfio_iommu_type1",
    "crc32c-intel", "crc32c-generic", "sha256-generic", "sha512-generic", "sha512-ssse3", "sha256-ssse3",
)  # fmt: skip
INIT: Final = Path(__file__).with_name("init.sh")
RECIPE: Final = (INIT, *(Path(path) for path in (__file__, cpio.__file__, initramfs.__file__, kernel.__file__)))

# The x86 boot protocol's header in a bzImage (Documentation/arch/x86/boot.rst).
_SETUP_SECTORS_AT: Final = 0x1F1
_PAYLOAD_AT: Final = 0x248
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_XZ: Final = b"\xfd7zXZ\0"
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Image:
    """Files that QEMU is started with."""

    kernel: Path
    initramfs: Path


def image() -> Image:
    """The image of the installed programs and the cached kernel package, built when it is not there yet (20 s).

    Raises packages.Missing.
    """
    package = packages.kernel(CACHE / "packages")
    files = _files()
    name = digest((*files, *PROGRAMS), [package, *files.values(), *RECIPE])
    directory = BuildCache(CACHE, IMAGES_KEPT).get(name, lambda into: _build(package, files, into))
    return Image(directory / "vmlinux", directory / "initramfs")


def _files() -> dict[str, Path]:
    """What of this machine goes into the guest: by its path there, the file here."""
    files = {"bin/busybox": packages.program("busybox")}
    for name in PROGRAMS:
        found = packages.program(name)
        files[f"usr/sbin/{name}"] = found
        files |= {str(path).lstrip("/"): path for path in packages.libraries(found)}
    return files


def _build(package: Path, files: dict[str, Path], into: Path) -> None:
    with TemporaryDirectory(dir=into) as scratch:
        tree = Path(scratch)
        unpack(package, tree)
        (into / "vmlinux").write_bytes(_uncompressed(kernel_file(tree).read_bytes()))
        contents = chosen_modules(tree, MODULES) | {path: source.read_bytes() for path, source in files.items()}
        executable = {path for path, source in files.items() if os.access(source, os.X_OK)}
        with (into / "initramfs").open("wb") as out:
            write_initramfs(out, Contents(INIT.read_bytes(), contents, LINKS, executable))


def _uncompressed(bzimage: bytes) -> bytes:
    """The ELF file inside a bzImage: QEMU enters it directly (PVH), which no compressed kernel supports."""
    start = ((bzimage[_SETUP_SECTORS_AT] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD_AT)
    # The payload ends with its own uncompressed size.
    payload = bzimage[start + offset : start + offset + length - 4]
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor().decompress(payload)
    for magic, command in ((_ZSTD, "zstd"), (_GZIP, "gzip")):
        if payload.startswith(magic):
            argv = [str(packages.program(command)), "-dc"]
            return subprocess.run(argv, input=payload, stdout=subprocess.PIPE, check=True).stdout
    raise ValueError(f"a kernel compressed in a way that begins with {payload[:4].hex()}")
