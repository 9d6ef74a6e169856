"""The asyncio shell of the target: sockets, one write per loop turn, flow control, limits, deadlines. No protocol."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Final, cast

from sled_controller.descriptors import UNLIMITED, Descriptors
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS, watch_peer
from sled_controller.fabric.port import Port
from sled_controller.fabric.receive_buffer import RECEIVE_BYTES
from sled_controller.fabric.standard_controller import LOG_BYTES_MAX
from sled_controller.fabric.target import STRANGER_HELD_BYTES_MAX, QueueState, TargetQueue
from sled_controller.turns import STRANGER_COMMANDS, TRUSTED_COMMANDS, Turn, Turns, source_of

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 128
FRESH_NS: Final = 1_000_000_000
LEAVING_MAX: Final = 32
CHECK_SECONDS: Final = 0.5  # how often deadlines are looked at
LINGER_SECONDS: Final = 1.0  # for the host to read the last words before the socket is closed
WRITE_BUFFER_BYTES_MAX: Final = 512 * 1024
"""With this much unsent the host reads too slowly: take no more commands. The kernel keeps megabytes more."""
STRANGER_BYTES_MAX: Final = RECEIVE_BYTES + WRITE_BUFFER_BYTES_MAX + 2 * (STRANGER_HELD_BYTES_MAX + LOG_BYTES_MAX)
"""What a connection can cost whose host proved nothing: received, unsent, twice a turn's replies with one too many."""


PeerIsGone = Callable[[asyncio.Transport], bool]


