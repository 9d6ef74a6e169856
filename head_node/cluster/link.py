"""A link between two heads: the sans-I/O core. Bytes in, events out, buffers to send; no socket, no clock.

First the three messages of `PeerHandshake`, then frames: `length u32 | type u8 | payload | tag 16`, little endian.
`length` counts type and payload and is bounded before memory is taken. The tag is an AES-GMAC over length, type and
payload; its nonce is the count of frames in that direction, so a lost, repeated or reordered frame fails the check.
Whatever fails ends the link for good.
"""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from head_node.cluster.errors import IllegalTransition, LinkClosed, LinkError
from head_node.cluster.frames import FRAME_BYTES_MAX, FrameType, Purpose
from sled_controller.errors import HandshakeFailed
from sled_controller.session import PeerHandshake, QueueMac
from spdk_bindings.device import Buffer

HEADER: Final = struct.Struct("<IB")
LENGTH_BYTES: Final = 4
TAG_BYTES: Final = 16
_TYPES: Final = {int(kind): kind for kind in FrameType}
_CONTEXT: Final = struct.Struct("<8sB16s16s")
_CONTEXT_MAGIC: Final = b"PALLINK2"


class LinkState(enum.Enum):
    """The life of a link."""

    NEW = "new"
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSED = "closed"


class LinkInput(enum.Enum):
    """What can happen to a link."""

    START = "start"
    HANDSHAKE_STEP = "handshake step"
    AUTHENTICATED = "authenticated"
    FRAME = "frame"
    BROKEN = "broken"
    CLOSE = "close"


TRANSITIONS: Final = {
    (LinkState.NEW, LinkInput.START): LinkState.HANDSHAKE,
    (LinkState.NEW, LinkInput.CLOSE): LinkState.CLOSED,
    (LinkState.HANDSHAKE, LinkInput.HANDSHAKE_STEP): LinkState.HANDSHAKE,
    (LinkState.HANDSHAKE, LinkInput.AUTHENTICATED): LinkState.OPEN,
    (LinkState.HANDSHAKE, LinkInput.BROKEN): LinkState.CLOSED,
    (LinkState.HANDSHAKE, LinkInput.CLOSE): LinkState.CLOSED,
    (LinkState.OPEN, LinkInput.FRAME): LinkState.OPEN,
    (LinkState.OPEN, LinkInput.BROKEN): LinkState.CLOSED,
    (LinkState.OPEN, LinkInput.CLOSE): LinkState.CLOSED,
    (LinkState.CLOSED, LinkInput.CLOSE): LinkState.CLOSED,
}


@dataclass(frozen=True, slots=True)
class LinkContext:
    """What a link is for; both sides sign it. `acceptor` keeps a hello from being carried to another head."""

    purpose: Purpose
    volume: UUID
    acceptor: UUID

    def encode(self) -> bytes:
        return _CONTEXT.pack(_CONTEXT_MAGIC, self.purpose, self.volume.bytes, self.acceptor.bytes)

    @classmethod
    def decode(cls, data: Buffer) -> "LinkContext":
        """Raises LinkError."""
        if len(data) != _CONTEXT.size:
            raise LinkError(f"a link context of {len(data)} bytes, not {_CONTEXT.size}")
        magic, purpose, volume, acceptor = _CONTEXT.unpack(data)
        try:
            known = Purpose(purpose)
        except ValueError:
            raise LinkError(f"purpose {purpose} is not known here") from None
        if magic != _CONTEXT_MAGIC:
            raise LinkError("the link context has another magic")
        return cls(known, UUID(bytes=volume), UUID(bytes=acceptor))


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The other head has proved that it holds the key `peer_public`; frames may be sent from now on."""

    peer_public: bytes
    context: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole frame whose tag was right. `payload` stays valid as long as it is referenced."""

    kind: FrameType
    payload: memoryview


