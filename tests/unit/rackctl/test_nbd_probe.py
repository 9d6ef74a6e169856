"""The probe believes only an acknowledgement."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from rackctl.nbd_probe import is_served

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
MAGIC = 0x0003E889045565A9


def reply(kind: int, data: bytes = b"", magic: int = MAGIC) -> bytes:
    return struct.pack(">QIII", magic, 6, kind, len(data)) + data


@contextmanager
def answering(*parts: bytes) -> Iterator[int]:
    """A server that says its lines to one client, then hangs up; the port it listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(b"".join(parts))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([GREETING, reply(3, b"\0\0" + bytes(10)), reply(1)], True),
        ([GREETING, reply((1 << 31) + 6)], False),
        ([GREETING, reply(1, magic=7)], False),
        ([GREETING, struct.pack(">QIII", MAGIC, 6, 3, 1 << 30)], False),
        ([GREETING], False),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], False),
        ([], False),
    ],
    ids=["acknowledged", "unknown", "foreign reply", "endless reply", "hangs up", "no NBD", "says nothing"],
)
def test_only_an_acknowledgement_counts(parts: list[bytes], expected: bool) -> None:
    with answering(*parts) as port:
        assert is_served("127.0.0.1", port, "data") is expected


def test_a_port_without_a_server_serves_nothing() -> None:
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        assert not is_served("127.0.0.1", unbound.getsockname()[1], "data")
