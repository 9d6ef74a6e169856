"""TLS between a socket's transport and the protocol of a client: the protocol sees a transport like any other.

Bytes pass through OpenSSL's memory buffers, so what a connection holds is bounded here: one read of ciphertext, one
record beside it, and nothing on the way out that the socket's transport does not count.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from head_node.export.handshake_turns import HandshakeTurns
from head_node.export.peer import peer_has_closed, peer_is_gone
from spdk_bindings.device import Buffer

READ_BYTES: Final = 64 * 1024
"""Ciphertext that is taken in at once."""
SESSION_BYTES_MAX: Final = 128 * 1024
"""What OpenSSL keeps of one connection, a client's certificates included."""
TLS_BYTES_MAX: Final = 4 * READ_BYTES + SESSION_BYTES_MAX
"""What TLS costs a client: a read of ciphertext, the same in OpenSSL beside an unfinished record, as much on
the way out, and the session."""
RECORDS_PER_TURN_MAX: Final = 128
"""Of one connection, as many as requests. Records of a byte and key updates cost as much as whole ones."""
HEADER_BYTES: Final = 5
"""Of a record; the last two are its length (RFC 8446, 5.1)."""
HANDSHAKE_BYTES_MAX: Final = 64 * 1024
"""A client's hello and certificates are a few KiB."""


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """Towards the socket a protocol, towards the client's protocol a transport.

    `on_ready` is called once the handshake is done, `on_failed` (with a reason) when TLS breaks, then or later; the
    owner ends the connection.
    """

    def __init__(
        self,
        socket_transport: asyncio.Transport,
        protocol: asyncio.BufferedProtocol,
        context: ssl.SSLContext,
        turns: HandshakeTurns,
        *,
        on_ready: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._socket = socket_transport
        self._protocol = protocol
        self._turns = turns
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._source = str((socket_transport.get_extra_info("peername") or ("",))[0])
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._ciphertext = memoryview(bytearray(READ_BYTES))
        self._begin = self._end = 0
        self._header = bytearray()
        self._record_left = 0
        self._ready = self._failed = False
        self._handshake_bytes = 0
        self._waits_for_turn = False
        self._paused = not socket_transport.is_reading()
        self._unread = self._planned = False
        self._peer_ended = False
        socket_transport.set_protocol(self)

    # --- protocol of the socket -------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        if self._failed or self._peer_ended:
            return
        self._begin, self._end = 0, nbytes
        if self._ready:
            self._deliver()
            return
        self._handshake_bytes += nbytes
        if self._handshake_bytes > HANDSHAKE_BYTES_MAX:
            self._fail(f"a handshake of more than {HANDSHAKE_BYTES_MAX} bytes")
            return
        self._wait_for_turn()

    def eof_received(self) -> bool | None:
        if self._peer_ended:
            return True
        if not self._ready:
            self._fail("the client left during the handshake")
            return False
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failed = True
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # --- transport of the client's protocol -------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._failed or self._socket.is_closing():
            return
        try:
            for data in list_of_data:
                left = memoryview(data)
                while len(left):
                    left = left[self._session.write(left[:READ_BYTES]) :]
                    self._flush()
        except ssl.SSLError as error:
            self._fail(_reason(error))

    def close(self) -> None:
        """Say so within TLS, too, then close once all is written."""
        if not self._socket.is_closing() and not self._failed:
            try:
                self._session.unwrap()
            except ssl.SSLError:
                pass  # the client has not said the same yet, and need not
            self._flush()
        self._socket.close()

    def abort(self) -> None:
        self._failed = True
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._follow()

    def resume_reading(self) -> None:
        self._paused = False
        if self._unread or self._begin < self._end:
            self._plan()
        self._follow()

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _wait_for_turn(self) -> None:
        self._waits_for_turn = True
        self._follow()
        self._turns.ask(self._source, self._shake_hands)

    def _shake_hands(self) -> None:
        self._waits_for_turn = False
        if self._failed or self._socket.is_closing():
            return
        self._feed()
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            if self._begin < self._end:
                self._wait_for_turn()
            else:
                self._follow()
        except (ssl.SSLError, ValueError) as error:
            self._flush()  # the alert says why
            self._fail(_reason(error))
        else:
            self._flush()
            self._ready = self._unread = True  # what came behind the handshake is in OpenSSL's hands already
            self._on_ready()
            self._deliver()

    def _feed(self) -> None:
        """Give OpenSSL as many records of what has come as a turn may take."""
        data, at, end, records = self._ciphertext, self._begin, self._end, 0
        while at < end and records < RECORDS_PER_TURN_MAX:
            if self._record_left:
                taken = min(self._record_left, end - at)
                self._record_left -= taken
                at += taken
            else:
                taken = min(HEADER_BYTES - len(self._header), end - at)
                self._header += data[at : at + taken]
                at += taken
            if len(self._header) == HEADER_BYTES:
                self._record_left = int.from_bytes(self._header[3:])
                self._header.clear()
            if not self._record_left and not self._header:
                records += 1
        self._incoming.write(data[self._begin : at])
        self._begin = at

    def _plan(self) -> None:
        """Go on in the next turn of the loop."""
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._planned = False
        if peer_is_gone(self._socket) and not peer_has_closed(self._socket):
            # What is left must not be acted upon: the client may have repeated it elsewhere. The socket says so itself.
            self._begin, self._unread = self._end, False
            self._follow()
        else:
            self._deliver()

    def _deliver(self) -> None:
        """Give the protocol what has come, a turn's share at a time, until it takes no more."""
        if not self._paused and not self._failed and not self._socket.is_closing():
            self._feed()
            self._unread = self._pass_on()
            if not self._paused and self._begin < self._end:
                self._plan()
        self._follow()

    def _pass_on(self) -> bool:
        """Decrypt for the protocol; whether it has stopped that before all was read."""
        while not self._failed and not self._socket.is_closing():
            if self._paused:
                return True
            buffer = memoryview(self._protocol.get_buffer(-1))
            count, ended = self._decrypt(buffer)
            if count:
                self._protocol.buffer_updated(count)
            if ended:
                self._end_of_input()
            if ended or count < len(buffer):
                break
        return False

    def _decrypt(self, buffer: memoryview) -> tuple[int, bool]:
        """Fill `buffer`; how much there was, and whether the client has ended its side."""
        count = 0
        try:
            while count < len(buffer):
                read = cast(int, self._session.read(len(buffer) - count, buffer[count:]))
                if not read:
                    return count, True
                count += read
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return count, True
        except ssl.SSLError as error:
            self._flush()
            self._fail(_reason(error))
            return 0, False
        self._flush()  # a key update may want an answer
        return count, False

    def _end_of_input(self) -> None:
        self._peer_ended = True
        if not self._failed and not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._socket.is_closing():
            self._socket.write(self._outgoing.read())

    def _follow(self) -> None:
        """Read from the socket in step with what may be taken."""
        if self._failed or self._socket.is_closing():
            return
        unread = self._unread or self._begin < self._end
        wanted = not (self._paused or self._waits_for_turn or unread or self._peer_ended)
        if wanted and not self._socket.is_reading():
            self._socket.resume_reading()
        elif not wanted and self._socket.is_reading():
            self._socket.pause_reading()

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._on_failed(reason)


def _reason(error: ssl.SSLError | ValueError) -> str:
    text = getattr(error, "reason", None) or str(error)
    detail = getattr(error, "verify_message", "")
    return text.lower().replace("_", " ") + (f" ({detail})" if detail else "")
