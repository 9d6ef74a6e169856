"""What a power loss must not take back: the entries of a directory."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Return when files that were made, replaced or removed in it are so on the medium. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
