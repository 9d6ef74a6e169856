"""Ends of connections that have ended already."""

import asyncio
from typing import cast

import pytest
import uvloop

from head_node.export.peer import peer_is_gone, reset


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_connection_that_is_gone_can_be_reset_again(runner: object) -> None:
    async def scenario() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        assert await reader.read() == b""
        transport = cast(asyncio.Transport, writer.transport)
        transport.abort()
        for _ in range(5):
            reset(transport)
            peer_is_gone(transport)
            await asyncio.sleep(0)
        assert transport.is_closing()
        server.close()

    runner(asyncio.wait_for(scenario(), 10))  # type: ignore[operator]


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_reset_is_no_orderly_end_for_the_peer(runner: object) -> None:
    async def scenario() -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read()
                ended.set_result(None)
            except ConnectionResetError as error:
                ended.set_exception(error)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        reset(cast(asyncio.Transport, writer.transport))
        with pytest.raises(ConnectionResetError):
            await ended
        server.close()

    runner(asyncio.wait_for(scenario(), 10))  # type: ignore[operator]
