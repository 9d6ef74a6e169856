"""One end of a simulated TCP connection: the kernel's buffers, and the asyncio transport on top of them."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from rackctl.simulation.loop import NOBODY, Process, ProcessState
from spdk_bindings.device import Buffer

if TYPE_CHECKING:
    from rackctl.simulation.network import Address, Network

WINDOW_BYTES: Final = 512 * 1024
"""Sent and not yet read by the other program; more waits in the sender's transport."""
READ_BYTES_MAX: Final = 256 * 1024
"""At most this much reaches a protocol at once, as with asyncio's own transport."""
SPLIT_CHANCE: Final = 0.2
"""How often a write arrives in two pieces."""
ACCEPT_RETRY_S: Final = 1.0
HIGH_WATER_BYTES: Final = 64 * 1024

_ESTABLISHED: Final = 1
_CLOSE_WAIT: Final = 8
_CLOSED: Final = 7


class SimulatedSocket:
    """As much of a socket as `get_extra_info("socket")` is asked for."""

    family = socket.AF_INET

    def __init__(self, endpoint: "Endpoint") -> None:
        self._endpoint = endpoint

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER):
            self._endpoint.linger_reset = bool(struct.unpack("ii", value)[0])

    def getsockopt(self, level: int, option: int, length: int = 0) -> bytes:
        return bytes([self._endpoint.tcp_state])


