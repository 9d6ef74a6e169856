"""Connections of the REST interface: bounded in number and in the time that a request, or its reply, may take.

The server behind has neither bound by connection: strangers that open many and finish nothing would keep heads from
their takeovers.
"""

import asyncio
import logging
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from head_node.bursts import Burst
from sled_controller.turns import Turn, Turns, source_of

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
REQUEST_SECONDS_MAX: Final = 10.0
"""From the first byte of a request, or from the connection's begin, to the request's last byte."""
REPLY_SECONDS_MAX: Final = 10.0
"""How long a client may leave a reply unread once the kernel takes no more of it."""
CONNECTION_BYTES_MAX: Final = 512 * 1024
"""What one may cost: a request's head and the free part of its body as received and as parsed, a reply in pieces. More
of a body comes out of the budget of `BoundedBodies`."""

REQUEST_NS: Final = 1_000_000
BODY_NS_PER_BYTE: Final = 100
"""What the request of a client that has not authenticated counts for in its turn: it is carried out by a task, so that
its time is not measured. Bodies are parsed before anything is known of who sends them."""


class BoundedConnection(H11Protocol):
    """One connection. Those that wait for the client, to send or to read, are in `_awaited`, oldest first. A client is
    a stranger, who waits for turns, until a request of its connection was authenticated."""

    _awaited: "ClassVar[dict[BoundedConnection, None]]" = {}
    _refusals: ClassVar[Burst] = Burst(log, "connection_refused", f"max_{CONNECTIONS_MAX}")
    timed_out_total: ClassVar[int] = 0
    turned_away_total: ClassVar[int] = 0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _turn: Turn
    _arrived_bytes = 0

    def __init__(self, *args: Any, turns: Turns, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = turns

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._turn = self._turns.place(source_of(transport), self._take_turn)
        if len(self.connections) > CONNECTIONS_MAX:
            # Whoever has sent nothing whole for longest makes room, and that may be this one.
            BoundedConnection.turned_away_total += 1
            oldest = next(iter(self._awaited), self)
            self._refusals.add()
            oldest.transport.abort()
            oldest._forget()
            if oldest is self:
                return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        self._arrived_bytes += len(data)
        super().data_received(data)
        self._look_at_cycle()

    def handle_events(self) -> None:
        if self._turn.trusted:
            super().handle_events()
            return
        self._turn.ask()
        if self._turn.waiting:
            self.flow.pause_reading()

    def _take_turn(self) -> bool:
        """Take what has come: one request at the most, for the next one waits for its answer."""
        if self.transport.is_closing():
            return False
        former = self.cycle
        self.flow.resume_reading()
        super().handle_events()
        begun = REQUEST_NS if self.cycle is not former else 0
        self._turn.charge(time_ns=begun + self._arrived_bytes * BODY_NS_PER_BYTE)
        self._arrived_bytes = 0
        self._look_at_cycle()
        return False

    def _look_at_cycle(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._await_request()
        else:
            self._arrived()

    def on_response_complete(self) -> None:
        self._turn.trusted = self._turn.trusted or "authenticated" in self.scope["state"]
        super().on_response_complete()
        if not self.transport.is_closing() and self._deadline is None:
            self._awaited[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(REPLY_SECONDS_MAX, self._too_slow)
            self._awaited.setdefault(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
            if self._deadline is None:
                self._awaited.pop(self, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._turn.end()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_SECONDS_MAX, self._too_slow)
            self._awaited[self] = None

    def _arrived(self) -> None:
        """A whole request is there."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._unread is None:
            self._awaited.pop(self, None)

    def _forget(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        self._arrived()

    def _too_slow(self) -> None:
        BoundedConnection.timed_out_total += 1
        what = "request" if self._unread is None else "reply"
        log.warning("event=%s_timeout peer=%s seconds=%s", what, self.client, REQUEST_SECONDS_MAX)
        self._forget()
        self.transport.abort()
