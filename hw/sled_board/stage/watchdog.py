"""The board's hardware watchdog: whether it ended the last run, and how it is kept from ending this one.

Source: Linux's Documentation/watchdog/watchdog-api.rst.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

_GET_BOOT_STATUS: Final = 0x8004_5702  # WDIOC_GETBOOTSTATUS
_CARD_RESET: Final = 0x0020  # WDIOF_CARDRESET
_KEEP_ALIVE: Final = b"\0"
_CLOSE_FOR_GOOD: Final = b"V"  # without it the watchdog goes on counting when the device is closed


class Watchdog:
    """An open watchdog device, or none. It resets the board unless `pet` is called within its own timeout."""

    def __init__(self, device: Path | None) -> None:
        """Raises OSError."""
        self._fd = None if device is None else os.open(device, os.O_WRONLY | os.O_CLOEXEC)

    @property
    def has_reset_the_board(self) -> bool:
        """Whether the last run was ended by it."""
        if self._fd is None:
            return False
        status = bytearray(4)
        with contextlib.suppress(OSError):  # not every driver knows
            fcntl.ioctl(self._fd, _GET_BOOT_STATUS, status)
        return bool(int.from_bytes(status, "little") & _CARD_RESET)

    def pet(self) -> None:
        """All is well."""
        if self._fd is not None:
            os.write(self._fd, _KEEP_ALIVE)

    def close(self) -> None:
        """Let go of it in good order: it does not reset the board."""
        if self._fd is not None:
            os.write(self._fd, _CLOSE_FOR_GOOD)
            os.close(self._fd)
            self._fd = None
