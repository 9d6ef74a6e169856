"""The shell: sockets that say nothing, too many of them, ones that never read; and the last words of a connection."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from kit import host
from kit.sled import Sled, running_sled
from kit.turns import PIECES_MAX, PerTurn
from rackctl.chaos.strangers import capsules, hello

from sled_controller.fabric import pdu, target_server, vendor
from sled_controller.fabric.associations import Standing
from sled_controller.fabric.pdu import FatalError, PduType
from sled_controller.fabric.target import HANDSHAKE_NS, TargetQueue
from sled_controller.session import SledHandshake
from sled_controller.turns import STEPS_BURST, STEPS_PER_SECOND, STRANGER_COMMANDS, TRUSTED_COMMANDS
from spdk_bindings.nvme import (
    AdminOpcode,
    uuid_nqn,
)

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


def test_beyond_the_limit_a_flood_from_one_address_makes_room_for_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_server.TargetServer.__init__, "__defaults__", (4,))

    async def scenario() -> None:
        async with running_sled() as sled:
            reader, writer = await asyncio.open_connection(sled.host, sled.port)
            writers = [writer]
            for _ in range(20):
                stranger, other = await asyncio.open_connection(sled.host, sled.port, local_addr=("127.0.0.66", 0))
                other.write(pdu.ic_req(0))
                writers.append(other)
                await stranger.readexactly(128)
            writer.write(pdu.ic_req(0))
            assert len(await reader.readexactly(128)) == 128, "a host on its way"
            for each in writers:
                each.close()

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


# --- turns


def keep_alives(count: int) -> bytes:
    sqe = bytearray(64)
    sqe[:2] = AdminOpcode.KEEP_ALIVE, pdu.PSDT_SGL
    return capsules(sqe, count)


async def flood(sled: Sled, count: int, commands: bytes) -> list[asyncio.StreamWriter]:
    """Strangers that send more in one go than anybody may have in flight."""
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(sled.host, sled.port)
        writer.write(hello(uuid_nqn(host.SLED)) + commands)
        writers.append(writer)
    return writers


def test_of_what_one_read_of_a_stranger_brought_a_turn_of_the_loop_carries_out_a_bounded_part(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            turn = PerTurn()
            monkeypatch.setattr(TargetQueue, "_capsule", turn.counted(TargetQueue._capsule))
            writers = await flood(sled, 10, keep_alives(3600))
            await until(lambda: turn.total >= 10_000)
            assert turn.most <= PIECES_MAX * STRANGER_COMMANDS
            turn.close()
            for writer in writers:
                writer.transport.abort()

    run(scenario)


def test_a_head_that_comes_is_served_among_strangers_that_flood_the_sled(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            turn = PerTurn()
            writers = await flood(sled, 10, keep_alives(36_000))
            monkeypatch.setattr(TargetQueue, "_capsule", turn.counted(TargetQueue._capsule))
            assert await serves(sled)
            assert turn.total < 120_000, "of 360,000 that were sent before"
            turn.close()
            for writer in writers:
                writer.transport.abort()

    run(scenario)


def test_what_a_trusted_host_sends_beyond_its_queue_waits_for_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            monkeypatch.setattr(TargetQueue, "standing", Standing.TRUSTED)
            turn = PerTurn()
            monkeypatch.setattr(TargetQueue, "_capsule", turn.counted(TargetQueue._capsule))
            (writer,) = await flood(sled, 1, keep_alives(3600))
            await until(lambda: turn.total >= 3601)
            assert turn.most <= 2 * TRUSTED_COMMANDS, "a piece at once, and one of its share"
            turn.close()
            writer.transport.abort()

    run(scenario)


def test_a_hello_is_made_once_however_often_it_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running_sled() as sled:
            turn = PerTurn()
            monkeypatch.setattr(SledHandshake, "__init__", turn.counted(SledHandshake.__init__))
            reader, writer = await asyncio.open_connection(sled.host, sled.port)
            writer.write(
                hello(uuid_nqn(host.SLED)) + capsules(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), 300, 160)
            )
            answers = pdu.C2H_DATA.size + 160 + pdu.CAPSULE_RESP_BYTES
            received = await reader.readexactly(pdu.IC_BYTES + pdu.CAPSULE_RESP_BYTES + 300 * answers)
            assert received.count(b"PLHE") == 300
            assert turn.total == 1
            turn.close()
            writer.close()

    run(scenario)


def test_handshakes_of_strangers_are_bounded_per_source_and_second(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each garbage reply costs the sled a hello and a look at a signature."""

    async def scenario() -> None:
        async with running_sled() as sled:
            loop, turn = asyncio.get_running_loop(), PerTurn()
            monkeypatch.setattr(SledHandshake, "__init__", turn.counted(SledHandshake.__init__))
            begun = loop.time()
            pair = capsules(vendor.vendor_sqe(AdminOpcode.SESSION_RECEIVE), 1, 160)
            pair += capsules(vendor.vendor_sqe(AdminOpcode.SESSION_SEND), 1, data=bytes(144))
            writers = await flood(sled, 10, pair * 200)
            await until(lambda: turn.total >= STEPS_BURST)
            steps_max = STEPS_BURST + (loop.time() - begun) * STEPS_PER_SECOND + 10
            assert 2 * turn.total <= steps_max + 2 * len(writers)
            turn.close()
            for writer in writers:
                writer.transport.abort()

    run(scenario)
