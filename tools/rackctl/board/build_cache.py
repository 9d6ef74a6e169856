"""A folder of things that take long to build, each named after everything that it is built from."""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sled_board.durable import open_own


def digest(texts: Iterable[str], files: Iterable[Path]) -> str:
    """A name for what depends on these texts and on what is in these files, in this order."""
    whole = hashlib.sha256("\n".join(texts).encode())
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class BuildCache:
    """In `folder`; `kept` others than the one in use stay, for branches that come and go."""

    folder: Path
    kept: int

    def get(self, name: str, build: Callable[[Path], None]) -> Path:
        """The folder `name` (from `digest`), which `build` fills when it is not there: two processes, one build."""
        found = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(self.folder / "lock", os.O_RDWR | os.O_CREAT), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not found.exists():
                building = self.folder / "building"
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
                build(building)
                building.rename(found)
                self._forget_others(found)
        return found

    def _forget_others(self, used: Path) -> None:
        others = sorted(
            (path for path in self.folder.iterdir() if re.fullmatch("[0-9a-f]{16}", path.name) and path != used),
            key=lambda path: path.stat().st_mtime,
        )
        for path in others[: -self.kept]:
            shutil.rmtree(path)
