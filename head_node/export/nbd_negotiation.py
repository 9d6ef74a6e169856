"""The server's side of NBD fixed newstyle negotiation as a state machine without I/O.

`receive` takes bytes and returns events, `data_to_send` returns what to write. When a client picks an export, the
machine waits in OPENING until its owner says `grant` or `refuse`, so that a relay can dial first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from head_node.export import nbd_protocol as nbd
from head_node.export.interface import Security
from head_node.export.nbd_protocol import Info, Option, OptionReply
from head_node.export.tls import TlsPolicy

OPTION_BYTES_MAX: Final = 32 * 1024
"""No option that real clients send comes near; a longer one is drained unread and refused."""

OPTIONS_PER_TURN_MAX: Final = 64
REPLY_BYTES_PER_TURN_MAX: Final = 256 * 1024
"""After so many options, or so much to send, the other connections get their turn. How many options a client sends in
all is not bounded: `qemu-nbd --list` and `nbdinfo --list` ask two or three about each export of the rack."""

EXPORT_FLAGS: Final = (
    nbd.TransmissionFlag.HAS_FLAGS
    | nbd.TransmissionFlag.SEND_FLUSH
    | nbd.TransmissionFlag.SEND_FUA
    | nbd.TransmissionFlag.SEND_TRIM
    | nbd.TransmissionFlag.SEND_WRITE_ZEROES
    | nbd.TransmissionFlag.CAN_MULTI_CONN
    | nbd.TransmissionFlag.SEND_CACHE
    | nbd.TransmissionFlag.SEND_FAST_ZERO
)
"""CAN_MULTI_CONN: all connections of a volume end in one engine, and every acknowledged write is committed already, so
a flush on one connection covers what any other has been told is done. FAST_ZERO: zeroing is a record in the log."""


class State(Enum):
    """The life of a negotiation."""

    CLIENT_FLAGS = auto()
    OPTIONS = auto()
    OPENING = auto()
    STARTING_TLS = auto()
    TRANSMISSION = auto()
    CLOSED = auto()


TRANSITIONS: Final = {
    State.CLIENT_FLAGS: {State.OPTIONS, State.CLOSED},
    State.OPTIONS: {State.OPENING, State.STARTING_TLS, State.CLOSED},
    State.OPENING: {State.OPTIONS, State.TRANSMISSION, State.CLOSED},
    State.STARTING_TLS: {State.OPTIONS},
    State.TRANSMISSION: set[State](),
    State.CLOSED: set[State](),
}


@dataclass(frozen=True, slots=True)
class OpenExport:
    """The client picked an export; answer with `grant` or `refuse`. With `info_only` it does not enter transmission."""

    name: str
    info_only: bool


@dataclass(frozen=True, slots=True)
class NegotiationEnded:
    """Close the connection once what there is to send is sent. `fault` is empty when the client just left (ABORT)."""

    fault: str


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send what there is to send, then go on in TLS: `secured` once its handshake is done."""


Event: TypeAlias = OpenExport | StartTls | NegotiationEnded


