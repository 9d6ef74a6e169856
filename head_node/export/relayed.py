"""The two ends of a relayed client: the one that holds the client's socket, and the one that holds the volume."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

from head_node.export.budget import MemoryBudget
from head_node.export.counters import NbdCounters
from head_node.export.interface import NOT_EXPORTED, LocalExport, RelayTransport, Security
from head_node.export.nbd_server import Limits, Phase, Transmission
from head_node.export.peer import Standstill, peer_has_closed, peer_is_gone
from head_node.export.relay import DATA_BYTES_MAX, WINDOW_BYTES, Mode, RelayLink, RelayTiming
from sled_controller.environment import Clock
from sled_controller.turns import Turns

log = logging.getLogger(__name__)

PENDING_BYTES_MAX: Final = WINDOW_BYTES // 2
"""With this much waiting for credit no more is taken in (from the client) or produced (by the volume)."""


class RelayedClient:
    """The client's head: what the client sends goes upstream, the answers go to the client, one reset ends both."""

    def __init__(
        self,
        client: asyncio.Transport,
        upstream: RelayTransport,
        mode: Mode,
        *,
        clock: Clock,
        timing: RelayTiming,
        counters: NbdCounters,
        moved: Callable[[], bool],
        on_end: Callable[[str], None],
    ) -> None:
        """`moved` says, asked at each heartbeat, that this head serves the volume by now.
        `on_end` is called once when the link is gone, with the reason ("" after a disconnect in good order)."""
        self._client = client
        self._moved = moved
        self._on_end = on_end
        self._ended = False
        self._counters = counters
        self._client_blocked = False
        self.answered_bytes = 0
        self._closed_noted = False
        self._input_over = False
        self._consumed_bytes = 0
        self._buffer = memoryview(bytearray(DATA_BYTES_MAX))
        self._link = RelayLink(upstream, self, clock, asyncio.get_running_loop(), timing)
        counters.relays_open += 1
        counters.relays_dialled += 1
        self._link.start(mode)

    def get_buffer(self) -> memoryview:
        """Where the client's next bytes go."""
        return self._buffer

    def received(self, count: int) -> None:
        """The client sent `count` bytes: pass a copy on, as the link may keep it for a while."""
        self.send(bytes(self._buffer[:count]))

    def send(self, data: bytes) -> None:
        """Pass the client's bytes on."""
        self._link.send_data([data])
        if self._link.pending_bytes > PENDING_BYTES_MAX and self._client.is_reading():
            self._client.pause_reading()

    def end_of_input(self) -> None:
        """The client has closed its side, and may wait for answers."""
        self._input_over = True
        self._note_closed()
        self._link.end()

    def block_client(self, blocked: bool) -> None:
        """The client's socket takes no more replies (True), or does again: give credit accordingly."""
        self._client_blocked = blocked
        if not blocked and self._consumed_bytes:
            consumed, self._consumed_bytes = self._consumed_bytes, 0
            self._link.consumed(consumed)

    def lose(self, reason: str) -> None:
        """The client is gone, or has to go: so does the link."""
        self._link.lose(reason)

    # --- LinkOwner --------------------------------------------------------------------------------------------------

    def link_opened(self, mode: Mode) -> None:
        self._link.lose("an OPEN frame from the primary")

    def link_data(self, data: memoryview) -> None:
        self.answered_bytes += len(data)
        self._client.write(bytes(data))
        if self._client_blocked:
            self._consumed_bytes += len(data)
        else:
            self._link.consumed(len(data))

    def link_drained(self) -> None:
        if self._client.is_closing() or self._client.is_reading() or self._input_over:
            return
        if self._still_there():
            self._client.resume_reading()

    def link_closed(self) -> None:
        self._link.lose("a CLOSED frame from the primary")

    def link_ended(self) -> None:
        self._ended = True
        self._link.lose("")

    def link_beat(self) -> None:
        read = self._client.is_reading() and not self._input_over
        if (read or self._still_there()) and self._moved():
            self._link.lose("this head serves the volume by now")

    def link_lost(self, reason: str) -> None:
        self._counters.relays_open -= 1
        if not self._ended:
            self._counters.relays_lost += 1
        self._on_end("" if self._ended else reason)

    def _still_there(self) -> bool:
        """Whether the client, whose socket is not being read, can still take answers; the link is lost if not."""
        if not peer_is_gone(self._client):
            return True
        if not peer_has_closed(self._client):
            self._link.lose("the client is gone")
            return False
        self._note_closed()
        return not self._link.closed

    def _note_closed(self) -> None:
        """The primary has to know before the rest comes, which may wait: it begins nothing that has to wait there."""
        if not self._closed_noted:
            self._closed_noted = True
            self._link.note_closed()


