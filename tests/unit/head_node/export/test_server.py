"""The NBD server on sockets: many clients, bounds, resets, and one client's nonsense that is nobody else's trouble."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from kit.export import VOLUME_ID, MemoryDirectory, MemoryVolume, one_volume, until
from kit.sources import ROOT
from kit.turns import PerTurn
from kit.volume import Bench
from rackctl.simulation.loop import Process, SimulationLoop
from rackctl.simulation.network import Network

from head_node.export import nbd_protocol as nbd
from head_node.export.budget import MemoryBudget
from head_node.export.errors import ExportUnavailable, NbdCommandFailed, NbdDisconnected, NbdNegotiationFailed
from head_node.export.interface import LocalExport
from head_node.export.nbd_client import NbdClient, ReconnectPolicy
from head_node.export.nbd_negotiation import Negotiation
from head_node.export.nbd_protocol import Command, Option, OptionReply
from head_node.export.nbd_server import OTHER_SHARE, TURN_SHARE, Limits, Transmission
from head_node.export.server import NbdServer
from head_node.volume.reservations import (
    Acquire,
    AcquireAction,
    Register,
    RegisterAction,
    Release,
    ReleaseAction,
    ReservationType,
)
from head_node.volume.reservations import Command as ReservationCommand
from sled_controller.descriptors import RESERVE, Descriptors
from sled_controller.environment import Environment
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS
from spdk_bindings.nvme import Status

SIZE = 8 << 20
K4 = 4096
ONCE = ReconnectPolicy(attempt_s_max=0.1)
HELLO = nbd.CLIENT_HELLO.pack(3)
GO = nbd.option_request(Option.GO, nbd.pack_string("vol") + b"\0\0")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


@asynccontextmanager
async def serving(
    directory: MemoryDirectory,
    *,
    connections_max: int = 8,
    option_s_max: float = 5,
    limits: Limits | None = None,
    budget: MemoryBudget | None = None,
) -> AsyncIterator[tuple[NbdServer, tuple[str, int]]]:
    server = NbdServer(
        directory,
        Environment(),
        connections_max=connections_max,
        option_s_max=option_s_max,
        limits=limits,
        budget=budget,
    )
    address = await server.start("127.0.0.1", 0)
    try:
        yield server, address
    finally:
        await server.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the end of the connection, orderly or by reset."""
    data = b""
    try:
        while piece := await reader.read(65536):
            data += piece
    except ConnectionError:
        pass
    return data


def test_a_client_reads_what_it_wrote() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(one_volume(volume)) as (server, address):
            client = await NbdClient.connect([address], "vol")
            assert client.size_bytes == SIZE
            data = [bytes((n,)) * K4 for n in range(64)]
            await asyncio.gather(*(client.write(n * K4, data[n], fua=n % 2 == 0) for n in range(64)))
            assert b"".join(await asyncio.gather(*(client.read(n * K4, K4) for n in range(64)))) == b"".join(data)
            await client.trim(0, K4)
            await client.write_zeroes(K4, K4)
            await client.flush()
            assert await client.read(0, 3 * K4) == bytes(2 * K4) + data[2]
            assert (await client.block_status(0, SIZE))[0] == (2 * K4, 3)
            large = bytes(range(256)) * (4096 * 4)
            await client.write(1 << 20, large)
            assert await client.read(1 << 20, len(large)) == large
            await client.close()
            assert server.counters.requests_rejected == 0
            assert server.status()["requests"] == 135

    run(scenario())


def test_an_unknown_or_unserved_export_is_refused_with_its_reason() -> None:
    async def scenario() -> None:
        directory = MemoryDirectory({"away": ExportUnavailable("away", "takeover under way")})
        async with serving(directory) as (_, address):
            with pytest.raises(NbdNegotiationFailed, match="there is no export") as refused:
                await NbdClient.connect([address], "nope", ONCE)
            assert refused.value.reply == OptionReply.ERR_UNKNOWN
            with pytest.raises(NbdNegotiationFailed, match="takeover under way") as refused:
                await NbdClient.connect([address], "away", ONCE)
            assert refused.value.reply == OptionReply.ERR_SHUTDOWN

    run(scenario())


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HELLO + b"no option at all",
        HELLO + GO + b"no request, though long enough for one",
        HELLO + GO + nbd.REQUEST.pack(nbd.SIMPLE_REPLY_MAGIC, 0, 0, 0, 0, K4),
    ],
)
def test_garbage_ends_its_own_connection_only(nonsense: bytes) -> None:
    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE))) as (server, address):
            good = await NbdClient.connect([address], "vol")
            reader, writer = await asyncio.open_connection(*address)
            writer.write(nonsense)
            await read_to_end(reader)
            writer.close()
            assert server.counters.garbage + server.counters.negotiations_failed == 1
            await good.write(0, b"x" * K4)
            assert await good.read(0, K4) == b"x" * K4
            await good.close()

    run(scenario())


