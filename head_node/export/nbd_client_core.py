"""The client's side of NBD without I/O: negotiation, requests, simple and structured replies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, TypeAlias

from head_node.export import nbd_protocol as nbd
from head_node.export.errors import NbdNegotiationFailed, NbdProtocolError
from head_node.export.nbd_protocol import Chunk, Command, Info, Option, OptionReply
from spdk_bindings.device import Buffer

OPTION_REPLY_BYTES_MAX: Final = 64 * 1024
EXTENT_REPLY_BYTES_MAX: Final = 1024 * 1024
ERROR_REPLY_BYTES_MAX: Final = 6 + 8 + 65535


class State(Enum):
    """The life of a client's connection."""

    HELLO = auto()
    STRUCTURED = auto()
    CONTEXT = auto()
    GO = auto()
    TRANSMISSION = auto()


@dataclass(frozen=True, slots=True)
class Connected:
    """The export is open."""

    size_bytes: int
    flags: int
    block_bytes_min: int
    payload_bytes_max: int


@dataclass(frozen=True, slots=True)
class Completed:
    """One request is answered. `error` is 0 or a number of the specification; `data` belongs to a read, `extents` to a
    block status.
    """

    cookie: int
    error: int
    text: str
    data: bytearray | None
    extents: list[tuple[int, int]]


Event: TypeAlias = Connected | Completed


@dataclass(slots=True)
class _Asked:
    command: int
    offset: int
    length: int
    data: bytearray | None = None
    covered: int = 0
    error: int = 0
    text: str = ""
    extents: list[tuple[int, int]] = field(default_factory=list)


