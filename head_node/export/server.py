"""The NBD server: sockets and timers around the negotiation, the transmission phase and the relay."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, cast
from uuid import UUID

from head_node.bursts import Burst
from head_node.export import nbd_negotiation as negotiation
from head_node.export.budget import OWN_BYTES, MemoryBudget
from head_node.export.counters import NbdCounters
from head_node.export.errors import ExportUnavailable
from head_node.export.interface import (
    NOT_EXPORTED,
    ExportDirectory,
    LocalExport,
    RelayTransport,
    RemoteExport,
    Security,
)
from head_node.export.nbd_negotiation import Negotiation, NegotiationEnded, OpenExport
from head_node.export.nbd_protocol import PAYLOAD_BYTES_MAX, OptionReply
from head_node.export.nbd_server import SLAB_BYTES, Limits, Phase, Transmission
from head_node.export.peer import Standstill, peer_has_closed, peer_is_gone, reset, write_out
from head_node.export.relay import WINDOW_BYTES, Mode, RelayTiming
from head_node.export.relayed import PENDING_BYTES_MAX, RelayedClient, RelayedTransmission
from head_node.export.tls import TlsKeys
from head_node.export.tls_port import TlsPort
from head_node.export.tls_transport import TLS_BYTES_MAX
from sled_controller.descriptors import UNLIMITED, Descriptors
from sled_controller.environment import Environment
from sled_controller.fabric.keepalive import PEER_SILENCE_SECONDS, PROBES, has_vanished, watch_peer
from sled_controller.turns import Turn, Turns, source_of

log = logging.getLogger(__name__)

NEGOTIATION_READ_BYTES: Final = 16 * 1024
OUTPUT_BYTES_MAX: Final = 512 * 1024
"""With this much unsent the client reads too slowly: take no more requests until it has caught up. The kernel keeps
megabytes more, so a client that reads never waits for us; replies without data are bounded by nothing else."""
CONNECTIONS_MAX: Final = 64
"""Where nothing else is set or known of the machine."""
CONNECTION_BYTES_MAX: Final = (
    2 * SLAB_BYTES
    + OWN_BYTES
    + OUTPUT_BYTES_MAX
    + 2 * WINDOW_BYTES
    + 2 * PENDING_BYTES_MAX
    + OUTPUT_BYTES_MAX
    + TLS_BYTES_MAX
)
"""What a client may cost beside the common budget: received, in flight, replies made and unsent; if it is relayed also
what is under way and waits for credit, both ways."""
CLOSED_SECONDS_MAX: Final = 10.0
"""How long a client that has closed its side keeps its place while nothing is answered: most that close are gone."""
BUDGET_SECONDS: Final = 0.01
"""How often memory is looked after while a client waits for some."""


class NbdConnection(asyncio.BufferedProtocol):
    """One client: first negotiating, then either served here or relayed."""

    def __init__(self, server: "NbdServer") -> None:
        self.volume_id: UUID | None = None
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._negotiation = Negotiation(server.exports.names, server.tls.policy)
        self._core: Transmission | None = None
        self._relay: RelayedClient | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._buffer = memoryview(bytearray(NEGOTIATION_READ_BYTES))
        self._received = bytearray()
        self._deadline: asyncio.TimerHandle | None = None
        self._options = 0
        self._turn: Turn
        self._transport: asyncio.Transport
        self._peer = ""
        self._name = ""
        self._rejection_logged = False
        self._reset = False
        self._closed_s: float | None = None
        self._answers = Standstill()
        self._answered_bytes = 0

    # --- BufferedProtocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._peer = str(transport.get_extra_info("peername"))
        self._turn = self._server.turns.place(source_of(transport), self._take_turn)
        if not self._server.admit(self):
            self.reset_client("")
            return
        self._transport.set_write_buffer_limits(high=OUTPUT_BYTES_MAX)
        watch_peer(transport.get_extra_info("socket"), self._server.peer_silence_s, unread_too=False)
        self._expect_option()
        self._transport.writelines(self._negotiation.data_to_send())

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._core is not None:
            return self._core.get_buffer()
        if self._relay is not None:
            return self._relay.get_buffer()
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._reset:
            return
        try:
            if self._core is not None:
                self._core.received(nbytes)
                self._reply()
            elif self._relay is not None:
                self._relay.received(nbytes)
            else:
                self._received += self._buffer[:nbytes]
                self._ask_for_turn()
        except Exception as error:
            self._bug(error)

    def eof_received(self) -> bool:
        """A client may close its side and wait for the answers to what was taken; not in the negotiation."""
        if self._reset or (self._core is None and self._relay is None):
            return False
        if self._core is not None and not self._core.end_of_input():
            self.reset_client("the client is gone")
            return False
        self._closed_s = self._loop.time()
        if self._relay is not None:
            self._relay.end_of_input()
        self._reply()
        return True

    def pause_writing(self) -> None:
        if self._core is not None:
            self._core.output_blocked = True
        elif self._relay is not None:
            self._relay.block_client(True)
        else:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._core is not None:
            self._core.output_blocked = False
            self._go_on()
        elif self._relay is not None:
            self._relay.block_client(False)
        elif self._negotiation.held_up or self._received:
            self._ask_for_turn()
        else:
            self._resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reset = True
        self._stop_negotiation()
        self._turn.end()
        if self._core is not None:
            self._core.drop()
        if self._relay is not None:
            self._relay.lose("the client is gone")
        self._server.counters.options_rejected += self._negotiation.rejected_options
        self._server.forget(self)

    # --- ends -------------------------------------------------------------------------------------------------------

    def reset_client(self, reason: str) -> None:
        """End the connection now, requests unanswered (F6). No reason, no log line."""
        if self._reset:
            return
        self._reset = True
        self._stop_negotiation()
        if self._core is not None:
            self._core.drop()
        if self._relay is not None:
            self._relay.lose(reason)
        if reason:
            self._server.counters.connections_reset += 1
            log.warning("event=nbd_client_reset peer=%s volume=%s reason=%s", self._peer, self.volume_id, reason)
        reset(self._transport)

    def restrict(self, needed: Security | None) -> None:
        """The least that the connection has to be from now on; None: the volume is not exported."""
        if needed is None or self._negotiation.security < needed:
            self.reset_client(NOT_EXPORTED)

    def look_after(self, now_s: float) -> None:
        """Take the place back from a client that has vanished, or that is at its end and takes no answers."""
        silence_s, unsent_bytes = self._server.peer_silence_s, self._transport.get_write_buffer_size()
        answered_bytes = self._answered_bytes if self._relay is None else self._relay.answered_bytes
        still_s = self._answers.seconds((answered_bytes, unsent_bytes), now_s)
        ended = self._closed_s is not None or self._transport.is_closing()
        if has_vanished(self._transport, silence_s):
            self.reset_client(f"its machine did not answer for {silence_s} s")
        elif ended and unsent_bytes and still_s > silence_s:
            self.reset_client(f"it read no answer for {silence_s} s after it had disconnected")
        elif (
            self._closed_s is not None
            and not unsent_bytes
            and min(still_s, now_s - self._closed_s) > CLOSED_SECONDS_MAX
        ):
            self.reset_client(f"it closed its side, and nothing was answered for {CLOSED_SECONDS_MAX} s")

    def _stop_negotiation(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._dialling is not None:
            self._dialling.cancel()

    def _expect_option(self) -> None:
        """The next whole option has to come, and the replies to the last ones to be read, within a time; how many
        follow is the client's business. Where places are few it gives its own up first."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(self._server.option_s_max, self._negotiation_late)

    def _negotiation_late(self) -> None:
        self._server.counters.negotiations_timed_out += 1
        self.reset_client(f"no option for {self._server.option_s_max} s")

    def _relay_ended(self, reason: str) -> None:
        if reason:
            self.reset_client(f"relay: {reason}")
        else:
            self._transport.close()

    # --- negotiation ------------------------------------------------------------------------------------------------

    def _negotiate(self, events: list[negotiation.Event]) -> None:
        while events:
            event = events.pop(0)
            if isinstance(event, OpenExport):
                events += self._open(event)
                continue
            self._transport.writelines(self._negotiation.data_to_send())
            if isinstance(event, NegotiationEnded):
                self._end_negotiation(event)
                return
            self._turn.charge(steps=1)
            self._transport = self._server.tls.start(self._transport, self, self._negotiation.secured, self._tls_failed)
        self._transport.writelines(self._negotiation.data_to_send())
        if self._core is not None or self._relay is not None:
            return
        if self._negotiation.options != self._options:
            self._options = self._negotiation.options
            self._expect_option()
        if self._negotiation.held_up:
            self._transport.pause_reading()

    def _ask_for_turn(self) -> None:
        """For options, and for requests beyond a turn's share; nothing is read meanwhile."""
        self._turn.ask()
        if self._turn.waiting and self._core is None and not self._reset:
            self._transport.pause_reading()

    def _take_turn(self) -> bool:
        """Go on with what was held up; whether there is more."""
        try:
            if self._core is not None and not self._reset:
                self._core.resume()
                self._reply()
                return self._core.behind and not self._reset
            return self._relay is None and not self._reset and self._take_options()
        except Exception as error:
            self._bug(error)
            return False

    def _take_options(self) -> bool:
        """Unless the client has to read its replies first."""
        if self._transport.get_write_buffer_size() > OUTPUT_BYTES_MAX:
            return False
        received, self._received = self._received, bytearray()
        self._negotiation.begin_turn()
        self._resume_reading()
        self._negotiate(self._negotiation.receive(received))
        return not self._reset and self._negotiation.held_up

    def _end_negotiation(self, event: NegotiationEnded) -> None:
        self._stop_negotiation()
        if event.fault:
            self._server.counters.negotiations_failed += 1
            log.warning("event=nbd_negotiation_failed peer=%s reason=%s", self._peer, event.fault)
        self._transport.close()

    def _tls_failed(self, reason: str) -> None:
        if self._core is None and self._relay is None:
            self._end_negotiation(NegotiationEnded(""))  # the alert goes out
        else:
            self.reset_client(f"TLS: {reason}")

    def _open(self, event: OpenExport) -> list[negotiation.Event]:
        try:
            export = self._server.exports.find(event.name)
        except ExportUnavailable as error:
            return self._negotiation.refuse(OptionReply.ERR_SHUTDOWN, str(error))
        if export is None:
            return self._negotiation.refuse(OptionReply.ERR_UNKNOWN, f"there is no export {event.name!r}")
        if export.security > self._negotiation.security:
            return self._negotiation.refuse_insecure(event.name, export.security)
        if event.info_only:
            size = export.volume.size_bytes if isinstance(export, LocalExport) else export.size_bytes
            return self._negotiation.grant(size)
        self.volume_id = export.volume_id
        self._name = event.name
        if isinstance(export, LocalExport):
            self._serve(export)
        else:
            self._transport.pause_reading()
            self._dialling = self._loop.create_task(self._dial(export))
        return []

    def _agreed(self) -> tuple[bool, bool]:
        return self._negotiation.structured, self._negotiation.allocation

    def _serve(self, export: LocalExport) -> None:
        self._negotiation.grant(export.volume.size_bytes)
        self._begin()
        structured, allocation = self._agreed()
        self._core = Transmission(
            export.volume,
            structured=structured,
            allocation=allocation,
            wake=self._wake,
            peer_gone=lambda: peer_is_gone(self._transport),
            unsent=self._transport.get_write_buffer_size,
            evict=self.reset_client,
            counters=self._server.counters,
            budget=self._server.budget,
            limits=self._server.limits,
        )
        self._turn.trusted = True  # what it does from now on is served as the volume's clients are
        self._core.feed(self._negotiation.leftover())
        self._reply()

    def _begin(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._transport.writelines(self._negotiation.data_to_send())
        log.info("event=nbd_client peer=%s volume=%s", self._peer, self.volume_id)

    async def _dial(self, export: RemoteExport) -> None:
        try:
            upstream = await export.dial()
        except ExportUnavailable as error:
            self._dialling = self.volume_id = None
            if not self._reset:
                self._resume_reading()
                self._negotiate(self._negotiation.refuse(OptionReply.ERR_SHUTDOWN, str(error)))
            return
        self._dialling = None
        if self._reset:
            upstream.abort()
            return
        self._negotiation.grant(export.size_bytes)
        self._begin()
        structured, allocation = self._agreed()
        self._relay = RelayedClient(
            self._transport,
            upstream,
            Mode.of(self._negotiation.security, structured=structured, allocation=allocation),
            clock=self._server.env.clock,
            timing=self._server.timing,
            counters=self._server.counters,
            moved=self._serves_by_now,
            on_end=self._relay_ended,
        )
        leftover = self._negotiation.leftover()
        if leftover:
            self._relay.send(leftover)
        self._resume_reading()

    def _serves_by_now(self) -> bool:
        """Whether this head has become the primary of what it relays: its clients are better off coming again."""
        try:
            return isinstance(self._server.exports.find(self._name), LocalExport)
        except ExportUnavailable:
            return False

    # --- transmission -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """There are replies, or room again: take up what a limit stopped, unless the client has left meanwhile."""
        core = self._core
        if core is None or self._reset:
            return
        if core.stalled and peer_is_gone(self._transport) and (core.limited or not peer_has_closed(self._transport)):
            self.reset_client("the client is gone")
            return
        if core.behind:
            self._ask_for_turn()
        else:
            try:
                core.resume()
            except Exception as error:
                self._bug(error)
                return
        self._reply()

    def _bug(self, error: Exception) -> None:
        """A bug must cost this connection only."""
        self._server.counters.internal_errors += 1
        log.exception("event=nbd_internal_error peer=%s", self._peer)
        self.reset_client(f"internal error: {error!r}")

    def _reply(self) -> None:
        """Write the replies of this loop turn at once, and keep reading in step with what may be taken."""
        core = self._core
        if core is None or self._reset:
            return
        size = write_out(self._transport, core.take_output())
        self._answered_bytes += size
        core.handed_over(size)
        if core.phase is Phase.BROKEN or core.abandoned:
            self.reset_client(core.fault or "the client is gone")
            return
        if core.first_rejection and not self._rejection_logged:
            self._rejection_logged = True
            log.warning("event=nbd_bad_request peer=%s reason=%s", self._peer, core.first_rejection)
        if core.finished:
            self._transport.close()
        elif core.stalled:
            if self._transport.is_reading():
                self._transport.pause_reading()
        else:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if not (
            self._reset or self._closed_s is not None or self._transport.is_closing() or self._transport.is_reading()
        ):
            self._transport.resume_reading()


class NbdServer:
    """Serves the exports of a directory to any number of clients up to a bound, and to other heads' clients."""

    def __init__(
        self,
        exports: ExportDirectory,
        env: Environment,
        *,
        connections_max: int = CONNECTIONS_MAX,
        option_s_max: float = 10.0,
        limits: Limits | None = None,
        budget: MemoryBudget | None = None,
        relay_timing: RelayTiming | None = None,
        peer_silence_s: int = PEER_SILENCE_SECONDS,
        descriptors: Descriptors = UNLIMITED,
        tls: TlsKeys | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.exports = exports
        self.env = env
        self._needed: Mapping[UUID, Security | None] = {}
        self.turns = turns or Turns(env.clock)
        self.counters = NbdCounters()
        self.tls = TlsPort(tls, env.clock, self.counters)
        self.option_s_max = option_s_max
        self.limits = limits or Limits()
        self.budget = budget or MemoryBudget()
        assert self.budget.own_bytes + self.budget.common_bytes >= PAYLOAD_BYTES_MAX
        self.budget.begin_waiting = self._watch_budget
        self.timing = relay_timing or RelayTiming()
        self.peer_silence_s = peer_silence_s
        self._connections_max = connections_max
        self._connections: dict[NbdConnection, None] = {}  # a dict keeps an order, a set of objects has none
        self._relayed: dict[RelayedTransmission, None] = {}
        self._server: asyncio.Server | None = None
        self._budget_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._descriptors = descriptors
        self._refusals = Burst(log, "nbd_connections_refused", f"limit_{connections_max}")
        self._crowded = Burst(log, "nbd_places_taken", f"nbd_clients_max_{connections_max}")
        self._shortage = Burst(log, "nbd_connections_refused", "no_descriptors_left")

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen (port 0: any) and return where. OSError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: NbdConnection(self), host, port)
        self._look_timer = loop.call_later(self._look_seconds, self._look_after_clients)
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def close(self) -> None:
        """Stop listening and reset every client, requests unanswered."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.reset_client("the server is stopping")
        for relayed in list(self._relayed):
            relayed.lose("the server is stopping")
        for timer in (self._budget_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._refusals.close()
        self._crowded.close()
        self._shortage.close()
        self.tls.close()
        if self._server is not None:
            await self._server.wait_closed()

    def drop_clients(self, volume_id: UUID) -> int:
        """Reset every client of a volume, direct or relayed, requests unanswered (F6); returns how many there were."""
        connections = [connection for connection in self._connections if connection.volume_id == volume_id]
        relayed = [transmission for transmission in self._relayed if transmission.volume_id == volume_id]
        for connection in connections:
            connection.reset_client("this head stopped serving the volume")
        for transmission in relayed:
            transmission.lose("this head stopped serving the volume")
        return len(connections) + len(relayed)

    def restrict(self, needed: Mapping[UUID, Security | None]) -> None:
        """The least that a connection to each volume has to be from now on, None: it is not exported. Clients whose
        connection is less are reset."""
        known, self._needed = self._needed, needed
        changed = {volume for volume, least in needed.items() if known.get(volume, Security.PLAIN) is not least}
        clients: list[NbdConnection | RelayedTransmission] = [*self._connections, *self._relayed] if changed else []
        for client in clients:
            if client.volume_id is not None and client.volume_id in changed:
                client.restrict(needed[client.volume_id])

    def accept_relay(self, transport: RelayTransport, export: LocalExport) -> None:
        """Serve another head's client: the primary's end of a link that `RemoteExport.dial` opened over there."""
        if not self._has_room():
            transport.abort()
            return
        relayed = RelayedTransmission(
            transport,
            export,
            clock=self.env.clock,
            timing=self.timing,
            limits=self.limits,
            budget=self.budget,
            counters=self.counters,
            peer_silence_s=self.peer_silence_s,
            turns=self.turns,
            on_end=lambda ended: self._relayed.pop(ended, None),
        )
        self._relayed[relayed] = None
        relayed.start()

    def status(self) -> dict[str, object]:
        """Counters for health pages and metrics, and how TLS goes."""
        return {**self.counters.as_dict(), "tls": self.tls.status()}

    # --- called by connections --------------------------------------------------------------------------------------

    def admit(self, connection: NbdConnection) -> bool:
        """Count a new connection in, or refuse it when there are too many."""
        if not self._has_room():
            return False
        self.counters.connections_accepted += 1
        self._connections[connection] = None
        self.counters.connections_open = len(self._connections)
        return True

    def _has_room(self) -> bool:
        """Whether one more may come. The oldest one that has not agreed on an export makes room for it."""
        crowded = len(self._connections) + len(self._relayed) >= self._connections_max
        if not crowded and not self._descriptors.short:
            return True
        self.counters.connections_refused += 1
        for burst in (self._refusals, self._crowded) if crowded else (self._shortage,):
            burst.add()
        stranger = next((each for each in self._connections if each.volume_id is None), None)
        if stranger is None:
            return False
        stranger.reset_client("")
        self.forget(stranger)
        return True

    @property
    def _look_seconds(self) -> float:
        return self.peer_silence_s / (2 * PROBES)

    def _look_after_clients(self) -> None:
        loop = asyncio.get_running_loop()
        self._look_timer = loop.call_later(self._look_seconds, self._look_after_clients)
        for connection in list(self._connections):
            connection.look_after(loop.time())

    def _watch_budget(self) -> None:
        if self._budget_timer is None:
            self._budget_timer = asyncio.get_running_loop().call_later(BUDGET_SECONDS, self._look_after_budget)

    def _look_after_budget(self) -> None:
        self._budget_timer = None
        self.budget.look(asyncio.get_running_loop().time())
        if self.budget.waiting:
            self._watch_budget()

    def forget(self, connection: NbdConnection) -> None:
        """A connection is gone."""
        self._connections.pop(connection, None)
        self.counters.connections_open = len(self._connections)
