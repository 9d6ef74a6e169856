"""Files that commands read and leave behind: read whole with a telling error, written whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

from sled_board.durable import ForeignPath, open_new, sync_directory

from rackctl.errors import FileUnreadable, RackError


def read_file(path: Path, bytes_max: int) -> bytes:
    """The content; raises FileUnreadable when it cannot be read or is longer than `bytes_max`."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise FileUnreadable(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > bytes_max:
        raise FileUnreadable(f"{path}: has more than {bytes_max} bytes, too many for what it should be")
    return data


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put a file there, or replace it (behind a symbolic link, what that leads to), in one step and durably; a device
    or a pipe is written to. Raises RackError and leaves what was there."""
    try:
        if path.exists() and (not path.is_file() or path.absolute().is_relative_to("/dev")):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "wb") as stream:
                stream.write(data)
            return
        _check_link(path)
        target = path.resolve()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.rename(name, target)
            sync_directory(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to themselves
        raise RackError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _check_link(path: Path) -> None:
    """A link of this user's or root's is meant; one that another user has put there is not."""
    if path.is_symlink() and (owner := path.lstat().st_uid) not in (os.geteuid(), 0):
        raise ForeignPath(path, f"is a link of user {owner}: choose another name")


def create_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not be there yet; raises RackError and leaves none."""
    try:
        descriptor = open_new(path, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            sync_directory(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise RackError(f"{path}: is there already, and is not overwritten: choose another name") from None
    except OSError as error:
        raise RackError(f"{path}: cannot be written: {error.strerror}") from None
