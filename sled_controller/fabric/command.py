"""What a host's queue is given and what it gives back: commands, their ends, and the other events of its life."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from sled_controller.fabric.pdu import MAC_OFFSET
from spdk_bindings.device import Buffer

Data: TypeAlias = Sequence[memoryview]


class Command:
    """One command: a 64-byte SQE without CID, SGL and MAC, the data to send or the buffer to fill.

    `authenticated` commands get the next count of the queue and its MAC when they are submitted. `context` is the
    caller's. `received` counts the bytes that arrived in `into`.
    """

    __slots__ = (
        "authenticated", "cid", "context", "damaged", "data", "data_bytes", "into", "received", "requested", "sqe",
        "submitted_s",
    )  # fmt: skip

    def __init__(
        self, sqe: bytearray, data: Data = (), into: memoryview | None = None, *, authenticated: bool = False,
        context: Any = None,
    ) -> None:  # fmt: skip
        self.sqe = sqe
        self.data = data
        self.data_bytes = sum(map(len, data))
        self.into = into
        self.authenticated = authenticated
        self.context = context
        self.cid = -1
        self.received = 0
        self.requested = 0  # bytes of data that the controller has asked for by R2T
        self.submitted_s = 0.0
        self.damaged = False

    def again(self) -> "Command":
        """As it was before it was submitted: for one that is over and was not performed."""
        self.sqe[MAC_OFFSET:] = bytes(len(self.sqe) - MAC_OFFSET)
        self.cid = -1
        self.received = self.requested = 0
        self.damaged = False
        return self


class Connected(NamedTuple):
    """The queue is live; the controller has this id."""

    controller_id: int


class Completed(NamedTuple):
    """`command` is over; `status` is SCT << 8 | SC, 0 for success."""

    command: Command
    status: int
    dw0: int
    dw1: int


class Refused(NamedTuple):
    """Connect was refused with this status."""

    status: int


class Terminated(NamedTuple):
    """The queue has ended by a TermReq, the peer's or ours (then it is among the data to send)."""

    fes: int
    fei: int
    reason: str
    by_peer: bool


Event: TypeAlias = Completed | Connected | Refused | Terminated


def cut(buffers: Data, offset: int, length: int) -> list[Buffer]:
    """The pieces of `buffers` that hold `length` bytes from `offset` of their concatenation; nothing is copied."""
    pieces: list[Buffer] = []
    for buffer in buffers:
        if offset >= len(buffer):
            offset -= len(buffer)
            continue
        piece = buffer[offset : offset + length]
        pieces.append(piece)
        length -= len(piece)
        offset = 0
        if not length:
            break
    return pieces
