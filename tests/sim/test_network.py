"""The simulated network: what arrives, in which order, and what cuts, kills and power losses look like."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from rackctl.simulation.loop import Process, SimulationLoop
from rackctl.simulation.network import Network

from head_node.export.peer import peer_is_gone, reset

HERE, THERE = "10.0.0.1", "10.0.0.2"


class Peer(asyncio.Protocol):
    """Keeps what happens to it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.pieces = 0
        self.lost: list[Exception | None] = []
        self.full = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces += 1
        self.received += data

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Bed:
    """A client here, a server there."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = SimulationLoop(Random(seed))
        self.network = Network(self.loop, Random(seed))
        self.client, self.server = Process(self.loop, HERE, "client"), Process(self.loop, THERE, "server")
        self.accepted: list[Peer] = []

    def accept(self) -> Peer:
        self.accepted.append(Peer())
        return self.accepted[-1]

    async def listen(self) -> None:
        async def listening() -> None:
            await self.loop.create_server(self.accept, THERE, 7)

        await self.server.spawn(listening())

    async def connected(self) -> tuple[Peer, Peer]:
        await self.listen()
        _, near = await self.loop.create_connection(Peer, THERE, 7)
        await asyncio.sleep(0.01)
        return near, self.accepted[-1]

    def run(self, scenario: "Callable[[Bed], Awaitable[None]]") -> None:
        async def work() -> None:
            await scenario(self)

        try:
            self.loop.run_until_complete(self.client.spawn(work()))
            assert not self.loop.errors
        finally:
            self.loop.close()


def test_bytes_arrive_in_order_in_pieces_that_the_seed_cuts() -> None:
    pieces = set()

    async def scenario(bed: Bed) -> None:
        near, far = await bed.connected()
        for number in range(200):
            near.transport.writelines([bytes([number]), b"x" * number])
        await asyncio.sleep(1)
        assert bytes(far.received) == b"".join(bytes([number]) + b"x" * number for number in range(200))
        pieces.add(far.pieces)

    for seed in range(4):
        Bed(seed).run(scenario)
    assert len(pieces) > 1


def test_a_cut_is_silence_and_its_end_brings_what_was_sent() -> None:
    async def scenario(bed: Bed) -> None:
        near, far = await bed.connected()
        bed.network.cut(HERE, THERE)
        near.transport.write(b"held")
        far.transport.write(b"passes")
        await asyncio.sleep(60)
        assert not far.received
        assert bytes(near.received) == b"passes"
        assert not near.lost
        bed.network.heal(HERE, THERE)
        await asyncio.sleep(1)
        assert bytes(far.received) == b"held"

    Bed().run(scenario)


def test_a_connection_across_a_cut_is_made_when_it_heals() -> None:
    async def scenario(bed: Bed) -> None:
        await bed.listen()
        bed.network.cut(THERE, HERE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await bed.loop.create_connection(Peer, THERE, 7)
        bed.loop.call_later(5, bed.network.heal, THERE, HERE)
        await bed.loop.create_connection(Peer, THERE, 7)
        assert 10 <= bed.loop.time() < 11

    Bed().run(scenario)


def test_nobody_listening_is_a_refusal() -> None:
    async def scenario(bed: Bed) -> None:
        with pytest.raises(ConnectionRefusedError):
            await bed.loop.create_connection(Peer, THERE, 7)

    Bed().run(scenario)


def test_a_killed_process_looks_closed() -> None:
    async def scenario(bed: Bed) -> None:
        near, _ = await bed.connected()
        bed.server.kill()
        bed.network.process_ended(bed.server)
        await asyncio.sleep(1)
        assert near.lost == [None]

    Bed().run(scenario)


@pytest.mark.parametrize("speaks", [True, False])
def test_a_host_without_power_is_silent_and_resets_who_speaks_once_it_is_back(speaks: bool) -> None:
    async def scenario(bed: Bed) -> None:
        near, _ = await bed.connected()
        bed.server.kill()
        bed.network.power_loss(THERE)
        if speaks:
            near.transport.write(b"anybody?")
        await asyncio.sleep(60)
        assert not near.lost
        bed.network.power_on(THERE)
        await asyncio.sleep(3600)
        # Who only listens waits on a half-open connection for ever.
        assert [type(error) for error in near.lost] == ([ConnectionResetError] if speaks else [])

    Bed().run(scenario)


def test_a_paused_process_takes_connections_and_bytes_but_answers_nothing() -> None:
    async def scenario(bed: Bed) -> None:
        await bed.listen()
        bed.server.pause()
        _, near = await bed.loop.create_connection(Peer, THERE, 7)
        near.transport.write(b"hello")
        await asyncio.sleep(5)
        assert not bed.accepted
        bed.server.resume()
        await asyncio.sleep(0.01)
        assert bytes(bed.accepted[0].received) == b"hello"

    Bed().run(scenario)


def test_a_reset_throws_away_what_is_in_flight_and_shows_at_once() -> None:
    async def scenario(bed: Bed) -> None:
        near, far = await bed.connected()
        far.transport.pause_reading()
        near.transport.write(b"unread")
        await asyncio.sleep(0.1)
        assert not peer_is_gone(far.transport)
        bed.network.cut(HERE, THERE)
        near.transport.write(b"in flight")
        reset(near.transport)
        await asyncio.sleep(0.1)
        bed.network.heal(HERE, THERE)
        await asyncio.sleep(1)
        assert peer_is_gone(far.transport)
        far.transport.resume_reading()
        await asyncio.sleep(0.1)
        assert b"in flight" not in far.received
        assert isinstance(far.lost[0], ConnectionResetError)

    Bed().run(scenario)


def test_a_reader_that_does_not_read_stops_the_writer() -> None:
    async def scenario(bed: Bed) -> None:
        near, far = await bed.connected()
        far.transport.pause_reading()
        for _ in range(40):
            near.transport.write(bytes(64 * 1024))
        assert near.full
        far.transport.resume_reading()
        await asyncio.sleep(1)
        assert not near.full
        assert len(far.received) == 40 * 64 * 1024

    Bed().run(scenario)


def test_close_sends_what_is_written_first() -> None:
    async def scenario(bed: Bed) -> None:
        near, far = await bed.connected()
        near.transport.write(bytes(2 << 20))
        near.transport.close()
        await asyncio.sleep(1)
        assert len(far.received) == 2 << 20
        assert far.lost == [None]
        assert near.lost == [None]
        assert not bed.network.endpoints

    Bed().run(scenario)


def test_a_server_serves_until_it_is_closed() -> None:
    async def scenario(bed: Bed) -> None:
        server = await bed.loop.create_server(bed.accept, THERE, 7)
        assert server.is_serving()
        server.close()
        assert not server.is_serving()

    Bed().run(scenario)
