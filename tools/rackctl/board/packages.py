"""Debian packages as files: fetched by name for this or another architecture, unpacked, never installed."""

import fcntl
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sled_board.durable import open_own

from rackctl import peer_programs
from rackctl.errors import RackError

FETCH_SECONDS_MAX: Final = 300.0
_LISTS: Final = "apt"


class Missing(RackError):
    """Something is not installed and can't be had; the text names the package."""


def program(name: str) -> Path:
    """Where an installed program is; raises Missing."""
    found = peer_programs.find(name)
    if found is None:
        raise Missing(peer_programs.missing(name))
    return Path(found)


def unpack(package: Path, into: Path) -> None:
    """Put a package's files below a folder. Raises Missing when it is damaged, and says so."""
    done = subprocess.run([program("dpkg-deb"), "--extract", package, into], capture_output=True, text=True)
    if done.returncode:
        raise Missing(f"{package} cannot be unpacked; remove it, it is fetched anew then: {done.stderr.strip()}")


class Packages:
    """The packages of one architecture in the folder `cache`, which several processes may use; what is there stays.

    `architecture` as dpkg calls it; None is this machine's, with its own lists of packages. For another one apt gets
    lists of its own below `cache`, from the same sources: this machine learns nothing of that architecture.
    """

    def __init__(self, cache: Path, architecture: str | None = None) -> None:
        self._cache = cache
        self._architecture = architecture

    def fetch(self, *names: str) -> list[Path]:
        """The packages, one file each; apt downloads those that are not there. Raises Missing."""
        with self._locked():
            absent = [name for name in names if self._kept(name) is None]
            if absent:
                self._download(absent)
            return [self._have(name) for name in names]

    def kernel(self, names: Sequence[str]) -> Path:
        """A kernel package; the newest where several are there already, else the one that the first of `names` (they
        always depend on the newest) stands for. Raises Missing."""
        with self._locked():
            kept = self._newest("linux-image-*.deb")
            if kept is None:
                self._download([self._behind(names)])
                kept = self._newest("linux-image-*.deb")
            if kept is None:
                raise Missing(f"apt has fetched no kernel; {self._cache} has none")
            return kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._cache.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(self._cache / "lock", os.O_RDWR | os.O_CREAT), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _newest(self, pattern: str) -> Path | None:
        return max(self._cache.glob(pattern), default=None)

    def _kept(self, name: str) -> Path | None:
        return self._newest(f"{name}_*.deb")

    def _have(self, name: str) -> Path:
        kept = self._kept(name)
        if kept is None:
            raise Missing(f"apt has fetched no {name} into {self._cache}")
        return kept

    def _behind(self, names: Sequence[str]) -> str:
        for attempt in ("with the lists that are there", "with new ones"):
            if attempt == "with new ones":
                self._update()
            for name in names:
                found = re.search(r"Depends: (linux-image-\S+)", self._apt("apt-cache", "depends", name).stdout)
                if found is not None:
                    return found[1]
        raise Missing(f"apt knows no package {' or '.join(names)}{self._of_what()}: `apt-get update` may help")

    def _download(self, names: Iterable[str]) -> None:
        wanted = ["download", "-q", *names]
        said = self._apt("apt-get", *wanted)
        if said.returncode:
            # Lists grow old: what they name is replaced by the next security update.
            self._update()
            said = self._apt("apt-get", *wanted)
        if said.returncode:
            raise Missing(
                f"apt can't fetch {', '.join(names)}{self._of_what()}; `apt-get update` or make peers may help:"
                f" {(said.stderr or said.stdout).strip()}"
            )

    def _update(self) -> None:
        """Only lists of our own: this machine's are its administrator's."""
        if self._architecture is not None:
            self._apt("apt-get", "update", "-q")  # a source without this architecture fails, the others do

    def _of_what(self) -> str:
        return "" if self._architecture is None else f" for {self._architecture}"

    def _apt(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [str(program(command)), *self._options(), *arguments]
        try:
            return subprocess.run(
                argv, cwd=self._cache, capture_output=True, text=True, timeout=FETCH_SECONDS_MAX,
                env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Missing(f"{' '.join(argv)}: no end within {FETCH_SECONDS_MAX:g} s") from None

    def _options(self) -> Iterator[str]:
        # As root apt downloads as a user who may not write here, and says so at length.
        options = ["APT::Sandbox::User=root"]
        if self._architecture is not None:
            lists = self._cache.absolute() / _LISTS
            for folder in ("state/lists/partial", "cache/archives/partial"):
                (lists / folder).mkdir(parents=True, exist_ok=True)
            options += [
                f"APT::Architecture={self._architecture}", f"APT::Architectures={self._architecture}",
                f"Dir::State={lists}/state", "Dir::State::status=/dev/null", f"Dir::Cache={lists}/cache",
                "Acquire::Languages=none",
            ]  # fmt: skip
        for option in options:
            yield from ("-o", option)