def test_a_truncated_request_of_a_client_that_left_changes_nothing() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(one_volume(volume)) as (server, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HELLO + GO + nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.WRITE, 1, 0, K4) + b"x" * 4000)
            writer.write_eof()
            await read_to_end(reader)
            writer.close()
            assert volume.data == bytes(SIZE)
            assert server.counters.connections_open == 0

    run(scenario())


def test_a_client_that_dawdles_in_negotiation_is_shown_out() -> None:
    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE)), option_s_max=0.05) as (server, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HELLO[:2])
            await read_to_end(reader)
            writer.close()
            assert server.counters.negotiations_timed_out == 1

    run(scenario())


def test_a_client_may_ask_for_hours_and_be_silent_for_seconds() -> None:
    """Each option has its time, a whole negotiation has none: `nbdinfo --list` takes as long as there are exports."""
    loop = SimulationLoop(Random(1))
    Network(loop, Random(1))
    here, there = Process(loop, "10.0.0.1", "client"), Process(loop, "10.0.0.2", "server")
    server: list[NbdServer] = []

    async def serve() -> None:
        server.append(NbdServer(one_volume(MemoryVolume(SIZE)), Environment()))
        await server[0].start("10.0.0.2", 10809)

    async def scenario() -> None:
        await there.spawn(serve())
        reader, writer = await asyncio.open_connection("10.0.0.2", 10809)
        writer.write(HELLO)
        await reader.readexactly(nbd.SERVER_HELLO.size)
        for _ in range(300):
            await asyncio.sleep(9)
            writer.write(nbd.option_request(Option.STRUCTURED_REPLY))
            await reader.readexactly(nbd.OPTION_REPLY_HEADER.size)
        silent_since = loop.time()
        await read_to_end(reader)
        assert 9 < loop.time() - silent_since < 11
        assert server[0].counters.negotiations_timed_out == 1

    try:
        loop.run_until_complete(here.spawn(scenario()))
    finally:
        loop.close()


def test_options_of_strangers_wait_when_their_share_of_the_time_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a client that has its export does not."""

    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE)), connections_max=32) as (server, address):
            client = await NbdClient.connect([address], "vol")
            turn = PerTurn()
            monkeypatch.setattr(Negotiation, "_handle_option", turn.counted(Negotiation._handle_option))
            server.turns._strangers.percent = 1
            server.turns._strangers.spend(1_000_000_000)
            writers = []
            for _ in range(20):
                _, writer = await asyncio.open_connection(*address)
                writer.write(HELLO + nbd.option_request(Option.STARTTLS) * 1000)
                writers.append(writer)
            for number in range(50):
                await client.write(number * K4, b"x" * K4)
            assert turn.total == 0
            turn.close()
            await client.close()
            for writer in writers:
                writer.transport.abort()

    run(scenario())


def test_requests_beyond_a_share_of_many_clients_are_taken_in_a_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each client's share is bounded by itself; those of all that flood are, too."""

    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(one_volume(volume), connections_max=32) as (server, address):
            server.turns._trusted.percent = 1  # so that little is left, once the burst is used up
            turn = PerTurn()
            bad = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, 99, 1, 0, K4)
            counted = turn.counted(Transmission._other)
            monkeypatch.setattr(Transmission, "_other", counted)
            writers = []
            for _ in range(20):
                _, writer = await asyncio.open_connection(*address)
                writer.write(HELLO + GO + bad * 40_000)
                writers.append(writer)
            client = await NbdClient.connect([address], "vol")
            for number in range(100):
                await client.write(number * K4, b"x" * K4)
            assert turn.most <= 2 * len(writers) * TURN_SHARE // OTHER_SHARE, "one share each, and one of all that wait"
            assert turn.total < 20 * 40_000, "those that flood wait, the other client does not"
            turn.close()
            await client.close()
            for writer in writers:
                writer.transport.abort()

    run(scenario())


def test_options_sent_at_once_are_all_answered() -> None:
    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE))) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            count = 5000
            writer.write(HELLO + nbd.option_request(Option.STARTTLS) * count + nbd.option_request(Option.ABORT))
            data = await read_to_end(reader)
            assert data.count(nbd.OPTION_REPLY_MAGIC.to_bytes(8, "big")) == count + 1
            writer.close()

    run(scenario())