class Negotiation:
    """One client's negotiation. `structured` and `allocation` hold what was agreed once it is in TRANSMISSION."""

    def __init__(self, names: Callable[[Security], Sequence[str]], tls: TlsPolicy = TlsPolicy.OFF) -> None:
        self.state = State.CLIENT_FLAGS
        self.security = Security.PLAIN
        self._tls = tls
        self.structured = False
        self.rejected_options = 0
        self.options = 0
        """Taken so far, whatever they were answered with: as long as this goes on, the client is alive."""
        self._names = names
        self._received = bytearray()
        self._drain_bytes = 0
        self._turn_options = 0
        self._turn_bytes = 0
        self._option = 0
        self._name = ""
        self._context_name: str | None = None
        self._no_zeroes = False
        self._fixed = False
        hello = nbd.HandshakeFlag.FIXED_NEWSTYLE | nbd.HandshakeFlag.NO_ZEROES
        self._to_send = [nbd.SERVER_HELLO.pack(nbd.NBD_MAGIC, nbd.OPTION_MAGIC, hello)]
        self._events: list[Event] = []

    @property
    def allocation(self) -> bool:
        """Whether BLOCK_STATUS with base:allocation was agreed for the opened export."""
        return self._context_name is not None and self._context_name == self._name

    @property
    def held_up(self) -> bool:
        """Whether options wait for the next turn: read no more, and `resume` once what there is to send is taken."""
        return self.state is State.OPTIONS and self._turn_is_over() and len(self._received) >= nbd.OPTION_HEADER.size

    def resume(self) -> list[Event]:
        """Go on with what was received before; returns what its owner has to act on."""
        return self.receive(b"")

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the client; returns what its owner has to act on."""
        if self.state is State.CLOSED:
            return []
        self._received += data
        self._advance()
        return self._take_events()

    def secured(self, security: Security) -> None:
        """TLS is up: options begin once more. Nothing that came in plain counts, as others may have sent it."""
        assert not self._received
        self.security = security
        self.structured = False
        self._context_name = None
        self._enter(State.OPTIONS)

    def grant(self, size_bytes: int) -> list[Event]:
        """The export exists (and can be served, for anything but `info_only`): tell the client."""
        assert self.state is State.OPENING
        flags = EXPORT_FLAGS | (nbd.TransmissionFlag.SEND_DF if self.structured else 0)
        if self._option == Option.EXPORT_NAME:
            self._to_send.append(nbd.EXPORT_NAME_REPLY.pack(size_bytes, flags))
            if not self._no_zeroes:
                self._to_send.append(nbd.EXPORT_NAME_ZEROES)
            self._enter(State.TRANSMISSION)
            return []
        self._reply(OptionReply.INFO, nbd.INFO_EXPORT.pack(Info.EXPORT, size_bytes, flags))
        self._reply(OptionReply.INFO, nbd.block_size_info())
        self._reply(OptionReply.INFO, nbd.U16.pack(Info.NAME) + self._name.encode())
        self._reply(OptionReply.ACK)
        if self._option == Option.GO:
            self._enter(State.TRANSMISSION)
            return []
        self._enter(State.OPTIONS)
        self._advance()
        return self._take_events()

    def refuse(self, reply: OptionReply, text: str) -> list[Event]:
        """The export cannot be opened: tell the client why. EXPORT_NAME has no way to say so but to hang up."""
        assert self.state is State.OPENING
        if self._option == Option.EXPORT_NAME:
            self._end(text)
        else:
            self._reply_error(reply, text)
            self._enter(State.OPTIONS)
            self._advance()
        return self._take_events()

    def refuse_insecure(self, name: str, needed: Security) -> list[Event]:
        """The export is for connections that are `needed`, and this one is less."""
        if self._tls is TlsPolicy.OFF:
            return self.refuse(OptionReply.ERR_POLICY, f"export {name!r} needs TLS, which this head does not have")
        if self.security is Security.PLAIN:
            return self.refuse(OptionReply.ERR_TLS_REQD, f"export {name!r} needs TLS")
        return self.refuse(
            OptionReply.ERR_POLICY,
            f"export {name!r} is for clients that authenticate ({needed.name.lower()}), and this head asks for no"
            " certificate or key of a client",
        )

    def data_to_send(self) -> list[bytes]:
        """What to write, in order; each is handed out once."""
        data, self._to_send = self._to_send, []
        return data

    def begin_turn(self) -> None:
        """Other connections had their turn."""
        self._turn_options = self._turn_bytes = 0

    def leftover(self) -> bytes:
        """The bytes that followed the negotiation: they belong to the transmission phase."""
        assert self.state is State.TRANSMISSION
        data = bytes(self._received)
        self._received.clear()
        return data

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], (self.state, state)
        self.state = state

    def _end(self, fault: str) -> None:
        self._enter(State.CLOSED)
        self._received.clear()
        self._events.append(NegotiationEnded(fault))

    def _reply(self, reply: OptionReply, payload: bytes = b"") -> None:
        data = nbd.option_reply(self._option, reply, payload)
        self._to_send.append(data)
        self._turn_bytes += len(data)

    def _reply_error(self, reply: OptionReply, text: str) -> None:
        self.rejected_options += 1
        self._reply(reply, text.encode()[: nbd.STRING_BYTES_MAX])

    def _advance(self) -> None:
        if self.state is State.CLIENT_FLAGS and len(self._received) >= nbd.CLIENT_HELLO.size:
            self._take_client_flags()
        while self.state is State.OPTIONS and not self._turn_is_over() and self._take_option():
            pass

    def _turn_is_over(self) -> bool:
        return self._turn_options >= OPTIONS_PER_TURN_MAX or self._turn_bytes >= REPLY_BYTES_PER_TURN_MAX

    def _count_option(self) -> None:
        self.options += 1
        self._turn_options += 1

    def _take_client_flags(self) -> None:
        (flags,) = nbd.CLIENT_HELLO.unpack_from(self._received)
        del self._received[: nbd.CLIENT_HELLO.size]
        if flags & ~0x3:  # a complement of an IntFlag would know no other bits
            self._end(f"unknown client flags {flags:#x}")
            return
        self._fixed = bool(flags & nbd.HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & nbd.HandshakeFlag.NO_ZEROES)
        self._enter(State.OPTIONS)

    def _take_option(self) -> bool:
        """Handle one option; False when more bytes are needed (or the machine left OPTIONS)."""
        received = self._received
        if self._drain_bytes:
            drained = min(self._drain_bytes, len(received))
            del received[:drained]
            self._drain_bytes -= drained
            if self._drain_bytes:
                return False
        if len(received) < nbd.OPTION_HEADER.size:
            return False
        magic, option, length = nbd.OPTION_HEADER.unpack_from(received)
        if magic != nbd.OPTION_MAGIC:
            self._end(f"bad option magic {magic:#x}")
            return False
        self._option = option
        if option == Option.EXPORT_NAME and self._wants_tls():
            self._end("an export name in plain, where TLS is required")
            return False
        if length > OPTION_BYTES_MAX or (option == Option.EXPORT_NAME and length > nbd.STRING_BYTES_MAX):
            self._refuse_oversized(length)
            return self.state is State.OPTIONS
        if len(received) < nbd.OPTION_HEADER.size + length:
            return False
        payload = bytes(received[nbd.OPTION_HEADER.size : nbd.OPTION_HEADER.size + length])
        del received[: nbd.OPTION_HEADER.size + length]
        self._count_option()
        self._handle_option(option, payload)
        return self.state is State.OPTIONS

    def _refuse_oversized(self, length: int) -> None:
        if self._option == Option.EXPORT_NAME:
            self._end(f"an export name of {length} bytes")
            return
        del self._received[: nbd.OPTION_HEADER.size]
        self._drain_bytes = length
        self._count_option()
        if self._wants_tls():
            self._refuse_plain()
            return
        self._reply_error(OptionReply.ERR_TOO_BIG, f"an option of {length} bytes, at most {OPTION_BYTES_MAX} are taken")

    def _handle_option(self, option: int, payload: bytes) -> None:
        handler = _HANDLERS.get(option)
        if not self._fixed and option not in (Option.EXPORT_NAME, Option.ABORT):
            self._end(f"option {option} from a client without fixed newstyle")
        elif self._wants_tls() and option not in (Option.STARTTLS, Option.ABORT):
            self._refuse_plain()
        elif handler is None:
            self._reply_error(OptionReply.ERR_UNSUP, f"option {option} is not supported")
        else:
            try:
                handler(self, payload)
            except ValueError as error:  # malformed payload, bad UTF-8 included
                if option == Option.EXPORT_NAME:
                    self._end(f"malformed export name: {error}")
                else:
                    self._reply_error(OptionReply.ERR_INVALID, f"malformed option: {error}")

    def _wants_tls(self) -> bool:
        """Whether nothing but STARTTLS (and ABORT) is answered yet: FORCEDTLS, in the specification."""
        return self._tls is TlsPolicy.REQUIRED and self.security is Security.PLAIN

    def _refuse_plain(self) -> None:
        self._reply_error(OptionReply.ERR_TLS_REQD, "this head serves NBD over TLS only")

    def _export_name(self, payload: bytes) -> None:
        self._open(payload.decode(), info_only=False)

    def _abort(self, payload: bytes) -> None:
        if self._fixed:
            self._reply(OptionReply.ACK)
        self._end("")

    def _list(self, payload: bytes) -> None:
        _expect_empty(payload)
        for name in self._names(self.security):
            self._reply(OptionReply.SERVER, nbd.pack_string(name))
        self._reply(OptionReply.ACK)

    def _starttls(self, payload: bytes) -> None:
        _expect_empty(payload)
        if self._tls is TlsPolicy.OFF:
            self._reply_error(OptionReply.ERR_POLICY, "this head serves NBD without TLS; put it on a trusted network")
        elif self.security is not Security.PLAIN:
            self._reply_error(OptionReply.ERR_INVALID, "TLS is in use already")
        elif self._received:
            # Taken as the first bytes of TLS, or kept for after it, they would count as the client's.
            self._end("bytes in plain behind STARTTLS")
        else:
            self._reply(OptionReply.ACK)
            self._enter(State.STARTING_TLS)
            self._events.append(StartTls())

    def _info(self, payload: bytes) -> None:
        name, _ = nbd.parse_go(payload)
        self._open(name, info_only=self._option == Option.INFO)

    def _open(self, name: str, *, info_only: bool) -> None:
        self._name = name
        self._enter(State.OPENING)
        self._events.append(OpenExport(name, info_only))

    def _structured_reply(self, payload: bytes) -> None:
        _expect_empty(payload)
        self.structured = True
        self._reply(OptionReply.ACK)

    def _meta_context(self, payload: bytes) -> None:
        setting = self._option == Option.SET_META_CONTEXT
        if setting:
            self._context_name = None
        if not self.structured:
            self._reply_error(OptionReply.ERR_INVALID, "meta contexts need structured replies: negotiate those first")
            return
        name, queries = nbd.parse_meta_context(payload)
        wanted = {nbd.META_CONTEXT_ALLOCATION} if setting else {nbd.META_CONTEXT_ALLOCATION, "base:"}
        if wanted.intersection(queries) or (not queries and not setting):
            context = nbd.U32.pack(nbd.META_CONTEXT_ALLOCATION_ID if setting else 0)
            self._reply(OptionReply.META_CONTEXT, context + nbd.META_CONTEXT_ALLOCATION.encode())
            if setting:
                self._context_name = name
        self._reply(OptionReply.ACK)


def _expect_empty(payload: bytes) -> None:
    if payload:
        raise ValueError(f"{len(payload)} bytes where none belong")


_HANDLERS: Final[dict[int, Callable[[Negotiation, bytes], None]]] = {
    Option.EXPORT_NAME: Negotiation._export_name,
    Option.ABORT: Negotiation._abort,
    Option.LIST: Negotiation._list,
    Option.STARTTLS: Negotiation._starttls,
    Option.INFO: Negotiation._info,
    Option.GO: Negotiation._info,
    Option.STRUCTURED_REPLY: Negotiation._structured_reply,
    Option.LIST_META_CONTEXT: Negotiation._meta_context,
    Option.SET_META_CONTEXT: Negotiation._meta_context,
}
