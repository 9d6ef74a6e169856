"""The port with real sockets: several hosts and queues, and hosts that leave with requests behind them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from kit.export import VOLUME_ID, MemoryVolume, until
from kit.nvme_export import NQN
from kit.nvme_host import MultipathHost, Path, blocks

from head_node.export.nvme.server import NvmeServer, Offer
from head_node.export.nvme.subsystem import Access, Exported
from sled_controller.environment import Environment
from sled_controller.fabric.pdu import Digest
from sled_controller.turns import Turn
from spdk_bindings.log_pages import AnaState
from spdk_bindings.nvme import IoOpcode

Run = Callable[[Callable[[], Awaitable[None]]], None]
BLOCK = 4096


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    runner = {"asyncio": asyncio.run, "uvloop": uvloop.run}[request.param]

    def bounded(scenario: Callable[[], Awaitable[None]]) -> None:
        runner(asyncio.wait_for(scenario(), 30))

    return bounded


class Served:
    """A head's port on loopback."""

    def __init__(self, number: int, volume: MemoryVolume) -> None:
        self.volume = volume
        self.number = number
        self.server = NvmeServer(Environment(), serial=f"HEAD{number}")
        self.address = ("", 0)

    async def __aenter__(self) -> "Served":
        self.address = await self.server.start("127.0.0.1", 0)
        exported = Exported(VOLUME_ID, "vol", self.volume.size_bytes, frozenset({"*"}))
        self.server.update([Offer(exported, (self.address,))], self.number, {})
        return self

    async def __aexit__(self, *what: object) -> None:
        await self.server.close()

    def become(self, access: Access) -> None:
        self.server.set_access(VOLUME_ID, access, self.volume if access is Access.OPTIMIZED else None)


@pytest.mark.parametrize("digests", [0, int(Digest.HEADER | Digest.DATA)])
def test_what_is_written_by_one_host_is_read_by_another(run: Run, digests: int) -> None:
    async def scenario() -> None:
        async with Served(1, MemoryVolume(4 << 20)) as head:
            head.become(Access.OPTIMIZED)
            writer, reader = (MultipathHost([head.address], NQN, digests) for _ in range(2))
            await writer.open()
            await reader.open()
            data = bytes(range(256)) * 4096
            for offset, length in ((0, BLOCK), (BLOCK, 16 * 1024), (1 << 20, 1 << 20)):
                await writer.write(offset, data[:length])
                assert await reader.read(offset, length) == data[:length]
            await asyncio.gather(*(writer.write(n * BLOCK, bytes([n]) * BLOCK) for n in range(200)))
            assert await reader.read(0, 200 * BLOCK) == b"".join(bytes([n]) * BLOCK for n in range(200))
            await writer.close()
            await reader.close()

    run(scenario)


def test_a_host_that_has_nothing_to_prove_waits_for_no_turn_of_strangers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with Served(1, MemoryVolume(4 << 20)) as head:
            head.become(Access.OPTIMIZED)
            path = Path(head.address, NQN)
            await path.open()
            asked: list[Turn] = []
            monkeypatch.setattr(Turn, "ask", asked.append)
            await asyncio.gather(*(path.io(blocks(IoOpcode.READ, n * BLOCK, BLOCK), b"", BLOCK) for n in range(64)))
            assert not asked
            monkeypatch.undo()
            path.close()

    run(scenario)


def test_a_host_follows_the_optimized_path(run: Run) -> None:
    async def scenario() -> None:
        volume = MemoryVolume(1 << 20)
        async with Served(1, volume) as first, Served(2, volume) as second:
            first.become(Access.OPTIMIZED)
            host = MultipathHost([first.address, second.address], NQN)
            await host.open()
            await host.write(0, b"1" * BLOCK)
            volume.hold = True
            unanswered = asyncio.create_task(host.write(BLOCK, b"2" * BLOCK))
            await until(lambda: volume.held)
            first.become(Access.CHANGE)
            first.server.drop_clients(VOLUME_ID)
            first.become(Access.INACCESSIBLE)
            second.become(Access.CHANGE)
            volume.hold = False
            second.become(Access.OPTIMIZED)
            await unanswered
            assert host.repeated >= 1
            assert await host.read(0, 2 * BLOCK) == b"1" * BLOCK + b"2" * BLOCK
            assert host.states() == {first.address: AnaState.INACCESSIBLE, second.address: AnaState.OPTIMIZED}
            await host.close()

    run(scenario)


def test_what_a_host_sent_before_it_left_is_not_begun(run: Run) -> None:
    async def scenario() -> None:
        volume = MemoryVolume(1 << 20)
        async with Served(1, volume) as head:
            head.become(Access.OPTIMIZED)
            path = Path(head.address, NQN)
            await path.open()
            volume.is_ready = False  # the first write makes the head read no more of this connection
            waiting = [
                asyncio.create_task(path.io(blocks(IoOpcode.WRITE, n * BLOCK, BLOCK), b"x" * BLOCK)) for n in range(2)
            ]
            subsystem = head.server.subsystems[VOLUME_ID]
            await until(lambda: volume.waiters)
            path.close()
            volume.become_ready()  # before the head has heard of the end of any queue
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, Exception) for outcome in outcomes)
            await until(lambda: not subsystem.hosts)
            assert not any(volume.data)

    run(scenario)
