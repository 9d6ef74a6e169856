"""Asks an NBD server, over one connection and without its data, whether it would serve a volume now.

Fixed newstyle negotiation of the NBD protocol (NetworkBlockDevice/nbd, doc/proto.md): greeting, flags, NBD_OPT_INFO
for the name, NBD_OPT_ABORT.
"""

import socket
import struct
from typing import Final

_TIMEOUT_S: Final = 2.0
_NBDMAGIC: Final = 0x4E42444D41474943
_IHAVEOPT: Final = 0x49484156454F5054
_REPLY_MAGIC: Final = 0x0003E889045565A9
_OPT_ABORT: Final = 2
_OPT_INFO: Final = 6
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_CLIENT_FIXED_NO_ZEROES: Final = 3
_REPLY_BYTES_MAX: Final = 64 << 10


def is_served(host: str, port: int, name: str) -> bool:
    """Whether the server answers NBD_OPT_INFO for `name` with its acknowledgement; False for anything else."""
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
            magic, option_magic, _ = struct.unpack(">QQH", _receive(connection, 18))
            if (magic, option_magic) != (_NBDMAGIC, _IHAVEOPT):
                return False
            raw = name.encode()
            asked = struct.pack(">I", len(raw)) + raw + struct.pack(">H", 0)
            connection.sendall(struct.pack(">I", _CLIENT_FIXED_NO_ZEROES) + _option(_OPT_INFO, asked))
            kind = _REP_INFO
            while kind == _REP_INFO:
                reply_magic, _, kind, length = struct.unpack(">QIII", _receive(connection, 20))
                if reply_magic != _REPLY_MAGIC or length > _REPLY_BYTES_MAX:
                    return False
                _receive(connection, length)
            connection.sendall(_option(_OPT_ABORT, b""))
            return bool(kind == _REP_ACK)
    except (OSError, EOFError):
        return False


def _option(number: int, data: bytes) -> bytes:
    return struct.pack(">QII", _IHAVEOPT, number, len(data)) + data


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        if not part:
            raise EOFError
        received += part
    return received
