"""A host with multipath, as Linux has it, over our own host role: paths to every head, told apart by ANA."""

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

from sled_controller.errors import SledError
from sled_controller.fabric import vendor
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.host import HostQueue
from spdk_bindings.log_pages import ANA_GROUP_FORMAT, AnaState
from spdk_bindings.nvme import (
    CC_ENABLE,
    CONTROLLER_ID_DYNAMIC,
    SGL_FLAGS,
    SQE,
    AdminOpcode,
    Feature,
    IoOpcode,
    LogPage,
    Property,
)

BLOCK = 4096
HOST_ID = UUID("33333333-3333-4333-8333-333333333333")
IN_CAPSULE_BYTES = 16 * 1024
DEPTH = 64
KATO_MS = 1000
RETRY_SECONDS = 0.05
ANA_PAGE_BYTES = 52
PATH_RELATED = 3


class PathLost(Exception):
    """The connection ended with this command unanswered, or refused it for the path's sake."""


class CommandRefused(Exception):
    """A status that says something of the command; `status` is SCT << 8 | SC."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status:#05x}")
        self.status = status


def standard(opcode: int, nsid: int = 0, **dwords: int) -> bytearray:
    """A standard SQE without CID and SGL."""
    values = [dwords.get(f"cdw{number}", 0) for number in range(10, 16)]
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), *values))


def blocks(opcode: int, offset: int, length: int) -> bytearray:
    """The SQE of a read or write of bytes."""
    return standard(opcode, 1, cdw10=offset // BLOCK, cdw12=length // BLOCK - 1)


class Path:
    """One controller: an admin queue and an I/O queue, until one of them is lost."""

    def __init__(self, address: tuple[str, int], nqn: str, digests: int = 0, host_id: UUID = HOST_ID) -> None:
        self.address = address
        self._host_id = host_id
        self.state: AnaState | None = None
        self.controller_id = CONTROLLER_ID_DYNAMIC
        self.lost = asyncio.Event()
        self.changed = asyncio.Event()
        self._nqn = nqn
        self._digests = digests
        self._admin: QueueConnection
        self._io: QueueConnection
        self._queues: list[QueueConnection] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect as Linux does. Raises PathLost, SledError, OSError."""
        try:
            self._admin = await self._dial(0)
            await self.admin(vendor.property_set(Property.CC, CC_ENABLE))
            await self.admin(standard(AdminOpcode.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIGURATION, cdw11=1 << 11))
            self._io = await self._dial(1)
            await self._read_state()
        except BaseException:
            self.close()
            raise
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._keep_alive())]

    async def admin(self, sqe: bytearray, into: int = 0) -> bytes:
        return await self._do(self._admin, sqe, b"", into)

    async def io(self, sqe: bytearray, data: bytes = b"", into: int = 0) -> bytes:
        return await self._do(self._io, sqe, data, into)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._lose("closed")

    async def _dial(self, queue_id: int) -> QueueConnection:
        host_nqn = f"nqn.2014-08.org.nvmexpress:uuid:{self._host_id}"
        core = HostQueue(
            queue_id=queue_id, depth=DEPTH if queue_id else 8, subsystem_nqn=self._nqn, host_nqn=host_nqn,
            host_id=self._host_id, controller_id=self.controller_id, digests=self._digests,
            in_capsule_bytes=IN_CAPSULE_BYTES if queue_id else 8192, kato_ms=0 if queue_id else KATO_MS,
        )  # fmt: skip
        connection = QueueConnection(core, self._lose)
        self._queues.append(connection)
        await asyncio.get_running_loop().create_connection(lambda: connection, *self.address)
        self.controller_id = await connection.connected
        return connection

    async def _do(self, queue: QueueConnection, sqe: bytearray, data: bytes, into: int) -> bytes:
        done: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()
        room = memoryview(bytearray(into)) if into else None
        parts = (memoryview(data),) if data else ()
        try:
            queue.submit(Command(sqe, parts, room, context=done.set_result))
        except SledError as error:
            raise PathLost(str(error)) from None
        lost = asyncio.ensure_future(self.lost.wait())
        await asyncio.wait([done, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        if not done.done():
            raise PathLost("unanswered")
        status = done.result().status
        if status >> 8 == PATH_RELATED:
            raise PathLost(f"status {status:#05x}")
        if status:
            raise CommandRefused(status)
        return b"" if room is None else bytes(room)

    async def _read_state(self) -> None:
        length = ANA_PAGE_BYTES // 4 - 1
        page = await self.admin(standard(AdminOpcode.GET_LOG_PAGE, cdw10=LogPage.ANA | length << 16), ANA_PAGE_BYTES)
        self.state = AnaState(ANA_GROUP_FORMAT.parse(page[16:]).state)
        self.changed.set()

    async def _watch(self) -> None:
        with contextlib.suppress(PathLost):
            while True:
                await self.admin(standard(AdminOpcode.ASYNC_EVENT_REQUEST))
                await self._read_state()

    async def _keep_alive(self) -> None:
        """A controller that does not answer in time is given up, as a frozen one has to be."""
        while not self.lost.is_set():
            try:
                async with asyncio.timeout(KATO_MS / 1000):
                    await self.admin(standard(AdminOpcode.KEEP_ALIVE))
            except (TimeoutError, PathLost):
                self._lose("no keep-alive")
                return
            await asyncio.sleep(KATO_MS / 4000)

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self.changed.set()
        for queue in self._queues:
            queue.abort()


class MultipathHost:
    """Reads and writes by whatever path is optimized; a command that a path did not answer is done again elsewhere."""

    def __init__(
        self, addresses: Sequence[tuple[str, int]], nqn: str, digests: int = 0, host_id: UUID = HOST_ID
    ) -> None:
        self._host_id = host_id
        self._addresses = list(addresses)
        self._nqn = nqn
        self._digests = digests
        self._paths: dict[tuple[str, int], Path] = {}
        self._moved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keepers: list[asyncio.Task[None]] = []
        self.repeated = 0

    async def open(self) -> None:
        """Keep a path to each address from now on; returns when one is optimized."""
        self._keepers = [asyncio.create_task(self._keep(address)) for address in self._addresses]
        await self._usable()

    async def write(self, offset: int, data: bytes) -> None:
        await self.io(blocks(IoOpcode.WRITE, offset, len(data)), data)

    async def read(self, offset: int, length: int) -> bytes:
        return await self.io(blocks(IoOpcode.READ, offset, length), into=length)

    async def io(self, sqe: bytearray, data: bytes = b"", into: int = 0) -> bytes:
        """Any I/O command, until a path has answered it. Raises CommandRefused."""
        while True:
            path = await self._usable()
            try:
                return await path.io(bytearray(sqe), data, into)
            except PathLost:
                self.repeated += 1
                if path.state is AnaState.OPTIMIZED and not path.lost.is_set():
                    with contextlib.suppress(PathLost):
                        await path._read_state()

    async def close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def states(self) -> dict[tuple[str, int], AnaState | None]:
        """What each path that is there is worth."""
        return {address: path.state for address, path in self._paths.items()}

    async def moved(self) -> None:
        """Wait until a path has come, gone, or changed what it is worth."""
        await asyncio.shield(self._moved)

    def _move(self) -> None:
        self._moved.set_result(None)
        self._moved = asyncio.get_running_loop().create_future()

    async def _usable(self) -> Path:
        while True:
            for path in self._paths.values():
                if path.state is AnaState.OPTIMIZED and not path.lost.is_set():
                    return path
            await self.moved()

    async def _keep(self, address: tuple[str, int]) -> None:
        while True:
            path = Path(address, self._nqn, self._digests, self._host_id)
            try:
                async with asyncio.timeout(5 * KATO_MS / 1000):
                    await path.open()
            except (OSError, SledError, PathLost, TimeoutError):
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._paths[address] = path
            try:
                while not path.lost.is_set():
                    self._move()
                    path.changed.clear()
                    await path.changed.wait()
            finally:
                del self._paths[address]
                path.close()
                self._move()
