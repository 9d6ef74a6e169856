"""The writer knows what every acknowledged block must hold, and says so when it does not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from kit.export import MemoryVolume, one_volume
from rackctl.verified_writer import BLOCK_BYTES, VerifiedWriter, block_content, describe

from head_node.export.errors import ExportError
from head_node.export.nbd_client import ReconnectPolicy
from head_node.export.server import NbdServer
from sled_controller.environment import Environment

SPAN_BLOCKS = 64
Story = Callable[[MemoryVolume, NbdServer, VerifiedWriter], Awaitable[None]]


def with_writer(story: Story, **options: int) -> None:
    """Run a story with a volume in memory, its server and a writer that has started."""

    async def tell() -> None:
        volume = MemoryVolume((SPAN_BLOCKS + 8) * BLOCK_BYTES)
        server = NbdServer(one_volume(volume), Environment())
        address = await server.start("127.0.0.1", 0)
        writer = VerifiedWriter([address], "vol", SPAN_BLOCKS, policy=ReconnectPolicy(total_s_max=0.0), **options)
        await writer.start()
        try:
            await story(volume, server, writer)
        finally:
            await writer.close()
            await server.close()

    asyncio.run(asyncio.wait_for(tell(), 20))


def test_what_it_wrote_is_found() -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(500)
        await writer.stop()
        findings = await writer.verify()
        assert findings.read == SPAN_BLOCKS
        assert findings.wrong == []

    with_writer(story)


def test_it_keeps_to_its_span() -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(500)
        await writer.stop()
        assert not any(volume.data[: 8 * BLOCK_BYTES])
        assert any(volume.data[8 * BLOCK_BYTES :])

    with_writer(story, first_block=8)


@pytest.mark.parametrize(
    "damage",
    [bytes(BLOCK_BYTES), block_content(5, (1 << 32) + 1), b"\xff" * BLOCK_BYTES],
    ids=["lost", "an older version", "garbage"],
)
def test_a_block_that_lost_its_last_write_is_named(damage: bytes) -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(50 * SPAN_BLOCKS)
        await writer.stop()
        volume.data[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] = damage
        (line,) = (await writer.verify()).wrong
        assert line.startswith("block 5: acknowledged version ")
        assert line.endswith(describe(damage))

    with_writer(story)


def test_a_write_of_another_writer_is_not_taken_for_its_own() -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(10)
        await writer.stop()
        for block in range(SPAN_BLOCKS):
            content = block_content(block, (2 << 32) + 1)
            volume.data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content
        findings = await writer.verify()
        assert len(findings.wrong) == findings.read > 0

    with_writer(story, seed=1)


def test_the_failure_that_ends_it_is_raised() -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(10)
        volume.error = 5
        with pytest.raises(ExportError):
            await writer.wait_acknowledged(1_000_000)
        with pytest.raises(ExportError):
            await writer.stop()

    with_writer(story)


def test_the_longest_wait_for_an_answer_is_measured() -> None:
    async def story(volume: MemoryVolume, server: NbdServer, writer: VerifiedWriter) -> None:
        await writer.wait_acknowledged(10)
        writer.forget_stalls()
        loop = asyncio.get_running_loop()
        volume.hold = True
        held_since_s = loop.time()
        released = loop.create_future()
        loop.call_later(0.05, released.set_result, None)
        await released
        held_s = loop.time() - held_since_s
        volume.release()
        await writer.wait_acknowledged(100)
        assert writer.longest_stall_s >= held_s * 0.9

    with_writer(story)
