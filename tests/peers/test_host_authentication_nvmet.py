"""Our host role proves itself to Linux's own target, and has the target prove itself."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from kit import host
from kit.admin_queue import AdminQueue, admin_queue
from peers.guest import Guest
from peers.guest.nvmet import exported

from sled_controller.environment import SystemEntropy
from sled_controller.errors import AuthenticationFailed, SledUnavailable
from sled_controller.fabric import vendor
from sled_controller.fabric.dhchap.algorithms import GroupId, HashId
from sled_controller.fabric.dhchap.handshake import HostHandshake, SequenceNumbers
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.host_authentication import authenticate
from spdk_bindings.nvme import Property, uuid_nqn

NQN = uuid_nqn(host.SLED)
HOST_NQN = uuid_nqn(host.HEAD)
SCENARIO_SECONDS_MAX = 300
ENTROPY = SystemEntropy()
NUMBERS = SequenceNumbers(ENTROPY)


def fresh(hash_id: HashId | None = HashId.SHA256) -> Secret:
    return Secret.generate(ENTROPY, hash_id)


def handshake(terms: Terms, t_id: int = 1) -> HostHandshake:
    return HostHandshake(HOST_NQN, NQN, t_id, terms, ENTROPY, NUMBERS)


def play(guest: Guest, terms: Terms, scenario: Callable[[AdminQueue], Awaitable[None]]) -> None:
    """A target that asks our host for `terms`, at exactly their floors."""
    known = f"/sys/kernel/config/nvmet/hosts/{HOST_NQN}"
    controller_secret = "" if terms.controller_secret is None else terms.controller_secret.text()
    configure = f"""
        set -e
        cd {known}
        echo '{terms.secret.text()}' >dhchap_key
        echo '{controller_secret}' >dhchap_ctrl_key
        echo 'hmac({terms.hash_floor.name.lower()})' >dhchap_hash
        echo {terms.group_floor.name.lower()} >dhchap_dhgroup
    """

    async def whole() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS_MAX), exported(guest, NQN, hosts=(HOST_NQN,)) as target:
            await guest.check(configure if controller_secret else configure.replace("echo '' >dhchap_ctrl_key", ""))
            async with admin_queue(("127.0.0.1", target.port), NQN, HOST_NQN) as queue:
                await scenario(queue)

    try:
        asyncio.run(whole())
    finally:
        asyncio.run(guest.check(f"rmdir {known}"))


@pytest.mark.parametrize(
    "terms",
    [
        Terms(fresh(), fresh(), HashId.SHA256, GroupId.FFDHE2048),
        Terms(fresh(None), fresh(HashId.SHA512), HashId.SHA512, GroupId.NULL),
        Terms(fresh(HashId.SHA384), None, HashId.SHA384, GroupId.FFDHE3072),
    ],
    ids=["both-ways", "null-group", "one-way"],
)
def test_linux_lets_a_host_in_that_knows_its_secret(guest: Guest, terms: Terms) -> None:
    async def scenario(queue: AdminQueue) -> None:
        await authenticate(handshake(terms), queue.ask)
        assert (await queue.command(vendor.property_get(Property.VS))).status == 0
        await authenticate(handshake(terms, t_id=2), queue.ask)  # and again on the live queue

    play(guest, terms, scenario)


def test_linux_turns_a_host_away_that_does_not(guest: Guest) -> None:
    terms = Terms(fresh())

    async def scenario(queue: AdminQueue) -> None:
        # Linux says why and closes at once; the connection may be gone before the reason is here.
        with pytest.raises((AuthenticationFailed, SledUnavailable), match=r"the controller says FAILED|connection"):
            await authenticate(handshake(replace(terms, secret=fresh())), queue.ask)
        assert "host response mismatch" in await guest.check("dmesg")

    play(guest, terms, scenario)


def test_a_target_that_does_not_know_its_own_secret_is_left(guest: Guest) -> None:
    terms = Terms(fresh(), fresh())

    async def scenario(queue: AdminQueue) -> None:
        with pytest.raises(AuthenticationFailed, match="the controller does not know its secret"):
            await authenticate(handshake(replace(terms, controller_secret=fresh())), queue.ask)

    play(guest, terms, scenario)