class RelayedTransmission:
    """The primary's head: requests that came over a link, answered by the volume. Bytes that the volume cannot take yet
    wait here, and are thrown away when the link goes.
    """

    def __init__(
        self,
        transport: RelayTransport,
        export: LocalExport,
        *,
        clock: Clock,
        timing: RelayTiming,
        limits: Limits,
        budget: MemoryBudget,
        counters: NbdCounters,
        peer_silence_s: int,
        turns: Turns,
        on_end: Callable[["RelayedTransmission"], None],
    ) -> None:
        self.volume_id: UUID = export.volume_id
        self._export = export
        self._needed: Security | None = export.security
        self._security = Security.PLAIN
        self._limits = limits
        self._budget = budget
        self._counters = counters
        self._on_end = on_end
        self._peer_silence_s = peer_silence_s
        self._unsent = Standstill()
        self._core: Transmission | None = None
        self._client_closed = False
        self._input_over = False
        self._rejection_logged = False
        self._waiting: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._turn = turns.place("", self._take_turn)
        self._turn.trusted = True  # the other head proved itself, and let its client in
        self._link = RelayLink(transport, self, clock, self._loop, timing)
        counters.relays_open += 1
        counters.relays_accepted += 1

    def start(self) -> None:
        """Begin to receive."""
        self._link.start(None)

    def lose(self, reason: str) -> None:
        """Reset the link; requests in flight stay unanswered, requests that wait are forgotten."""
        self._link.lose(reason)

    def restrict(self, needed: Security | None) -> None:
        """The least that the client's connection has to be from now on; None: the volume is not exported."""
        self._needed = needed
        if needed is None or (self._core is not None and self._security < needed):
            self._evict(NOT_EXPORTED)

    def link_opened(self, mode: Mode) -> None:
        self._security = mode.security
        if self._needed is None or self._security < self._needed:
            self._evict(NOT_EXPORTED)
            return
        self._core = Transmission(
            self._export.volume,
            structured=Mode.STRUCTURED in mode,
            allocation=Mode.ALLOCATION in mode,
            wake=self._wake,
            peer_gone=lambda: self._client_closed or not self._link.alive(),
            unsent=lambda: self._link.pending_bytes,
            evict=self._evict,
            counters=self._counters,
            budget=self._budget,
            limits=self._limits,
        )

    def link_data(self, data: memoryview) -> None:
        core = self._core
        assert core is not None
        if core.stalled or self._waiting:
            self._waiting.append(bytes(data))
            return
        core.feed(data)
        self._link.consumed(len(data))
        self._reply()

    def link_drained(self) -> None:
        core = self._core
        if core is not None and core.output_blocked:
            core.output_blocked = False
            self._go_on()

    def link_closed(self) -> None:
        self._client_closed = True
        self._reply()

    def link_ended(self) -> None:
        self._input_over = True
        self._reply()

    def link_beat(self) -> None:
        finished = self._core is not None and self._core.finished
        still_s = self._unsent.seconds((self._link.pending_bytes, finished), self._loop.time())
        if finished and still_s > self._peer_silence_s:
            self._evict(f"it read no answer for {self._peer_silence_s} s after it had disconnected")

    def link_lost(self, reason: str) -> None:
        self._counters.relays_open -= 1
        self._turn.end()
        self._waiting.clear()
        if self._core is not None:
            finished = self._core.finished
            self._core.drop()
            if not finished:
                self._counters.relays_lost += 1
                log.info("event=relay_lost volume=%s reason=%s", self.volume_id, reason)
        self._on_end(self)

    def _evict(self, reason: str) -> None:
        log.warning("event=nbd_client_reset relayed=1 volume=%s reason=%s", self.volume_id, reason)
        self._link.lose(reason)

    def _wake(self) -> None:
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """There are replies, or room again: take up what a limit stopped, then what waits."""
        core = self._core
        if core is not None and core.behind:
            self._turn.ask()
            self._reply()
        else:
            self._take_turn()

    def _take_turn(self) -> bool:
        """Take a frame or two; whether there is more than a turn's share."""
        core = self._core
        if core is None or not self._link.alive():
            return False
        try:
            core.resume()
            if self._waiting and not core.stalled:
                data = self._waiting.popleft()
                core.feed(data)
                self._link.consumed(len(data))
        except Exception as error:  # a bug must cost this client only
            self._counters.internal_errors += 1
            log.exception("event=nbd_internal_error relayed=1 volume=%s", self.volume_id)
            self._link.lose(f"internal error: {error!r}")
            return False
        if self._waiting and not core.stalled:
            self._wake()
        self._reply()
        return core.behind and not self._link.closed

    def _reply(self) -> None:
        core = self._core
        if core is None or self._link.closed:
            return
        output = core.take_output()
        self._link.send_data(output)
        core.handed_over(sum(map(len, output)))
        if self._link.closed:
            return
        if self._link.pending_bytes > PENDING_BYTES_MAX:
            core.output_blocked = True  # only `link_drained` takes it back, as that is where parsing goes on
        if core.phase is Phase.BROKEN:
            log.warning("event=nbd_garbage relayed=1 volume=%s reason=%s", self.volume_id, core.fault)
            self._link.lose(core.fault)
            return
        if core.first_rejection and not self._rejection_logged:
            self._rejection_logged = True
            log.warning("event=nbd_bad_request relayed=1 volume=%s reason=%s", self.volume_id, core.first_rejection)
        if core.abandoned or (self._client_closed and core.limited):
            self._link.lose("the client is gone")
            return
        if self._input_over and not self._waiting and not core.stalled and not core.end_of_input():
            self._link.lose("the client is gone")
            return
        if core.finished:
            self._link.end()
