"""How the firmware says that it is well: by the datagrams of sd_notify(3), which it sends under systemd as well; and by
its exit status that it wants to be started anew.

`READY=1` once it serves, then `WATCHDOG=1` again and again while it finds itself healthy, `STATUS=` with words for
people.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
INTERVAL_VARIABLE: Final = "WATCHDOG_USEC"
RESTART_STATUS: Final = 85
"""With which the firmware ends that asks to be started anew, from the slots as they are now (85 is ERESTART)."""
RESTART_AFTER_S: Final = 0.5
"""From a command that asks for a restart to it: the answer is to reach whoever asked."""
NOTICE_BYTES_MAX: Final = 4096
NOTICES_MAX: Final = 64
"""Not yet looked at; what comes on top is lost, as a datagram may be."""
_CREDENTIALS: Final = Struct("=3i")  # struct ucred: pid, uid, gid


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
def receiving() -> Iterator["tuple[str, asyncio.Queue[Notice]]"]:
    """A value for `SOCKET_VARIABLE`, and what arrives there until the block ends; raises OSError.

    The address is an abstract one (unix(7)): nothing is left of it, however the stage ends. Anybody may send to such an
    address, so what comes from another user is dropped.
    """
    name = f"palisade-stage-{os.getpid()}-{secrets.token_hex(8)}"
    notices: asyncio.Queue[Notice] = asyncio.Queue(NOTICES_MAX)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind("\0" + name)

        def take() -> None:
            with contextlib.suppress(BlockingIOError):
                data, ancillary, _, _ = receiver.recvmsg(NOTICE_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size))
                if _is_ours(ancillary):
                    with contextlib.suppress(asyncio.QueueFull):
                        notices.put_nowait(Notice.parse(data))

        loop.add_reader(receiver, take)
        try:
            yield f"@{name}", notices
        finally:
            loop.remove_reader(receiver)


def _is_ours(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            _, user, _ = _CREDENTIALS.unpack_from(data)
            return bool(user == os.getuid())
    return False
