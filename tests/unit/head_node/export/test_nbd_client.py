"""The NBD client: a reconnect repeats what is unanswered, within its bound, and notes how long its user waited."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.export import VOLUME_ID, MemoryVolume, one_volume, until

from head_node.export import nbd_protocol as nbd
from head_node.export.errors import (
    ExportError,
    NbdCommandFailed,
    NbdDisconnected,
    NbdProtocolError,
    NbdReconnectTimeout,
)
from head_node.export.nbd_client import NbdClient, ReconnectPolicy
from head_node.export.nbd_client_core import ClientCore, Completed, Connected, Event
from head_node.export.nbd_negotiation import Negotiation, OpenExport
from head_node.export.nbd_protocol import Chunk, Command, Option, OptionReply
from head_node.export.server import NbdServer
from sled_controller.environment import Environment

SIZE = 1 << 20
K4 = 4096


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_unanswered_requests_are_repeated_on_the_next_server() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        first, second = (NbdServer(one_volume(volume), Environment()) for _ in range(2))
        addresses = [await first.start("127.0.0.1", 0), await second.start("127.0.0.1", 0)]
        client = await NbdClient.connect(addresses, "vol", ReconnectPolicy(total_s_max=5))
        used = first if client.address == addresses[0] else second
        volume.hold = True
        writes = [client.write(n * K4, bytes((n + 1,)) * K4) for n in range(8)]
        await until(lambda: len(volume.held) == 8)
        volume.hold, volume.held = False, []
        assert used.drop_clients(VOLUME_ID) == 1
        await used.close()
        await asyncio.gather(*writes)
        assert volume.data[: 8 * K4] == b"".join(bytes((n + 1,)) * K4 for n in range(8))
        (stall,) = client.statistics.stalls
        assert stall.replayed == 8
        assert stall.duration_ms > 0
        assert client.statistics.connections == 2
        await client.close()
        await first.close()
        await second.close()

    run(scenario())


def test_requests_made_during_an_outage_wait_for_its_end() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        server = NbdServer(one_volume(volume), Environment())
        address = await server.start("127.0.0.1", 0)
        client = await NbdClient.connect([address], "vol", ReconnectPolicy(total_s_max=5))
        await server.close()
        await until(lambda: client.address is None)
        pending = client.write(0, b"z" * K4)
        again = NbdServer(one_volume(volume), Environment())
        await again.start(*address)
        await pending
        assert volume.data[:K4] == b"z" * K4
        await client.close()
        await again.close()

    run(scenario())


def test_an_outage_longer_than_the_bound_fails_what_is_pending_and_what_follows() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        volume.hold = True
        server = NbdServer(one_volume(volume), Environment())
        address = await server.start("127.0.0.1", 0)
        client = await NbdClient.connect([address], "vol", ReconnectPolicy(total_s_max=0.1))
        pending = client.flush()
        await server.close()
        with pytest.raises(NbdReconnectTimeout):
            await pending
        with pytest.raises(NbdReconnectTimeout):
            await client.flush()
        await client.close()

    run(scenario())


def test_a_silent_server_is_given_up() -> None:
    async def scenario() -> None:
        stuck, fine = MemoryVolume(SIZE), MemoryVolume(SIZE)
        server = NbdServer(one_volume(stuck), Environment())
        address = await server.start("127.0.0.1", 0)
        other = NbdServer(one_volume(fine), Environment())
        client = await NbdClient.connect([address], "vol", ReconnectPolicy(total_s_max=5, silence_s_max=0.05))
        client._addresses = [await other.start("127.0.0.1", 0)]
        stuck.hold = True
        await client.write(0, b"q" * K4)
        assert fine.data[:K4] == b"q" * K4
        assert "no answer" in client.statistics.stalls[0].reason
        await client.close()
        await server.close()
        await other.close()

    run(scenario())


def test_errors_of_the_server_reach_the_caller() -> None:
    async def scenario() -> None:
        server = NbdServer(one_volume(MemoryVolume(SIZE)), Environment())
        client = await NbdClient.connect([await server.start("127.0.0.1", 0)], "vol")
        with pytest.raises(NbdCommandFailed, match="4096") as failed:
            await client.read(1, 100)
        assert failed.value.error == nbd.NbdError.EINVAL
        with pytest.raises(NbdCommandFailed) as failed:
            await client.write(SIZE, b"x" * K4)
        assert failed.value.error == nbd.NbdError.ENOSPC
        await client.close()
        with pytest.raises(NbdDisconnected):
            await client.flush()
        await server.close()

    run(scenario())


def test_nobody_there_is_said_so() -> None:
    async def scenario() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()[:2]
        server.close()
        await server.wait_closed()
        with pytest.raises(NbdDisconnected, match="can be reached"):
            await NbdClient.connect([address], "vol", ReconnectPolicy(attempt_s_max=0.1))

    run(scenario())


# --- the core --------------------------------------------------------------------------------------------------------


def open_core(*, structured: bool = True) -> tuple[ClientCore, bytes]:
    """A core in transmission, and all that a server said to bring it there."""
    core, server, said = ClientCore("vol"), Negotiation(lambda security: ["vol"]), b""
    events: list[Event] = []
    while not events:
        reply = b"".join(server.data_to_send())
        if not structured:
            reply = reply.replace(
                nbd.option_reply(Option.STRUCTURED_REPLY, OptionReply.ACK),
                nbd.option_reply(Option.STRUCTURED_REPLY, OptionReply.ERR_UNSUP),
            )
        said += reply
        events = core.receive(reply)
        for event in server.receive(b"".join(core.data_to_send())):
            assert isinstance(event, OpenExport)
            server.grant(SIZE)
    (connected,) = events
    assert isinstance(connected, Connected)
    assert connected.size_bytes == SIZE
    assert connected.block_bytes_min == K4
    return core, said


def chunk(kind: int, body: bytes, *, done: bool = True, cookie: int = 1) -> bytes:
    return nbd.CHUNK_HEADER.pack(nbd.STRUCTURED_REPLY_MAGIC, int(done), kind, cookie, len(body)) + body


def data(offset: int, payload: bytes) -> bytes:
    return nbd.CHUNK_OFFSET.pack(offset) + payload


def test_simple_replies_are_understood() -> None:
    core, _ = open_core(structured=False)
    core.request(1, Command.READ, 0, K4)
    (event,) = core.receive(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 1) + b"r" * K4)
    assert isinstance(event, Completed)
    assert event.data == b"r" * K4


def test_chunks_in_any_order_make_one_read() -> None:
    core, _ = open_core()
    core.request(1, Command.READ, K4, 3 * K4)
    hole = chunk(Chunk.OFFSET_HOLE, nbd.OFFSET_HOLE.pack(2 * K4, K4), done=False)
    first = chunk(Chunk.OFFSET_DATA, data(K4, b"1" * K4), done=False)
    last = chunk(Chunk.OFFSET_DATA, data(3 * K4, b"3" * K4))
    (event,) = core.receive(hole + first + last)
    assert isinstance(event, Completed)
    assert event.data == b"1" * K4 + bytes(K4) + b"3" * K4


@pytest.mark.parametrize(
    "reply",
    [
        b"not a reply at all",
        nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 99),
        nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 1),
        chunk(Chunk.OFFSET_DATA, data(0, b"x" * 2 * K4)),
        chunk(Chunk.OFFSET_DATA, data(K4, b"x" * K4)),
        chunk(Chunk.OFFSET_DATA, data(0, b"x" * 100)),
        chunk(Chunk.NONE, b""),
        chunk(Chunk.OFFSET_HOLE, nbd.OFFSET_HOLE.pack(0, 1 << 31)),
        chunk(Chunk.BLOCK_STATUS, bytes(12)),
        chunk(77, b""),
        chunk(Chunk.ERROR, nbd.ERROR_CHUNK.pack(0, 0)),
        chunk(Chunk.ERROR, nbd.ERROR_CHUNK.pack(5, 10)),
        nbd.CHUNK_HEADER.pack(nbd.STRUCTURED_REPLY_MAGIC, 1, Chunk.OFFSET_DATA, 1, 0xFFFFFFFF),
    ],
)
def test_a_lying_server_is_found_out(reply: bytes) -> None:
    core, _ = open_core()
    core.request(1, Command.READ, 0, K4)
    with pytest.raises(NbdProtocolError):
        core.receive(reply)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9000), max_size=20))
def test_chunking_changes_nothing(sizes: list[int]) -> None:
    core, _ = open_core()
    core.request(1, Command.READ, 0, 2 * K4)
    core.request(2, Command.WRITE, 0, K4, payload=b"w" * K4)
    core.request(3, Command.BLOCK_STATUS, 0, SIZE)
    error = nbd.ERROR_CHUNK.pack(28, 4) + b"full"
    stream = chunk(Chunk.OFFSET_DATA, data(0, b"a" * K4), done=False) + chunk(Chunk.ERROR, error, cookie=2)
    stream += chunk(Chunk.BLOCK_STATUS, nbd.U32.pack(1) + nbd.EXTENT.pack(SIZE, 3), cookie=3)
    stream += chunk(Chunk.OFFSET_HOLE, nbd.OFFSET_HOLE.pack(K4, K4))
    events: list[Event] = []
    for size in [*sizes, len(stream)]:
        events += core.receive(stream[:size])
        stream = stream[size:]
    assert events == [
        Completed(2, 28, "full", None, []),
        Completed(3, 0, "", None, [(SIZE, 3)]),
        Completed(1, 0, "", bytearray(b"a" * K4 + bytes(K4)), []),
    ]


@settings(max_examples=200, deadline=None)
@given(st.booleans(), st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_is_a_protocol_error_or_waits_for_more(opened: bool, pieces: list[bytes]) -> None:
    core = open_core()[0] if opened else ClientCore("vol")
    if opened:
        core.request(1, Command.READ, 0, K4)
    for piece in pieces:
        try:
            core.receive(piece)
        except ExportError:
            return