class ClientCore:
    """One connection's worth of client. A new connection takes a new core."""

    def __init__(self, export: str) -> None:
        self.state = State.HELLO
        self.structured = False
        self.allocation = False
        self._export = export
        self._received = bytearray()
        self._to_send: list[Buffer] = []
        self._asked: dict[int, _Asked] = {}
        self._size_bytes: int | None = None
        self._flags = 0
        self._block_bytes_min = 1
        self._payload_bytes_max = nbd.PAYLOAD_BYTES_MAX

    def data_to_send(self) -> list[Buffer]:
        """What to write, in order; payloads are the caller's own buffers."""
        data, self._to_send = self._to_send, []
        return data

    def request(
        self, cookie: int, command: Command, offset: int, length: int, flags: int = 0, payload: Buffer = b""
    ) -> None:
        """Ask for something under a cookie that no unanswered request uses."""
        assert self.state is State.TRANSMISSION
        assert cookie not in self._asked
        self._asked[cookie] = _Asked(command, offset, length)
        self._to_send.append(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length))
        if len(payload):
            self._to_send.append(payload)

    def disconnect(self) -> None:
        """Say goodbye; the server answers what is in flight and closes."""
        self._to_send.append(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))

    def receive(self, data: Buffer) -> list[Event]:
        """Take bytes from the server. Raises NbdProtocolError or NbdNegotiationFailed: end the connection then."""
        received = self._received
        received += data
        events: list[Event] = []
        position = 0
        while True:
            if self.state is State.TRANSMISSION:
                taken = self._take_reply(position, events)
            elif self.state is State.HELLO:
                taken = self._take_hello(position)
            else:
                taken = self._take_option_reply(position, events)
            if not taken:
                break
            position += taken
        if position:
            del received[:position]
        return events

    # --- negotiation ------------------------------------------------------------------------------------------------

    def _take_hello(self, at: int) -> int:
        if len(self._received) - at < nbd.SERVER_HELLO.size:
            return 0
        magic, option_magic, flags = nbd.SERVER_HELLO.unpack_from(self._received, at)
        if magic != nbd.NBD_MAGIC or option_magic != nbd.OPTION_MAGIC:
            raise NbdProtocolError("the server does not speak NBD newstyle")
        if not flags & nbd.HandshakeFlag.FIXED_NEWSTYLE:
            raise NbdNegotiationFailed("the server does not speak fixed newstyle")
        offered = flags & (nbd.HandshakeFlag.FIXED_NEWSTYLE | nbd.HandshakeFlag.NO_ZEROES)
        self._to_send.append(nbd.CLIENT_HELLO.pack(offered) + nbd.option_request(Option.STRUCTURED_REPLY))
        self.state = State.STRUCTURED
        return nbd.SERVER_HELLO.size

    def _take_option_reply(self, at: int, events: list[Event]) -> int:
        if len(self._received) - at < nbd.OPTION_REPLY_HEADER.size:
            return 0
        magic, option, reply, length = nbd.OPTION_REPLY_HEADER.unpack_from(self._received, at)
        if magic != nbd.OPTION_REPLY_MAGIC:
            raise NbdProtocolError(f"bad option reply magic {magic:#x}")
        if length > OPTION_REPLY_BYTES_MAX:
            raise NbdProtocolError(f"an option reply of {length} bytes")
        size: int = nbd.OPTION_REPLY_HEADER.size + length
        if len(self._received) - at < size:
            return 0
        payload = bytes(self._received[at + nbd.OPTION_REPLY_HEADER.size : at + size])
        expected = {
            State.STRUCTURED: Option.STRUCTURED_REPLY,
            State.CONTEXT: Option.SET_META_CONTEXT,
            State.GO: Option.GO,
        }
        if option != expected[self.state]:
            raise NbdProtocolError(f"a reply to option {option} that was not asked")
        _OPTION_REPLIES[self.state](self, reply, payload, events)
        return size

    def _structured_reply(self, reply: int, payload: bytes, events: list[Event]) -> None:
        self.structured = reply == OptionReply.ACK
        if self.structured:
            queries = nbd.U32.pack(1) + nbd.pack_string(nbd.META_CONTEXT_ALLOCATION)
            self._to_send.append(nbd.option_request(Option.SET_META_CONTEXT, nbd.pack_string(self._export) + queries))
            self.state = State.CONTEXT
        else:
            self._go()

    def _context_reply(self, reply: int, payload: bytes, events: list[Event]) -> None:
        if reply == OptionReply.META_CONTEXT:
            self.allocation = True
        else:
            self._go()

    def _go(self) -> None:
        infos = nbd.U16.pack(1) + nbd.U16.pack(Info.BLOCK_SIZE)
        self._to_send.append(nbd.option_request(Option.GO, nbd.pack_string(self._export) + infos))
        self.state = State.GO

    def _go_reply(self, reply: int, payload: bytes, events: list[Event]) -> None:
        if reply & nbd.REPLY_ERROR_BIT:
            raise NbdNegotiationFailed(f"export {self._export!r}: {payload.decode(errors='replace')}", reply)
        if reply == OptionReply.INFO and payload[:2] == b"\0\0" and len(payload) == nbd.INFO_EXPORT.size:
            _, self._size_bytes, self._flags = nbd.INFO_EXPORT.unpack(payload)
        elif reply == OptionReply.INFO and payload[:2] == b"\0\3" and len(payload) == nbd.INFO_BLOCK_SIZE.size:
            _, self._block_bytes_min, _, self._payload_bytes_max = nbd.INFO_BLOCK_SIZE.unpack(payload)
        elif reply == OptionReply.ACK:
            if self._size_bytes is None:
                raise NbdProtocolError("the server opened the export without saying its size")
            self.state = State.TRANSMISSION
            events.append(Connected(self._size_bytes, self._flags, self._block_bytes_min, self._payload_bytes_max))

    # --- transmission -----------------------------------------------------------------------------------------------

    def _take_reply(self, at: int, events: list[Event]) -> int:
        received = self._received
        have = len(received) - at
        if have < nbd.SIMPLE_REPLY.size:
            return 0
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack_from(received, at)
        if magic == nbd.STRUCTURED_REPLY_MAGIC and self.structured:
            return self._take_chunk(at, have, events)
        if magic != nbd.SIMPLE_REPLY_MAGIC:
            raise NbdProtocolError(f"bad reply magic {magic:#x}")
        asked = self._lookup(cookie)
        size: int = nbd.SIMPLE_REPLY.size
        if asked.command == Command.READ and not error:
            if self.structured:
                raise NbdProtocolError("a simple reply to a read though structured ones were agreed on")
            if have < size + asked.length:
                return 0
            asked.data = received[at + size : at + size + asked.length]
            size += asked.length
        self._complete(cookie, asked, error, "", events)
        return size

    def _take_chunk(self, at: int, have: int, events: list[Event]) -> int:
        header: int = nbd.CHUNK_HEADER.size
        if have < header:
            return 0
        _, flags, kind, cookie, length = nbd.CHUNK_HEADER.unpack_from(self._received, at)
        asked = self._lookup(cookie)
        self._check_chunk(kind, length, asked)
        if have < header + length:
            return 0
        with memoryview(self._received) as view:
            _CHUNKS[kind](asked, bytes(view[at + header : at + header + length]))
        if flags & nbd.CHUNK_DONE:
            if asked.command == Command.READ and not asked.error and asked.covered != asked.length:
                raise NbdProtocolError(f"a read of {asked.length} bytes was answered with {asked.covered}")
            self._complete(cookie, asked, asked.error, asked.text, events)
        return header + int(length)

    def _check_chunk(self, kind: int, length: int, asked: _Asked) -> None:
        bounds = {
            Chunk.NONE: (0, 0),
            Chunk.OFFSET_DATA: (9, asked.length + 8) if asked.command == Command.READ else (1, 0),
            Chunk.OFFSET_HOLE: (12, 12) if asked.command == Command.READ else (1, 0),
            Chunk.BLOCK_STATUS: (12, EXTENT_REPLY_BYTES_MAX) if asked.command == Command.BLOCK_STATUS else (1, 0),
            Chunk.ERROR: (6, ERROR_REPLY_BYTES_MAX),
            Chunk.ERROR_OFFSET: (14, ERROR_REPLY_BYTES_MAX),
        }
        least, most = bounds.get(Chunk(kind), (1, 0)) if kind in _CHUNKS else (1, 0)
        if not least <= length <= most:
            raise NbdProtocolError(f"a chunk of kind {kind} and {length} bytes in reply to command {asked.command}")

    def _lookup(self, cookie: int) -> _Asked:
        asked = self._asked.get(cookie)
        if asked is None:
            raise NbdProtocolError(f"a reply to cookie {cookie:#x} that nobody waits for")
        return asked

    def _complete(self, cookie: int, asked: _Asked, error: int, text: str, events: list[Event]) -> None:
        del self._asked[cookie]
        data = asked.data
        if asked.command == Command.READ and not error and data is None:
            data = bytearray(asked.length)
        events.append(Completed(cookie, error, text, data, asked.extents))


