"""The relay: a client of one head, served by another, over one link that lives and dies with the client's connection.

The client's head negotiates and then passes bytes on unread; the primary's head runs the transmission phase. Nothing is
ever sent twice, and no link outlives its client: bytes of a client that went elsewhere must not take effect late.

Frames begin with one byte: OPEN (version, mode) first, then DATA, CREDIT (how many more DATA bytes the other
may send), HEARTBEAT, CLOSED when the client has closed its side, and END: from the client's side after its last byte,
from the primary's after the last reply. Each side reads at all times; unread DATA is bounded by the credit given out,
so a link that falls silent is a dead one.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Protocol

from head_node.export import nbd_protocol as nbd
from head_node.export.interface import RELAY_FRAME_BYTES_MAX, RelayTransport, Security
from sled_controller.environment import Clock
from spdk_bindings.device import Buffer

log = logging.getLogger(__name__)

RELAY_VERSION: Final = 3
WINDOW_BYTES: Final = 1024 * 1024
"""DATA bytes that may be under way in each direction: several loop turns of a fast link. Every relayed client may cost
this much on both heads, beside the common budget."""
DATA_BYTES_MAX: Final = RELAY_FRAME_BYTES_MAX - 16


class Frame(IntEnum):
    """The first byte of a frame."""

    OPEN = 1
    DATA = 2
    CREDIT = 3
    HEARTBEAT = 4
    END = 5
    CLOSED = 6


class Mode(IntFlag):
    """What the client agreed on in its negotiation, and what its connection is."""

    STRUCTURED = 1
    ALLOCATION = 2
    ENCRYPTED = 4
    AUTHENTICATED = 8

    @classmethod
    def of(cls, security: Security, *, structured: bool, allocation: bool) -> "Mode":
        """What a client's head says of it."""
        chosen = (structured, allocation, security >= Security.ENCRYPTED, security >= Security.AUTHENTICATED)
        return cls(sum(mode for mode, given in zip(cls, chosen, strict=True) if given))

    @property
    def security(self) -> Security:
        """What the client's connection is."""
        if Mode.ENCRYPTED not in self:
            return Security.PLAIN
        return Security.AUTHENTICATED if Mode.AUTHENTICATED in self else Security.ENCRYPTED


MODE_BITS: Final = 15


@dataclass(frozen=True, slots=True)
class RelayTiming:
    """How often a side speaks, and how long the other's silence is borne. Both sides use the same figures."""

    heartbeat_ms: int = 250
    silence_ms_max: int = 2000


class Cancellable(Protocol):
    """What a timer gives back (asyncio.TimerHandle)."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """The part of an event loop that a link uses."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Cancellable: ...


class LinkOwner(Protocol):
    """What a link tells the side it belongs to."""

    def link_opened(self, mode: Mode) -> None:
        """The OPEN frame has come (on the primary's side only)."""

    def link_data(self, data: memoryview) -> None:
        """DATA has come; give credit back with `consumed` once it is dealt with. The memory is valid for this call."""

    def link_drained(self) -> None:
        """All that waited for credit has gone out."""

    def link_closed(self) -> None:
        """The client has closed its side; DATA may follow, then END (on the primary's side only)."""

    def link_ended(self) -> None:
        """The other side has sent its last DATA."""

    def link_beat(self) -> None:
        """A heartbeat interval has passed: look after whatever else may have died."""

    def link_lost(self, reason: str) -> None:
        """The link is gone; called once."""