class PeerLink:
    """One link. Feed it with `receive`, take events with `next_event`, buffers to write with `data_to_send`."""

    def __init__(self, handshake: PeerHandshake, *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._handshake = handshake
        self._frame_bytes_max = frame_bytes_max
        self._state = LinkState.NEW
        self._received = bytearray()
        self._position = 0
        self._outgoing: list[Buffer] = []
        self._sender: QueueMac | None = None
        self._checker: QueueMac | None = None
        self.steps = 0
        """Messages of the handshake that were taken: each costs signatures, or a key agreement."""
        self.frames_sent = 0
        self.frames_received = 0

    @property
    def state(self) -> LinkState:
        return self._state

    def start(self, *, initiator: bool) -> None:
        """Begin the handshake: the initiator's hello is ready to be sent afterwards."""
        self._step(LinkInput.START)
        if initiator:
            self._outgoing.append(self._handshake.start())

    def receive(self, data: Buffer) -> None:
        """Take bytes from the socket. Bounded by the caller: it reads no more while events are left."""
        if self._position:
            del self._received[: self._position]
            self._position = 0
        self._received += data

    def next_event(self) -> Authenticated | Frame | None:
        """The next event, or None until more bytes come. Raises LinkError, after which the link is closed."""
        try:
            while self._state is LinkState.HANDSHAKE:
                if self._available() < self._handshake.expects:
                    return None
                event = self._handshake_step()
                if event is not None:
                    return event
            return self._next_frame() if self._state is LinkState.OPEN else None
        except (LinkError, HandshakeFailed) as error:
            self._step(LinkInput.BROKEN)
            raise LinkError(str(error)) from error

    def send(self, kind: FrameType, buffers: Sequence[Buffer]) -> int:
        """Queue one frame; returns its bytes on the wire. Raises LinkClosed, LinkError for a frame out of bounds."""
        if self._state is not LinkState.OPEN or self._sender is None:
            raise LinkClosed(f"the link is {self._state.value}")
        length = 1 + sum(map(len, buffers))
        if length > self._frame_bytes_max:
            raise LinkError(f"a frame of {length} bytes, at most {self._frame_bytes_max}")
        parts: list[Buffer] = [HEADER.pack(length, kind), *buffers]
        parts.append(self._sender.tag_parts(self._sender.next_count(), parts))
        self._outgoing += parts
        self.frames_sent += 1
        return LENGTH_BYTES + length + TAG_BYTES

    def data_to_send(self) -> list[Buffer]:
        """What to write to the socket, in order; empty when there is nothing. Payloads are not copied."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def close(self) -> None:
        """No event comes and nothing is sent from now on."""
        self._step(LinkInput.CLOSE)
        self._received.clear()
        self._position = 0
        self._outgoing.clear()

    def _available(self) -> int:
        return len(self._received) - self._position

    def _take(self, count: int) -> bytes:
        start, self._position = self._position, self._position + count
        return bytes(memoryview(self._received)[start : self._position])

    def _handshake_step(self) -> Authenticated | None:
        handshake = self._handshake
        self.steps += 1
        answer = handshake.receive(self._take(handshake.expects))
        if answer:
            self._outgoing.append(answer)
        if handshake.expects:
            self._step(LinkInput.HANDSHAKE_STEP)
            return None
        self._sender, self._checker = handshake.outgoing(), handshake.incoming()
        self._step(LinkInput.AUTHENTICATED)
        return Authenticated(handshake.peer_public, handshake.context)

    def _next_frame(self) -> Frame | None:
        if self._available() < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[self._position : self._position + LENGTH_BYTES], "little")
        if not 1 <= length <= self._frame_bytes_max:
            raise LinkError(f"a frame of {length} bytes, at most {self._frame_bytes_max}")
        if self._available() < LENGTH_BYTES + length + TAG_BYTES:
            return None
        assert self._checker is not None
        whole = memoryview(self._take(LENGTH_BYTES + length))
        if not self._checker.check(self._checker.next_count(), self._take(TAG_BYTES), whole):
            raise LinkError("a frame's tag is wrong")
        kind = _TYPES.get(whole[LENGTH_BYTES])
        if kind is None:
            raise LinkError(f"frame type {whole[LENGTH_BYTES]} is not known here")
        self._step(LinkInput.FRAME)
        self.frames_received += 1
        return Frame(kind, whole[LENGTH_BYTES + 1 :])

    def _step(self, given: LinkInput) -> None:
        state = TRANSITIONS.get((self._state, given))
        if state is None:
            raise IllegalTransition(f"a link that is {self._state.value} cannot take {given.value}")
        self._state = state
