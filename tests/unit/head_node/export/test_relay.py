"""The relay: bytes pass through, an end is the end of both halves, nothing is ever sent twice or arrives late."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kit.export import VOLUME_ID, LinkEnd, MemoryDirectory, MemoryVolume, link_pair, one_volume, until
from kit.tls_client import TlsClient
from kit.volume import Bench

from head_node.export import nbd_protocol as nbd
from head_node.export.errors import ExportUnavailable, NbdDisconnected, NbdNegotiationFailed
from head_node.export.interface import LocalExport, RelayTransport, RemoteExport
from head_node.export.nbd_client import NbdClient, ReconnectPolicy
from head_node.export.nbd_protocol import Option, OptionReply
from head_node.export.nbd_server import Limits
from head_node.export.relay import RELAY_VERSION, WINDOW_BYTES, Frame, RelayTiming
from head_node.export.server import NbdServer
from head_node.volume.interface import ServedVolume
from sled_controller.environment import Environment

SIZE = 64 << 20
K4 = 4096


class TestClock:
    """A boot clock that a test moves by hand."""

    __test__ = False

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall_ms(self) -> int:
        return 0


class Pair:
    """A primary with the volume, and another head that relays to it; `links` are the pairs dialled so far."""

    def __init__(self, primary: NbdServer, volume: MemoryVolume) -> None:
        self.primary = primary
        self.served: ServedVolume = volume
        self.volume = volume
        self.links: list[tuple[LinkEnd, LinkEnd]] = []
        self.head: NbdServer
        self.address: tuple[str, int]
        self.down = False

    async def dial(self) -> RelayTransport:
        if self.down:
            raise ExportUnavailable("vol", "the primary cannot be reached")
        near, far = link_pair()
        self.links.append((near, far))
        self.primary.accept_relay(far, LocalExport(VOLUME_ID, self.served))
        return near


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


@asynccontextmanager
async def relaying(
    *, primary_clock: TestClock | None = None, head_clock: TestClock | None = None, limits: Limits | None = None
) -> AsyncIterator[Pair]:
    volume = MemoryVolume(SIZE)
    timing = RelayTiming(heartbeat_ms=10, silence_ms_max=2000)
    primary_env = Environment(clock=primary_clock) if primary_clock else Environment()
    head_env = Environment(clock=head_clock) if head_clock else Environment()
    pair = Pair(NbdServer(one_volume(volume), primary_env, limits=limits, relay_timing=timing), volume)
    directory = MemoryDirectory({"vol": RemoteExport(VOLUME_ID, SIZE, pair.dial)})
    pair.head = NbdServer(directory, head_env, relay_timing=timing)
    pair.address = await pair.head.start("127.0.0.1", 0)
    try:
        yield pair
    finally:
        await pair.head.close()
        await pair.primary.close()


def test_a_relayed_client_sees_the_volume() -> None:
    async def scenario() -> None:
        async with relaying() as pair:
            client = await NbdClient.connect([pair.address], "vol")
            data = bytes(range(256)) * 4096 * 9
            await asyncio.gather(client.write(0, data), client.write(32 << 20, data))
            assert await client.read(0, len(data)) == data
            assert await client.read(32 << 20, len(data)) == data
            assert (await client.block_status(0, SIZE))[0] == (len(data), 0)
            await client.close()
            await until(lambda: pair.primary.counters.relays_open == 0 and pair.head.counters.connections_open == 0)
            assert pair.head.counters.relays_lost == 0

    run(scenario())


def test_disconnect_waits_for_the_answers() -> None:
    async def scenario() -> None:
        async with relaying() as pair:
            client = await NbdClient.connect([pair.address], "vol")
            assert client._connection is not None
            pair.volume.hold = True
            pending = client.write(0, b"x" * K4)
            client._connection.core.disconnect()
            client._connection.flush_soon()
            await until(lambda: pair.volume.held)
            pair.volume.release()
            await pending

    run(scenario())


def test_relay_never_replays() -> None:
    """Given a write in flight through the relay, when the upstream link breaks, then the client is reset, the write was
    sent once, and it is not sent again over the link of the client's next connection."""

    async def scenario() -> None:
        async with relaying() as pair:
            client = await NbdClient.connect([pair.address], "vol")
            pair.volume.hold = pair.volume.record_calls = True
            pending = client.write(0, b"x" * K4)
            await until(lambda: pair.volume.held)
            near, far = pair.links[0]
            far.abort()
            with pytest.raises(NbdDisconnected):
                await pending
            pair.volume.release()
            again = await NbdClient.connect([pair.address], "vol")
            await again.flush()
            assert pair.volume.calls == [("write", 0, K4), ("flush", 0, 0)]
            sent = [frame for link, _ in pair.links for frame in link.sent if frame[0] == Frame.DATA]
            assert sum(b"x" * K4 in frame for frame in sent) == 1
            assert near.dead
            await again.close()

    run(scenario())


