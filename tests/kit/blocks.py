"""The first block of a volume, written and read at its primary by our own NBD client."""

import asyncio

from rackctl.ports import HOST
from rackctl.rack import Rack

from head_node.export.nbd_client import NbdClient

BLOCK_BYTES = 4096


def write_block(rack: Rack, volume: str, content: bytes) -> None:
    async def write() -> None:
        client = await _connect(rack, volume)
        try:
            await client.write(0, content)
        finally:
            await client.close()

    asyncio.run(write())


def read_block(rack: Rack, volume: str) -> bytes:
    async def read() -> bytes:
        client = await _connect(rack, volume)
        try:
            return bytes(await client.read(0, BLOCK_BYTES))
        finally:
            await client.close()

    return asyncio.run(read())


async def _connect(rack: Rack, volume: str) -> NbdClient:
    primary = await asyncio.to_thread(lambda: rack.roles(volume).primary)
    return await NbdClient.connect([(HOST, rack.node(str(primary)).ports["nbd"])], volume)
