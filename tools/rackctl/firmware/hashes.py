"""The hashes of every wheel that may go into a firmware image, in the format of pip's hash-checking mode.

A version says which release is meant, a hash which bytes: an index, a mirror or a folder in wrong hands that gives
others under the same name and version ends the build.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from rackctl.errors import RackError

FILE: Final = "firmware-hashes.txt"
HEADER: Final = (
    "# Wheels that firmware images are made of, for every architecture: `rackctl firmware hashes` writes this.\n"
)
_LINE: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)
Hashes: TypeAlias = Mapping[tuple[str, str], frozenset[str]]


def read_hashes(path: Path) -> Hashes:
    """The SHA-256 of the wheels that may be taken, by normalized name and version. Raises RackError."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not ASCII"
        raise RackError(f"{path}: {reason}: an image is made of wheels whose hashes are known only") from None
    found: dict[tuple[str, str], frozenset[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _LINE.fullmatch(line.strip())
        if entry is None:
            raise RackError(f"{path}:{number}: is not NAME==VERSION --hash=sha256:HEX ...")
        key = (normalized(entry["name"]), entry["version"])
        if key in found:
            raise RackError(f"{path}:{number}: {entry['name']} {entry['version']} is there twice")
        found[key] = frozenset(part.removeprefix("--hash=sha256:") for part in entry["hashes"].split())
    return found


def check_hashes(files: Iterable[Path], hashes: Path) -> None:
    """Return when each wheel is one whose hash is known; nothing of it has been read before. Raises RackError."""
    known = read_hashes(hashes)
    for path in sorted(files):
        name, version = name_and_version(path)
        allowed = known.get((name, version))
        if allowed is None:
            raise RackError(f"{hashes}: has no hash of {name} {version}: `rackctl firmware hashes` adds it")
        digest = digest_of(path)
        if digest not in allowed:
            raise RackError(
                f"{path.name}: has SHA-256 {digest}, which {hashes} does not have for {name} {version}: it is not the"
                " wheel that was reviewed"
            )


def as_text(files: Iterable[Path]) -> str:
    """The content of the file for these wheels."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in files:
        found.setdefault(name_and_version(path), set()).add(digest_of(path))
    lines = (
        f"{name}=={version} {' '.join(f'--hash=sha256:{digest}' for digest in sorted(digests))}\n"
        for (name, version), digests in sorted(found.items())
    )
    return HEADER + "".join(lines)


def name_and_version(path: Path) -> tuple[str, str]:
    """Of a wheel, by the name of its file (PEP 427)."""
    name, version = path.name.split("-")[:2]
    return normalized(name), version


def digest_of(path: Path) -> str:
    """SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def normalized(name: str) -> str:
    """A distribution's name as all its spellings are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