def _none_chunk(asked: _Asked, body: bytes) -> None:
    pass


def _place(asked: _Asked, offset: int, length: int) -> int:
    start = offset - asked.offset
    if start < 0 or start + length > asked.length or asked.covered + length > asked.length:
        raise NbdProtocolError(f"data for offset {offset} and {length} bytes lie outside of the read")
    asked.covered += length
    if asked.data is None:
        asked.data = bytearray(asked.length)
    return start


def _data_chunk(asked: _Asked, body: bytes) -> None:
    (offset,) = nbd.CHUNK_OFFSET.unpack_from(body)
    length = len(body) - 8
    if length == asked.length and offset == asked.offset and asked.data is None:
        asked.covered = length
        asked.data = bytearray(body[8:])
        return
    start = _place(asked, offset, length)
    assert asked.data is not None
    asked.data[start : start + length] = body[8:]


def _hole_chunk(asked: _Asked, body: bytes) -> None:
    offset, length = nbd.OFFSET_HOLE.unpack(body)
    _place(asked, offset, length)


def _status_chunk(asked: _Asked, body: bytes) -> None:
    if (len(body) - 4) % nbd.EXTENT.size:
        raise NbdProtocolError("a block status that ends within an extent")
    asked.extents += [(length, flags) for length, flags in nbd.EXTENT.iter_unpack(body[4:])]


def _error_chunk(asked: _Asked, body: bytes) -> None:
    error, text_bytes = nbd.ERROR_CHUNK.unpack_from(body)
    if error == 0 or 6 + text_bytes > len(body):
        raise NbdProtocolError("a malformed error chunk")
    asked.error = asked.error or error
    asked.text = asked.text or body[6 : 6 + text_bytes].decode(errors="replace")


_CHUNKS: Final[dict[int, Callable[[_Asked, bytes], None]]] = {
    Chunk.NONE: _none_chunk,
    Chunk.OFFSET_DATA: _data_chunk,
    Chunk.OFFSET_HOLE: _hole_chunk,
    Chunk.BLOCK_STATUS: _status_chunk,
    Chunk.ERROR: _error_chunk,
    Chunk.ERROR_OFFSET: _error_chunk,
}

_OPTION_REPLIES: Final[dict[State, Callable[[ClientCore, int, bytes, list[Event]], None]]] = {
    State.STRUCTURED: ClientCore._structured_reply,
    State.CONTEXT: ClientCore._context_reply,
    State.GO: ClientCore._go_reply,
}
