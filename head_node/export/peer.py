"""What a byte stream's transport does not offer: a hard reset, whether the peer is still there, and goes on."""

import asyncio
import socket
import struct
from typing import Final

from spdk_bindings.device import Buffer

JOIN_BYTES_MAX: Final = 64 * 1024
"""Below this, joining the replies of a loop turn costs less than handing them over one by one."""
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_TCP_ESTABLISHED: Final = 1  # linux/include/net/tcp_states.h; first byte of struct tcp_info
_TCP_CLOSE_WAIT: Final = 8


def reset(transport: asyncio.Transport) -> None:
    """End the connection with RST: what is unsent is thrown away, and the peer takes it for no orderly end (F6)."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        except (OSError, ValueError):
            pass  # the socket is gone already; uvloop says so with a ValueError
    transport.abort()


def write_out(transport: asyncio.Transport, output: list[Buffer]) -> int:
    """Write what a loop turn has to say; returns how many bytes that were."""
    size = sum(map(len, output))
    if size > JOIN_BYTES_MAX:
        transport.writelines(output)
    elif size:
        transport.write(b"".join(output))
    return size


def peer_is_gone(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed or reset, though bytes that it sent before may still wait unread.

    Those must not be acted upon any more: the client may have gone elsewhere and repeated them, and newer ones.
    """
    return _state(transport) != _TCP_ESTABLISHED


def peer_has_closed(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed in order, and may still take answers: what it sent can be read up to its end."""
    return _state(transport) == _TCP_CLOSE_WAIT


def _state(transport: asyncio.Transport) -> int:
    """The state of the connection for the kernel, 0 when there is none any more."""
    if transport.is_closing():
        return 0
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return _TCP_ESTABLISHED
    try:
        return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except (OSError, ValueError):
        return 0


class Standstill:
    """How long something has not changed, as far as it was looked at."""

    def __init__(self) -> None:
        self._value: object = None
        self._since_s = 0.0

    def seconds(self, value: object, now_s: float) -> float:
        """Look at it: it is `value` now."""
        if value != self._value:
            self._value, self._since_s = value, now_s
        return now_s - self._since_s
