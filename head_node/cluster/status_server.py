"""A small HTTP/1.1 page of one head: is it alive, is it ready, what does it do. Read only, one request a connection."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

from head_node.bursts import Burst
from sled_controller.environment import Clock, SystemClock
from sled_controller.turns import Turn, Turns, source_of

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX: Final = 8192
REQUEST_SECONDS_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 64
CONNECTION_BYTES_MAX: Final = 512 * 1024
"""What one may cost: a read of the event loop, and the status of a head with thousands of volumes."""

MADE_PAGES: Final = frozenset({b"/status", b"/metrics"})
"""Pages that take the longer to make the more volumes there are: a thousand of them a tenth of a second."""
REUSE: Final = 10
"""Such a page is given out again for so many times as long as it took to make, so that asking again costs nothing."""

_LABELLED: Final = {
    "volumes": ("volume", "volume"),
    "sleds": ("sled", "sled"),
    "members_lag": ("head", "head"),
    "members_delay_ms": ("member_delay_ms", "head"),
    "members_resyncs": ("member_resyncs", "head"),
}
"""Objects whose keys are names of things: how the metric is called, and the label that carries the key."""

Status = Callable[[], dict[str, Any]]


def answer(request: bytes, status: Status, ready: Callable[[], bool]) -> bytes:
    """The whole reply to one request head. `/health`: the loop turns. `/ready`: 200 or 503. `/status`: JSON.
    `/metrics`: every number of the status in Prometheus' text format."""
    parts = request.split(b"\r\n", 1)[0].split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return _reply(400, "text/plain", "this is no HTTP request\n")
    if parts[0] != b"GET":
        return _reply(405, "text/plain", "only GET is possible here\n")
    path = parts[1].split(b"?", 1)[0]
    if path == b"/health":
        return _reply(200, "text/plain", "alive\n")
    if path == b"/ready":
        return _reply(200, "text/plain", "ready\n") if ready() else _reply(503, "text/plain", "not ready\n")
    if path == b"/status":
        return _reply(200, "application/json", json.dumps(status()) + "\n")
    if path == b"/metrics":
        return _reply(200, "text/plain; version=0.0.4", "".join(_metrics("palisade_head", status(), {})))
    return _reply(404, "text/plain", "try /health, /ready, /status or /metrics\n")


def _metrics(name: str, value: object, labels: dict[str, str]) -> Iterator[str]:
    if isinstance(value, bool | int | float):
        shown = ",".join(f'{key}="{text}"' for key, text in labels.items())
        yield f"{name}{{{shown}}} {float(value):g}\n" if shown else f"{name} {float(value):g}\n"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if str(key) in _LABELLED and isinstance(inner, dict):
                shown_key, label = _LABELLED[str(key)]
                for item, content in inner.items():
                    yield from _metrics(f"{name}_{shown_key}", content, {**labels, label: str(item)})
            else:
                yield from _metrics(f"{name}_{key}", inner, labels)


def _reply(code: int, kind: str, text: str) -> bytes:
    reasons = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
    body = text.encode()
    head = (
        f"HTTP/1.1 {code} {reasons[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


class _Request(asyncio.Protocol):
    def __init__(self, server: "StatusServer") -> None:
        self._server = server
        self._received = bytearray()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle
        self._turn: Turn
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS_MAX, self._too_slow)
        self._turn = self._server.turns.place(source_of(transport), self._take_turn)
        self._server.take_in(self)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._turn.ask()
            if self._turn.waiting:
                self._transport.pause_reading()
        elif len(self._received) > REQUEST_BYTES_MAX:
            self._reply(_reply(400, "text/plain", f"a request has at most {REQUEST_BYTES_MAX} bytes\n"))

    def _take_turn(self) -> bool:
        """A page of a head with many volumes takes a while to make."""
        if not self._answered and not self._transport.is_closing():
            self._reply(self._server.answer(bytes(self._received)))
        return False

    def eof_received(self) -> bool:
        if self._received and not self._answered:
            self._server.count_malformed()
        return self._answered

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._turn.end()
        self._server.connections.pop(self, None)

    def cut(self) -> None:
        self._transport.abort()

    def _reply(self, reply: bytes) -> None:
        self._answered = True
        if not reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")):
            self._server.count_malformed()
        self._transport.write(reply)
        self._transport.close()

    def _too_slow(self) -> None:
        self._server.count_timeout()
        self.cut()


class StatusServer:
    """Serves the pages of `answer`. What it counts itself is in the status as `status_port`."""

    def __init__(
        self, status: Status, ready: Callable[[], bool], turns: Turns | None = None, clock: Clock | None = None
    ) -> None:
        self._status = status
        self._clock = clock or SystemClock()
        self._made: dict[bytes, tuple[bytes, int]] = {}
        """Pages by path, and until when each is given out again, in nanoseconds since boot."""
        self.turns = turns or Turns(self._clock)
        self.ready = ready
        self.connections: dict[_Request, None] = {}
        self._server: asyncio.Server | None = None
        self._counters = dict.fromkeys(("malformed", "timed_out", "refused"), 0)
        self._bursts = {name: Burst(log, "status_requests_refused", name) for name in self._counters}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address in use. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Request(self), host, port)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.cut()
        for burst in self._bursts.values():
            burst.close()

    def answer(self, request: bytes) -> bytes:
        """The reply to a request; one that took long to make is given out again for a while."""
        parts = request.split(b"\r\n", 1)[0].split(b" ")
        well_formed = len(parts) == 3 and parts[0] == b"GET" and parts[2].startswith(b"HTTP/1.")
        path = parts[1].split(b"?", 1)[0] if well_formed else b""
        if path not in MADE_PAGES:
            return answer(request, self.status, self.ready)
        begun_ns = self._clock.boottime_ns()
        page, until_ns = self._made.get(path, (b"", 0))
        if begun_ns >= until_ns:
            page = answer(request, self.status, self.ready)
            made_ns = self._clock.boottime_ns()
            self._made[path] = page, made_ns + REUSE * (made_ns - begun_ns)
        return page

    def status(self) -> dict[str, Any]:
        """The head's status, and this port's counters."""
        return {**self._status(), "status_port": {**self._counters, "open": len(self.connections)}}

    def take_in(self, connection: _Request) -> None:
        """A new connection. When there are too many, the oldest makes room: it has had the longest time to ask."""
        if len(self.connections) >= CONNECTIONS_MAX:
            self._count("refused")
            oldest = next(iter(self.connections))
            self.connections.pop(oldest)
            oldest.cut()
        self.connections[connection] = None

    def count_malformed(self) -> None:
        """Something came that is no request for a page."""
        self._count("malformed")

    def count_timeout(self) -> None:
        """A request was not whole in time, or its answer not read."""
        self._count("timed_out")

    def _count(self, name: str) -> None:
        self._counters[name] += 1
        self._bursts[name].add()