def test_no_client_is_let_in_when_only_the_reserve_of_descriptors_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        used = [0]
        loop = asyncio.get_running_loop()
        now = [loop.time()]
        descriptors = Descriptors(1000, lambda: now[0], lambda: used[0])
        server = NbdServer(one_volume(MemoryVolume(SIZE)), Environment(), descriptors=descriptors)
        address = await server.start("127.0.0.1", 0)
        first = await NbdClient.connect([address], "vol")
        used[0], now[0] = 1000 - RESERVE, now[0] + 1
        with pytest.raises(NbdDisconnected):
            await NbdClient.connect([address], "vol", ONCE)
        await first.write(0, b"y" * K4)
        used[0], now[0] = 999 - RESERVE, now[0] + 1
        second = await NbdClient.connect([address], "vol")
        await first.close()
        await second.close()
        await server.close()
        assert server.counters.connections_refused >= 1

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "reason=no_descriptors_left" in caplog.text


ACCEPTING = """
import asyncio, resource, sys
import uvloop
from kit.export import MemoryVolume, one_volume
from head_node.export.server import NbdServer
from sled_controller.environment import Environment

async def main():
    server = NbdServer(one_volume(MemoryVolume(1 << 20)), Environment(), connections_max=1000)
    _, port = await server.start("127.0.0.1", 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, flush=True)
    await server.close()

uvloop.run(main())
"""


