"""A host's admin queue on loopback, after Connect: commands and their answers, one by one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kit import host

from sled_controller.errors import SledUnavailable
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.host import HostQueue


class AdminQueue:
    """`lost` is resolved with the reason when the connection is gone."""

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
        """How a command ended; raises SledUnavailable when the connection did first."""
        future: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()
        parts = (memoryview(data),) if data else ()
        into = memoryview(bytearray(room)) if room else None
        self.connection.submit(Command(sqe, parts, into, context=future.set_result))
        await asyncio.wait((future, self.lost), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise SledUnavailable(self.lost.result())
        return future.result()


@asynccontextmanager
async def admin_queue(address: tuple[str, int], subsystem_nqn: str, host_nqn: str) -> AsyncIterator[AdminQueue]:
    """Connected until the block ends."""
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[str] = loop.create_future()
    core = HostQueue(queue_id=0, depth=4, subsystem_nqn=subsystem_nqn, host_nqn=host_nqn, host_id=host.HEAD)
    connection = QueueConnection(core, lost.set_result)
    try:
        await loop.create_connection(lambda: connection, *address)
        await connection.connected
        yield AdminQueue(connection, lost, address)
    finally:
        connection.abort()