class RelayLink:
    """One end of a relay link (a RelayReceiver): framing, credit, heartbeats, and an end that is final."""

    def __init__(
        self, transport: RelayTransport, owner: LinkOwner, clock: Clock, timers: Timers, timing: RelayTiming
    ) -> None:
        self.pending_bytes = 0
        self.closed = False
        self._transport = transport
        self._owner = owner
        self._clock = clock
        self._timers = timers
        self._timing = timing
        self._pending: deque[memoryview] = deque()
        self._ending = False
        self._ended = False
        self._credit = WINDOW_BYTES
        self._expected = WINDOW_BYTES
        self._owed = 0
        self._opened = False
        self._heard_ns = clock.boottime_ns()
        self._timer: Cancellable | None = None

    def start(self, opening: Mode | None) -> None:
        """Begin; the client's side passes the mode, which the OPEN frame carries."""
        self._timer = self._timers.call_later(self._timing.heartbeat_ms / 1000, self._beat)
        if opening is not None:
            self._opened = True
            self._transport.send([bytes((Frame.OPEN, RELAY_VERSION, opening))])
        self._transport.start(self)

    def send_data(self, buffers: Sequence[Buffer]) -> None:
        """Send bytes as credit allows; the rest waits, counted in `pending_bytes`."""
        if self.closed or self._silent():
            return
        for buffer in buffers:
            if len(buffer):
                self._pending.append(memoryview(buffer))
                self.pending_bytes += len(buffer)
        self._pump()

    def note_closed(self) -> None:
        """Say, ahead of the DATA that waits for credit, that the client has closed its side."""
        if not self.closed:
            self._transport.send([bytes((Frame.CLOSED,))])

    def end(self) -> None:
        """Say that nothing follows what was sent."""
        if not self._ended:
            self._ended = self._ending = True
            self._pump()

    def consumed(self, count: int) -> None:
        """`count` bytes given to `link_data` have been dealt with: the other side may send as many more."""
        self._owed += count
        if self._owed >= WINDOW_BYTES // 4 and not self.closed:
            self._transport.send([bytes((Frame.CREDIT,)) + nbd.U32.pack(self._owed)])
            self._expected += self._owed
            self._owed = 0

    def lose(self, reason: str) -> None:
        """Reset the link: nothing that is unsent will arrive, nothing that arrives will be looked at."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._pending.clear()
        self.pending_bytes = 0
        self._transport.abort()
        self._owner.link_lost(reason)

    # --- RelayReceiver ----------------------------------------------------------------------------------------------

    def frame_received(self, frame: memoryview) -> None:
        """One frame; whatever comes after too long a silence comes from a peer that may have given the client up."""
        try:
            self._take_frame(frame)
        except Exception as error:  # a bug must cost this link only
            log.exception("event=relay_internal_error")
            self.lose(f"internal error: {error!r}")

    def _take_frame(self, frame: memoryview) -> None:
        if self.closed or self._silent():
            return
        self._heard_ns = self._clock.boottime_ns()
        kind = frame[0] if len(frame) else 0
        if not self._opened and kind not in (Frame.OPEN, Frame.HEARTBEAT):
            self.lose(f"frame {kind} before OPEN")
        elif kind == Frame.DATA:
            data = frame[1:]
            if len(data) > self._expected or not data:
                self.lose("data beyond the credit given")
                return
            self._expected -= len(data)
            self._owner.link_data(data)
        elif kind == Frame.CREDIT and len(frame) == 5:
            (more,) = nbd.U32.unpack_from(frame, 1)
            if self._credit + more > WINDOW_BYTES:
                self.lose("more credit than was used")
                return
            self._credit += more
            self._pump()
        elif kind == Frame.OPEN and len(frame) == 3 and frame[1] == RELAY_VERSION and not self._opened:
            self._opened = True
            self._owner.link_opened(Mode(frame[2] & MODE_BITS))
        elif kind == Frame.CLOSED:
            self._owner.link_closed()
        elif kind == Frame.END:
            self._owner.link_ended()
        elif kind != Frame.HEARTBEAT:
            self.lose(f"malformed frame {kind} of {len(frame)} bytes")

    def transport_lost(self, reason: str) -> None:
        """The transport ended by itself."""
        self.lose(reason)

    def alive(self) -> bool:
        """False when the link is lost, or has to be: asked before anything that came over it is acted upon late."""
        return not self.closed and not self._silent()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _silent(self) -> bool:
        silence_ms = (self._clock.boottime_ns() - self._heard_ns) / 1_000_000
        if silence_ms > self._timing.silence_ms_max:
            self.lose(f"the other head was silent for {silence_ms:.0f} ms")
            return True
        return False

    def _beat(self) -> None:
        if self.closed or self._silent():
            return
        self._transport.send([bytes((Frame.HEARTBEAT,))])
        self._timer = self._timers.call_later(self._timing.heartbeat_ms / 1000, self._beat)
        self._owner.link_beat()

    def _pump(self) -> None:
        waited = self.pending_bytes
        while self._pending and self._credit and not self.closed:
            parts: list[Buffer] = [bytes((Frame.DATA,))]
            room = min(self._credit, DATA_BYTES_MAX)
            while self._pending and room:
                buffer = self._pending.popleft()
                if len(buffer) > room:
                    self._pending.appendleft(buffer[room:])
                    buffer = buffer[:room]
                parts.append(buffer)
                room -= len(buffer)
                self._credit -= len(buffer)
                self.pending_bytes -= len(buffer)
            self._transport.send(parts)
        if self.closed or self.pending_bytes:
            return
        if self._ending:
            self._ending = False
            self._transport.send([bytes((Frame.END,))])
        if waited:
            self._owner.link_drained()
