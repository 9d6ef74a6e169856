"""The asyncio shell around a link: one TCP connection, its bounds in time, and the listener for those that dial in."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final, cast
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.cluster.errors import ClusterError, LinkClosed, LinkError
from head_node.cluster.frames import FrameType, decode_refused, encode_refused
from head_node.cluster.link import Authenticated, Frame, LinkContext, LinkState, PeerLink
from head_node.export.peer import reset
from sled_controller.environment import Environment
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS, watch_peer
from sled_controller.session import PeerHandshake
from sled_controller.turns import TRUSTED_COMMANDS, Turn, Turns, source_of
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS_MAX: Final = 2.0
"""A peer that has not proved itself by then is cut off."""

STRANGERS_MAX: Final = 256
"""Connections that have not proved themselves yet. For one more the oldest of them makes room: a flood keeps a head out
only where it fills all places in the moment that a handshake takes."""

REPORT_SECONDS: Final = 1.0
"""How often refusals are logged at the most."""

SEND_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Above this the connection says that it is full."""

FrameHandler = Callable[[FrameType, memoryview], None]


class PeerConnection(asyncio.Protocol):
    """One link on one socket. `on_frame` and `on_closed` may be replaced at any time; nothing is called after
    `on_closed`, which is called exactly once, with the reason. A handler that raises ClusterError ends the link.
    `on_gone` belongs to whoever made the connection."""

    def __init__(self, link: PeerLink, turns: Turns, *, initiator: bool, silence_s: int = PEER_SILENCE_SECONDS) -> None:
        self._link = link
        self._turns = turns
        self._turn: Turn | None = None
        self._silence_s = silence_s
        self._initiator = initiator
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timeout: asyncio.TimerHandle | None = None
        self._paused = False
        self._full = False
        self._closed = False
        self._reason = ""
        self.authenticated: asyncio.Future[Authenticated] = self._loop.create_future()
        self.on_authenticated: Callable[[Authenticated], None] = lambda event: None
        self.on_frame: FrameHandler = lambda kind, payload: None
        self.on_closed: Callable[[str], None] = lambda reason: None
        self.on_writable: Callable[[bool], None] = lambda writable: None
        self.on_gone: Callable[[], None] = lambda: None

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def writable(self) -> bool:
        """False while the send buffer is over its bound."""
        return not self._full

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        socket = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport = socket
        if self._closed:
            socket.abort()
            return
        socket.set_write_buffer_limits(high=SEND_BUFFER_BYTES)
        watch_peer(socket.get_extra_info("socket"), self._silence_s)
        self._turn = self._turns.place(source_of(socket), self._take_turn)
        self._turn.trusted = self._initiator  # it answers whom this head has dialled
        self._timeout = self._loop.call_later(HANDSHAKE_SECONDS_MAX, self._too_slow)
        self._link.start(initiator=self._initiator)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        self._link.receive(data)
        turn = self._turn
        assert turn is not None
        if turn.trusted and not turn.waiting:
            self._deliver()
        else:
            self._ask_for_turn(turn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(str(exc) if exc is not None else "the peer closed the connection")

    def pause_writing(self) -> None:
        self._full = True
        self.on_writable(False)

    def resume_writing(self) -> None:
        self._full = False
        if not self._closed:
            self.on_writable(True)

    def send(self, kind: FrameType, *buffers: Buffer) -> None:
        """Send one frame; never blocks; silently nothing once the link is gone."""
        if self._closed or self._link.state is not LinkState.OPEN:
            return
        self._link.send(kind, buffers)
        self._flush()

    def pause_receiving(self) -> None:
        """Deliver no frame until `resume_receiving`, and read no more from the socket."""
        self._paused = True
        if self._transport is not None and not self._closed:
            self._transport.pause_reading()

    def resume_receiving(self) -> None:
        """Deliver again, beginning in another loop turn."""
        if self._paused and not self._closed:
            self._paused = False
            self._loop.call_soon(self._resume)

    def refuse(self, text: str) -> None:
        """Say why, then close."""
        self.send(FrameType.REFUSED, encode_refused(text))
        self.close(text)

    def close(self, reason: str = "closed here") -> None:
        """End the link after what is queued; frames that come later are not delivered."""
        if self._transport is not None and not self._closed:
            self._transport.close()
        self._lost(reason)

    def abort(self, reason: str = "reset here") -> None:
        """Reset the connection now; what is unsent is thrown away, by the kernel too: a relayed write that waits in a
        send buffer must not arrive when a cut heals, for its client has repeated it elsewhere by then."""
        if self._transport is not None:
            reset(self._transport)
        self._lost(reason)

    def _resume(self) -> None:
        if self._paused or self._closed or self._transport is None:
            return
        self._transport.resume_reading()
        self._deliver()

    def _ask_for_turn(self, turn: Turn) -> None:
        """For a handshake, which costs signatures, and for frames beyond one piece; nothing is read meanwhile."""
        turn.ask()
        if turn.waiting and self._transport is not None and not self._closed:
            self._transport.pause_reading()

    def _take_turn(self) -> bool:
        """Deliver one piece; whether there is more."""
        transport, turn = self._transport, self._turn
        if self._closed or self._paused or transport is None or turn is None:
            return False
        steps = self._link.steps
        more = self._piece()
        turn.charge(self._link.steps - steps)
        if not (more or self._closed or self._paused):
            transport.resume_reading()
        return more

    def _deliver(self) -> None:
        if self._piece() and self._turn is not None:
            self._ask_for_turn(self._turn)

    def _piece(self) -> bool:
        """Deliver so many frames; whether there may be more."""
        frames_left = TRUSTED_COMMANDS
        try:
            while not self._paused and not self._closed and frames_left:
                event = self._link.next_event()
                if event is None:
                    break
                frames_left -= 1
                if isinstance(event, Frame):
                    self._frame(event)
                else:
                    self._opened(event)
        except ClusterError as error:
            log.warning("event=link_broken error=%s", error)
            self.abort(str(error))
            return False
        except Exception as error:  # a bug must cost this link only
            log.exception("event=link_internal_error")
            self.abort(f"internal error: {error!r}")
            return False
        self._flush()
        return not (frames_left or self._paused or self._closed)

    def _frame(self, frame: Frame) -> None:
        if frame.kind is FrameType.REFUSED:
            self.close(f"refused: {decode_refused(frame.payload)}")
        else:
            self.on_frame(frame.kind, frame.payload)

    def _opened(self, event: Authenticated) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if self._turn is not None:
            self._turn.trusted = True
        self._flush()
        if not self.authenticated.done():
            self.authenticated.set_result(event)
        self.on_authenticated(event)

    def _flush(self) -> None:
        if self._transport is not None and not self._closed:
            outgoing = self._link.data_to_send()
            if outgoing:
                self._transport.writelines(outgoing)

    def _too_slow(self) -> None:
        self.abort(f"no handshake within {HANDSHAKE_SECONDS_MAX} s")

    def _lost(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        if self._timeout is not None:
            self._timeout.cancel()
        if self._turn is not None:
            self._turn.end()
        if self._link.state is not LinkState.CLOSED:
            self._link.close()
        if not self.authenticated.done():
            self.authenticated.set_exception(LinkClosed(reason))
            self.authenticated.exception()
        self.on_gone()
        self.on_closed(reason)


async def dial(
    address: tuple[str, int],
    key: Ed25519PrivateKey,
    peer_public: bytes,
    context: LinkContext,
    env: Environment,
    *,
    timeout_s: float = HANDSHAKE_SECONDS_MAX,
    turns: Turns | None = None,
) -> PeerConnection:
    """Open an authenticated link. Raises LinkClosed when nobody answers in time, or not as the expected head.

    Frames wait until the caller has set `on_frame` and called `resume_receiving`.
    """
    loop = asyncio.get_running_loop()
    link = PeerLink(PeerHandshake.initiator(key, peer_public, env, context.encode()))
    connection = PeerConnection(link, turns or Turns(env.clock), initiator=True)
    connection.on_authenticated = lambda event: connection.pause_receiving()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(lambda: connection, *address)
            await asyncio.shield(connection.authenticated)
    except (OSError, TimeoutError) as error:
        connection.abort("dialling failed")
        raise LinkClosed(f"{address[0]}:{address[1]}: {error or 'no answer in time'}") from error
    except BaseException:
        connection.abort("dialling was given up")
        raise
    return connection


Acceptor = Callable[[PeerConnection, LinkContext, bytes], None]
"""Called with an authenticated connection, what it is for, and the peer's public key; it sets `on_frame` at once."""


class PeerListener:
    """Accepts links from known heads. `peers` is asked at each connection for the keys that count now."""

    def __init__(
        self, key: Ed25519PrivateKey, own_id: UUID, peers: Callable[[], Collection[bytes]], accept: Acceptor,
        env: Environment, silence_s: int = PEER_SILENCE_SECONDS, turns: Turns | None = None,
    ) -> None:  # fmt: skip
        self._turns = turns or Turns(env.clock)
        self._silence_s = silence_s
        self._key = key
        self._own_id = own_id
        self._peers = peers
        self._accept = accept
        self._env = env
        self._server: asyncio.Server | None = None
        self._strangers: dict[PeerConnection, None] = {}  # oldest first
        self._connections: dict[PeerConnection, None] = {}
        self._unreported = 0
        self._report_timer: asyncio.TimerHandle | None = None
        self.refused_total = 0

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address in use. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(self._stranger, host, port)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def close(self) -> None:
        """Stop listening and reset every link that was accepted."""
        if self._server is not None:
            self._server.close()
        if self._report_timer is not None:
            self._report_timer.cancel()
        for connection in list(self._connections):
            connection.abort("this head is stopping")

    def _stranger(self) -> PeerConnection:
        handshake = PeerHandshake.responder(self._key, frozenset(self._peers()), self._env)
        connection = PeerConnection(PeerLink(handshake), self._turns, initiator=False, silence_s=self._silence_s)
        if len(self._strangers) >= STRANGERS_MAX:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.abort("it makes room for another stranger")
        self._strangers[connection] = None
        self._connections[connection] = None
        connection.on_authenticated = lambda event: self._known(connection, event)
        connection.authenticated.add_done_callback(lambda _: self._strangers.pop(connection, None))
        connection.on_gone = lambda: self._gone(connection)
        return connection

    def _known(self, connection: PeerConnection, event: Authenticated) -> None:
        context = LinkContext.decode(event.context)
        if context.acceptor != self._own_id:
            raise LinkError("the link was meant for another head")
        self._accept(connection, context, event.peer_public)

    def _gone(self, connection: PeerConnection) -> None:
        self._connections.pop(connection, None)
        self._strangers.pop(connection, None)
        refused = connection.authenticated.exception()
        if refused is not None:
            self.refused_total += 1
            self._unreported += 1
            if self._report_timer is None:
                self._report(refused)

    def _report(self, last: BaseException | None = None) -> None:
        """One line for all refusals since the one before: a flood must not fill the log."""
        self._report_timer = None
        if self._unreported:
            log.warning("event=links_refused count=%d last=%s", self._unreported, last or "as before")
            self._unreported = 0
            if self._server is None or not self._server.is_serving():
                return
            self._report_timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._report)
