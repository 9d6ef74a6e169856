"""HTTP in the simulated world: requests cross the network as messages and reach an ASGI application in its process.

Connections are not modelled: what a client can tell apart is a refused connection, an answer, an answer that is lost
with its server, and silence until a timeout.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from rackctl.simulation.loop import PROCESS, Process, ProcessState
from rackctl.simulation.network import Network


class HttpServers:
    """The applications that can be reached, by the address of their node."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._serving: dict[str, tuple[Process, Any]] = {}
        self._unanswered: dict[Exchange, None] = {}

    def serve(self, app: Any) -> None:
        """Serve `app` at the calling process' node until the process ends."""
        process = PROCESS.get()
        self._serving[process.node] = (process, app)

    def process_ended(self, process: Process, *, silently: bool) -> None:
        """What it had not answered fails with a reset, or (`silently`, the power is gone) stays unanswered."""
        found = self._serving.get(process.node)
        if found is not None and found[0] is process:
            del self._serving[process.node]
        for exchange in [each for each in self._unanswered if each.server is process]:
            del self._unanswered[exchange]
            if not silently:
                exchange.broken()

    def begin(self, exchange: "Exchange") -> None:
        """The request has arrived."""
        found = self._serving.get(exchange.target)
        if found is None:
            exchange.refused()
            return
        exchange.server, app = found
        self._unanswered[exchange] = None
        exchange.server.spawn(exchange.serve(app), name="http request")

    def done(self, exchange: "Exchange") -> None:
        """It has been answered."""
        self._unanswered.pop(exchange, None)


class Exchange:
    """One request and its answer."""

    def __init__(self, servers: HttpServers, client: Process, request: httpx.Request, body: bytes) -> None:
        self.target = request.url.host
        self.server: Process
        self.answer: asyncio.Future[httpx.Response] = servers.network.loop.create_future()
        self._servers = servers
        self._client = client
        self._request = request
        self._body = body
        self._given_up = asyncio.Event()

    def send(self) -> None:
        """Put the request on the wire."""
        if self._client.state is ProcessState.PAUSED:  # stopped in the middle of a turn
            self._client.call(self.send)
            return
        network = self._servers.network
        if self._client.node in network.without_descriptors:
            self._fail(httpx.ConnectError("too many open files", request=self._request))
            return
        begin = partial(self._servers.begin, self)
        network.deliver(self._client.node, self.target, begin, self._client.now_s - network.loop.time())

    def give_up(self) -> None:
        """The client waits no longer; a server that looks is told."""
        self.answer.cancel()
        self._servers.network.deliver(self._client.node, self.target, self._given_up.set)

    def refused(self) -> None:
        """Nobody listens there."""
        self._reply(lambda: self._fail(httpx.ConnectError("connection refused", request=self._request)))

    def broken(self) -> None:
        """The server died."""
        self._reply(lambda: self._fail(httpx.ReadError("connection reset by peer", request=self._request)))

    async def serve(self, app: Any) -> None:
        """In the server's process: run the application."""
        url = self._request.url
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": self._request.method,
            "scheme": url.scheme, "path": url.path, "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query, "root_path": "", "server": (self.target, 80),
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": (self._client.node, 40_000),
        }  # fmt: skip
        received = False
        status, headers, body = 500, [], bytearray()

        async def receive() -> dict[str, Any]:
            nonlocal received
            if not received:
                received = True
                return {"type": "http.request", "body": self._body, "more_body": False}
            await self._given_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message.get("headers", []))
            else:
                body.extend(message.get("body", b""))

        await app(scope, receive, send)
        self._servers.done(self)
        self._reply(lambda: self._succeed(httpx.Response(status, headers=headers, content=bytes(body))))

    def _reply(self, act: Callable[[], None]) -> None:
        self._servers.network.deliver(self.target, self._client.node, act)

    def _succeed(self, response: httpx.Response) -> None:
        if not self.answer.done():
            self.answer.set_result(response)

    def _fail(self, error: httpx.HTTPError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class SimulatedHttp(httpx.AsyncBaseTransport):
    """The transport of one client process."""

    def __init__(self, servers: HttpServers) -> None:
        self._servers = servers

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = Exchange(self._servers, PROCESS.get(), request, await request.aread())
        exchange.send()
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("read")):
                return await exchange.answer
        except TimeoutError:
            exchange.give_up()
            raise httpx.ReadTimeout("no answer in time", request=request) from None
        except asyncio.CancelledError:
            exchange.give_up()
            raise
