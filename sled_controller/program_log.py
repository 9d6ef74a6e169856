"""Where a program's log goes: to standard error, or to a file of its own that rotates by size."""

import atexit
import errno
import logging
import os
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from sled_controller.durable import open_own
from sled_controller.line_budget import LineBudget
from sled_controller.printable import LineFormatter, complain
from sled_controller.settings import Settings

_STANDARD: Final = (1, 2)
"""Descriptors of standard output and standard error."""


class LogSettings(Settings):
    """What every program's log can be told."""

    log_file: Path | None = Field(
        default=None, description="file that the log goes to, instead of standard error; it is rotated by size"
    )
    log_file_mib: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        default=16, description="MiB of log_file after which it becomes log_file.1, and another one begins"
    )
    log_files: Annotated[int, Field(ge=1, le=100)] = Field(
        default=4, description="former log files that are kept; older ones are removed"
    )


class LogFile(RotatingFileHandler):
    """A log file. Standard output and standard error follow it where they lead to the same file, as they do when the
    program was started with both: what the interpreter writes there at a crash stays beside the log's last lines."""

    def __init__(self, path: Path, bytes_max: int, files: int) -> None:
        """Raises OSError; a symbolic link is not followed."""
        if path.is_symlink():
            raise OSError(errno.ELOOP, "is a symbolic link", str(path))
        super().__init__(path, maxBytes=bytes_max, backupCount=files, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        # Each one of a rotation is as the first: this user's alone, and no link that others have put there is followed.
        descriptor = open_own(Path(self.baseFilename), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return os.fdopen(descriptor, "a", encoding=self.encoding, errors=self.errors)

    def doRollover(self) -> None:
        """Begin another file; on a full disk, go on with this one."""
        led_here = [descriptor for descriptor in _STANDARD if self._is_ours(descriptor)]
        try:
            super().doRollover()
        except OSError:
            if self.stream is None:
                self.stream = self._open()
            return
        if self.stream is not None:
            for descriptor in led_here:
                os.dup2(self.stream.fileno(), descriptor)

    def _is_ours(self, descriptor: int) -> bool:
        try:
            return self.stream is not None and os.path.samestat(os.fstat(descriptor), os.fstat(self.stream.fileno()))
        except OSError:
            return False


def handler_of(settings: LogSettings, prog: str) -> logging.Handler:
    """What writes the log's lines. A file that cannot be had ends the program with status 2 and one line."""
    if settings.log_file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return LogFile(settings.log_file, settings.log_file_mib << 20, settings.log_files)
    except OSError as error:
        complain(prog, f"log_file: {settings.log_file}: {error.strerror or error}")
        raise SystemExit(2) from None


def begin(settings: LogSettings, level: str, prog: str) -> None:
    """Log from `level` on."""
    handler = handler_of(settings, prog)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=(handler,))
    bound_lines()


def bound_lines() -> None:
    """Give the handlers of the root logger one budget of lines; what it leaves out is told of at the end too."""
    budget = LineBudget()
    for handler in logging.getLogger().handlers:
        handler.addFilter(budget)
    atexit.register(budget.tell)
