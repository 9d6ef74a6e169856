"""A Debian kernel package taken apart: the kernel's file, and the modules that are wanted with all that they need."""

import lzma
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rackctl.board.packages import program


def kernel_file(tree: Path) -> Path:
    """The kernel below `tree`, where a package was unpacked: compressed or not, as Debian ships it."""
    (found,) = (tree / "boot").glob("vmlinuz-*")
    return found


def chosen_modules(tree: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The modules of these names and those that they need, uncompressed, with the index files for `modprobe`, by path.

    Names that the kernel has no module for are passed over: it may have them built in. Raises packages.Missing.
    """
    (modules,) = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.exists()).iterdir()
    for packed in modules.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    base, version = modules.parents[2], modules.name
    subprocess.run([program("depmod"), "-b", base, version], check=True)
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {PurePosixPath(path).stem.replace("-", "_"): path for path in needs}
    wanted = [by_name[name.replace("-", "_")] for name in names if name.replace("-", "_") in by_name]
    chosen = {other for path in wanted for other in (path, *needs[path])}
    folder = f"lib/modules/{version}"
    found = {f"{folder}/{path}": (modules / path).read_bytes() for path in sorted(chosen)}
    return found | {f"{folder}/{path.name}": path.read_bytes() for path in sorted(modules.glob("modules.*"))}
