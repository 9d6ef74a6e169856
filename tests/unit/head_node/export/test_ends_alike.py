"""What a client may do, done to the primary and to a head that relays: both answer alike, byte for byte, to the end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from kit.export import VOLUME_ID, MemoryDirectory, MemoryVolume, link_pair, one_volume, until
from kit.transmission import chunks, ok, refused, request

from head_node.export import nbd_protocol as nbd
from head_node.export.interface import LocalExport, RelayTransport, RemoteExport
from head_node.export.nbd_protocol import Command, CommandFlag, Info, NbdError, Option, OptionReply
from head_node.export.nbd_server import Limits
from head_node.export.peer import peer_has_closed
from head_node.export.relay import RelayTiming
from head_node.export.server import NbdServer
from sled_controller.environment import Environment

SIZE = 8 << 20
K4 = 4096
K64 = 64 * 1024
MIB = 1 << 20
HELLO = nbd.CLIENT_HELLO.pack(3)
GO = nbd.option_request(Option.GO, nbd.pack_string("vol") + b"\0\0")
DISC = request(Command.DISC, cookie=99)
STRUCTURED = nbd.option_request(Option.STRUCTURED_REPLY)
CONTEXT = nbd.pack_string("vol") + nbd.U32.pack(1) + nbd.pack_string("base:allocation")
RUNNERS = [asyncio.run, uvloop.run]
PATHS = ["direct", "relayed"]

Story = Callable[["Client"], Coroutine[Any, Any, None]]


class Client:
    """A client that sends what it likes, and the servers behind it."""

    def __init__(self, volume: MemoryVolume, servers: list[NbdServer], address: tuple[str, int]) -> None:
        self.volume = volume
        self.servers = servers
        self.address = address
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self, *options: bytes, receive_bytes: int | None = None) -> None:
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2**14)
        self.writer.write(HELLO + b"".join(options))
        assert await self.reader.readexactly(18)

    async def open(self, *options: bytes, receive_bytes: int | None = None) -> None:
        """Up to the transmission phase."""
        await self.connect(*options, GO, receive_bytes=receive_bytes)
        option = reply = 0
        while (option, reply) != (Option.GO, OptionReply.ACK):
            _, option, reply, length = nbd.OPTION_REPLY_HEADER.unpack(await self.reader.readexactly(20))
            await self.reader.readexactly(length)

    async def simple(self, count: int) -> list[int]:
        """The errors of so many simple replies without data, in the order of their cookies."""
        replies = [nbd.SIMPLE_REPLY.unpack(await self.reader.readexactly(16)) for _ in range(count)]
        return [error for _, error, _ in sorted(replies, key=lambda reply: reply[2])]

    async def rest(self) -> tuple[bytes, bool]:
        """What comes until the end, and whether that is an orderly one."""
        data = b""
        try:
            while piece := await self.reader.read(1 << 20):
                data += piece
        except ConnectionError:
            return data, False
        return data, True

    async def all_places_free(self) -> None:
        await until(
            lambda: not any(server.counters.connections_open or server.counters.relays_open for server in self.servers)
        )

    async def arrived(self, count: int) -> None:
        """So many requests have been taken."""
        await until(lambda: sum(server.counters.requests for server in self.servers) == count)


@asynccontextmanager
async def path_to_a_volume(path: str, limits: Limits | None = None, **options: Any) -> AsyncIterator[Client]:
    volume = MemoryVolume(SIZE)
    timing = RelayTiming(heartbeat_ms=10, silence_ms_max=60_000)
    primary = NbdServer(one_volume(volume), Environment(), limits=limits, relay_timing=timing, **options)
    servers = [primary]

    async def dial() -> RelayTransport:
        near, far = link_pair()
        primary.accept_relay(far, LocalExport(VOLUME_ID, volume))
        return near

    if path == "relayed":
        directory = MemoryDirectory({"vol": RemoteExport(VOLUME_ID, SIZE, dial)})
        servers.insert(0, NbdServer(directory, Environment(), relay_timing=timing, **options))
    client = Client(volume, servers, await servers[0].start("127.0.0.1", 0))
    try:
        yield client
    finally:
        if hasattr(client, "writer"):
            client.writer.transport.abort()
        for server in servers:
            await server.close()


def play(runner: Any, path: str, story: Story, limits: Limits | None = None, **options: Any) -> None:
    async def whole() -> None:
        async with path_to_a_volume(path, limits, **options) as client:
            await story(client)

    runner(asyncio.wait_for(whole(), 20))


every_way = pytest.mark.parametrize("path", PATHS)
every_loop = pytest.mark.parametrize("runner", RUNNERS)


def writes(count: int, length: int = K4, first: int = 0) -> bytes:
    return b"".join(
        request(Command.WRITE, n * length, data=bytes([n % 255 + 1]) * length, cookie=first + n) for n in range(count)
    )


def written(volume: MemoryVolume, length: int = K4) -> int:
    """How many of `writes` have been done."""
    return sum(volume.data[n * length] == n % 255 + 1 for n in range(SIZE // length))


# --- ends


@every_loop
@every_way
@pytest.mark.parametrize("half_close", [False, True])
def test_disconnect_waits_for_all_answers_also_of_a_client_that_closes_its_side(
    runner: Any, path: str, half_close: bool
) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(60) + DISC)
        if half_close:
            client.writer.write_eof()
        await client.arrived(61)
        client.volume.release()
        data, orderly = await client.rest()
        assert (len(data), orderly) == (60 * 16, True)
        await client.all_places_free()

    play(runner, path, story)


@every_loop
@every_way
def test_a_client_that_closes_its_side_gets_the_answers_to_what_was_taken(runner: Any, path: str) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(20) + request(Command.READ, 0, K64, cookie=20))
        client.writer.write_eof()
        await client.arrived(21)
        client.volume.release()
        data, orderly = await client.rest()
        assert (len(data), orderly) == (21 * 16 + K64, True)
        assert written(client.volume) == 20
        await client.all_places_free()

    play(runner, path, story)


@every_loop
@every_way
def test_what_was_sent_before_disconnect_is_done_though_nothing_is_read(runner: Any, path: str) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(60) + DISC)
        client.writer.close()
        await client.arrived(61)
        client.volume.release()
        await client.all_places_free()
        assert written(client.volume) == 60

    play(runner, path, story)


@every_loop
@every_way
def test_a_request_kept_back_by_a_bound_is_not_begun_for_a_client_that_closed_its_side(runner: Any, path: str) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(3) + DISC)
        client.writer.write_eof()
        await client.arrived(1)
        relayed = list(client.servers[-1]._relayed)
        if relayed:
            await until(lambda: relayed[0]._client_closed or not client.servers[-1]._relayed)
        else:
            (connection,) = client.servers[0]._connections
            await until(lambda: peer_has_closed(connection._transport))
        client.volume.release()
        await client.all_places_free()
        assert written(client.volume) == 1

    play(runner, path, story, Limits(requests_in_flight_max=1))


@every_loop
@every_way
def test_a_request_that_waits_in_the_volume_is_not_begun_for_a_client_that_closed_its_side(
    runner: Any, path: str
) -> None:
    async def story(client: Client) -> None:
        begun: list[bool] = []
        waiting: list[Callable[[], bool]] = []

        def wait(offset: int, data: Any, fua: bool, done: Any, gone: Callable[[], bool]) -> None:
            waiting.append(gone)

        client.volume.write = wait  # type: ignore[assignment,method-assign]
        await client.open()
        client.writer.write(writes(1))
        client.writer.write_eof()
        await until(lambda: waiting)
        await until(waiting[0])
        begun.append(not waiting[0]())
        assert begun == [False]
        assert await client.rest() == (b"", False)
        await client.all_places_free()

    play(runner, path, story)


@every_loop
@every_way
def test_a_reset_frees_all_places_and_nothing_more_is_begun(runner: Any, path: str) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(5))
        await client.arrived(1)
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.writer.transport.abort()
        if path == "direct":  # nobody reads: the end is seen when there is something to do
            client.volume.release()
        await client.all_places_free()
        client.volume.release()
        assert written(client.volume) == 1

    play(runner, path, story, Limits(requests_in_flight_max=1))


@every_way
@pytest.mark.parametrize("part", [1, 27, 28, 28 + 100, 28 + K4 - 1])
@pytest.mark.parametrize("length", [K4, MIB])
def test_a_part_of_a_request_is_no_request(path: str, part: int, length: int) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.writer.write((writes(1) + request(Command.WRITE, K4, data=b"x" * length))[: 28 + K4 + part])
        client.writer.write_eof()
        assert await client.rest() == (ok(0), True)
        assert client.volume.data[K4:] == bytes(SIZE - K4)
        await client.all_places_free()

    play(uvloop.run, path, story)


@every_way
def test_a_place_comes_free_though_the_answer_to_a_client_that_closed_never_comes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("head_node.export.server.CLOSED_SECONDS_MAX", 0.05)
    monkeypatch.setattr("head_node.export.server.PROBES", 600)

    async def story(client: Client) -> None:
        await client.open()
        client.volume.hold = True
        client.writer.write(writes(2) + DISC)
        client.writer.write_eof()
        await client.arrived(3)
        assert await client.rest() == (b"", False)
        await client.all_places_free()

    play(uvloop.run, path, story, peer_silence_s=60)


@every_loop
@every_way
def test_a_place_comes_free_when_a_client_reads_no_answer_after_it_has_disconnected(runner: Any, path: str) -> None:
    async def story(client: Client) -> None:
        await client.open(receive_bytes=K64)
        client.volume.hold = True
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(b"".join(request(Command.READ, 0, MIB, cookie=n) for n in range(12)) + DISC)
        await client.arrived(13)
        client.volume.release()
        await client.all_places_free()

    play(runner, path, story, peer_silence_s=0)


@every_way
def test_a_client_whose_machine_has_vanished_loses_its_place_and_one_that_is_idle_does_not(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("head_node.export.server.PROBES", 600)
    looks: list[object] = []
    dead: list[object] = []

    def has_vanished(transport: asyncio.Transport, silence_s: int) -> bool:
        looks.append(transport)
        return transport in dead

    monkeypatch.setattr("head_node.export.server.has_vanished", has_vanished)

    async def story(client: Client) -> None:
        await client.open()
        await until(lambda: len(looks) > 3)
        client.writer.write(request(Command.READ, 0, K4))
        assert len(await client.reader.readexactly(16 + K4)) == 16 + K4
        dead.append(looks[-1])
        await client.all_places_free()

    play(uvloop.run, path, story, peer_silence_s=60)


# --- bursts, slow readers and slow writers


@every_loop
@every_way
@pytest.mark.parametrize("goodbye", [b"", DISC])
def test_a_burst_beyond_a_turns_share_is_answered_whole(runner: Any, path: str, goodbye: bytes) -> None:
    async def story(client: Client) -> None:
        await client.open()
        client.writer.write(writes(1000) + goodbye)
        client.writer.write_eof()
        data, orderly = await client.rest()
        assert (len(data), orderly) == (1000 * 16, True)
        assert written(client.volume) == 1000

    play(runner, path, story)


@every_loop
@every_way
@pytest.mark.parametrize("half_close", [False, True])
def test_a_client_that_reads_slowly_gets_all_that_it_asked_for(runner: Any, path: str, half_close: bool) -> None:
    async def story(client: Client) -> None:
        await client.open(receive_bytes=K64)
        reads = b"".join(request(Command.READ, 0, MIB, cookie=n) for n in range(24))
        client.writer.write(reads + DISC)
        if half_close:
            client.writer.write_eof()
        (connection,) = client.servers[0]._connections
        await until(lambda: connection._transport.get_write_buffer_size())
        data, orderly = await client.rest()
        assert (len(data), orderly) == (24 * (16 + MIB), True)

    play(runner, path, story)


@every_way
def test_a_write_may_come_in_bits(path: str) -> None:
    async def story(client: Client) -> None:
        await client.open()
        sent = writes(1, MIB) + writes(1, K4, first=1)
        for at in range(0, len(sent), 99_991):
            client.writer.write(sent[at : at + 99_991])
            await client.writer.drain()
        assert await client.simple(2) == [0, 0]

    play(uvloop.run, path, story)


# --- requests

REQUESTS = {
    "a read of nothing": request(Command.READ, 0, 0),
    "a read of nothing at the end": request(Command.READ, SIZE, 0),
    "a read over the end": request(Command.READ, SIZE, K4),
    "a read off the blocks": request(Command.READ, 512, K4),
    "a read above the maximum": request(Command.READ, 0, 33 * MIB),
    "a read with FUA": request(Command.READ, 0, K4, flags=CommandFlag.FUA),
    "a read in one piece": request(Command.READ, 0, K64, flags=CommandFlag.DF),
    "a read of a hole": request(Command.READ, 0, MIB),
    "a write of nothing": request(Command.WRITE, 0, 0),
    "a write over the end": request(Command.WRITE, SIZE - K4, data=b"x" * 2 * K4),
    "a write above the maximum": request(Command.WRITE, 0, data=bytes(32 * MIB + K4)),
    "a write of a sector": request(Command.WRITE, 512, data=b"x" * 512),
    "a write with the flags of others": request(Command.WRITE, 0, data=b"x" * K4, flags=CommandFlag.REQ_ONE),
    "zeroes": request(Command.WRITE_ZEROES, K4, K4),
    "zeroes, fast and with space": request(
        Command.WRITE_ZEROES, K4, K4, flags=CommandFlag.FAST_ZERO | CommandFlag.NO_HOLE
    ),
    "zeroes off the blocks": request(Command.WRITE_ZEROES, 512, K4),
    "zeroes over the end": request(Command.WRITE_ZEROES, SIZE, K4),
    "a trim": request(Command.TRIM, 0, K64),
    "a trim of sectors": request(Command.TRIM, 512, K64),
    "a trim over the end": request(Command.TRIM, SIZE - K4, 2 * K4),
    "a cache of sectors": request(Command.CACHE, 512, 512),
    "a cache over the end": request(Command.CACHE, SIZE, 512),
    "a flush with FUA": request(Command.FLUSH, flags=CommandFlag.FUA),
    "a status": request(Command.BLOCK_STATUS, 0, SIZE),
    "a status of one extent": request(Command.BLOCK_STATUS, 0, SIZE, flags=CommandFlag.REQ_ONE),
    "a status of nothing": request(Command.BLOCK_STATUS, 0, 0),
    "an unknown command": request(8, 0, K4),
    "unknown flags": request(Command.READ, 0, K4, flags=1 << 9),
    "bad magic": b"nonsense" * 4,
    "a simple reply": ok() + bytes(12),
}
SETUPS = {
    "simple": (),
    "structured": (STRUCTURED,),
    "allocation": (STRUCTURED, nbd.option_request(Option.SET_META_CONTEXT, CONTEXT)),
}


async def transcript(path: str, options: tuple[bytes, ...], *sent: bytes) -> tuple[bytes, bool]:
    """All that comes back for what is sent by a client that closes its side then."""
    async with path_to_a_volume(path) as client:
        client.volume.data[: 2 * K4] = b"d" * 2 * K4
        client.volume.allocated[:2] = b"\1\1"
        await client.connect(*options)
        client.writer.write(b"".join(sent))
        client.writer.write_eof()
        return await client.rest()


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
@pytest.mark.parametrize("what", REQUESTS.values(), ids=REQUESTS.keys())
def test_every_request_is_answered_alike(setup: tuple[bytes, ...], what: bytes) -> None:
    async def story() -> None:
        direct, relayed = [
            await transcript(path, setup, GO, what, request(Command.FLUSH, cookie=9), DISC) for path in PATHS
        ]
        assert direct == relayed
        keeps_on = what not in (REQUESTS["bad magic"], REQUESTS["a simple reply"])
        assert direct[1] == keeps_on
        assert direct[0].endswith(ok(9)) == keeps_on

    uvloop.run(asyncio.wait_for(story(), 20))


@every_way
@pytest.mark.parametrize(
    ("offset", "length", "zeroed"),
    [
        (0, 512, range(0)),
        (512, K4, range(0)),
        (512, 2 * K4 - 512, range(1, 2)),
        (512, 3 * K4, range(1, 3)),
        (K4, K4 + 512, range(1, 2)),
        (K4 - 1, K4 + 2, range(1, 2)),
        (7, 0, range(0)),
    ],
)
def test_a_trim_is_a_hint_and_forgets_the_blocks_that_lie_in_it_as_a_whole(
    path: str, offset: int, length: int, zeroed: range
) -> None:
    async def story(client: Client) -> None:
        client.volume.data[:] = b"d" * SIZE
        await client.open()
        client.writer.write(request(Command.TRIM, offset, length) + request(Command.CACHE, offset, length))
        assert await client.simple(2) == [0, 0]
        blocks = [bytes(K4) if block in zeroed else b"d" * K4 for block in range(8)]
        assert client.volume.data[: 8 * K4] == b"".join(blocks)

    play(uvloop.run, path, story)


@every_way
def test_zeroes_are_no_hint(path: str) -> None:
    async def story(client: Client) -> None:
        client.volume.data[:] = b"d" * SIZE
        await client.open()
        client.writer.write(request(Command.WRITE_ZEROES, 512, 3 * K4))
        assert await client.reader.readexactly(16) == refused(NbdError.EINVAL)
        assert client.volume.data == b"d" * SIZE

    play(uvloop.run, path, story)


def test_a_status_says_the_same_and_one_extent_when_asked_for_one() -> None:
    async def story() -> None:
        for path in PATHS:
            async with path_to_a_volume(path) as client:
                await client.open(*SETUPS["allocation"])
                client.volume.allocated[:2] = b"\1\1"
                client.writer.write(REQUESTS["a status of one extent"] + REQUESTS["a status"] + DISC)
                data, _ = await client.rest()
                one, all_of_it = [nbd.BlockStatus.parse(body).extents for _, _, body in chunks(data)]
                assert [(extent.length, extent.flags) for extent in one] == [(2 * K4, 0)]
                assert [(extent.length, extent.flags) for extent in all_of_it] == [(2 * K4, 0), (SIZE - 2 * K4, 3)]

    uvloop.run(asyncio.wait_for(story(), 20))


# --- options


def go(option: Option, name: str, *infos: int) -> bytes:
    asked = b"".join(nbd.U16.pack(info) for info in (len(infos), *infos))
    return nbd.option_request(option, nbd.pack_string(name) + asked)


def context(option: Option, name: str, *queries: str) -> bytes:
    asked = b"".join(map(nbd.pack_string, queries))
    return nbd.option_request(option, nbd.pack_string(name) + nbd.U32.pack(len(queries)) + asked)


HAGGLING = {
    "info, then go": (go(Option.INFO, "vol", Info.BLOCK_SIZE), go(Option.GO, "vol", Info.BLOCK_SIZE)),
    "go to the only export": (go(Option.GO, ""),),
    "go to an unknown export, then a known one": (go(Option.GO, "nope"), GO),
    "info about an unknown export": (go(Option.INFO, "nope"), GO),
    "unknown infos": (go(Option.GO, "vol", 3, 99, 1, 2),),
    "an infos' count too large": (nbd.option_request(Option.GO, nbd.pack_string("vol") + b"\0\2\0\3"), GO),
    "a name past the option's end": (nbd.option_request(Option.GO, b"\0\0\1\0vol\0\0"), GO),
    "a go of nothing": (nbd.option_request(Option.GO), GO),
    "a list, then go": (nbd.option_request(Option.LIST), GO),
    "a list with data": (nbd.option_request(Option.LIST, b"data"), GO),
    "a list in between": (STRUCTURED, nbd.option_request(Option.LIST), GO),
    "TLS": (nbd.option_request(Option.STARTTLS), GO),
    "TLS with data": (nbd.option_request(Option.STARTTLS, b"data"), GO),
    "abort": (nbd.option_request(Option.ABORT),),
    "abort with data": (STRUCTURED, nbd.option_request(Option.ABORT, b"data")),
    "peek": (nbd.option_request(Option.PEEK_EXPORT, b"vol"), GO),
    "extended headers": (nbd.option_request(Option.EXTENDED_HEADERS), GO),
    "an unknown option": (nbd.option_request(1000, b"x" * 100), GO),
    "an option that is too long": (nbd.option_request(Option.INFO, bytes(100_000)), GO),
    "structured replies with data": (nbd.option_request(Option.STRUCTURED_REPLY, b"x"), GO),
    "structured replies twice": (STRUCTURED, STRUCTURED, GO),
    "a context before structured replies": (context(Option.SET_META_CONTEXT, "vol", "base:allocation"), STRUCTURED, GO),
    "a context of another export": (STRUCTURED, context(Option.SET_META_CONTEXT, "other", "base:allocation"), GO),
    "a context, set back": (
        STRUCTURED,
        context(Option.SET_META_CONTEXT, "vol", "base:allocation"),
        context(Option.SET_META_CONTEXT, "vol"),
        GO,
    ),
    "an unknown context": (STRUCTURED, context(Option.SET_META_CONTEXT, "vol", "qemu:dirty-bitmap:x"), GO),
    "a context's list": (STRUCTURED, context(Option.LIST_META_CONTEXT, "vol"), GO),
    "a context's list of a namespace": (STRUCTURED, context(Option.LIST_META_CONTEXT, "vol", "base:"), GO),
    "a context after the info": (go(Option.INFO, "vol"), *SETUPS["allocation"], GO),
    "queries past the end": (
        STRUCTURED,
        nbd.option_request(Option.SET_META_CONTEXT, nbd.pack_string("vol") + b"\0\0\1\0"),
        GO,
    ),
    "an export name": (nbd.option_request(Option.EXPORT_NAME, b"vol"),),
    "an unknown export name": (nbd.option_request(Option.EXPORT_NAME, b"nope"),),
    "an export name that is too long": (nbd.option_request(Option.EXPORT_NAME, b"n" * 5000),),
    "an export name that is no text": (nbd.option_request(Option.EXPORT_NAME, b"\xff\xfe"),),
    "bad option magic": (b"IHAVEOPS" + bytes(8), GO),
}


@pytest.mark.parametrize("options", HAGGLING.values(), ids=HAGGLING.keys())
def test_haggling_goes_alike(options: tuple[bytes, ...]) -> None:
    """Also what was agreed on counts alike: a read and a status follow."""
    sent = (request(Command.READ, 0, K4, cookie=1), request(Command.BLOCK_STATUS, 0, K4, cookie=2), DISC)

    async def story() -> None:
        direct, relayed = [await transcript(path, options, *sent) for path in PATHS]
        assert direct == relayed
        served = options[-1] in (GO, go(Option.GO, ""), *HAGGLING["an export name"], *HAGGLING["unknown infos"])
        served = served or options == HAGGLING["info, then go"]
        assert (b"d" * K4 in direct[0]) == (served and options != HAGGLING["bad option magic"])

    uvloop.run(asyncio.wait_for(story(), 20))
