"""How a connection is noticed whose peer has vanished (power lost, cable cut), so that its place is given back."""

import asyncio
import socket
import struct
from typing import Final, Protocol

PEER_SILENCE_SECONDS: Final = 60
"""Long enough for a switch that restarts, short enough for a host that comes back and finds its old place taken."""
PROBES: Final = 3
"""How many questions a peer leaves unanswered before it counts as vanished. A lost packet is no vanished peer."""

_INFO: Final = struct.Struct("=BBBBB51xI")
"""The part of struct tcp_info (linux/tcp.h) that is looked at: state, ca_state, retransmits, probes, backoff, and how
many milliseconds ago the peer acknowledged anything."""


class Socket(Protocol):
    """What asyncio and uvloop show of a socket."""

    @property
    def family(self) -> int: ...

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def watch_peer(sock: Socket | None, silence_s: int, *, unread_too: bool = True) -> None:
    """Have the kernel end a connection `silence_s` (at least 6) after its peer's last sign of life. A listening socket
    passes this on to what it accepts.

    A peer that says nothing is asked (TCP keepalive), and its machine answers for as long as it is up, so that an idle
    client stays. With `unread_too` a peer that does not take what it is sent for so long is given up as well
    (TCP_USER_TIMEOUT). Without, a program that is stopped keeps its connection, and `has_vanished` has to be asked.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, silence_s - PROBES * (silence_s // (2 * PROBES)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, silence_s // (2 * PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        if unread_too:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_s * 1000)
    except (OSError, ValueError):
        return  # the peer has closed it already; uvloop says so with a ValueError


def has_vanished(transport: asyncio.BaseTransport, silence_s: int) -> bool:
    """Whether what was sent, or the question for room to send more, is unacknowledged for `silence_s` though it was
    repeated. The machine of a program that only reads slowly, or not at all, goes on acknowledging."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except (OSError, ValueError):
        return False
    if len(info) < _INFO.size:
        return False
    retransmits: int
    probes: int
    acknowledged_ms: int
    _, _, retransmits, probes, _, acknowledged_ms = _INFO.unpack(info)
    return acknowledged_ms >= silence_s * 1000 and max(retransmits, probes) >= PROBES
