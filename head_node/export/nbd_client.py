"""An NBD client on asyncio: pipelined requests, and a reconnect over several servers that repeats what is unanswered.

Repeating is a client's right and nobody else's: it alone knows that nothing newer depends on the answer.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from head_node.export import nbd_protocol as nbd
from head_node.export.errors import (
    ExportError,
    NbdCommandFailed,
    NbdDisconnected,
    NbdNegotiationFailed,
    NbdReconnectTimeout,
)
from head_node.export.nbd_client_core import ClientCore, Completed, Connected
from head_node.export.nbd_protocol import Command, CommandFlag
from head_node.export.peer import reset
from spdk_bindings.device import Buffer

REQUESTS_UNANSWERED_MAX: Final = 4096
ATTEMPT_PAUSE_S: Final = 0.05
"""Between two rounds over the servers."""


@dataclass(frozen=True, slots=True)
class ReconnectPolicy:
    """`total_s_max` bounds one outage, 0: never reconnect. `attempt_s_max` bounds one server's negotiation.

    `silence_s_max`: with requests unanswered and not a byte of reply for so long, the server is given up (a stopped
    process keeps its connections). It must be longer than the slowest honest answer.
    """

    total_s_max: float = 0.0
    attempt_s_max: float = 1.0
    silence_s_max: float | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """One outage as the user of the client saw it: from the last sign of progress to the first answer afterwards."""

    duration_ms: float
    reason: str
    address: tuple[str, int]
    replayed: int


@dataclass(slots=True)
class _Request:
    command: Command
    flags: int
    offset: int
    length: int
    payload: Buffer
    answer: "asyncio.Future[Any]"


@dataclass(slots=True)
class _Outage:
    since_s: float
    reason: str
    address: tuple[str, int] = ("", 0)
    replayed: int = 0


@dataclass(slots=True)
class NbdClientStatistics:
    """What a client has seen."""

    answered: int = 0
    connections: int = 0
    stalls: list[Stall] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One TCP connection: a core, and where its events go."""

    def __init__(self, export: str, address: tuple[str, int]) -> None:
        self.core = ClientCore(export)
        self.address = address
        self.opened: asyncio.Future[Connected] = asyncio.get_running_loop().create_future()
        self.client: NbdClient | None = None
        self.heard_s = 0.0
        self.transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        try:
            events = self.core.receive(data)
        except ExportError as error:
            self._error = error
            reset(self.transport)
            return
        for event in events:
            if isinstance(event, Completed):
                if self.client is not None:
                    self.client._completed(event)
            elif not self.opened.done():
                self.opened.set_result(event)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = self._error or NbdDisconnected(f"{self.address[0]}:{self.address[1]}: {exc or 'the server closed'}")
        if not self.opened.done():
            self.opened.set_exception(reason)
        elif self.client is not None:
            self.client._lost(self, reason)

    def flush_soon(self) -> None:
        """One write per loop turn, however many requests are made in it."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flushing = False
        data = self.core.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.writelines(data)


class NbdClient:
    """A client of one export. Methods return futures, so requests pipeline without tasks; buffers stay the caller's to
    leave alone until the future is done.

    Futures fail with NbdCommandFailed (the server said no), NbdDisconnected or NbdReconnectTimeout (fate unknown).
    """

    def __init__(
        self, addresses: Sequence[tuple[str, int]], export: str, policy: ReconnectPolicy | None = None
    ) -> None:
        assert addresses
        self.size_bytes = 0
        self.flags = 0
        self.statistics = NbdClientStatistics()
        self._addresses = list(addresses)
        self._export = export
        self._policy = policy or ReconnectPolicy()
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, _Request] = {}
        self._next_cookie = 1
        self._connection: _Connection | None = None
        self._outage: _Outage | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._progress_s = self._loop.time()
        self._failure: ExportError | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls, addresses: Sequence[tuple[str, int]], export: str, policy: ReconnectPolicy | None = None
    ) -> "NbdClient":
        """Open an export on the first server that grants it. Raises NbdNegotiationFailed or NbdDisconnected."""
        client = cls(addresses, export, policy)
        await client._reach_any(client._loop.time() + max(client._policy.total_s_max, client._policy.attempt_s_max))
        return client

    @property
    def address(self) -> tuple[str, int] | None:
        """The server in use, None during an outage."""
        return self._connection.address if self._connection is not None else None

    # --- requests ---------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> "asyncio.Future[bytearray]":
        """Read `length` bytes."""
        return self._ask(Command.READ, offset, length)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> "asyncio.Future[None]":
        """Write `data`."""
        return self._ask(Command.WRITE, offset, len(data), CommandFlag.FUA if fua else 0, data)

    def trim(self, offset: int, length: int) -> "asyncio.Future[None]":
        """Forget a range."""
        return self._ask(Command.TRIM, offset, length)

    def write_zeroes(self, offset: int, length: int, *, no_hole: bool = False) -> "asyncio.Future[None]":
        """Zero a range."""
        return self._ask(Command.WRITE_ZEROES, offset, length, CommandFlag.NO_HOLE if no_hole else 0)

    def flush(self) -> "asyncio.Future[None]":
        """Make what was answered durable."""
        return self._ask(Command.FLUSH, 0, 0)

    def block_status(self, offset: int, length: int) -> "asyncio.Future[list[tuple[int, int]]]":
        """(length, ExtentFlag) pairs from `offset` on; may cover less than was asked for."""
        return self._ask(Command.BLOCK_STATUS, offset, length)

    async def close(self) -> None:
        """Disconnect. What is unanswered fails with NbdDisconnected."""
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._watch is not None:
            self._watch.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.client = None
            connection.core.disconnect()
            connection.flush()
            connection.transport.close()
        self._fail_all(NbdDisconnected("the client was closed"))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _ask(
        self, command: Command, offset: int, length: int, flags: int = 0, payload: Buffer = b""
    ) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self._failure is not None or self._closed:
            answer.set_exception(self._failure or NbdDisconnected("the client is closed"))
            return answer
        if len(self._requests) >= REQUESTS_UNANSWERED_MAX:
            answer.set_exception(NbdCommandFailed(command.name, nbd.NbdError.ENOMEM, "too many requests unanswered"))
            return answer
        cookie = self._next_cookie
        self._next_cookie += 1
        if not self._requests:
            self._progress_s = self._loop.time()
        self._requests[cookie] = _Request(command, flags, offset, length, payload, answer)
        connection = self._connection
        if connection is not None:
            connection.core.request(cookie, command, offset, length, flags, payload)
            connection.flush_soon()
        return answer

    def _completed(self, event: Completed) -> None:
        request = self._requests.pop(event.cookie, None)
        now_s = self._loop.time()
        if self._outage is not None:
            outage, self._outage = self._outage, None
            stall_ms = (now_s - outage.since_s) * 1000
            self.statistics.stalls.append(Stall(stall_ms, outage.reason, outage.address, outage.replayed))
        self._progress_s = now_s
        self.statistics.answered += 1
        if request is None or request.answer.done():
            return
        if event.error:
            request.answer.set_exception(NbdCommandFailed(request.command.name, event.error, event.text))
        elif request.command == Command.READ:
            request.answer.set_result(event.data)
        elif request.command == Command.BLOCK_STATUS:
            request.answer.set_result(event.extents)
        else:
            request.answer.set_result(None)

    def _lost(self, connection: _Connection, reason: Exception) -> None:
        if self._connection is not connection or self._closed:
            return
        self._connection = None
        if self._watch is not None:
            self._watch.cancel()
        if not self._policy.total_s_max:
            self._failure = NbdDisconnected(str(reason))
            self._fail_all(self._failure)
            return
        if self._outage is None:
            since_s = self._progress_s if self._requests else self._loop.time()
            self._outage = _Outage(since_s, str(reason))
        self._reconnecting = self._loop.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        assert self._outage is not None
        try:
            await self._reach_any(self._loop.time() + self._policy.total_s_max)
        except ExportError as error:
            self._failure = NbdReconnectTimeout(f"not back within {self._policy.total_s_max} s: {error}")
            self._fail_all(self._failure)

    def _fail_all(self, error: ExportError) -> None:
        requests, self._requests = self._requests, {}
        for request in requests.values():
            if not request.answer.done():
                request.answer.set_exception(error)

    async def _reach_any(self, deadline_s: float) -> None:
        """Try all servers at once, round after round, until one grants the export or the deadline has passed."""
        while True:
            budget_s = min(self._policy.attempt_s_max, deadline_s - self._loop.time())
            attempts = [self._loop.create_task(self._reach(address, budget_s)) for address in self._addresses]
            error: BaseException | None = None
            try:
                for attempt in asyncio.as_completed(attempts):
                    try:
                        connection = await attempt
                    except (ExportError, OSError, TimeoutError) as failure:
                        error = failure
                        continue
                    self._adopt(connection)
                    return
            finally:
                await self._abandon(attempts)
            unknown = isinstance(error, NbdNegotiationFailed) and error.reply == nbd.OptionReply.ERR_UNKNOWN
            final = unknown and not self._policy.total_s_max  # a head may not have heard of a new volume yet
            if final or self._loop.time() + ATTEMPT_PAUSE_S >= deadline_s:
                if isinstance(error, ExportError):
                    raise error
                raise NbdDisconnected(f"no server of {self._addresses} can be reached: {error!r}")
            await asyncio.sleep(ATTEMPT_PAUSE_S)

    async def _abandon(self, attempts: list["asyncio.Task[_Connection]"]) -> None:
        """End the attempts that lost the race, those that got through included."""
        for attempt in attempts:
            attempt.cancel()
        for outcome in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(outcome, _Connection) and outcome is not self._connection:
                outcome.transport.abort()

    async def _reach(self, address: tuple[str, int], budget_s: float) -> _Connection:
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(budget_s):
                _, connection = await self._loop.create_connection(lambda: _Connection(self._export, address), *address)
                connected = await connection.opened
                if self.size_bytes not in (0, connected.size_bytes):
                    raise NbdNegotiationFailed(
                        f"the export changed from {self.size_bytes} to {connected.size_bytes} bytes"
                    )
        except BaseException:
            if connection is not None:
                connection.transport.abort()
            raise
        self.size_bytes, self.flags = connected.size_bytes, connected.flags
        return connection

    def _adopt(self, connection: _Connection) -> None:
        self._connection = connection
        connection.client = self
        connection.heard_s = self._loop.time()
        self.statistics.connections += 1
        if self._outage is not None:
            self._outage.address = connection.address
            self._outage.replayed = len(self._requests)
            if not self._requests:
                self._outage = None
        for cookie, request in self._requests.items():
            connection.core.request(
                cookie, request.command, request.offset, request.length, request.flags, request.payload
            )
        connection.flush()
        if self._policy.silence_s_max is not None and self._policy.total_s_max:
            self._watch = self._loop.call_later(self._policy.silence_s_max / 4, self._listen)

    def _listen(self) -> None:
        """Give a silent server up."""
        connection, limit_s = self._connection, self._policy.silence_s_max
        if connection is None or limit_s is None:
            return
        heard_s = max(connection.heard_s, self._progress_s)
        if self._requests and self._loop.time() - heard_s > limit_s:
            reset(connection.transport)
            self._lost(connection, NbdDisconnected(f"no answer within {limit_s} s"))
            return
        self._watch = self._loop.call_later(limit_s / 4, self._listen)
