"""A peer link as the export side wants it: one client connection between two heads, ended by a reset."""

from collections.abc import Sequence
from typing import Final

from head_node.cluster.connection import PeerConnection
from head_node.cluster.errors import LinkError
from head_node.cluster.frames import FrameType
from head_node.export.interface import RELAY_FRAME_BYTES_MAX, Buffer, RelayReceiver

WAITING_FRAMES_MAX: Final = 16
"""Frames kept until `start`; a peer that sends more before it was answered is broken."""


class LinkRelayTransport:
    """RelayTransport (head_node/export/interface.py) over a PeerConnection that nobody else uses."""

    def __init__(self, connection: PeerConnection) -> None:
        self._connection = connection
        self._receiver: RelayReceiver | None = None
        self._waiting: list[memoryview] = []
        self._lost = ""
        connection.on_frame = self._frame
        connection.on_closed = self._closed

    def start(self, receiver: RelayReceiver) -> None:
        self._receiver = receiver
        waiting, self._waiting = self._waiting, []
        for frame in waiting:
            receiver.frame_received(frame)
        if self._connection.closed:
            receiver.transport_lost(self._lost or "closed before it was used")
        else:
            self._connection.resume_receiving()

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._connection.send(FrameType.RELAY, *buffers)

    def abort(self) -> None:
        self._connection.abort("relay ended")

    def _frame(self, kind: FrameType, payload: memoryview) -> None:
        if kind is not FrameType.RELAY or len(payload) > RELAY_FRAME_BYTES_MAX:
            raise LinkError(f"{kind.name} of {len(payload)} bytes on a relay link")
        if self._receiver is not None:
            self._receiver.frame_received(payload)
        elif len(self._waiting) < WAITING_FRAMES_MAX:
            self._waiting.append(payload)
        else:
            raise LinkError("too many frames before the relay began")

    def _closed(self, reason: str) -> None:
        self._lost = reason
        if self._receiver is not None:
            self._receiver.transport_lost(reason)
