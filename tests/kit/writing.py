"""A verified writer at every head of a rack."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
    await writer.start()
    try:
        await writer.wait_acknowledged(500)
        yield writer
    finally:
        await writer.close()


async def assert_nothing_lost(writer: VerifiedWriter) -> None:
    """Every acknowledged write is read back."""
    await writer.stop()
    findings = await writer.verify()
    assert findings.wrong == []
    assert findings.read > 0
