"""Our host role against Linux's own target and SPDK's: the client that heads have of sleds, and peers that are none."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial
from typing import Protocol
from uuid import UUID

import pytest
from kit.peers import require
from kit.standard_host import StandardHost, sled_client
from peers import spdk
from peers.guest import nvmet

from sled_controller.errors import CommandFailed, SledUnavailable
from sled_controller.fabric import client as client_module
from sled_controller.fabric.client import ClientState
from sled_controller.fabric.pdu import Digest
from spdk_bindings.nvme import IdentifyCns, Status, uuid_nqn

SCENARIO_SECONDS_MAX = 300
PATIENT_S = 120.0
"""An emulated target on a busy machine may well be silent for longer than a sled may."""
FREEZE_NOTICED_S = 8.0
UUID_OF_TARGET = UUID("44444444-4444-4444-8444-444444444444")
NQN = uuid_nqn(UUID_OF_TARGET)
NSID = 1
BLOCK = 4096
ALL_DIGESTS = [0, Digest.HEADER, Digest.DATA, Digest.HEADER | Digest.DATA]


class Target(Protocol):
    """A target with one namespace of 64 MiB, at `port` of our loopback."""

    @property
    def port(self) -> int:
        """Where it listens."""

    @property
    def transfer_blocks_max(self) -> int:
        """MDTS, or as long as is worth the while."""

    async def end(self) -> None:
        """Close its connections, and stay away."""

    def frozen(self) -> AbstractContextManager[None]:
        """It stands still in the block; connections stay open."""

    async def sha256(self, blocks: int) -> str | None:
        """Of the drive's first blocks, seen by another way than the wire; None where there is none."""


Play = Callable[..., None]


@pytest.fixture(params=["nvmet", "spdk"])
def play(request: pytest.FixtureRequest) -> Play:
    """Runs a scenario against each of the targets."""
    exported: Callable[..., AbstractAsyncContextManager[Target]] = spdk.exported
    if request.param == "nvmet":
        exported = partial(nvmet.exported, request.getfixturevalue("guest"))
    else:
        require("nvmf_tgt")

    def run(scenario: Callable[[Target], Awaitable[None]], hosts: tuple[str, ...] = ()) -> None:
        async def whole() -> None:
            async with asyncio.timeout(SCENARIO_SECONDS_MAX), exported(NQN, hosts=hosts) as target:
                await scenario(target)

        asyncio.run(whole())

    return run


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "OPEN_SECONDS_MAX", PATIENT_S)


@asynccontextmanager
async def opened(target: Target, digests: int = 0, silence_s: float = PATIENT_S) -> AsyncIterator[StandardHost]:
    ours = StandardHost(UUID_OF_TARGET, target.port, digests=digests, silence_s=silence_s)
    await ours.open()
    try:
        yield ours
    finally:
        await ours.close()


def test_it_connects_and_learns_what_the_target_is(play: Play) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target) as ours:
            controller = await ours.identify(IdentifyCns.CONTROLLER)
            assert controller[768:1024].rstrip(b"\0").decode() == NQN
            assert int.from_bytes(controller[78:80], "little") == ours.controller_id
            active = await ours.identify(IdentifyCns.ACTIVE_NAMESPACES)
            assert int.from_bytes(active[:4], "little") == NSID
            namespace = await ours.identify(IdentifyCns.NAMESPACE, NSID)
            assert int.from_bytes(namespace[:8], "little") * BLOCK == 64 << 20
        assert ours.closed.done()

    play(scenario)


@pytest.mark.parametrize("digests", ALL_DIGESTS)
def test_what_it_writes_in_capsules_and_by_r2t_is_on_the_drive_and_comes_back(play: Play, digests: int) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target, digests) as ours:
            lba, whole = 0, b""
            # Four blocks still fit into either's capsule, or do not; the longest are many PDUs both ways.
            for size in (1, 2, 4, 5, 64, target.transfer_blocks_max):
                data = os.urandom(size * BLOCK)
                await ours.write(NSID, lba, data, fua=size == 4)
                assert bytes(await ours.read(NSID, lba, size)) == data
                lba, whole = lba + size, whole + data
            await ours.flush(NSID)
            assert await target.sha256(lba) in (hashlib.sha256(whole).hexdigest(), None)

    play(scenario)


@pytest.mark.parametrize("digests", [0, Digest.HEADER | Digest.DATA])
def test_more_commands_than_the_queue_holds_are_all_answered_with_their_own_data(play: Play, digests: int) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target, digests) as ours:
            sizes = [1 + number % 8 for number in range(300)]  # in capsules and by R2T, side by side
            blocks = [number.to_bytes(4, "little") * (BLOCK // 4) * size for number, size in enumerate(sizes)]
            await asyncio.gather(*(ours.write(NSID, 8 * number, data) for number, data in enumerate(blocks)))
            answers = await asyncio.gather(*(ours.read(NSID, 8 * number, size) for number, size in enumerate(sizes)))
            assert [bytes(answer) for answer in answers] == blocks

    play(scenario)


def test_what_the_target_refuses_fails_alone(play: Play) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target) as ours:
            last = (64 << 20) // BLOCK
            outcomes = await asyncio.gather(
                ours.read(NSID, last, 1),
                ours.write(NSID, last - 1, bytes(2 * BLOCK)),
                ours.write(NSID, last - 1, bytes(64 * BLOCK)),
                ours.read(NSID + 1, 0, 1),
                ours.read(NSID, last - 1, 1),
                return_exceptions=True,
            )
            *refused, good = outcomes
            assert [type(outcome) for outcome in refused] == [CommandFailed] * 4
            assert refused[3].status == Status.INVALID_NAMESPACE  # type: ignore[union-attr]
            assert bytes(good) == bytes(BLOCK)  # type: ignore[arg-type]

    play(scenario)


def test_a_host_that_is_not_allowed_is_refused_and_says_so(play: Play) -> None:
    async def scenario(target: Target) -> None:
        with pytest.raises(SledUnavailable, match="connect was refused with CONNECT_INVALID_HOST"):
            async with opened(target):
                pass

    play(scenario, hosts=(uuid_nqn(UUID(int=5)),))


def test_a_target_that_is_no_sled_is_not_taken_for_one(play: Play) -> None:
    async def scenario(target: Target) -> None:
        client = sled_client(UUID_OF_TARGET, target.port)
        with pytest.raises(SledUnavailable, match="INVALID_OPCODE"):
            await client.open()
        assert client.state is ClientState.CLOSED

    play(scenario)


def test_commands_fail_when_the_target_goes_away_under_them(play: Play) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target) as ours:
            await ours.write(NSID, 0, bytes(BLOCK))
            under_way = [ours.write(NSID, 0, bytes(64 * BLOCK)) for _ in range(400)]  # what the queue holds, and more
            await target.end()
            outcomes = await asyncio.gather(*under_way, return_exceptions=True)
            await ours.closed
            assert isinstance(outcomes[-1], SledUnavailable)
            assert {type(outcome) for outcome in outcomes} <= {SledUnavailable, bytes}
            with pytest.raises(SledUnavailable):
                await ours.read(NSID, 0, 1)

    play(scenario)


def test_a_target_that_freezes_is_given_up_after_its_silence(play: Play) -> None:
    async def scenario(target: Target) -> None:
        async with opened(target, silence_s=FREEZE_NOTICED_S) as ours:
            await ours.write(NSID, 0, bytes(BLOCK))
            with target.frozen():
                with pytest.raises(SledUnavailable, match="silent for"):
                    await ours.read(NSID, 0, 1)
                assert ours.state is ClientState.CLOSED

    play(scenario)
