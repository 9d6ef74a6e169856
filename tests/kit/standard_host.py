"""Our host role as a host of targets that are no sleds: the same client, without a session, and the standard's I/O."""

import asyncio
from functools import partial
from uuid import UUID

from kit import host

from sled_controller.environment import Environment
from sled_controller.errors import SledUnavailable
from sled_controller.fabric.client import SledClient
from sled_controller.fabric.command import Command, Completed
from sled_controller.fabric.refusal import error_of
from spdk_bindings.device import BLOCK_BYTES, Buffer
from spdk_bindings.nvme import SGL_FLAGS, SQE, IdentifyCns, IoOpcode

FUA = 1 << 30  # CDW12 of a write


def sled_client(target: UUID, port: int, *, digests: int = 0) -> SledClient:
    """A head's client that takes whatever listens at `port` for the sled `target`."""
    return SledClient(**settings(target, port), digests=digests)  # type: ignore[arg-type]


def settings(target: UUID, port: int) -> dict[str, object]:
    """What a client is made of."""
    return {
        "host": "127.0.0.1", "port": port, "sled_id": target, "sled_public": host.public_key(host.SLED_KEY),
        "head_key": host.private_key(host.HEAD_KEY), "head_id": host.HEAD, "env": Environment(host.FixedClock()),
        "key_set": lambda: None,
    }  # fmt: skip


class StandardHost(SledClient):
    """Opened and closed as the client of a sled is; reads and writes blocks of 4096 bytes like any host."""

    def __init__(self, target: UUID, port: int, *, digests: int = 0, silence_s: float) -> None:
        super().__init__(**settings(target, port), digests=digests, silence_s=silence_s)  # type: ignore[arg-type]

    async def _start_session(self, controller_id: int) -> None:
        self.controller_id = controller_id

    async def push_key_set(self) -> None:
        """A target that is no sled has none."""

    async def identify(self, cns: IdentifyCns, nsid: int = 0) -> bytes:
        """4096 bytes of Identify."""
        sqe = bytearray(SQE.pack(0x06, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), cns, 0, 0, 0, 0, 0))
        answer = await self.admin(sqe, into_bytes=4096, authenticated=False)
        return bytes(answer.command.into or b"")

    def read(self, nsid: int, lba: int, blocks: int) -> "asyncio.Future[Buffer]":
        """Read `blocks` blocks."""
        into = memoryview(bytearray(blocks * BLOCK_BYTES))
        return self._io_command(IoOpcode.READ, nsid, lba, blocks - 1, into=into)

    def write(self, nsid: int, lba: int, data: bytes, *, fua: bool = False) -> "asyncio.Future[Buffer]":
        """Write whole blocks."""
        return self._io_command(IoOpcode.WRITE, nsid, lba, len(data) // BLOCK_BYTES - 1 | fua * FUA, data)

    def flush(self, nsid: int) -> "asyncio.Future[Buffer]":
        """Flush the namespace."""
        return self._io_command(IoOpcode.FLUSH, nsid, 0, 0)

    def _io_command(
        self, opcode: int, nsid: int, lba: int, cdw12: int, data: bytes = b"", into: memoryview | None = None
    ) -> "asyncio.Future[Buffer]":
        sqe = bytearray(
            SQE.pack(opcode, SGL_FLAGS, 0, nsid, 0, 0, 0, bytes(16), lba & 0xFFFF_FFFF, lba >> 32, cdw12, 0, 0, 0)
        )
        future: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        parts = (memoryview(data),) if data else ()
        self.submit_io(Command(sqe, parts, into, context=partial(_resolve, future)))
        return future


def _resolve(future: "asyncio.Future[Buffer]", outcome: Completed | SledUnavailable) -> None:
    if isinstance(outcome, SledUnavailable):
        future.set_exception(outcome)
    elif outcome.status:
        future.set_exception(error_of(outcome.status, outcome.dw0, outcome.dw1))
    else:
        command = outcome.command
        assert command.into is None or command.received == len(command.into)
        future.set_result(command.into if command.into is not None else b"")