def test_the_clients_end_is_the_links_end_and_unadmitted_requests_are_dropped() -> None:
    async def scenario() -> None:
        async with relaying(limits=Limits(requests_in_flight_max=1)) as pair:
            client = await NbdClient.connect([pair.address], "vol")
            pair.volume.hold = pair.volume.record_calls = True
            writes = [client.write(n * K4, b"x" * K4) for n in range(3)]
            await until(lambda: pair.volume.held)
            assert client._connection is not None
            client._connection.transport.abort()
            await until(lambda: pair.primary.counters.relays_open == 0)
            pair.volume.release()
            await asyncio.sleep(0)
            assert pair.volume.calls == [("write", 0, K4)]
            answers = await asyncio.gather(*writes, return_exceptions=True)
            assert all(isinstance(answer, NbdDisconnected) for answer in answers)

    run(scenario())


@pytest.mark.parametrize("stopped", [False, True])
def test_what_waits_in_the_volume_is_not_begun_once_the_link_is_lost_or_was_silent_for_too_long(stopped: bool) -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        lease = False
        engine.lease = lambda: lease
        clock = TestClock()
        async with relaying(primary_clock=clock) as pair:
            pair.served = engine.served
            client = await NbdClient.connect([pair.address], "vol")
            write = client.write(0, b"x" * K4)
            await until(lambda: not engine.served.ready())
            if stopped:
                pair.links[0][1].cut = True
                clock.now_ns += 2_500_000_000
            else:
                assert client._connection is not None
                client._connection.transport.abort()
                await until(lambda: pair.primary.counters.relays_open == 0)
            lease = True
            engine.resume()
            assert engine.served.ready()
            assert await bench.read(0) == bytes(K4)
            assert engine.tail.opnum == 1
            await client.close()
            assert isinstance(write.exception(), NbdDisconnected)
        await engine.close()

    run(scenario())


def test_data_that_comes_after_too_long_a_silence_is_not_looked_at() -> None:
    """Given a primary that was stopped for longer than the silence that the other head bears, when it goes on and finds
    data of the old connection, then it drops them: the client may be elsewhere by now."""

    async def scenario() -> None:
        clock = TestClock()
        async with relaying(primary_clock=clock) as pair:
            client = await NbdClient.connect([pair.address], "vol")
            await client.flush()
            pair.volume.record_calls = True
            clock.now_ns += 2_500_000_000
            with pytest.raises(NbdDisconnected):
                await client.write(0, b"x" * K4)
            assert pair.volume.calls == []

    run(scenario())


def test_a_head_that_was_stopped_forwards_nothing_old() -> None:
    async def scenario() -> None:
        clock = TestClock()
        async with relaying(head_clock=clock) as pair:
            client = await NbdClient.connect([pair.address], "vol")
            await client.flush()
            clock.now_ns += 2_500_000_000
            with pytest.raises(NbdDisconnected):
                await client.write(0, b"x" * K4)
            assert not any(frame[0] == Frame.DATA and b"x" * K4 in frame for frame in pair.links[0][0].sent)

    run(scenario())


def test_silence_ends_both_halves() -> None:
    async def scenario() -> None:
        clock = TestClock()
        async with relaying(head_clock=clock) as pair:
            client = await NbdClient.connect([pair.address], "vol")
            near, far = pair.links[0]
            near.cut = far.cut = True
            pending = client.flush()
            clock.now_ns += 2_500_000_000
            with pytest.raises(NbdDisconnected):
                await pending
            await until(lambda: pair.head.counters.relays_open == 0)
            assert pair.head.counters.relays_lost == 1

    run(scenario())


def test_a_head_that_has_become_the_primary_sends_its_relayed_clients_back_to_itself() -> None:
    async def scenario() -> None:
        async with relaying() as pair:
            policy = ReconnectPolicy(total_s_max=5)
            client = await NbdClient.connect([pair.address], "vol", policy)
            near, far = pair.links[0]
            near.cut = far.cut = True  # the old primary is stopped: no answer, no end
            pending = client.write(0, b"n" * K4)
            directory = pair.head.exports
            assert isinstance(directory, MemoryDirectory)
            directory.exports["vol"] = LocalExport(VOLUME_ID, pair.volume)
            await pending
            assert pair.volume.data[:K4] == b"n" * K4
            await client.close()

    run(scenario())


class Collector:
    """A bare other end: keeps the bytes of DATA frames, gives credit only when told."""

    def __init__(self) -> None:
        self.received_bytes = 0

    def frame_received(self, frame: memoryview) -> None:
        if frame[0] == Frame.DATA:
            self.received_bytes += len(frame) - 1

    def transport_lost(self, reason: str) -> None:
        raise AssertionError(reason)