def greeted(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        return bool(client.recv(nbd.SERVER_HELLO.size))


def test_a_port_without_descriptors_takes_clients_again_when_there_are_some() -> None:
    """The limit itself must not stop accepting for good, nor keep the loop busy."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(
        [sys.executable, "-c", ACCEPTING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        port = int(child.stdout.readline())
        crowd = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(100)]
        heard = [bool(one.recv(nbd.SERVER_HELLO.size)) for one in crowd]  # an end of file for those without a place
        assert 0 < sum(heard) < 100
        for one in crowd:
            one.close()
        assert any(greeted(port) for _ in range(1000))
        child.stdin.close()
        assert child.wait(10) == 0


def test_connections_over_the_limit_are_refused_and_places_come_free() -> None:
    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE)), connections_max=1) as (server, address):
            first = await NbdClient.connect([address], "vol")
            with pytest.raises(NbdDisconnected):
                await NbdClient.connect([address], "vol", ONCE)
            assert server.counters.connections_refused >= 1
            await first.write(0, b"y" * K4)
            await first.close()
            await until(lambda: not server.counters.connections_open)
            second = await NbdClient.connect([address], "vol")
            assert await second.read(0, K4) == b"y" * K4
            await second.close()

    run(scenario())


def test_strangers_who_agree_on_nothing_make_room_for_clients_and_fill_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("head_node.bursts.BURST_SECONDS", 3600.0)

    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE)), connections_max=4) as (server, address):
            first = await NbdClient.connect([address], "vol")
            strangers = [await asyncio.open_connection(*address) for _ in range(20)]
            second = await NbdClient.connect([address], "vol")
            for client in (first, second):
                await client.write(0, b"y" * K4)
                await client.close()
            assert server.counters.connections_refused == 20 + 2 - 4
            for _, writer in strangers:
                writer.close()

    run(scenario())
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert lines == ["event=nbd_connections_refused count=18 reason=limit_4"]


def test_memory_comes_free_when_a_client_that_never_read_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("head_node.export.budget.PACE_SECONDS", 0.05)

    async def scenario() -> None:
        volume = MemoryVolume(64 << 20)
        large = 32 << 20
        budget = MemoryBudget(common_bytes=large)
        async with serving(one_volume(volume), budget=budget) as (server, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HELLO + GO + nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 0, large))
            await until(lambda: budget.held_bytes == large)
            client = await NbdClient.connect([address], "vol")
            assert await client.read(0, large) == bytes(large)
            assert server.counters.evicted == 1
            assert len(await read_to_end(reader)) < large
            await client.close()
            await until(lambda: not budget.accounts)
            assert budget.free_bytes == large
            writer.close()

    run(scenario())


def test_dropped_clients_are_reset_with_their_requests_unanswered() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(one_volume(volume)) as (server, address):
            client = await NbdClient.connect([address], "vol")
            volume.hold = True
            pending = client.write(0, b"x" * K4)
            await until(lambda: volume.held)
            assert server.drop_clients(VOLUME_ID) == 1
            with pytest.raises(NbdDisconnected):
                await pending
            volume.release()
            assert server.counters.requests_unanswered == 1
            assert server.drop_clients(VOLUME_ID) == 0

    run(scenario())


def test_a_stalled_client_that_left_gets_nothing_more_admitted() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        volume.record_calls = True
        async with serving(one_volume(volume), limits=Limits(requests_in_flight_max=1)) as (server, address):
            client = await NbdClient.connect([address], "vol")
            volume.hold = True
            writes = [client.write(n * K4, b"x" * K4) for n in range(4)]
            await until(lambda: volume.held)
            await client.close()
            assert all(isinstance(write.exception(), NbdDisconnected) for write in writes)
            volume.release()
            await until(lambda: not server.counters.connections_open)
            assert volume.calls == [("write", 0, K4)]

    run(scenario())


@pytest.mark.parametrize("unread", [0, 2])
def test_a_write_that_waits_in_the_volume_for_the_lease_is_not_begun_for_a_client_that_left(unread: int) -> None:
    """With more requests unread the connection is not read any more, and nobody has noticed yet that it ended."""

    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        lease = False
        engine.lease = lambda: lease
        directory = MemoryDirectory({"vol": LocalExport(VOLUME_ID, engine.served)})
        async with serving(directory) as (server, address):
            client = await NbdClient.connect([address], "vol")
            writes = [client.write(n * K4, b"x" * K4) for n in range(1 + unread)]
            await until(lambda: not engine.served.ready())
            await client.close()
            lease = True
            await until(lambda: not server.counters.connections_open and engine.served.ready())
            assert await bench.read(0) == bytes(K4)
            assert engine.tail.opnum == 1
            assert all(isinstance(write.exception(), NbdDisconnected) for write in writes)
        await engine.close()

    run(scenario())


def test_a_reservation_shuts_nbd_clients_out_as_it_does_hosts_that_are_not_registered() -> None:
    """An NBD client has no host identifier, so it can never be a registrant."""

    async def scenario() -> None:
        bench, host = Bench(), b"\1" * 16
        engine = await bench.create()
        await bench.lead(1)
        statuses: list[Status] = []

        def change(command: ReservationCommand) -> None:
            engine.served.change_reservation(host, command, statuses.append)

        async with serving(MemoryDirectory({"vol": LocalExport(VOLUME_ID, engine.served)})) as (_, address):
            client = await NbdClient.connect([address], "vol")
            await client.write(0, b"x" * K4)
            change(Register(RegisterAction.REGISTER, new_key=1))
            change(Acquire(AcquireAction.ACQUIRE, ReservationType.WRITE_EXCLUSIVE, 1))
            for refused in (client.write(0, b"y" * K4), client.trim(0, K4), client.write_zeroes(0, K4), client.flush()):
                with pytest.raises(NbdCommandFailed, match="error 1"):
                    await refused
            assert await client.read(0, K4) == b"x" * K4
            change(Acquire(AcquireAction.PREEMPT, ReservationType.EXCLUSIVE_ACCESS, 1, 1))
            await until(lambda: len(statuses) == 3)
            with pytest.raises(NbdCommandFailed, match="error 1"):
                await client.read(0, K4)
            change(Release(ReleaseAction.CLEAR, 0, 1))
            await until(lambda: len(statuses) == 4)
            await client.write(0, b"z" * K4)
            assert set(statuses) == {Status.SUCCESS}
            await client.close()
        await engine.close()

    run(scenario())


def test_a_client_that_reads_no_replies_is_held_back() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(64 << 20)
        async with serving(one_volume(volume)) as (server, address):
            reader, writer = await asyncio.open_connection(*address, limit=1024)
            request = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, Command.READ, 1, 0, 1 << 20)
            writer.write(HELLO + GO + request * 64)
            (connection,) = server._connections
            await until(lambda: connection._core is not None and connection._core.output_blocked)
            seen = server.counters.requests
            assert seen < 64
            assert not connection._transport.is_reading()
            received = 0
            while received < 64 << 20:
                received += len(await reader.read(1 << 20))
            assert server.counters.requests == 64
            writer.close()

    run(scenario())


def test_a_bug_in_one_connection_costs_that_connection_only() -> None:
    async def scenario() -> None:
        volume = MemoryVolume(SIZE)
        async with serving(one_volume(volume)) as (server, address):
            good, bad = [await NbdClient.connect([address], "vol") for _ in range(2)]
            flush, volume.flush = volume.flush, lambda done: 1 // 0  # type: ignore[method-assign]
            with pytest.raises(NbdDisconnected):
                await bad.flush()
            volume.flush = flush  # type: ignore[method-assign]
            await good.flush()
            assert server.counters.internal_errors == 1
            await good.close()

    run(scenario())


def test_the_kernel_asks_an_idle_client_for_a_sign_of_life_and_gives_none_up_for_what_it_has_not_read() -> None:
    async def scenario() -> None:
        async with serving(one_volume(MemoryVolume(SIZE))) as (server, address):
            client = await NbdClient.connect([address], "vol")
            (connection,) = server._connections
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == PEER_SILENCE_SECONDS // 2
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
            await client.close()

    run(scenario())
