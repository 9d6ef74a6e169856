"""TLS between a socket and a protocol: what it takes in per turn of the loop, and of clients that are gone."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.certificates import Ca
from kit.tls_client import trusting

from head_node.export import tls_transport
from head_node.export.handshake_turns import HandshakeTurns
from head_node.export.tls import TlsFiles, TlsKeys, TlsPolicy
from head_node.export.tls_transport import RECORDS_PER_TURN_MAX, TlsTransport
from sled_controller.environment import Environment
from spdk_bindings.device import Buffer

ENV = Environment()


class Socket(asyncio.Transport):
    """A transport that keeps what is written and the protocol that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.protocol: Any = None

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Buffer) -> None:
        self.written += data

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def bring(self, data: bytes) -> None:
        """As much as the protocol has room for."""
        buffer = self.protocol.get_buffer(-1)
        assert len(data) <= len(buffer)
        buffer[: len(data)] = data
        self.protocol.buffer_updated(len(data))


class Protocol(asyncio.BufferedProtocol):
    """Keeps what it gets, in a buffer of `room` bytes."""

    def __init__(self, room: int = 4096) -> None:
        self.got = bytearray()
        self.after: Callable[[], None] = lambda: None
        self._buffer = memoryview(bytearray(room))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self._buffer[:nbytes]
        self.after()


class Pair:
    """A transport on the loop, and a client without one that has shaken hands with it."""

    def __init__(self, context: ssl.SSLContext, room: int = 4096) -> None:
        self.socket, self.protocol = Socket(), Protocol(room)
        self.failures: list[str] = []
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = trusting(None).wrap_bio(self._incoming, self._outgoing)
        self.ready = asyncio.Event()
        self.ready_hook: Callable[[], None] = lambda: None
        self.transport = TlsTransport(
            self.socket, self.protocol, context, HandshakeTurns(ENV.clock),
            on_ready=self._ready, on_failed=self.failures.append,
        )  # fmt: skip

    def _ready(self) -> None:
        self.ready.set()
        self.ready_hook()

    async def shake_hands(self, behind: bytes = b"") -> "Pair":
        """`behind` comes in one piece with the client's last message."""
        while not self.ready.is_set():
            try:
                self._client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            else:
                self._client.write(behind)
                behind = b""
            if self._outgoing.pending:
                self.socket.bring(self._outgoing.read())
            await asyncio.sleep(0)
            self._incoming.write(bytes(self.socket.written))
            self.socket.written.clear()
        return self

    def records(self, pieces: Iterable[bytes]) -> bytes:
        """A record for each."""
        for piece in pieces:
            self._client.write(piece)
        return self._outgoing.read()

    async def settled(self) -> None:
        """Until the socket is read again."""
        while not self.socket.reading:  # noqa: ASYNC110 - a turn of the loop at a time
            await asyncio.sleep(0)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    own = Ca(Path(tmp_path_factory.mktemp("pki"))).certify("server", server=True)
    return TlsKeys(TlsPolicy.REQUIRED, TlsFiles(own.certificate, own.key), ENV.entropy).context()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_one_turn_takes_a_bounded_number_of_records(context: ssl.SSLContext) -> None:
    async def scenario() -> None:
        pair = await Pair(context).shake_hands()
        count = 5 * RECORDS_PER_TURN_MAX // 2
        pair.socket.bring(pair.records([b"x"] * count))
        grown = [len(pair.protocol.got)]
        while not pair.socket.reading:
            await asyncio.sleep(0)
            grown.append(len(pair.protocol.got))
        assert grown[0] == RECORDS_PER_TURN_MAX
        assert max(later - earlier for earlier, later in pairwise(grown)) <= RECORDS_PER_TURN_MAX
        assert grown[-1] == count

    run(scenario())


def test_what_a_protocol_stops_goes_on_where_it_was(context: ssl.SSLContext) -> None:
    async def scenario() -> None:
        pair = await Pair(context, room=7).shake_hands()
        data = bytes(range(256)) * 20
        pair.protocol.after = pair.transport.pause_reading
        pair.socket.bring(pair.records([data]))
        for _ in range(3):
            assert not pair.socket.reading
            await asyncio.sleep(0)
            assert pair.protocol.got == data[:7]
        pair.transport.resume_reading()
        assert not pair.socket.reading
        await asyncio.sleep(0)
        assert pair.protocol.got == data[:14]
        pair.protocol.after = lambda: None
        pair.transport.resume_reading()
        await pair.settled()
        assert pair.protocol.got == data

    run(scenario())


@pytest.mark.parametrize("stopped", [False, True])
def test_what_comes_with_the_end_of_the_handshake_is_not_forgotten(stopped: bool, context: ssl.SSLContext) -> None:
    async def scenario() -> None:
        pair = Pair(context)
        if stopped:
            pair.ready_hook = pair.transport.pause_reading
        await pair.shake_hands(b"option")
        assert bytes(pair.protocol.got) == (b"" if stopped else b"option")
        pair.transport.resume_reading()
        await pair.settled()
        assert pair.protocol.got == b"option"

    run(scenario())


def test_what_is_left_of_a_client_that_has_reset_is_not_acted_upon(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        for closed, left in ((False, 7), (True, 70)):
            pair = await Pair(context, room=7).shake_hands()
            pair.protocol.after = pair.transport.pause_reading
            pair.socket.bring(pair.records([b"x" * 70]))
            pair.protocol.after = lambda: None
            monkeypatch.setattr(tls_transport, "peer_is_gone", lambda transport: True)
            monkeypatch.setattr(tls_transport, "peer_has_closed", lambda transport, closed=closed: closed)
            pair.transport.resume_reading()
            await pair.settled()
            assert len(pair.protocol.got) == left

    run(scenario())


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 100, 4096, 16384, 20000]), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 40_000), max_size=12),
    room=st.sampled_from([28, 4096, 100_000]),
    stops=st.booleans(),
)
def test_however_records_are_cut_the_protocol_gets_every_byte_once(
    context: ssl.SSLContext, sizes: list[int], cuts: list[int], room: int, stops: bool
) -> None:
    async def scenario() -> None:
        pair = await Pair(context, room).shake_hands()
        if stops:

            def stop() -> None:
                pair.transport.pause_reading()
                asyncio.get_running_loop().call_soon(pair.transport.resume_reading)

            pair.protocol.after = stop
        pieces = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
        left = pair.records(pieces)
        for cut in [*cuts, *[tls_transport.READ_BYTES] * 8]:
            await pair.settled()
            pair.socket.bring(left[:cut]) if left else None
            left = left[cut:]
        await pair.settled()
        assert pair.protocol.got == b"".join(pieces)
        assert pair.failures == []

    run(scenario())


def test_a_byte_that_was_changed_on_the_way_ends_it(context: ssl.SSLContext) -> None:
    async def scenario() -> None:
        pair = await Pair(context).shake_hands()
        good, bad = pair.records([b"good"]), bytearray(pair.records([b"changed"]))
        bad[-1] ^= 1
        pair.socket.bring(good + bad + pair.records([b"late"]))
        assert bytes(pair.protocol.got) in (b"", b"good")
        (failure,) = pair.failures
        assert "mac" in failure
        pair.socket.bring(b"more")
        assert len(pair.failures) == 1

    run(scenario())
