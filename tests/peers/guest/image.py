"""What the guest boots: an uncompressed kernel and a first file system, built once from Debian packages and cached."""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from peers.guest import packages
from peers.guest.cpio import Archive

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
FOLDERS: Final = ("bin", "dev", "etc", "lib", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin")
INIT: Final = Path(__file__).with_name("init.sh")
RECIPE: Final = (INIT, Path(__file__), Path(__file__).with_name("cpio.py"))

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
    kernel = packages.kernel(CACHE / "packages")
    files = _files()
    directory = CACHE / _digest([kernel, *files.values(), *RECIPE], files)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes, one build
        if not directory.exists():
            building = CACHE / "building"
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            _build(kernel, files, building)
            building.rename(directory)
            _forget_old_images(directory)
    return Image(directory / "vmlinux", directory / "initramfs")


def _files() -> dict[str, Path]:
    """What of this machine goes into the guest: by its path there, the file here."""
    files = {"bin/busybox": packages.program("busybox")}
    for name in PROGRAMS:
        found = packages.program(name)
        files[f"usr/sbin/{name}"] = found
        files |= {str(path).lstrip("/"): path for path in packages.libraries(found)}
    return files


def _digest(inputs: Iterable[Path], names: Iterable[str]) -> str:
    """Of everything that an image depends on."""
    whole = hashlib.sha256("\n".join((*names, *PROGRAMS)).encode())
    for path in inputs:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _forget_old_images(kept: Path) -> None:
    others = sorted(
        (path for path in CACHE.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name) and path != kept),
        key=lambda path: path.stat().st_mtime,
    )
    for path in others[:-IMAGES_KEPT]:
        shutil.rmtree(path)


def _build(package: Path, files: dict[str, Path], into: Path) -> None:
    with TemporaryDirectory(dir=into) as scratch:
        tree = Path(scratch)
        subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)
        (vmlinuz,) = (tree / "boot").glob("vmlinuz-*")
        (into / "vmlinux").write_bytes(_uncompressed(vmlinuz.read_bytes()))
        (modules,) = _modules_folder(tree).iterdir()
        with (into / "initramfs").open("wb") as out:
            _write_initramfs(Archive(out), files, _chosen_modules(modules))


def _modules_folder(tree: Path) -> Path:
    return next(folder for folder in (tree / "lib/modules", tree / "usr/lib/modules") if folder.exists())


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


def _chosen_modules(modules: Path) -> dict[str, bytes]:
    """The modules in MODULES and those that they need, uncompressed, with the index files for `modprobe`."""
    for packed in modules.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    base, version = modules.parents[2], modules.name
    subprocess.run([packages.program("depmod"), "-b", base, version], check=True)
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {PurePosixPath(path).stem.replace("-", "_"): path for path in needs}
    wanted = [by_name[name.replace("-", "_")] for name in MODULES if name.replace("-", "_") in by_name]
    chosen = {other for path in wanted for other in (path, *needs[path])}
    folder = f"lib/modules/{version}"
    found = {f"{folder}/{path}": (modules / path).read_bytes() for path in sorted(chosen)}
    found |= {f"{folder}/{path.name}": path.read_bytes() for path in sorted(modules.glob("modules.*"))}
    return found


def _write_initramfs(archive: Archive, files: dict[str, Path], modules: dict[str, bytes]) -> None:
    contents = modules | {path: source.read_bytes() for path, source in files.items()}
    contents |= {"etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n", "etc/group": b"root:x:0:\n", "etc/mtab": b""}
    folders = set(FOLDERS) | {str(parent) for path in contents for parent in PurePosixPath(path).parents}
    for folder in sorted(folders - {"."}):
        archive.folder(folder)
    # The kernel opens it for the first process before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.file("init", INIT.read_bytes(), executable=True)
    for path, data in sorted(contents.items()):
        executable = path in files and os.access(files[path], os.X_OK)
        archive.file(path, data, executable=executable)
    for path, target in LINKS.items():
        archive.link(path, target)
    archive.end()
