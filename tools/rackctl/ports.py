"""Loopback ports for the nodes of a rack, held so that neither another rack nor an outgoing connection takes them.

Ports come from below the range that the kernel gives to outgoing connections, so that a node that was killed finds
its port free again. A port is held by a bound socket that does not listen; once marked reusable it does not hinder a
server that binds with SO_REUSEADDR (socket(7)), while the exclusive bind of another rack's search is refused.
"""

import contextlib
import random
import socket
from pathlib import Path
from typing import Final

from rackctl.errors import RackError

HOST: Final = "127.0.0.1"
_LOWEST: Final = 10_000
_TRIES_MAX: Final = 2_000


class PortReservations:
    """The ports that this process holds for its rack."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}
        self._order = random.SystemRandom()

    def take(self) -> int:
        """Reserve a free port; raises RackError when none is found."""
        highest = _lowest_outgoing_port() - 1
        for _ in range(_TRIES_MAX):
            port = self._order.randint(_LOWEST, highest)
            if port not in self._held and self.hold(port):
                return port
        raise RackError(f"no free port between {_LOWEST} and {highest} on {HOST}: stop some racks first")

    def hold(self, port: int) -> bool:
        """Reserve this very port; False when somebody has it."""
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.bind((HOST, port))
        except OSError:
            holder.close()
            return False
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held[port] = holder
        return True

    def release(self) -> None:
        """Let go of all of them."""
        for holder in self._held.values():
            holder.close()
        self._held.clear()


def _lowest_outgoing_port() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
        if lowest > _LOWEST + 1_000:
            return lowest
    return 65_536
