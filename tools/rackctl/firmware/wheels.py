"""The Python dependencies of an application image: wheels by name, for another machine than this, pinned."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import Final

from sled_board.firmware_store import MACHINES

from rackctl.errors import RackError
from rackctl.firmware.hashes import check_hashes, name_and_version
from rackctl.firmware.hashes import normalized as normalized

PYTHON: Final = (3, 11)
PYTHON_TAG: Final = "cp311"
"""The interpreter of the base system."""
GLIBC_MINORS: Final = range(36, 16, -1)
"""What 2.N manylinux a wheel may ask for: the base system's glibc is Debian 12's, 2.36; 2.17 is manylinux2014's."""
DOWNLOAD_TIMEOUT_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel: its distribution's normalized name and version, the file's name and SHA-256, and what it installs.

    `files` are paths below site-packages; `metadata` the core metadata; `boms` the bills of materials (PEP 770) that
    it brings of what is compiled into it.
    """

    name: str
    version: str
    file: str
    sha256: str
    metadata: Message = field(repr=False, hash=False)
    files: dict[str, bytes] = field(repr=False, hash=False)
    boms: tuple[bytes, ...] = field(repr=False)


def fetch(
    requirements: Sequence[str], constraints: Path, hashes: Path, architecture: str, into: Path, offline: Path | None
) -> list[Wheel]:
    """Fetch the wheels of `requirements` and all that they need, from pip's index or the folder `offline`.

    They are in the order of their names. Raises RackError, also when one is not pinned by `constraints`, or its hash is
    not in `hashes`.
    """
    files = download(requirements, constraints, architecture, into, offline)
    check_hashes(files, hashes)
    wheels = sorted((read_wheel(path) for path in files), key=lambda wheel: wheel.name)
    _check_pinned(wheels, constraints)
    return wheels


def download(
    requirements: Sequence[str], constraints: Path, architecture: str, into: Path, offline: Path | None
) -> list[Path]:
    """What pip fetches for them, unread. Raises RackError."""
    if sys.version_info[:2] != PYTHON:
        # pip answers what depends on the Python version for the one that runs it.
        wanted = ".".join(map(str, PYTHON))
        raise RackError(f"the base system has Python {wanted}: build with that, this is {sys.version.split()[0]}")
    if offline is not None and not offline.is_dir():
        raise RackError(f"{offline}: is no folder of wheels")
    source = ["--no-index", "--find-links", str(offline)] if offline else []
    argv = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", *source,
        "--constraint", str(constraints), "--dest", str(into), *_target(architecture), *requirements,
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RackError(f"pip has not fetched the dependencies within {DOWNLOAD_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise RackError(f"pip cannot fetch the dependencies for {architecture}: {_complaint(done.stdout, done.stderr)}")
    return sorted(into.glob("*.whl"))


def read_wheel(path: Path) -> Wheel:
    """Read one wheel (PEP 427); raises RackError."""
    data = path.read_bytes()
    info = "-".join(path.name.split("-")[:2]) + ".dist-info"
    files: dict[str, bytes] = {}
    boms = []
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
            for item in archive.infolist():
                if item.is_dir():
                    continue
                if item.filename.startswith(f"{info}/sboms/"):
                    boms.append(archive.read(item))
                elif (target := _site_path(item.filename)) is not None:
                    files[target] = archive.read(item)
    except (zipfile.BadZipFile, KeyError) as error:
        raise RackError(f"{path.name}: is no wheel: {error}") from None
    return Wheel(*name_and_version(path), path.name, hashlib.sha256(data).hexdigest(), metadata, files, tuple(boms))


def _target(architecture: str) -> list[str]:
    machine = MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS] + [f"manylinux2014_{machine}"]
    options = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", ".".join(map(str, PYTHON))]
    for tag in (PYTHON_TAG, "abi3", "none"):
        options += ["--abi", tag]
    for tag in platforms:
        options += ["--platform", tag]
    return options


def _complaint(out: str, err: str) -> str:
    """What pip said was wrong, in one line: its errors, and the causes of a conflict, which it indents elsewhere."""
    errors = [line.removeprefix("ERROR: ") for line in err.splitlines() if line.startswith("ERROR: ")]
    causes = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    return "; ".join([*errors, *causes]) or err.strip().rpartition("\n")[2] or "it gave no reason"


def _site_path(name: str) -> str | None:
    """Where a file of a wheel goes below site-packages; None for scripts, headers and the record of hashes."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise RackError(f"a wheel with a file {name!r}")
    if parts[0].endswith(".data"):
        return "/".join(parts[2:]) if len(parts) > 2 and parts[1] in ("purelib", "platlib") else None
    return None if parts[0].endswith(".dist-info") and parts[-1] == "RECORD" else "/".join(parts)


def _check_pinned(wheels: Sequence[Wheel], constraints: Path) -> None:
    pinned = set()
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if equals:
            pinned.add((normalized(name.strip()), version.strip()))
    if loose := [f"{wheel.name} {wheel.version}" for wheel in wheels if (wheel.name, wheel.version) not in pinned]:
        raise RackError(f"{constraints}: does not pin {', '.join(loose)}, so that two builds could differ: add it")
