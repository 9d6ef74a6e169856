"""The host's side of a firmware update: a management host on a sled's admin queue.

It authenticates by DH-HMAC-CHAP, reads the slot state, sends an image and commits it (docs/wire-protocol.md, section
2).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sled_board.slot_store import COPY_BYTES, decode
from sled_board.slots import Slots

from sled_controller.environment import Environment
from sled_controller.errors import CommandFailed, SledUnavailable
from sled_controller.fabric import vendor
from sled_controller.fabric.client import CONTROLLER_CONFIGURATION
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.connection import QueueConnection
from sled_controller.fabric.dhchap.handshake import HostHandshake, SequenceNumbers
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.host import HostQueue
from sled_controller.fabric.host_authentication import authenticate
from sled_controller.firmware.update import CommitAction
from spdk_bindings.nvme import SGL_FLAGS, SQE, AdminOpcode, LogPage, Property, Status, status_name

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 128 * 1024
PIECES_AT_ONCE: Final = 4
DEPTH: Final = 16
OPEN_SECONDS_MAX: Final = 10.0
COMMAND_SECONDS_MAX: Final = 60.0
"""For one command: the storage of a board may be slow, and a commit reads the whole image."""
_DWORD_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ManagementHost:
    """Who we are to sleds, and what we prove it with."""

    nqn: str
    host_id: UUID
    terms: Terms


class ManagedSled:
    """An authenticated admin queue. Its methods raise SledUnavailable and CommandFailed."""

    def __init__(self, connection: QueueConnection, lost: "asyncio.Future[str]") -> None:
        self._connection = connection
        self._lost = lost

    async def slots(self) -> Slots:
        """What is in the sled's slots, and which one runs."""
        answer = await self._command(vendor.get_log_page(LogPage.FIRMWARE, COPY_BYTES), room=COPY_BYTES)
        into = answer.command.into
        stored = None if into is None else decode(bytes(into))
        if stored is None:
            raise CommandFailed(Status.DATA_TRANSFER_ERROR, "log page C3h is no slot state")
        return stored.slots

    async def download(self, image: bytes) -> AsyncIterator[int]:
        """Send an image; yields how many bytes of it the sled has written, as they become more."""
        padded = image + bytes(-len(image) % _DWORD_BYTES)
        running: list[tuple[int, asyncio.Task[Completed]]] = []
        try:
            for offset in range(0, len(padded), PIECE_BYTES):
                piece = padded[offset : offset + PIECE_BYTES]
                sqe = _sqe(AdminOpcode.FIRMWARE_DOWNLOAD, len(piece) // _DWORD_BYTES - 1, offset // _DWORD_BYTES)
                running.append((offset + len(piece), asyncio.create_task(self._command(sqe, piece))))
                if len(running) == PIECES_AT_ONCE:
                    end, task = running.pop(0)
                    await task
                    yield min(end, len(image))
            while running:
                end, task = running.pop(0)
                await task
                yield min(end, len(image))
        finally:
            for _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)

    async def commit(self, slot: int, action: CommitAction) -> None:
        """Commit slot 1 or 2, or with 0 the one that was sent to."""
        sqe = _sqe(AdminOpcode.FIRMWARE_COMMIT, slot | action << 3, 0)
        await self._command(sqe, good=(Status.SUCCESS, Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET))

    async def enable(self) -> None:
        """Set CC.EN, before which no controller does anything."""
        await self._command(vendor.property_set(Property.CC, CONTROLLER_CONFIGURATION))

    async def ask(self, sqe: bytearray, data: bytes, room: int) -> bytes:
        """The answer to a command, for `authenticate`."""
        answer = await self._command(sqe, data, room)
        return b"" if answer.command.into is None else bytes(answer.command.into[: answer.command.received])

    async def _command(
        self, sqe: bytearray, data: bytes = b"", room: int = 0, good: tuple[Status, ...] = (Status.SUCCESS,)
    ) -> Completed:
        future: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()

        def ended(answer: Completed) -> None:
            if not future.done():
                future.set_result(answer)

        into = memoryview(bytearray(room)) if room else None
        parts = (memoryview(data),) if data else ()
        self._connection.submit(Command(sqe, parts, into, context=ended))
        await asyncio.wait((future, self._lost), timeout=COMMAND_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            reason = self._lost.result() if self._lost.done() else f"no answer within {COMMAND_SECONDS_MAX:g} s"
            raise SledUnavailable(reason)
        answer = future.result()
        if answer.status not in good:
            raise CommandFailed(answer.status, status_name(answer.status))
        return answer


@asynccontextmanager
async def managed(
    address: tuple[str, int], subsystem_nqn: str, manager: ManagementHost, env: Environment
) -> AsyncIterator[ManagedSled]:
    """A sled at `address`, until the block ends; raises SledUnavailable, AuthenticationFailed, CommandFailed."""
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[str] = loop.create_future()
    core = HostQueue(
        queue_id=0, depth=DEPTH, subsystem_nqn=subsystem_nqn, host_nqn=manager.nqn, host_id=manager.host_id
    )
    connection = QueueConnection(core, lost.set_result)
    try:
        sled = ManagedSled(connection, lost)
        try:
            async with asyncio.timeout(OPEN_SECONDS_MAX):
                await loop.create_connection(lambda: connection, *address)
                await connection.connected
                numbers = SequenceNumbers(env.entropy)
                t_id = int.from_bytes(env.entropy.bytes(2), "little")
                handshake = HostHandshake(manager.nqn, subsystem_nqn, t_id, manager.terms, env.entropy, numbers)
                await authenticate(handshake, sled.ask)
                await sled.enable()
        except OSError as error:  # TimeoutError is one
            raise SledUnavailable(f"{address[0]}:{address[1]}: {error or 'no answer in time'}") from None
        yield sled
    finally:
        connection.abort()


def _sqe(opcode: AdminOpcode, cdw10: int, cdw11: int) -> bytearray:
    return bytearray(SQE.pack(opcode, SGL_FLAGS, 0, 0, 0, 0, 0, bytes(16), cdw10, cdw11, 0, 0, 0, 0))
