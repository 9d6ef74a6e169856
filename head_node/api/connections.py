"""Connections of the REST interface: bounded in number and in the time that a request may take to arrive.

The server behind has neither bound by connection: strangers that open many and finish nothing would keep heads from
their takeovers.
"""

import asyncio
import logging
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
REQUEST_SECONDS_MAX: Final = 10.0
"""From the first byte of a request, or from the connection's begin, to the request's last byte."""


class BoundedConnection(H11Protocol):
    """One connection. Those that wait for a request's bytes, idle or not, are in `_awaited`, oldest first."""

    _awaited: "ClassVar[dict[BoundedConnection, None]]" = {}
    timed_out_total: ClassVar[int] = 0
    turned_away_total: ClassVar[int] = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            # Whoever has sent nothing whole for longest makes room, and that may be this one.
            BoundedConnection.turned_away_total += 1
            oldest = next(iter(self._awaited), self)
            log.warning("event=connection_refused peer=%s max=%d", oldest.client, CONNECTIONS_MAX)
            oldest.transport.abort()
            oldest._settle()
            if oldest is self:
                return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self._await_request()
        else:
            self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self._deadline is None:
            self._awaited[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_SECONDS_MAX, self._too_slow)
            self._awaited[self] = None

    def _settle(self) -> None:
        self._awaited.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        BoundedConnection.timed_out_total += 1
        log.warning("event=request_timeout peer=%s seconds=%s", self.client, REQUEST_SECONDS_MAX)
        self._settle()
        self.transport.abort()
