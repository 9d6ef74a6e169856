"""Peers that vanish: what the kernel is told to ask of them, and what counts as no answer."""

import asyncio
import socket
import struct
from typing import Any, cast

import pytest

from sled_controller.fabric.keepalive import PROBES, has_vanished, watch_peer


class Transport:
    """As much of a transport as is asked: one whose socket has the given tcp_info."""

    def __init__(self, info: bytes | OSError, family: int = socket.AF_INET) -> None:
        self.family = family
        self._info = info

    def get_extra_info(self, name: str) -> Any:
        return self

    def getsockopt(self, level: int, option: int, length: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        if isinstance(self._info, OSError):
            raise self._info
        return self._info[:length]


def info(*, retransmits: int = 0, probes: int = 0, acknowledged_ms: int = 0) -> bytes:
    """struct tcp_info up to tcpi_last_ack_recv, after linux/tcp.h."""
    return struct.pack("=8B13I", 1, 0, retransmits, probes, 0, 0, 0, 0, *[9] * 12, acknowledged_ms)


def vanished(info: bytes | OSError, family: int = socket.AF_INET) -> bool:
    return has_vanished(cast(asyncio.BaseTransport, Transport(info, family)), 60)


@pytest.mark.parametrize("silence_s", [6, 7, 60, 32767])
def test_an_idle_peer_is_asked_and_given_up_after_the_silence(silence_s: int) -> None:
    with socket.socket() as sock:
        watch_peer(sock, silence_s)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, interval, count = [
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        ]
        assert count == PROBES
        assert idle + interval * count == silence_s
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == silence_s * 1000


def test_a_peer_that_may_read_slowly_is_not_given_up_for_what_it_has_not_read() -> None:
    with socket.socket() as sock:
        watch_peer(sock, 60, unread_too=False)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_what_a_listening_socket_accepts_is_watched_as_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch_peer(listener, 60)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_sockets_that_have_no_peer_any_more_or_are_none_of_tcp_are_left_alone() -> None:
    sock = socket.socket()
    sock.close()
    watch_peer(sock, 60)
    watch_peer(None, 60)
    with socket.socket(socket.AF_UNIX) as local:
        watch_peer(local, 60)
        assert local.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


@pytest.mark.parametrize("repeated", [{"retransmits": PROBES}, {"probes": PROBES}])
def test_a_peer_has_vanished_when_what_was_repeated_stays_unacknowledged(repeated: dict[str, int]) -> None:
    assert vanished(info(**repeated, acknowledged_ms=60_000))
    assert not vanished(info(**repeated, acknowledged_ms=59_999))


def test_a_peer_that_owes_nothing_has_not_vanished_however_long_it_was_silent() -> None:
    assert not vanished(info(acknowledged_ms=1_000_000))
    assert not vanished(info(probes=1, acknowledged_ms=1_000_000)), "the first question may be under way just now"


def test_where_the_kernel_does_not_say_nobody_has_vanished() -> None:
    gone = info(probes=9, acknowledged_ms=1_000_000)
    assert not vanished(gone, socket.AF_UNIX)
    assert not vanished(gone[:1])
    assert not vanished(OSError())
