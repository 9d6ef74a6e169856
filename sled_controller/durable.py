"""Files and directories of a program, its own and durable: data, name and every directory above synced."""

from pathlib import Path

from sled_board.durable import (
    OTHERS_MAY_WRITE,
    ForeignPath,
    check_own_directory,
    open_new,
    open_own,
    put_file,
    sync_directory,
)

__all__ = [
    "ForeignPath",
    "check_own_directory",
    "make_directory",
    "open_new",
    "open_own",
    "put_file",
    "replace_file",
    "sync_directory",
]


def replace_file(path: Path, text: str, mode: int) -> None:
    """Put a whole text file in place atomically; it and its name are durable on return. Raises OSError."""
    put_file(path, text.encode(), mode)


def make_directory(path: Path, mode: int = 0o777) -> None:
    """Make a directory and those above it that are missing; their names are durable on return. Raises ForeignPath when
    it is another user's, or others may write to it, OSError.

    The name of one that exists is synced too: the process that made it may have been killed before it did that.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in (*reversed(missing), path):
        existed = folder.exists()
        folder.mkdir(mode=mode & ~OTHERS_MAY_WRITE, exist_ok=True)
        try:
            sync_directory(folder.parent)
        except PermissionError:
            # Where an operator has made the directory, what is above it is theirs.
            if not existed:
                raise
    check_own_directory(path)
