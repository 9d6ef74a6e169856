"""A link to a head, opened with a head's key as anyone who has that key can, and NBD writes over it as a relay."""

import asyncio
import struct
from typing import Any, Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from head_node.cluster.connection import PeerConnection, dial
from head_node.cluster.frames import FrameType, Purpose
from head_node.cluster.link import LinkContext
from head_node.export.relay import RELAY_VERSION, Frame
from sled_controller.environment import Environment

BLOCK: Final = 4096
REQUEST, REPLY = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
REQUEST_MAGIC, WRITE = 0x25609513, 1


class RelayLink:
    """What came over the link, and whether it is lost."""

    def __init__(self, connection: PeerConnection) -> None:
        self.connection = connection
        self.frames: list[tuple[FrameType, bytes]] = []
        self.lost: str | None = None
        self._news = asyncio.Event()
        connection.on_frame = self._frame
        connection.on_closed = self._closed
        connection.resume_receiving()

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        acceptor: tuple[UUID, bytes],
        key: Ed25519PrivateKey,
        purpose: Purpose,
        volume: UUID,
    ) -> "RelayLink":
        """Raises LinkClosed when the handshake comes to nothing. `acceptor`: id and public key."""
        context = LinkContext(purpose, volume, acceptor[0])
        return cls(await dial(address, key, acceptor[1], context, Environment()))

    def begin(self) -> None:
        """OPEN, as the relaying head of a client."""
        self._send(Frame.OPEN, bytes((RELAY_VERSION, 0)))

    def write(self, lba: int) -> None:
        """An NBD write as a relayed client's bytes, and a sign of life."""
        self._send(Frame.HEARTBEAT)
        self._send(Frame.DATA, REQUEST.pack(REQUEST_MAGIC, 0, WRITE, lba, lba * BLOCK, BLOCK) + bytes([7]) * BLOCK)

    @property
    def acknowledged(self) -> int:
        """Writes that were answered without an error."""
        data = b"".join(body[1:] for _, body in self.frames if body[:1] == bytes((Frame.DATA,)))
        return sum(REPLY.unpack_from(data, at)[1] == 0 for at in range(0, len(data) - REPLY.size + 1, REPLY.size))

    async def acknowledges(self, writes: int) -> None:
        """Wait until so many writes were answered, or the link is lost."""
        while self.acknowledged < writes and self.lost is None:
            await self._change()

    async def ends(self) -> str:
        """Wait until the link is lost; why."""
        while self.lost is None:
            await self._change()
        return self.lost

    async def _change(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _send(self, kind: Frame, data: bytes = b"") -> None:
        self.connection.send(FrameType.RELAY, bytes((kind,)) + data)

    def _frame(self, kind: FrameType, payload: Any) -> None:
        self.frames.append((kind, bytes(payload)))
        self._news.set()

    def _closed(self, reason: str) -> None:
        self.lost = reason
        self._news.set()