class QueueConnection(asyncio.BufferedProtocol):
    """One socket and its `TargetQueue`."""

    def __init__(self, server: "TargetServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._now_ms = server.port.now_ms
        self._boottime_ns = server.port.env.clock.boottime_ns
        self._transport: asyncio.Transport | None = None
        self._queue: TargetQueue | None = None
        self._turn: Turn | None = None
        self._flush_scheduled = False
        self._writing_paused = False
        self._reading_paused = False
        self._closing = False
        self.source = ""
        """The address that it comes from, without the port."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport = transport
        self.source = source_of(transport)
        if not self._server.admit(self):
            transport.abort()
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        watch_peer(transport.get_extra_info("socket"), self._server.silence_s)
        host, port = transport.get_extra_info("sockname")[:2]
        peer = transport.get_extra_info("peername")
        self._queue = TargetQueue(self._server.port, self._boottime_ns(), (host, port), peer[0] if peer else "")
        self._turn = self._server.turns.place(self.source, self._take_turn)
        self.share(self._server.held_share)
        self._queue.wake = self._wake
        peer_is_gone = self._server.peer_is_gone
        if peer_is_gone is not None:
            self._queue.peer_gone = partial(peer_is_gone, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._queue is not None
        return self._queue.room()

    def buffer_updated(self, nbytes: int) -> None:
        queue = self._queue
        assert queue is not None
        if self._server.peer_is_gone is not None and queue.peer_gone():
            self.abort()
            return
        queue.arrived(nbytes, self._boottime_ns())
        if queue.standing >= Standing.NAMED:
            self._piece(queue, TRUSTED_COMMANDS)
        else:
            self._ask_for_turn(queue)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        if self._turn is not None:
            self._turn.end()
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.wake = None
            queue.lost(f"connection lost: {exc}" if exc else "connection closed")

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._match_reading()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake()

    def check_deadlines(self, now_ns: int) -> None:
        """Give up a connection that does not go on, unless it only waits for its turn."""
        if self._turn is not None and self._turn.waiting:
            return
        reason = self._queue.overdue(now_ns) if self._queue is not None else None
        if reason is not None and self._transport is not None:
            self._server.port.counters.timeouts += 1
            log.warning("event=connection_timeout reason=%r", reason)
            self._transport.abort()

    def share(self, held_bytes_max: int) -> None:
        """It may hold so much from now on."""
        queue = self._queue
        if queue is not None and queue.held_bytes_max != held_bytes_max:
            queue.held_bytes_max = held_bytes_max
            if queue.blocked:
                self._wake()

    def standing_at(self, now_ns: int) -> Standing:
        """What its host has shown. One that has just come had no time to show anything, and ranks with those that have
        said Connect: else each newcomer would put the one before it out."""
        queue = self._queue
        if queue is None:
            return Standing.STRANGER
        standing = queue.standing
        fresh = standing is Standing.STRANGER and now_ns - queue.opened_ns < FRESH_NS
        return Standing.CONNECTED if fresh else standing

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._flush_scheduled = False
        if self._queue is None:
            return
        self._flush()
        queue = self._queue
        if queue is None or not self._may_resume(queue):
            return
        if queue.peer_gone():
            self.abort()
        elif queue.standing >= Standing.NAMED and queue.commands_left > 0:
            self._piece(queue, TRUSTED_COMMANDS)
        else:
            self._ask_for_turn(queue)

    def _ask_for_turn(self, queue: TargetQueue) -> None:
        """For what a stranger sent, and for what a trusted host has beyond its piece."""
        assert self._turn is not None
        self._turn.trusted = queue.standing >= Standing.NAMED
        self._turn.ask()
        self._match_reading()

    def _take_turn(self) -> bool:
        """Do one piece; whether there is more."""
        queue, turn = self._queue, self._turn
        if queue is None or turn is None or not self._may_resume(queue):
            return False
        if queue.peer_gone():
            self.abort()
            return False
        self._piece(queue, TRUSTED_COMMANDS if turn.trusted else STRANGER_COMMANDS)
        turn.charge(queue.steps)
        return self._queue is not None and self._may_resume(queue)

    def _piece(self, queue: TargetQueue, commands: int) -> None:
        queue.resume(self._now_ms(), commands)
        self._flush()

    def _may_resume(self, queue: TargetQueue) -> bool:
        return queue.blocked and not queue.stalled and not self._writing_paused

    def _flush(self) -> None:
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        without_payload = not queue.out_bytes
        out = queue.take_output()
        if out:
            if len(out) == 1:
                transport.write(out[0])
            elif without_payload:
                transport.write(b"".join(out))  # completions of some bytes each: one vector for all costs less
            else:
                transport.writelines(out)
        if queue.state is QueueState.CLOSING and not self._closing:
            self._closing = True
            if transport.can_write_eof():
                transport.write_eof()
            self._loop.call_later(LINGER_SECONDS, transport.close)
        self._match_reading()
        if self._may_resume(queue):
            self._wake()

    def _match_reading(self) -> None:
        queue, transport = self._queue, self._transport
        if queue is None or transport is None or transport.is_closing():
            return
        want_pause = self._writing_paused or queue.stalled or queue.blocked
        if want_pause and not self._reading_paused:
            transport.pause_reading()
            self._reading_paused = True
        elif self._reading_paused and not want_pause:
            transport.resume_reading()
            self._reading_paused = False


class TargetServer:
    """Listens for hosts. `start` and `close` are its life.

    With `peer_is_gone` nothing that a host sent before it left is begun after it has: it may have gone elsewhere and
    repeated it, and newer things.
    """

    def __init__(
        self,
        port: Port,
        connections_max: int = CONNECTIONS_MAX,
        *,
        setting: str = "connections_max",
        descriptors: Descriptors = UNLIMITED,
        peer_is_gone: PeerIsGone | None = None,
        silence_s: int = PEER_SILENCE_SECONDS,
        turns: Turns | None = None,
    ) -> None:
        """`setting` is what an operator calls `connections_max`; `turns` is that of other ports on the same loop."""
        self.port = port
        self.turns = turns or Turns(port.env.clock)
        self.silence_s = silence_s
        self._setting = setting
        self._descriptors = descriptors
        self.peer_is_gone = peer_is_gone
        self._connections_max = connections_max
        self._connections: dict[QueueConnection, None] = {}  # oldest first
        self._turned_away = 0
        self._leaving: deque[tuple[QueueConnection, Standing]] = deque()
        """Who goes next, with what they had shown."""
        self.held_share = port.limits.held_bytes_max
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._all_gone: asyncio.Future[None] | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen and return the address; raises OSError when it cannot be had."""
        loop = asyncio.get_running_loop()
        self.port.exchanges.start()
        self._server = await loop.create_server(lambda: QueueConnection(self), host, port)
        self._check()
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            self._all_gone = asyncio.get_running_loop().create_future()
            await self._all_gone
        if self._server is not None:
            await self._server.wait_closed()
        self.port.exchanges.close()

    def admit(self, connection: QueueConnection) -> bool:
        """Take a connection in. When there are too many, one of the lowest standing makes room."""
        if len(self._connections) >= self._connections_max or self._descriptors.short:
            self._turned_away += 1
            lowest = self._first_to_go()
            if lowest is None:
                return False
            self.forget(lowest)
            lowest.abort()
        self._connections[connection] = None
        self.port.counters.connections += 1
        self._share()
        return True

    def _first_to_go(self) -> QueueConnection | None:
        """Of the lowest standing, the oldest of the address that has most; several are looked up at once, as a flood
        asks often, but no more than that address has beyond the next one."""
        now_ns = self.port.env.clock.boottime_ns()
        while self._leaving:
            connection, standing = self._leaving.popleft()
            if connection in self._connections and connection.standing_at(now_ns) <= standing:
                return connection
        standings = [(each, each.standing_at(now_ns)) for each in self._connections]
        lowest = min((standing for _, standing in standings), default=Standing.TRUSTED)
        if lowest >= Standing.NAMED:
            return None
        those = [(each, standing) for each, standing in standings if standing is lowest]
        (source, most), *others = Counter(each.source for each, _ in those).most_common(2)
        beyond = most - others[0][1] if others else most
        leaving = (each for each in those if each[0].source == source)
        self._leaving.extend(islice(leaving, min(LEAVING_MAX, max(1, beyond))))
        return self._leaving.popleft()[0]

    def forget(self, connection: QueueConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)
        self._share()
        if not self._connections and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _share(self) -> None:
        """Their number has changed, and with it what each may hold."""
        share = self.port.limits.held_share(len(self._connections))
        if share != self.held_share:
            self.held_share = share
            for connection in self._connections:
                connection.share(share)

    def _check(self) -> None:
        now_ns = self.port.env.clock.boottime_ns()
        for connection in list(self._connections):
            connection.check_deadlines(now_ns)
        if self._turned_away:
            # One line for all of them: a flood must not fill the log.
            log.warning(
                "event=connections_refused count=%d max=%d setting=%s descriptors_left=%d",
                self._turned_away, self._connections_max, self._setting, self._descriptors.left,
            )  # fmt: skip
            self._turned_away = 0
        self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._check)
