"""A board's base system, built from Debian's packages: what U-Boot boots, and what starts firmware out of the slots.

A kernel, and a first file system with busybox, Python 3.11 and the stage with the Python packages that it needs. What
firmware brings itself is not in it. Built once for the same packages and sources, and cached.
"""

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sled_board.board import Board

from rackctl.board import cpio, initramfs, kernel
from rackctl.board.build_cache import BuildCache, digest
from rackctl.board.initramfs import Contents, write_initramfs
from rackctl.board.kernel import chosen_modules, kernel_file
from rackctl.board.packages import Packages, unpack
from rackctl.errors import RackError
from rackctl.firmware.elf import loadable
from rackctl.firmware.source import Source
from rackctl.firmware.wheels import PYTHON, fetch

BUILDS_KEPT: Final = 2
KERNELS: Final = ("linux-image-cloud-arm64",)
"""Drivers of virtual machines, and NVMe; real boards need `linux-image-arm64`, which is larger."""
USERLAND: Final = (
    "busybox-static", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1",
    "libssl3", "libexpat1", "zlib1g", "libffi8", "liblzma5", "libbz2-1.0", "libuuid1", "libcrypt1",
)  # fmt: skip
MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net")
WATCHDOG: Final = "softdog"
"""Loaded by itself: the init script gives it its time."""
STAGE: Final = "usr/lib/stage"
"""Not where Python looks by itself: firmware that forgets to bring a package must not find one of these."""
REQUIREMENTS: Final = ("construct", "cryptography")
KERNEL_FILE: Final = "kernel"
INITRAMFS_FILE: Final = "initramfs"
_PATTERNS: Final = ("usr/bin/python3.11", "usr/lib/python3.11/**/*", "bin/busybox", "**/*.so.*", "**/*.so")
_NOT_NEEDED: Final = (
    "idlelib", "lib2to3", "ensurepip", "distutils", "pydoc_data", "unittest", "turtledemo", "test", "tkinter", "gconv",
    "engines-3", "ossl-modules", "audit",
)  # fmt: skip
_HERE: Final = Path(__file__).parent
_INIT: Final = _HERE / "base_init.sh"
_SCRIPTS: Final = {"etc/network.sh": _HERE / "base_network.sh", "etc/udhcpc.sh": _HERE / "udhcpc.sh"}
_BUILDERS: Final = (__file__, cpio.__file__, initramfs.__file__, kernel.__file__)
_RECIPE: Final = (_INIT, *_SCRIPTS.values(), *map(Path, _BUILDERS))


@dataclass(frozen=True, slots=True)
class BaseSystem:
    """Files that U-Boot loads: an uncompressed kernel (a Linux arm64 `Image`), and a compressed archive."""

    kernel: Path
    initramfs: Path


def base_system(board: Board, source: Source, cache: Path) -> BaseSystem:
    """The base system for a board, with the stage of a checkout; built when it is not in `cache` yet (half a minute).

    Raises RackError: packages.Missing where Debian's packages can't be had.
    """
    if board.architecture != "arm64":
        raise RackError(f"{board.name}: a base system can be built for arm64 only, not for {board.architecture}")
    if sys.version_info[:2] != PYTHON:
        wanted = ".".join(map(str, PYTHON))
        raise RackError(f"the base system has Python {wanted}: build it with that, this is {sys.version.split()[0]}")
    packages = Packages(cache / "packages" / board.architecture, board.architecture)
    debian = [packages.kernel(KERNELS), *packages.fetch(*USERLAND)]
    ours = {name: data for name, data in source.files().items() if name.startswith("sled_board/")}
    pins = "".join(path.read_text(encoding="utf-8") for path in (source.constraints, source.hashes))
    name = digest((*REQUIREMENTS, pins, *(f"{path} {data.hex()}" for path, data in sorted(ours.items()))),
                  [*debian, *_RECIPE])  # fmt: skip

    def build(into: Path) -> None:
        with TemporaryDirectory(dir=into) as scratch:
            tree = Path(scratch)
            for package in debian:
                unpack(package, tree)
            (into / KERNEL_FILE).write_bytes(kernel_file(tree).read_bytes())
            modules = chosen_modules(tree, (*MODULES, WATCHDOG))
            _place(tree / STAGE, ours)
            with TemporaryDirectory() as wheels:
                for wheel in fetch(
                    REQUIREMENTS, source.constraints, source.hashes, board.architecture, Path(wheels), None
                ):
                    _place(tree / STAGE, {path: loadable(data) for path, data in wheel.files.items()})
            _compile(tree)
            with gzip.GzipFile(into / INITRAMFS_FILE, "wb", 6, mtime=0) as out:
                write_initramfs(out, _contents(tree, modules))

    built = BuildCache(cache / "base", BUILDS_KEPT).get(name, build)
    return BaseSystem(built / KERNEL_FILE, built / INITRAMFS_FILE)


def _place(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _compile(tree: Path) -> None:
    """Python's modules beforehand: an emulated processor takes a minute for it, at every start."""
    for folder in ("usr/lib/python3.11", STAGE):
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-s", tree, "-p", "/", "--invalidation-mode", "unchecked-hash",
             tree / folder],
            check=False, capture_output=True,
        )  # fmt: skip


def _contents(tree: Path, modules: dict[str, bytes]) -> Contents:
    files = modules | {"etc/modules": "\n".join((*MODULES, "")).encode()}
    files |= {name: path.read_bytes() for name, path in _SCRIPTS.items()}
    links = {}
    executable = set(_SCRIPTS)
    for path in _chosen(tree):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.is_file():
            files[name] = path.read_bytes()
            if os.access(path, os.X_OK):
                executable.add(name)
    return Contents(_INIT.read_bytes(), files, links, executable)


def _chosen(tree: Path) -> Iterator[Path]:
    for pattern in (*_PATTERNS, f"{STAGE}/**/*"):
        for path in tree.glob(pattern):
            if not any(part in _NOT_NEEDED or part.startswith("config-") for part in path.relative_to(tree).parts):
                yield path
