"""The life of a queue's connection: `TRANSITIONS` is all of it, `ACCEPTED` says what a PDU may be in each state."""

from enum import Enum, auto
from typing import Final

from sled_controller.fabric.pdu import PduType


class QueueState(Enum):
    """The life of a connection."""

    WAIT_IC = auto()
    WAIT_CONNECT = auto()
    LIVE = auto()
    CLOSING = auto()  # the last output is on its way; what arrives is dropped
    CLOSED = auto()


class Event(Enum):
    """What moves a connection on."""

    IC = auto()
    CONNECTED = auto()
    FAILED = auto()  # the host broke the protocol
    ENDED = auto()  # the association ended
    LOST = auto()  # the socket is gone


TRANSITIONS: Final[dict[tuple[QueueState, Event], QueueState]] = {
    (QueueState.WAIT_IC, Event.IC): QueueState.WAIT_CONNECT,
    (QueueState.WAIT_CONNECT, Event.CONNECTED): QueueState.LIVE,
    (QueueState.WAIT_IC, Event.FAILED): QueueState.CLOSING,
    (QueueState.WAIT_CONNECT, Event.FAILED): QueueState.CLOSING,
    (QueueState.LIVE, Event.FAILED): QueueState.CLOSING,
    (QueueState.LIVE, Event.ENDED): QueueState.CLOSING,
    (QueueState.WAIT_IC, Event.LOST): QueueState.CLOSED,
    (QueueState.WAIT_CONNECT, Event.LOST): QueueState.CLOSED,
    (QueueState.LIVE, Event.LOST): QueueState.CLOSED,
    (QueueState.CLOSING, Event.LOST): QueueState.CLOSED,
}

ACCEPTED: Final[dict[QueueState, frozenset[int]]] = {
    QueueState.WAIT_IC: frozenset({PduType.IC_REQ, PduType.H2C_TERM_REQ}),
    QueueState.WAIT_CONNECT: frozenset({PduType.CAPSULE_CMD, PduType.H2C_TERM_REQ}),
    QueueState.LIVE: frozenset({PduType.CAPSULE_CMD, PduType.H2C_DATA, PduType.H2C_TERM_REQ}),
}
