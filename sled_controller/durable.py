"""Files and directories that a power loss must not take back: data, name and every directory above synced."""

import os
from pathlib import Path

from sled_board.durable import sync_directory

__all__ = ["make_directory", "replace_file", "sync_directory"]


def replace_file(path: Path, text: str, mode: int) -> None:
    """Put a whole file in place atomically; it and its name are durable on return. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=mode)
    with fresh.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it that are missing; their names are durable on return. Raises OSError.

    The name of one that exists is synced too: the process that made it may have been killed before it did that.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in (*reversed(missing), path):
        existed = folder.exists()
        folder.mkdir(mode=mode, exist_ok=True)
        try:
            sync_directory(folder.parent)
        except PermissionError:
            # Where an operator has made the directory, what is above it is theirs.
            if not existed:
                raise
