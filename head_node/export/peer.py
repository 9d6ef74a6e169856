"""Two things that a byte stream's transport does not offer: a hard reset, and whether the peer is still there."""

import asyncio
import socket
import struct
from typing import Final

_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_TCP_ESTABLISHED: Final = 1  # linux/include/net/tcp_states.h; first byte of struct tcp_info


def reset(transport: asyncio.Transport) -> None:
    """End the connection with RST: what is unsent is thrown away, and the peer takes it for no orderly end (F6)."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        except (OSError, ValueError):
            pass  # the socket is gone already; uvloop says so with a ValueError
    transport.abort()


def peer_is_gone(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed or reset, though bytes that it sent before may still wait unread.

    Those must not be acted upon any more: the client may have gone elsewhere and repeated them, and newer ones.
    """
    if transport.is_closing():
        return True
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED)
    except (OSError, ValueError):
        return True
