"""Files that a program makes or changes: never through a link or in a directory that others prepared, and such that a
power loss does not take them back.

In a directory that another user owns or may write to, that user decides what a name leads to, and can put a link, a
pipe or a file of its own where a program's own file should be.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

NEW_SUFFIX: Final = ".new"
OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class ForeignPath(OSError):
    """Another user decides what is there: use a path of one's own."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, reason, str(path))


def check_own_directory(path: Path) -> None:
    """Raises ForeignPath unless only this user and root may change what `path` has and where it leads; OSError."""
    _check_owner(path, os.lstat(path))
    found = os.stat(path)
    _check_owner(path, found)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if found.st_mode & OTHERS_MAY_WRITE:
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
        raise ForeignPath(path, f"other users may write to it ({mode}): chmod go-w it, or use another directory")


def open_new(path: Path, mode: int = 0o600) -> int:
    """A descriptor to write a file that is not there yet, with this mode whatever the umask. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)
    return descriptor


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of a plain file of this user's, made if `flags` say so. Raises ForeignPath, OSError."""
    # Without O_NONBLOCK a pipe at that place would hold the program up; a plain file does not know the difference.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ForeignPath(path, "is no plain file: remove it")
        _check_owner(path, found)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def put_file(path: Path, data: bytes, mode: int) -> None:
    """Put a whole file in place atomically; it and its name are durable on return. Raises OSError."""
    fresh = path.with_name(path.name + NEW_SUFFIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    with os.fdopen(open_new(fresh, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Return when files that were made, replaced or removed in it are so on the medium. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Root may do everything anyway."""
    if found.st_uid not in (os.geteuid(), 0):
        raise ForeignPath(path, f"belongs to user {found.st_uid}, not to this one ({os.geteuid()}): use another path")
