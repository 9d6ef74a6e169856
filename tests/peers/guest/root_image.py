"""A file system with this machine's Python, the sled controller and all that it loads, for a guest that is a board."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from peers.guest import packages

import spdk_bindings
from spdk_bindings.spdk.build import output

PYTHON: Final = Path(sys.executable).resolve()
"""It is at the same path on the image."""
PACKAGES: Final = "palisade"
"""The folder of the image that PYTHONPATH has to name."""
FOLDERS: Final = ("dev", "proc", "sys", "run", "tmp", "var/tmp", "state")
OURS: Final = Path(spdk_bindings.__file__).parents[1]
IMAGE_MIB: Final = 512  # sparse
_IMPORTED: Final = """
import sys, sled_controller.server, spdk_bindings.spdk.__main__, _cffi_backend
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
_NOT_NEEDED: Final = (
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "distutils",
    "config-*", "turtledemo", "unittest", "pydoc_data", "*.opt-?.pyc",
)  # fmt: skip


def root_image(image: Path) -> Path:
    """Make it (some seconds); the shim over SPDK has to be built. Raises packages.Missing."""
    with TemporaryDirectory(dir=image.parent) as scratch:
        tree = Path(scratch)
        for name in FOLDERS:
            (tree / name).mkdir(parents=True)
        (tree / "var/run").symlink_to("/run")
        stdlib = Path(sysconfig.get_path("stdlib"))
        shutil.copytree(stdlib, _below(tree, stdlib), ignore=shutil.ignore_patterns(*_NOT_NEEDED))
        _copy(PYTHON, _below(tree, PYTHON))
        for package in _packages():
            _copy(package, tree / PACKAGES / package.name)
        extensions = [path for path in tree.rglob("*.so") if path.name.endswith(tuple(EXTENSION_SUFFIXES))]
        for library in packages.libraries(PYTHON, output(), *extensions):
            if not library.is_relative_to(tree):
                _copy(library, _below(tree, library))
        subprocess.run(
            [packages.program("mkfs.ext4"), "-q", "-d", tree, "-E", "root_owner=0:0", image, f"{IMAGE_MIB}M"],
            check=True, capture_output=True,
        )  # fmt: skip
    return image


def _packages() -> Iterator[Path]:
    """What the programs import that is not of Python itself, whole packages; and the libraries that wheels bring."""
    said = subprocess.run([sys.executable, "-c", _IMPORTED], check=True, capture_output=True, text=True).stdout
    site = Path(sysconfig.get_path("purelib"))
    yield from (OURS / "sled_controller", OURS / "spdk_bindings")
    for name in said.split():
        for found in (site / name, site / f"{name}.py", *site.glob(f"{name}[.-]*")):
            if found.exists():
                yield found


def _below(tree: Path, path: Path) -> Path:
    return tree / path.relative_to("/")


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, to, dirs_exist_ok=True)
    else:
        shutil.copy2(source, to)
