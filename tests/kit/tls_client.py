"""An NBD client over TLS that sends what it likes, on asyncio streams: TLS by OpenSSL, one record after the other."""

import _ssl
import asyncio
import ctypes
import ssl

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_protocol import Option, OptionReply

HELLO = nbd.CLIENT_HELLO.pack(3)
_CLIENT_ANSWER = ctypes.CFUNCTYPE(
    ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint
)


def trusting(ca: str | None, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
    """What a client believes: servers of that CA, or any; and what it shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


def knowing(name: bytes, key: bytes) -> ssl.SSLContext:
    """What a client with a pre-shared key believes: who has the same. Made as head_node/export/tls_psk.py does it,
    on every Python: `ssl` gives each context an id that a session by such a key lacks, at which its clients stop."""

    def answer(connection: int, hint: bytes, name_at: int, name_room: int, key_at: int, key_room: int) -> int:
        ctypes.memmove(name_at, name + b"\0", len(name) + 1)
        ctypes.memmove(key_at, key, len(key))
        return len(key)

    context, callback = trusting(None), _CLIENT_ANSWER(answer)
    context.psk_callback = callback  # type: ignore[attr-defined] # lives as long as what calls it
    library = ctypes.CDLL(_ssl.__file__)
    library.SSL_CTX_set_psk_client_callback.argtypes = [ctypes.c_void_p, _CLIENT_ANSWER]
    library.SSL_CTX_set_psk_client_callback.restype = None
    library.SSL_CTX_set_session_id_context.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint]
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    assert library.SSL_CTX_set_session_id_context(pointer, b"", 0) == 1
    library.SSL_CTX_set_psk_client_callback(pointer, callback)
    return context


class TlsClient:
    """`connect`, then options in plain; `start_tls`; then options and requests in TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session: ssl.SSLObject | None = None

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> "TlsClient":
        client = cls(*await asyncio.open_connection(*address))
        assert await client._reader.readexactly(18)
        client.send(HELLO)
        return client

    def send(self, data: bytes) -> None:
        """In TLS once it is up."""
        if self._session is None:
            self.writer.write(data)
        else:
            self._session.write(data)
            self._flush()

    async def take(self, count: int) -> bytes:
        """Exactly so many bytes. Raises EOFError, ConnectionError, ssl.SSLError."""
        if self._session is None:
            return await self._reader.readexactly(count)
        data = b""
        while len(data) < count:
            try:
                piece = self._session.read(count - len(data))
            except ssl.SSLWantReadError:
                await self._more()
                continue
            if not piece:
                raise EOFError(data)
            data += piece
        return data

    async def reply(self) -> tuple[int, int, bytes]:
        """(option, reply, payload) of the next option reply."""
        _, option, reply, length = nbd.OPTION_REPLY_HEADER.unpack(await self.take(nbd.OPTION_REPLY_HEADER.size))
        return option, reply, await self.take(length)

    async def ask(self, option: int, payload: bytes = b"") -> list[tuple[int, bytes]]:
        """All replies to an option, up to the one that ends it."""
        self.send(nbd.option_request(option, payload))
        replies = []
        while not replies or not (replies[-1][0] == OptionReply.ACK or replies[-1][0] & nbd.REPLY_ERROR_BIT):
            answered, reply, text = await self.reply()
            assert answered == option
            replies.append((reply, text))
        return replies

    async def start_tls(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        """Ask for TLS, and shake hands. Raises ssl.SSLError, EOFError, ConnectionError."""
        assert await self.ask(Option.STARTTLS) == [(OptionReply.ACK, b"")]
        await self.shake_hands(context, host)

    async def shake_hands(self, context: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        """The handshake alone."""
        session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        while True:
            try:
                session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                await self._more()
            else:
                break
        self._session = session
        self._flush()

    async def open(self, name: str = "vol") -> None:
        """Up to the transmission phase."""
        assert (await self.ask(Option.GO, nbd.pack_string(name) + b"\0\0"))[-1][0] == OptionReply.ACK

    def close_tls(self) -> None:
        """Say in TLS that nothing follows."""
        assert self._session is not None
        try:
            self._session.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.writer.write(self._outgoing.read())

    async def _more(self) -> None:
        data = await self._reader.read(65536)
        if not data:
            raise EOFError
        self._incoming.write(data)
