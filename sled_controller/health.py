"""Says to whoever started the sled that it is well, by the datagrams of sd_notify(3).

A board's stage listens, and systemd where a unit has `Type=notify` and `WatchdogSec=`. Without `NOTIFY_SOCKET` nobody
does.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Final

from sled_board.stage.notices import INTERVAL_VARIABLE, SOCKET_VARIABLE

from sled_controller.attach import CallLater

log = logging.getLogger(__name__)

REPORTS_PER_INTERVAL: Final = 2


class HealthReport:
    """`check` says in words what is wrong, nothing when all is well; it is asked twice in each interval.

    What is not well is not reported as such: the report that is missing is what counts, as it would be if this hung.
    """

    def __init__(self, environ: Mapping[str, str], call_later: CallLater, check: Callable[[], str]) -> None:
        name = environ.get(SOCKET_VARIABLE, "")
        interval_us = environ.get(INTERVAL_VARIABLE, "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._interval_s = int(interval_us) / 1_000_000 if interval_us.isascii() and interval_us.isdecimal() else 0.0
        self._call_later = call_later
        self._check = check
        self._unheard = False

    def begin(self) -> None:
        """The sled serves."""
        self._send("READY=1")
        self._report()

    def _report(self) -> None:
        if not self._address or not self._interval_s:
            return
        wrong = self._check()
        self._send(f"STATUS={wrong}" if wrong else "WATCHDOG=1\nSTATUS=healthy")
        self._call_later(self._interval_s / REPORTS_PER_INTERVAL, self._report)

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._unheard:
                log.warning("event=health_unheard address=%a reason=%s", self._address, error)
            self._unheard = True