def test_requests_stopped_for_want_of_credit_go_on_when_it_comes_in_bits() -> None:
    """Given replies that wait for credit and a request stopped because of them, when something else is answered while
    they have drained only in part, then the request still goes on once they have drained."""

    async def scenario() -> None:
        volume = MemoryVolume(8 << 20)
        primary = NbdServer(one_volume(volume), Environment())
        near, far = link_pair()
        collector = Collector()
        near.start(collector)
        primary.accept_relay(far, LocalExport(VOLUME_ID, volume))
        near.send([bytes((Frame.OPEN, RELAY_VERSION, 0))])

        def read(cookie: int, length: int) -> None:
            request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.Command.READ, cookie, 0, length)
            near.send([bytes((Frame.DATA,)), request])

        def credit(count: int) -> None:
            near.send([bytes((Frame.CREDIT,)), nbd.U32.pack(count)])

        volume.hold = True
        read(1, K4)
        await until(lambda: volume.held)
        volume.hold = False
        read(2, 2 * WINDOW_BYTES)
        read(3, K4)
        await until(lambda: collector.received_bytes == WINDOW_BYTES)
        credit(64 * 1024)
        await until(lambda: collector.received_bytes == WINDOW_BYTES + 64 * 1024)
        volume.release()
        for _ in range(5):
            await asyncio.sleep(0)
        credit(WINDOW_BYTES)
        await until(lambda: collector.received_bytes == 2 * WINDOW_BYTES + 2 * K4 + 3 * 16)
        collector.transport_lost = lambda reason: None  # type: ignore[method-assign]
        await primary.close()

    run(scenario())


def test_an_unreachable_primary_refuses_the_export_and_keeps_the_client_negotiating() -> None:
    async def scenario() -> None:
        async with relaying() as pair:
            pair.down = True
            with pytest.raises(NbdNegotiationFailed, match="cannot be reached"):
                await NbdClient.connect([pair.address], "vol", ReconnectPolicy(attempt_s_max=0.5))

    run(scenario())


def test_a_client_whose_export_could_not_be_dialled_makes_room_as_before() -> None:
    """It has agreed on no export: to ask once while the primary is away does not keep its place for good."""

    async def scenario() -> None:
        async with relaying() as pair:
            pair.head._connections_max = 1
            pair.down = True
            client = await TlsClient.connect(pair.address)
            asked = await client.ask(Option.GO, nbd.pack_string("vol") + b"\0\0")
            assert [reply for reply, _ in asked] == [OptionReply.ERR_SHUTDOWN]
            pair.down = False
            other = await NbdClient.connect([pair.address], "vol", ReconnectPolicy(attempt_s_max=0.5))
            assert await other.read(0, K4) == bytes(K4)
            await other.close()
            client.writer.close()

    run(scenario())


def test_what_is_under_way_is_bounded_while_the_volume_is_stuck() -> None:
    async def scenario() -> None:
        async with relaying() as pair:
            client = await NbdClient.connect([pair.address], "vol")
            pair.volume.is_ready = False
            size = 1 << 20
            writes = [client.write(n * size, b"w" * size) for n in range(32)]
            (relayed,) = pair.primary._relayed
            (connection,) = pair.head._connections
            await until(lambda: not connection._transport.is_reading())
            for _ in range(50):
                await asyncio.sleep(0)
            held = sum(map(len, relayed._waiting)) + len(relayed._core._slab if relayed._core else b"")
            assert held <= 2 * WINDOW_BYTES
            assert pair.head.counters.relays_open == 1
            pair.volume.become_ready()
            await asyncio.gather(*writes)
            assert pair.volume.data[: 32 * size] == b"w" * (32 * size)
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x02early", b"\x01\x63\x00", b"\x01", b"\x07", b"\x03\0\0\0\1", b"\x05"],
)
def test_a_malformed_frame_ends_the_link(frame: bytes) -> None:
    async def scenario() -> None:
        primary = NbdServer(one_volume(MemoryVolume(1 << 20)), Environment())
        near, far = link_pair()
        primary.accept_relay(far, LocalExport(VOLUME_ID, MemoryVolume(1 << 20)))
        near.send([frame])
        await until(lambda: far.dead)
        assert primary.counters.relays_open == 0

    run(scenario())


def test_data_beyond_the_credit_ends_the_link() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(1 << 20)
        volume.is_ready = False
        primary = NbdServer(one_volume(volume), Environment())
        near, far = link_pair()
        primary.accept_relay(far, LocalExport(VOLUME_ID, volume))
        near.send([bytes((Frame.OPEN, RELAY_VERSION, 0))])
        write = b"\x25\x60\x95\x13\0\0\0\1" + bytes(16) + (K4).to_bytes(4, "big") + bytes(K4)
        for _ in range(2 + 3 * WINDOW_BYTES // len(write) // 40):
            near.send([bytes((Frame.DATA,)), write * 40])
        await until(lambda: far.dead)
        assert volume.data == bytes(1 << 20)

    run(scenario())
