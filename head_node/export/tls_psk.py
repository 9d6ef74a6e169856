"""Pre-shared keys for the server's side of Python's `ssl`, which has them from 3.13 on only.

Before that the one call that is missing is made by ctypes, to the very libssl that `ssl` is linked to. It needs the
SSL_CTX of an SSLContext: the first member of the object in CPython 3.11 and 3.12 (Modules/_ssl.c), which is read, and
then tried by a value that was set through `ssl`, before it is used. docs/decisions/0013-tls-for-nbd.md says what else
there was.
"""

import ctypes
import ssl
import sys
from collections.abc import Callable
from typing import Any, Final

from head_node.errors import TlsKeysUnusable

KeyOf = Callable[[bytes], bytes]
"""The key of a name."""

PROBE_TICKETS: Final = 29
_Answer = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint)
"""SSL_psk_server_cb_func (openssl-psk): connection, name, where the key goes, how much fits; returns its length."""


def answer_psk(context: ssl.SSLContext, key_of: KeyOf) -> None:
    """Let clients of a server's context that has no certificate prove themselves by `key_of(name)`, with TLS 1.3's
    SHA-256 suites. Raises TlsKeysUnusable when this Python cannot."""
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(lambda name: key_of(name.encode() if name else b""))
    else:
        _answer_psk_by_libssl(context, key_of)


def _answer_psk_by_libssl(context: ssl.SSLContext, key_of: KeyOf) -> None:
    def answer(connection: int, name: bytes, room_for_key: int, room: int) -> int:
        key = key_of(name or b"")
        if len(key) > room:
            return 0
        ctypes.memmove(room_for_key, key, len(key))
        return len(key)

    library, pointer = _libssl(), _pointer(context)
    before = context.num_tickets
    context.num_tickets = PROBE_TICKETS
    seen = library.SSL_CTX_get_num_tickets(pointer)
    context.num_tickets = before
    if seen != PROBE_TICKETS:
        raise TlsKeysUnusable("pre-shared keys need Python 3.13: this one keeps its TLS settings elsewhere")
    callback = _Answer(answer)
    context.psk_callback = callback  # type: ignore[attr-defined] # lives as long as what calls it
    library.SSL_CTX_set_psk_server_callback(pointer, callback)


def _libssl() -> Any:
    import _ssl

    try:
        library = ctypes.CDLL(_ssl.__file__)
        library.SSL_CTX_get_num_tickets.argtypes = [ctypes.c_void_p]
        library.SSL_CTX_get_num_tickets.restype = ctypes.c_size_t
        library.SSL_CTX_set_psk_server_callback.argtypes = [ctypes.c_void_p, _Answer]
        library.SSL_CTX_set_psk_server_callback.restype = None
    except (AttributeError, OSError):
        raise TlsKeysUnusable("pre-shared keys need Python 3.13, or one whose OpenSSL is a shared library") from None
    return library


def _pointer(context: ssl.SSLContext) -> ctypes.c_void_p:
    if sys.implementation.name != "cpython":
        raise TlsKeysUnusable("pre-shared keys need CPython")
    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
