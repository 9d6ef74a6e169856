"""How the firmware says that it is well: by the datagrams of sd_notify(3), which it sends under systemd as well.

`READY=1` once it serves, then `WATCHDOG=1` again and again while it finds itself healthy, `STATUS=` with words for
people.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
INTERVAL_VARIABLE: Final = "WATCHDOG_USEC"
NOTICE_BYTES_MAX: Final = 4096
NOTICES_MAX: Final = 64
"""Not yet looked at; what comes on top is lost, as a datagram may be."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One datagram."""

    ready: bool = False
    healthy: bool = False
    status: str = ""

    @classmethod
    def parse(cls, data: bytes) -> "Notice":
        """Lines that are not known are passed over."""
        lines = data.decode("utf-8", "replace").splitlines()
        told = [line.removeprefix("STATUS=") for line in lines if line.startswith("STATUS=")]
        status = "".join(char if char.isprintable() else "?" for char in (told or [""])[-1])
        return cls("READY=1" in lines, "WATCHDOG=1" in lines, status)


@contextlib.contextmanager
def receiving(path: Path) -> Iterator["asyncio.Queue[Notice]"]:
    """What arrives at a socket of that name, until the block ends; raises OSError."""
    path.unlink(missing_ok=True)
    notices: asyncio.Queue[Notice] = asyncio.Queue(NOTICES_MAX)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(str(path))

        def take() -> None:
            with contextlib.suppress(BlockingIOError):
                data = receiver.recv(NOTICE_BYTES_MAX)
                with contextlib.suppress(asyncio.QueueFull):
                    notices.put_nowait(Notice.parse(data))

        loop.add_reader(receiver, take)
        try:
            yield notices
        finally:
            loop.remove_reader(receiver)
            path.unlink(missing_ok=True)