class Endpoint:
    """The kernel's side. Everything here happens outside of any process, but what it calls in the protocol."""

    def __init__(self, network: "Network", process: Process, own: "Address", peer: "Address") -> None:
        self.process = process
        self.node = own[0]
        self.own_address = own
        self.peer_address = peer
        self.linger_reset = False
        self.transport: SimulatedTransport | None = None
        self.peer: Endpoint
        self._network = network
        self._received: deque[memoryview] = deque()
        self._received_bytes = 0
        self._in_flight: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer = False
        self._last_arrival_s = 0.0
        self._unread_by_peer_bytes = 0
        self._eof_arrived = False
        self._reset_arrived = False
        self._closed = False
        self._vanished = False
        self._reading_due = False

    @property
    def tcp_state(self) -> int:
        if self._closed or self._reset_arrived:
            return _CLOSED
        return _CLOSE_WAIT if self._eof_arrived else _ESTABLISHED

    @property
    def room_bytes(self) -> int:
        """What the kernel takes now."""
        return max(0, WINDOW_BYTES - self._unread_by_peer_bytes)

    @property
    def closed(self) -> bool:
        return self._closed

    # opening

    def accept(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Give the listening process a connection, when it has a turn."""

        def made() -> None:
            if self._closed:
                return
            if self.node in self._network.without_descriptors:
                # accept() fails and the connection stays in the backlog; asyncio tries again after a second.
                self._network.loop.call_later(ACCEPT_RETRY_S, self.process.call, made, context=NOBODY)
                return
            self.open(factory())

        self.process.call(made)

    def open(self, protocol: asyncio.BaseProtocol) -> "SimulatedTransport":
        """Called in the process: the program has the connection from now on."""
        self.transport = SimulatedTransport(self, self._network.loop, protocol)
        protocol.connection_made(self.transport)
        self.wake()
        return self.transport

    # sending

    def send(self, data: Buffer) -> None:
        """Put bytes on the wire, in one segment or two."""
        if self._held_back(self.send, bytes(data)):
            return
        view = memoryview(bytes(data))
        self._unread_by_peer_bytes += len(view)
        random = self._network.random
        if len(view) > 1 and random.random() < SPLIT_CHANCE:
            at = random.randrange(1, len(view))
            self._send(len(view[:at]), lambda: self.peer._data(view[:at]))
            self._send(len(view[at:]), lambda: self.peer._data(view[at:]))
        else:
            self._send(len(view), lambda: self.peer._data(view))

    def send_eof(self) -> None:
        """FIN, after everything sent before."""
        if self._held_back(self.send_eof):
            return
        self._send(0, lambda: self.peer._eof())

    def close(self) -> None:
        """close(2): FIN, or RST when bytes were left unread or SO_LINGER says so."""
        if self._closed or self._held_back(self.close):
            return
        if self._received_bytes or self.linger_reset:
            self.reset()
        else:
            self._forget()
            self.send_eof()

    def reset(self) -> None:
        """RST: what is in the send buffer is thrown away."""
        if not self._closed:
            self._forget()
            self._in_flight.clear()
            self._send(0, lambda: self.peer._rst())

    def break_connection(self) -> None:
        """Something between the two resets both."""
        for end in (self, self.peer):
            end._in_flight.clear()
            end._rst()

    def vanish(self) -> None:
        """The power is gone: nothing is said, and what was in flight from here is lost."""
        self._forget()
        self._vanished = True
        self._in_flight.clear()
        if self.transport is not None:
            self.transport.dead = True

    def _forget(self) -> None:
        self._closed = True
        self._received.clear()
        self._received_bytes = 0
        self._network.endpoints.pop(self, None)

    def _held_back(self, act: Callable[..., None], *args: Any) -> bool:
        """A process that was stopped in the middle of a turn sends the rest of it when it goes on."""
        if self.process.state is not ProcessState.PAUSED:
            return False
        self.process.call(act, *args)
        return True

    def _send(self, length: int, arrive: Callable[[], None]) -> None:
        network = self._network
        link = network.link(self.node, self.peer.node)
        earliest = self.process.now_s + network.latency(self.node, self.peer.node)
        self._last_arrival_s = max(self._last_arrival_s, earliest) + length / link.bytes_per_s
        self._in_flight.append((self._last_arrival_s, arrive))
        self._expect()

    def _expect(self) -> None:
        if self._in_flight and not self._timer:
            self._timer = True
            self._network.loop.call_at(self._in_flight[0][0], self._arrive, context=NOBODY)

    def _arrive(self) -> None:
        self._timer = False
        if not self._network.passable(self.node, self.peer.node):
            self._timer = True
            self._network.when_passable(self.node, self.peer.node, self._arrive)
            return
        now_s = self._network.loop.time()
        while self._in_flight and self._in_flight[0][0] <= now_s:
            self._in_flight.popleft()[1]()
        self._expect()

    # receiving

    def _data(self, view: memoryview) -> None:
        if self._closed:
            self._answer_reset()
        elif not self._reset_arrived:
            self._received.append(view)
            self._received_bytes += len(view)
            self.wake()

    def _eof(self) -> None:
        if self._vanished:
            self._answer_reset()
        elif not self._closed:
            self._eof_arrived = True
            self.wake()

    def _rst(self) -> None:
        if not self._closed:
            self._reset_arrived = True
            self._in_flight.clear()
            self.wake()

    def _answer_reset(self) -> None:
        """Bytes for a socket that nobody has any more."""
        self._send(0, lambda: self.peer._rst())

    def wake(self) -> None:
        """Let the program read, when it has a turn and wants to."""
        transport = self.transport
        if transport is None or self._reading_due or self._closed:
            return
        if self._reset_arrived or (transport.wants_data and (self._received or self._eof_arrived)):
            self._reading_due = True
            self.process.call(self._read)

    def _read(self) -> None:
        """In the process: what one readiness event of a selector does."""
        self._reading_due = False
        transport = self.transport
        if transport is None or self._closed:
            return
        if transport.wants_data and self._received:
            transport.feed(self._take(READ_BYTES_MAX))
        elif transport.wants_data and self._eof_arrived:
            transport.feed_eof()
        elif self._reset_arrived:
            transport.fail(ConnectionResetError(104, "connection reset by peer"))
        self.wake()

    def _take(self, count: int) -> memoryview:
        parts = []
        while self._received and count:
            view = self._received.popleft()
            if len(view) > count:
                self._received.appendleft(view[count:])
                view = view[:count]
            parts.append(view)
            count -= len(view)
        taken = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
        self._received_bytes -= len(taken)
        self.peer._read_by_peer(len(taken))
        return taken

    def put_back(self, view: memoryview) -> None:
        """What a buffered protocol had no room for."""
        if view and not self._closed:
            self._received.appendleft(view)
            self._received_bytes += len(view)
            self.peer._unread_by_peer_bytes += len(view)

    def _read_by_peer(self, count: int) -> None:
        self._unread_by_peer_bytes -= count
        transport = self.transport
        if transport is not None and transport.backlog_bytes and not self._closed:
            self.process.call(transport.pump)


class SimulatedTransport(asyncio.Transport):
    """What a program has of a connection; after its process has died, every call is in vain."""

    def __init__(self, endpoint: Endpoint, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._loop = loop
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._socket = SimulatedSocket(endpoint)
        self._backlog: deque[Buffer] = deque()
        self.backlog_bytes = 0
        self._high_bytes = HIGH_WATER_BYTES
        self._writing_paused = False
        self._reading = True
        self._closing = False
        self._eof_due = False
        self._eof_fed = False
        self._lost = False
        self.dead = False

    # what asyncio offers

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        values = {
            "socket": self._socket, "sockname": self._endpoint.own_address, "peername": self._endpoint.peer_address,
        }  # fmt: skip
        return values.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading and not self._closing:
            self._reading = True
            self._endpoint.wake()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.backlog_bytes

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: Any) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if self._closing or self._in_vain:
            return
        data = b"".join(list_of_data)
        if not data:
            return
        room = 0 if self._backlog else self._endpoint.room_bytes
        if room:
            self._endpoint.send(data[:room])
        if len(data) > room:
            rest = memoryview(data)[room:]
            self._backlog.append(rest)
            self.backlog_bytes += len(rest)
            if not self._writing_paused and self.backlog_bytes > self._high_bytes:
                self._writing_paused = True
                self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not self._closing and not self._eof_due and not self._in_vain:
            self._eof_due = True
            if not self._backlog:
                self._endpoint.send_eof()

    def close(self) -> None:
        if not self._closing and not self._in_vain:
            self._closing = True
            if not self._backlog:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        if not self._in_vain:
            self._backlog.clear()
            self.backlog_bytes = 0
            self._closing = True
            self._loop.call_soon(self._lose, None)

    # what the kernel calls, in the process

    @property
    def wants_data(self) -> bool:
        return self._reading and not self._closing and not self._eof_fed

    @property
    def _in_vain(self) -> bool:
        return self._lost or self.dead or self._endpoint.process.dead

    def pump(self) -> None:
        """Send what has waited for the other program to read."""
        while self._backlog and (room := self._endpoint.room_bytes):
            view = memoryview(self._backlog.popleft())
            if len(view) > room:
                self._backlog.appendleft(view[room:])
                view = view[:room]
            self.backlog_bytes -= len(view)
            self._endpoint.send(view)
        if self._writing_paused and self.backlog_bytes <= self._high_bytes // 4:
            self._writing_paused = False
            self._protocol.resume_writing()
        if not self._backlog and self._eof_due and not self._closing:
            self._endpoint.send_eof()
        elif not self._backlog and self._closing:
            self._lose(None)

    def feed(self, view: memoryview) -> None:
        """Hand received bytes to the protocol, as many as it has room for."""
        if not self._buffered:
            self._protocol.data_received(bytes(view))
            return
        while view and self.wants_data and not self._in_vain:
            into = self._protocol.get_buffer(len(view))
            count = min(len(into), len(view))
            assert count, "a protocol offered an empty buffer"
            memoryview(into).cast("B")[:count] = view[:count]
            view = view[count:]
            self._protocol.buffer_updated(count)
        self._endpoint.put_back(view)

    def feed_eof(self) -> None:
        """The other program will send no more."""
        self._eof_fed = True
        if not self._protocol.eof_received():
            self.close()

    def fail(self, error: Exception) -> None:
        """The connection is broken."""
        if not self._in_vain:
            self._backlog.clear()
            self.backlog_bytes = 0
            self._closing = True
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._endpoint.close()
        self._protocol.connection_lost(error)
