"""The host's side over real sockets: authenticated or turned away, and deadlines kept by the server."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from kit import host
from kit.admin_queue import AdminQueue, admin_queue
from kit.dhchap import BOTH_WAYS, controller_side, host_side
from kit.guarded import NAME, TERMS, GuardedRig, host_handshake

from sled_controller.errors import AuthenticationFailed, SledUnavailable
from sled_controller.fabric import vendor
from sled_controller.fabric.authentication import AUTHENTICATION_NS
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.messages import Explanation
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.host_authentication import authenticate
from sled_controller.fabric.target_server import TargetServer
from spdk_bindings.nvme import Property, Status

FULL = replace(TERMS, hash_floor=HashId.SHA512, group_floor=GroupId.FFDHE3072)


def with_host(rig: GuardedRig, scenario: Callable[[AdminQueue], Awaitable[None]], connections_max: int = 8) -> None:
    """Serve `rig` on loopback and run `scenario` with a host that is connected to it."""

    async def run() -> None:
        server = TargetServer(rig.subsystem, connections_max)
        address = await server.start("127.0.0.1", 0)
        try:
            async with admin_queue(address, host.NQN, NAME) as queue:
                await scenario(queue)
        finally:
            await server.close()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("terms", [TERMS, FULL, replace(FULL, controller_secret=None)])
def test_a_host_that_knows_its_secret_is_let_in(terms: Terms) -> None:
    rig = GuardedRig(terms)

    async def scenario(host_: AdminQueue) -> None:
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

    async def scenario(host_: AdminQueue) -> None:
        wrong = replace(FULL, secret=Secret(bytes(32), None))
        with pytest.raises(AuthenticationFailed, match="the controller says FAILED") as caught:
            await authenticate(host_handshake(wrong), host_.ask)
        assert caught.value.explanation == Explanation.FAILED
        assert "closed" in await host_.lost

    with_host(rig, scenario)
    assert rig.subsystem.hosts == {}


def test_a_controller_that_does_not_know_its_own_secret_is_left() -> None:
    rig = GuardedRig(replace(FULL, controller_secret=Secret(b"c" * 48, None)))

    async def scenario(host_: AdminQueue) -> None:
        with pytest.raises(AuthenticationFailed, match="the controller does not know its secret"):
            await authenticate(host_handshake(FULL), host_.ask)
        await host_.lost

    with_host(rig, scenario)
    assert rig.authentication.failed == 1


def test_a_connection_that_is_lost_says_what_it_was_lost_for() -> None:
    """As Linux's target does when it is told that it did not prove itself."""

    def lost_at(last: int, controller_terms: Terms) -> Callable[[bytearray, bytes, int], Awaitable[bytes]]:
        controller = controller_side(controller_terms)
        left = iter(range(last))

        async def ask(sqe: bytearray, data: bytes, room: int) -> bytes:
            if data:
                controller.take(data)
            answer = b"" if data else controller.give(room)
            if next(left, None) is None:
                raise SledUnavailable("the connection is lost")
            assert answer is not None
            return answer

        return ask

    impostor = replace(BOTH_WAYS, controller_secret=Secret(b"c" * 48, None))
    with pytest.raises(AuthenticationFailed, match="the controller does not know its secret"):
        asyncio.run(authenticate(host_side(BOTH_WAYS), lost_at(4, impostor)))
    with pytest.raises(SledUnavailable):
        asyncio.run(authenticate(host_side(BOTH_WAYS), lost_at(2, impostor)))


def test_the_server_drops_a_host_that_does_not_authenticate() -> None:
    rig = GuardedRig()

    async def scenario(host_: AdminQueue) -> None:
        rig.clock.boot_ns += AUTHENTICATION_NS + 1
        await host_.lost

    with_host(rig, scenario)
    assert rig.subsystem.counters.timeouts == 1


def test_when_connections_are_short_whoever_has_not_proved_himself_makes_room() -> None:
    async def unproven(host_: AdminQueue) -> None:
        _, writer = await asyncio.open_connection(*host_.address)
        await host_.lost
        writer.close()

    with_host(GuardedRig(), unproven, connections_max=1)
