"""The host's side over real sockets: authenticated or turned away, and deadlines kept by the server."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from kit import host
from kit.guarded import NAME, TERMS, GuardedRig, host_handshake

from sled_controller.errors import AuthenticationFailed
from sled_controller.fabric import vendor
from sled_controller.fabric.authentication import AUTHENTICATION_NS
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.messages import Explanation
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.host import HostQueue
from sled_controller.fabric.host_authentication import authenticate
from sled_controller.fabric.target_server import TargetServer
from spdk_bindings.nvme import Property, Status

FULL = replace(TERMS, hash_floor=HashId.SHA512, group_floor=GroupId.FFDHE3072)


class Host:
    """An admin queue on loopback."""

    def __init__(self, connection: QueueConnection, lost: asyncio.Future[str], address: tuple[str, int]) -> None:
        self.connection = connection
        self.lost = lost
        self.address = address

    async def ask(self, sqe: bytearray, data: bytes, room: int) -> bytes:
        """The answer to a command that has to succeed."""
        done = await self.command(sqe, data, room)
        assert done.status == 0, hex(done.status)
        return b"" if done.command.into is None else bytes(done.command.into[: done.command.received])

    async def command(self, sqe: bytearray, data: bytes = b"", room: int = 0) -> Completed:
        future: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()
        parts = (memoryview(data),) if data else ()
        into = memoryview(bytearray(room)) if room else None
        self.connection.submit(Command(sqe, parts, into, context=future.set_result))
        return await future


def with_host(rig: GuardedRig, scenario: Callable[[Host], Awaitable[None]], connections_max: int = 8) -> None:
    """Serve `rig` on loopback and run `scenario` with a host that is connected to it."""

    async def run() -> None:
        server = TargetServer(rig.subsystem, connections_max)
        address = await server.start("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()
        core = HostQueue(queue_id=0, depth=4, subsystem_nqn=host.NQN, host_nqn=NAME, host_id=host.HEAD)
        connection = QueueConnection(core, lost.set_result)
        try:
            await loop.create_connection(lambda: connection, *address)
            assert await connection.connected == 1
            await scenario(Host(connection, lost, address))
        finally:
            connection.abort()
            await server.close()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("terms", [TERMS, FULL, replace(FULL, controller_secret=None)])
def test_a_host_that_knows_its_secret_is_let_in(terms: Terms) -> None:
    rig = GuardedRig(terms)

    async def scenario(host_: Host) -> None:
        refused = await host_.command(vendor.property_get(Property.CAP))
        assert refused.status == Status.AUTHENTICATION_REQUIRED
        await authenticate(host_handshake(terms), host_.ask)
        assert (await host_.command(vendor.property_get(Property.CAP))).status == 0
        await authenticate(host_handshake(terms, t_id=2), host_.ask)
        assert (await host_.command(vendor.property_get(Property.CAP))).status == 0

    with_host(rig, scenario)
    assert rig.authentication.succeeded == 2


def test_a_host_that_does_not_is_told_why_and_dropped() -> None:
    rig = GuardedRig(FULL)

    async def scenario(host_: Host) -> None:
        wrong = replace(FULL, secret=Secret(bytes(32), None))
        with pytest.raises(AuthenticationFailed, match="the controller says FAILED") as caught:
            await authenticate(host_handshake(wrong), host_.ask)
        assert caught.value.explanation == Explanation.FAILED
        assert "closed" in await host_.lost

    with_host(rig, scenario)
    assert rig.subsystem.hosts == {}


def test_a_controller_that_does_not_know_its_own_secret_is_left() -> None:
    rig = GuardedRig(replace(FULL, controller_secret=Secret(b"c" * 48, None)))

    async def scenario(host_: Host) -> None:
        with pytest.raises(AuthenticationFailed, match="the controller does not know its secret"):
            await authenticate(host_handshake(FULL), host_.ask)
        await host_.lost

    with_host(rig, scenario)
    assert rig.authentication.failed == 1


def test_the_server_drops_a_host_that_does_not_authenticate() -> None:
    rig = GuardedRig()

    async def scenario(host_: Host) -> None:
        rig.clock.boot_ns += AUTHENTICATION_NS + 1
        await host_.lost

    with_host(rig, scenario)
    assert rig.subsystem.counters.timeouts == 1


def test_when_connections_are_short_whoever_has_not_proved_himself_makes_room() -> None:
    async def unproven(host_: Host) -> None:
        _, writer = await asyncio.open_connection(*host_.address)
        await host_.lost
        writer.close()

    async def proven(host_: Host) -> None:
        await authenticate(host_handshake(), host_.ask)
        reader, writer = await asyncio.open_connection(*host_.address)
        with suppress(ConnectionError):  # reset or closed, whichever comes first
            assert await reader.read() == b""
        writer.close()
        assert (await host_.command(vendor.property_get(Property.CAP))).status == 0

    with_host(GuardedRig(), unproven, connections_max=1)
    with_host(GuardedRig(), proven, connections_max=1)
