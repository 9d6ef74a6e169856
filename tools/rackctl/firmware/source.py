"""The commit that an image is built from: its files, its date and name, and what `pyproject.toml` says of it."""

import os
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sled_board.image.build import U32_MAX

from rackctl.errors import RackError
from rackctl.firmware.hashes import FILE as HASHES

PACKAGES: Final = {
    "spdk_bindings": "spdk_bindings",
    "sled_controller": "sled_controller",
    "sled_board": "hw/sled_board",
}
"""What the application consists of, and the folder of each."""
EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch/


@dataclass(frozen=True, slots=True)
class Source:
    """A checkout. `build_id` is the commit, with `-dirty` when files differ from it; `built_s` the commit's date.

    `version`, `counter` and `bootloader_min` are what the image says unless somebody says otherwise; `requirements`
    the application's direct dependencies.
    """

    root: Path
    build_id: str
    built_s: int
    version: str
    counter: int
    bootloader_min: str
    requirements: tuple[str, ...]

    @property
    def constraints(self) -> Path:
        """The pins of all dependencies."""
        return self.root / "constraints.txt"

    @property
    def hashes(self) -> Path:
        """The hashes of what an image may be made of."""
        return self.root / HASHES

    @classmethod
    def open(cls, root: Path) -> "Source":
        """The checkout in `root`; raises RackError."""
        try:
            project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
            settings = project["tool"]["palisade"]["firmware"]
            return cls(
                root,
                _git(root, "rev-parse", "HEAD")
                + ("-dirty" if _git(root, "status", "--porcelain", *_of_image()) else ""),
                _epoch(os.environ.get(EPOCH_VARIABLE) or _git(root, "log", "-1", "--format=%ct")),
                project["project"]["version"],
                settings["rollback-counter"],
                settings["bootloader-min"],
                tuple(project["project"]["optional-dependencies"]["sled"]),
            )
        except OSError as error:
            raise RackError(
                f"{error.filename}: cannot be read: {error.strerror}: name a checkout with --source"
            ) from None
        except KeyError as error:
            raise RackError(f"{root / 'pyproject.toml'}: has no {error}: name a checkout with --source") from None
        except ValueError as error:
            raise RackError(f"{root}: {error}") from None

    def files(self) -> dict[str, bytes]:
        """Every file of the packages that git knows, by its path below site-packages; raises RackError."""
        found = {}
        for package, folder in PACKAGES.items():
            for name in _git(self.root, "ls-files", "-z", "--", folder).split("\0"):
                if name:
                    found[package + name.removeprefix(folder)] = (self.root / name).read_bytes()
        return found


def _of_image() -> list[str]:
    return ["--untracked-files=no", "--", *PACKAGES.values(), "pyproject.toml", "constraints.txt", HASHES]


def _epoch(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > U32_MAX:
        raise RackError(f"{EPOCH_VARIABLE}: {text[:32]!r} is no time in seconds up to {U32_MAX}")
    return int(text)


def _git(root: Path, *arguments: str) -> Any:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise RackError(f"git cannot be run: {error.strerror}; an image is named after its commit") from None
    if done.returncode != 0:
        raise RackError(f"{root}: is no checkout: {done.stderr.strip()}; name one with --source")
    return done.stdout.strip()
