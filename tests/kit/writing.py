"""A verified writer at every head of a rack."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kit.nvme_host import MultipathHost
from kit.volumes import Volume
from rackctl.ports import HOST
from rackctl.state import NodeKind
from rackctl.verified_writer import VerifiedWriter

SPAN_BLOCKS = 8192


@asynccontextmanager
async def writing(volume: Volume, seed: int = 1) -> AsyncIterator[VerifiedWriter]:
    """A writer with writes acknowledged and more under way; it knows all heads, as a multipath client does."""
    heads = await asyncio.to_thread(lambda: volume.rack.state.of_kind(NodeKind.HEAD))
    writer = VerifiedWriter([(HOST, head.ports["nbd"]) for head in heads], volume.name, SPAN_BLOCKS, seed=seed)
    async with _under_way(writer):
        yield writer


@asynccontextmanager
async def nvme_writing(volume: Volume, digests: int = 0) -> AsyncIterator["NvmeWriter"]:
    """The same by NVMe/TCP, with a path to every head."""
    paths = await asyncio.to_thread(volume.rack.paths, volume.name)
    writer = NvmeWriter(MultipathHost(paths.nvme, paths.nqn, digests))
    async with _under_way(writer):
        yield writer


class NvmeWriter(VerifiedWriter):
    """Writes through a host with multipath."""

    def __init__(self, host: MultipathHost) -> None:
        super().__init__([], "", SPAN_BLOCKS)
        self.host = host

    async def connect(self) -> MultipathHost:
        await self.host.open()
        return self.host


@asynccontextmanager
async def _under_way(writer: VerifiedWriter) -> AsyncIterator[None]:
    await writer.start()
    try:
        await writer.wait_acknowledged(500)
        yield
    finally:
        await writer.close()


async def assert_nothing_lost(writer: VerifiedWriter) -> None:
    """Every acknowledged write is read back."""
    await writer.stop()
    findings = await writer.verify()
    assert findings.wrong == []
    assert findings.read > 0
