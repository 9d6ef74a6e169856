"""The shell: sockets that say nothing, too many of them, ones that never read; and the last words of a connection."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from kit import host
from kit.sled import Sled, running_sled

from sled_controller.fabric import pdu, target_server
from sled_controller.fabric.pdu import FatalError, PduType
from sled_controller.fabric.target import HANDSHAKE_NS

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    runner = {"asyncio": asyncio.run, "uvloop": uvloop.run}[request.param]

    def bounded(scenario: Callable[[], Awaitable[None]]) -> None:
        runner(asyncio.wait_for(scenario(), 20))

    return bounded


async def serves(sled: Sled) -> bool:
    """Whether a head can attach, write and read now."""
    client = sled.client()
    await client.open()
    volume = await client.attach(host.signed(), 1 + sled.subsystem.counters.attaches)
    nsid = await volume.create_namespace(0, 64)
    await volume.write(nsid, 1, [b"x" * 4096])
    good = bytes(await volume.read(nsid, 1, 1)) == b"x" * 4096
    await client.close()
    return good


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until the condition holds; no time passes."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def test_a_terminated_connection_still_gets_its_last_words(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            reader, writer = await asyncio.open_connection(sled.host, sled.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: sled\r\n\r\n" * 400)
            answer = await reader.read()
            assert answer[0] == PduType.C2H_TERM_REQ
            assert pdu.parse_term_req(answer)[0] == FatalError.INVALID_HEADER_FIELD
            writer.close()
            assert await serves(sled)

    run(scenario)


def test_beyond_the_limit_the_oldest_stranger_makes_room_for_a_head(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_server.TargetServer.__init__, "__defaults__", (3,))

    async def scenario() -> None:
        async with running_sled() as sled:
            held = []
            for _ in range(3):
                reader, writer = await asyncio.open_connection(sled.host, sled.port)
                writer.write(pdu.ic_req(0))
                await reader.readexactly(128)
                held.append((reader, writer))
            assert await serves(sled)
            for reader, _ in held[:2]:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
            for _, writer in held:
                writer.close()

    run(scenario)


def test_beyond_the_limit_a_host_that_is_attached_is_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(target_server.TargetServer.__init__, "__defaults__", (2,))
    monkeypatch.setattr(target_server, "CHECK_SECONDS", 0.01)

    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume = await client.attach(host.signed(), 1)
            reader, writer = await asyncio.open_connection(sled.host, sled.port)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            nsid = await volume.create_namespace(0, 64)
            await volume.write(nsid, 1, [b"x" * 4096])
            await until(lambda: "event=connections_refused count=1 max=2" in caplog.text)
            await client.close()

    run(scenario)


def test_a_connection_that_dawdles_is_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_server, "CHECK_SECONDS", 0.01)

    async def scenario() -> None:
        async with running_sled() as sled:
            reader, writer = await asyncio.open_connection(sled.host, sled.port)
            writer.write(pdu.ic_req(0)[:50])
            clock = sled.subsystem.env.clock
            assert isinstance(clock, host.FixedClock)
            await until(lambda: sled.subsystem.counters.connections > 0)
            clock.boot_ns += HANDSHAKE_NS + 1
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            assert sled.subsystem.counters.timeouts == 1
            assert await serves(sled)

    run(scenario)


def test_a_host_that_does_not_read_costs_bounded_memory_and_is_served_when_it_does(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            volume = await client.attach(host.signed(), 1)
            nsid = await volume.create_namespace(0, 1024)
            reads = [volume.read(nsid, 0, 256) for _ in range(100)]
            assert [len(part) for part in await asyncio.gather(*reads)] == [1 << 20] * 100
            await client.close()

    run(scenario)


def test_closing_drops_everybody(run: Run) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            client = sled.client()
            await client.open()
            reader, _ = await asyncio.open_connection(sled.host, sled.port)
            await sled.server.close()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            await client.closed
            assert sled.subsystem.hosts == {}

    run(scenario)
