"""Files that commands read and leave behind: read whole with a telling error, written whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path

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
    """Put a file there, or replace it, in one step and durably; raises RackError and leaves what was there."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.rename(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise RackError(f"{path}: cannot be written: {error.strerror}") from None


def create_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not be there yet; raises RackError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except FileExistsError:
        raise RackError(f"{path}: is there already, and is not overwritten: choose another name") from None
    except OSError as error:
        raise RackError(f"{path}: cannot be written: {error.strerror}") from None
