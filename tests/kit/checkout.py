"""A small checkout to build firmware images from, and wheels that need no index."""

import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

from rackctl.firmware.hashes import FILE, as_text

COMMITTED_S = 1_700_000_000
PROJECT = """
[project]
name = "palisade"
version = "0.3.0"

[project.optional-dependencies]
sled = ["tiny.Lib>=1"]

[tool.palisade.firmware]
rollback-counter = 7
bootloader-min = "2023.01"
"""
SOURCES = {
    "pyproject.toml": PROJECT,
    "constraints.txt": "tiny-lib==1.5\nneeded==2.0\n",
    "spdk_bindings/__init__.py": "",
    "spdk_bindings/native.c": "int main;",
    "sled_controller/__init__.py": "",
    "sled_controller/py.typed": "",
    "sled_controller/server.py": "def main():\n    import tiny\n    print('started with', tiny.VALUE)\n",
    "hw/sled_board/__init__.py": "",
    "hw/sled_board/boards/one.toml": "arch = 'arm64'\n",
    "head_node/__init__.py": "",
}


def git(root: Path, *arguments: str) -> None:
    """Run git there, as somebody whose settings nobody knows."""
    subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
        check=True,
        capture_output=True,
        env={
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "GIT_AUTHOR_DATE": f"{COMMITTED_S} +0000",
            "GIT_COMMITTER_DATE": f"{COMMITTED_S} +0000",
        },
    )


def make_checkout(root: Path, sources: Mapping[str, str] = SOURCES) -> Path:
    """A repository with one commit."""
    for name, text in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "All")
    return root


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    tag: str = "py3-none-any",
    metadata: str = "",
    boms: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel (PEP 427) with these files and lines of metadata."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        for bom, data in (boms or {}).items():
            archive.writestr(f"{info}/sboms/{bom}", data)
        archive.writestr(f"{info}/RECORD", "")
    return path


def pin_wheels(root: Path, folder: Path) -> None:
    """Commit the hashes of these wheels as those that an image of the checkout may be made of."""
    text = as_text(folder.glob("*.whl"))
    (root / FILE).write_text(text, encoding="ascii")
    git(root, "add", FILE)
    git(root, "commit", "-q", "--allow-empty", "--amend", "-m", "All")


def make_wheels(folder: Path) -> Path:
    """What the checkout needs, for arm64: a compiled wheel that needs a pure one."""
    bom = b'{"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": [%s]}'
    inside = b'{"type": "library", "name": "openssl", "bom-ref": "x", "purl": "pkg:generic/openssl@4.0.3"}'
    make_wheel(
        folder,
        "tiny_lib",
        "1.5",
        {
            "tiny.py": b"from needed import VALUE\n",
            "tiny.pyi": b"VALUE: int\n",
            "tiny_lib.libs/libz.so.1": b"library",
            "tiny_lib-1.5.data/purelib/extra.py": b"",
            "tiny_lib-1.5.data/scripts/tiny": b"#!python\n",
        },
        tag="cp311-cp311-manylinux_2_17_aarch64",
        metadata="Requires-Dist: Needed>=2\nLicense-Expression: MIT\nSummary: Tiny\n",
        boms={"one.json": bom % inside},
    )
    make_wheel(folder, "needed", "2.0", {"needed.py": b"VALUE = 42\n"}, metadata="License: BSD\n")
    return folder
