"""One queue of the NVMe/TCP target: a connection's life from ICReq to its end, without a socket.

The shell gives it bytes (`room`, then `received`) and sends what `take_output` returns. Its life is in `queue_states`.
Sources: NVM Express TCP Transport 1.0, section 3; NVM Express Base 2.0, 3.3 and 6.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from sled_controller.fabric import pdu
from sled_controller.fabric.associations import HostAssociation, Standing
from sled_controller.fabric.authentication import QueueAuthentication
from sled_controller.fabric.connect import CONNECTS_REFUSED_MAX, Admitted, connect
from sled_controller.fabric.io_path import IoPath, Transfer
from sled_controller.fabric.pdu import FatalError, PduError, PduType
from sled_controller.fabric.port import Port
from sled_controller.fabric.queue_states import ACCEPTED
from sled_controller.fabric.queue_states import TRANSITIONS as TRANSITIONS
from sled_controller.fabric.queue_states import Event as Event
from sled_controller.fabric.queue_states import QueueState as QueueState
from sled_controller.fabric.receive_buffer import ReceiveStream
from sled_controller.fabric.standard_controller import KEEP_ALIVE_GRACE_MS, StandardController
from sled_controller.turns import STRANGER_COMMANDS
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import AdminOpcode, FabricsType, Status, cqe_status

log = logging.getLogger(__name__)

ADMIN_IN_CAPSULE_BYTES_MAX: Final = 8192  # fixed by the transport
HANDSHAKE_NS: Final = 5_000_000_000  # from accept to Connect
STALL_NS: Final = 10_000_000_000  # a PDU begun, or data asked for by R2T, without a further byte
STRANGER_HELD_BYTES_MAX: Final = 256 * 1024
"""Replies that wait on an admin queue, or on one whose host has proved nothing: a log page or two."""
MS: Final = 1_000_000
UNBOUNDED: Final = 1 << 62
STEP_COMMANDS: Final = 8
"""What a costly step of a trusted host counts for, in the commands of its piece."""
_FABRICS: Final = int(AdminOpcode.FABRICS)
# The answer to a read without digests, which is packed here: two calls instead of six.
_C2H_DATA: Final = pdu.C2H_DATA.pack
_C2H_DATA_KIND: Final = int(PduType.C2H_DATA)
_LAST: Final = pdu.LAST_FLAG
_LAST_SUCCESS: Final = pdu.LAST_FLAG | pdu.SUCCESS_FLAG
_DATA_HEADER: Final = pdu.DATA_HEADER_BYTES
_CAPSULE_RESP: Final = pdu.CAPSULE_RESP.pack
_CAPSULE_RESP_KIND: Final = int(PduType.CAPSULE_RESP)
_RESPONSE: Final = pdu.CAPSULE_RESP_BYTES
_PATH_RELATED: Final = 3  # status code type: says something about the path, nothing about the command


def _unknown() -> bool:
    """Nobody has said that the peer is gone."""
    return False


class TargetQueue:
    """The target's side of one connection. `wake` is called when there is output outside of `received`; `peer_gone`
    says whether the host has left, though bytes that it sent before may still wait unread."""

    def __init__(
        self, port: Port, now_ns: int, local_address: tuple[str, int] = ("127.0.0.1", 0), peer_host: str = "127.0.0.1"
    ) -> None:
        self.port = port
        self.local_address = local_address
        self.peer_host = peer_host
        self.state = QueueState.WAIT_IC
        self.stream = ReceiveStream(port.allocate)
        self.out: list[Buffer] = []
        self.wake: Callable[[], None] | None = None
        self.peer_gone: Callable[[], bool] = _unknown
        self.queue_id = 0
        self.entries = 1
        self.sqhd = 0
        self.sqhd_end = 1
        """SQHD begins at 0 again there: behind the entries, or at once without flow control."""
        self._flow_control = True
        self.busy: set[int] = set()
        self._connects_refused = 0
        self.now_ms = 0
        self.association: HostAssociation | None = None
        self.controller: StandardController | None = None
        self.io: IoPath | None = None
        self.failure = ""
        self.authenticating = False  # nothing but authentication is done for this host yet
        self._authentication: QueueAuthentication | None = None
        self.digests = 0
        self._align = 4
        self._data_start = _DATA_HEADER
        self.out_bytes = 0
        self.held_bytes_max = port.limits.held_bytes_max
        """This connection's share of what is held, which changes with their number."""
        self._receiving = False
        self._poked = False  # the shell knows that there is output
        self.blocked = False  # commands wait in the stream because the queue was stalled, or its piece is done
        self.commands_left = UNBOUNDED
        """Of the piece that is being done (`turns`)."""
        self.steps = 0
        """Costly ones that the piece took (`note_step`)."""
        self._data_for: Transfer | None = None  # an H2CData's payload is arriving
        self._data_left = 0
        self._data_last = False
        self._digest_left = 0
        self._heard_ns = self._opened_ns = now_ns

    # --- for the shell

    def room(self) -> memoryview:
        """Where the next bytes of the stream go."""
        return self.stream.room()

    def received(self, count: int, now_ms: int, now_ns: int) -> None:
        """`count` bytes were put into `room`. `now_ms` is sled time, `now_ns` time since boot."""
        self.arrived(count, now_ns)
        self.resume(now_ms)

    def arrived(self, count: int, now_ns: int) -> None:
        """`received` for a connection that has to wait for its turn: `resume` is to follow."""
        self.stream.end += count
        self._heard_ns = now_ns
        self.blocked = True

    def feed(self, data: Buffer, now_ms: int = 0, now_ns: int = 0) -> None:
        """`room` and `received` for callers that hold bytes."""
        view = memoryview(data)
        while view:
            room = self.room()
            count = min(len(room), len(view))
            if not count:
                raise BufferError("the queue is stalled; take its output first")
            room[:count] = view[:count]
            view = view[count:]
            self.received(count, now_ms, now_ns)

    def resume(self, now_ms: int, commands: int = UNBOUNDED) -> None:
        """Go on with what was received: one piece of so many commands, where the loop is shared with others."""
        self.now_ms = now_ms
        self.commands_left, self.steps = commands, 0
        self._receiving = True
        try:
            self._consume()
        except PduError as error:
            self._fail(error)
        finally:
            self._receiving = False
            if self.state is QueueState.CLOSING or self.state is QueueState.CLOSED:
                self.stream.start = self.stream.end
            self.stream.tidy()

    def take_output(self) -> list[Buffer]:
        """What to send now, in order."""
        out, self.out = self.out, []
        self.out_bytes = 0
        self._poked = False
        return out

    @property
    def opened_ns(self) -> int:
        """When the connection was made."""
        return self._opened_ns

    @property
    def heard_ns(self) -> int:
        """When the host last sent something."""
        return self._heard_ns

    @property
    def live(self) -> bool:
        """Whether commands are taken and answered."""
        return self.state is QueueState.LIVE

    @property
    def stalled(self) -> bool:
        """Too much is held or waits to be sent; `resume` a `blocked` queue when that is over."""
        io = self.io
        if io is None:
            return self.out_bytes > STRANGER_HELD_BYTES_MAX
        if io.waits:
            return True
        held_bytes = self.out_bytes + io.held_bytes
        if held_bytes <= STRANGER_HELD_BYTES_MAX:
            return False
        return self.standing < Standing.NAMED or held_bytes > self.held_bytes_max

    @property
    def standing(self) -> Standing:
        """What the host behind it has shown; nothing while it still has to prove itself."""
        if self.association is None or self.authenticating:
            return Standing.STRANGER
        return self.association.standing

    def lost(self, reason: str) -> None:
        """The connection is gone."""
        if self.state is QueueState.CLOSED:
            return
        ended = self.state is QueueState.CLOSING
        self._advance(Event.LOST)
        self.out = []
        if self.association is None or ended:
            return
        if self.authenticating:
            self.give_up(reason)
        else:
            self.association.queue_gone(self.queue_id, reason)

    def give_up(self, reason: str) -> None:
        """End the association; but an I/O queue whose host never proved itself is nobody's, and ends alone."""
        association = self.association
        if association is None:
            return
        if self.queue_id and self.authenticating:
            association.proving.pop(self, None)
            self.end(reason)
        else:
            association.end(reason)

    def _broken(self, reason: str) -> None:
        """What came on this connection makes no sense: of one I/O queue among several that says nothing of the rest."""
        association = self.association
        beside_others = association is not None and len(association.queues.keys() - {0, self.queue_id}) > 0
        if association is not None and self.queue_id and not self.authenticating and beside_others:
            association.queue_gone(self.queue_id, reason)
        else:
            self.give_up(reason)

    def end(self, reason: str) -> None:
        """The association has ended: nothing more is done, what is queued may still be sent."""
        if self.state is QueueState.LIVE:
            self.failure = reason
            self._advance(Event.ENDED)
            self.poke()

    def note_step(self) -> None:
        """A command takes a costly step (a signature, a key agreement): a stranger's piece ends with it."""
        self.steps += 1
        self.commands_left -= STEP_COMMANDS if self.standing is Standing.TRUSTED else STRANGER_COMMANDS

    def overdue(self, now_ns: int) -> str | None:
        """Why this connection has to be given up now, if it has to."""
        if self.state in (QueueState.WAIT_IC, QueueState.WAIT_CONNECT):
            return "no Connect in time" if now_ns - self._opened_ns > HANDSHAKE_NS else None
        silent_ns = now_ns - self._heard_ns
        if self._authentication is not None and self._authentication.overdue(now_ns):
            return "no authentication in time"
        transferring = self._data_for is not None or (self.io is not None and self.io.transfers)
        if silent_ns > STALL_NS and (transferring or self.stream.start != self.stream.end) and not self.stalled:
            return "a PDU or a transfer does not go on"
        if self.state is QueueState.LIVE and self.controller is not None and self.queue_id == 0:
            kato_ns = (self.controller.kato_ms + KEEP_ALIVE_GRACE_MS) * MS
            if silent_ns > (kato_ns if self.controller.expects_keep_alive else self.port.kato_ms_max * MS):
                return "keep-alive timer expired"
        return None

    def poke(self) -> None:
        """Have the shell send what has come up outside of `received`."""
        if not (self._poked or self._receiving) and self.wake is not None:
            self._poked = True
            self.wake()

    # --- output

    def complete(
        self, cid: int, status: int, dw0: int = 0, dw1: int = 0, data: Buffer = b"", dnr: bool = False, nsid: int = 0,
        lba: int = 0,
    ) -> None:  # fmt: skip
        """Answer a command: its data if it succeeded and has some, then its completion. A failure goes to the
        controller's error log, with the namespace and the first block that the command named."""
        self.busy.discard(cid)
        field = cqe_status(status, dnr)
        if status and status >> 8 != _PATH_RELATED:
            self.note_failure(cid, field, nsid, lba)
        if self.state is QueueState.CLOSED or self.state is QueueState.CLOSING:
            return
        if data:
            whole = not (self._flow_control or field or dw0 or dw1)
            self.out += pdu.c2h_data(cid, 0, (data,), True, self.digests, self._align, whole)
            self.out_bytes += len(data)
            if whole:
                return
        cqe = pdu.CQE.pack(dw0, dw1, self.sqhd, 0, cid, field)
        self.out.append(pdu.capsule_resp(cqe, self.digests))

    def complete_read(self, cid: int, buffers: Sequence[Buffer], length: int) -> None:
        """Answer a command that succeeded with `length` bytes, which lie in `buffers` and are not copied."""
        self.busy.discard(cid)
        if self.state is QueueState.CLOSED or self.state is QueueState.CLOSING:
            return
        self.out_bytes += length
        flow_control, out = self._flow_control, self.out
        if self.digests:
            out += pdu.c2h_data(cid, 0, buffers, True, self.digests, self._align, not flow_control)
            if flow_control:
                out.append(pdu.capsule_resp(pdu.CQE.pack(0, 0, self.sqhd, 0, cid, 0), self.digests))
            return
        start = self._data_start
        flags = _LAST if flow_control else _LAST_SUCCESS
        out.append(_C2H_DATA(_C2H_DATA_KIND, flags, _DATA_HEADER, start, start + length, cid, 0, length))
        if start != _DATA_HEADER:
            out.append(bytes(start - _DATA_HEADER))
        out += buffers
        if flow_control:
            out.append(_CAPSULE_RESP(_CAPSULE_RESP_KIND, 0, _RESPONSE, 0, _RESPONSE, 0, 0, self.sqhd, 0, cid, 0))

    def note_failure(self, cid: int, status: int, nsid: int, lba: int) -> None:
        """For the controller's error log; `status` is the field of the CQE."""
        if self.controller is not None:
            self.controller.errors.note(self.queue_id, cid, status, nsid, lba)

    def send_r2t(self, cid: int, ttag: int, length: int) -> None:
        """Ask for all data of a command."""
        if self.state is QueueState.LIVE:
            self.out.append(pdu.r2t(cid, ttag, 0, length, self.digests))

    def _fail(self, error: PduError) -> None:
        self.port.counters.protocol_errors += 1
        self.failure = error.reason
        log.warning("event=protocol_error fes=%s fei=%d reason=%s", error.fes.name, error.fei, error.reason)
        self.out.append(pdu.term_req(PduType.C2H_TERM_REQ, error.fes, error.fei, error.header))
        self._advance(Event.FAILED)
        self._broken(error.reason)

    def _advance(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    # --- input

    def _consume(self) -> None:
        stream = self.stream
        io = self.io if self.digests == 0 and self.queue_id else None
        self.blocked = False
        while self.state in ACCEPTED and stream.start < stream.end:
            if self._data_for is not None:
                self._take_data(self._data_for)
                continue
            if io is not None:
                stream.start = io.run(stream.current, stream.start, stream.end, self.now_ms)
                if self.state is not QueueState.LIVE:
                    return
            if stream.end - stream.start < pdu.COMMON_BYTES:
                return
            if self.commands_left <= 0 or self.stalled:
                self.blocked = True
                return
            self.commands_left -= 1
            if not self._one():
                return
            io = self.io if self.digests == 0 and self.queue_id else None

    def _one(self) -> bool:
        """Consume one PDU (of an H2CData only its header); False when more bytes are needed."""
        stream = self.stream
        start = stream.start
        view = stream.current.view[start : stream.end]
        limits = self.port.limits
        limit = limits.in_capsule_bytes_max if self.queue_id else ADMIN_IN_CAPSULE_BYTES_MAX
        kind = view[0]
        if kind == PduType.H2C_DATA:
            limit = limits.transfer_bytes_max
        pdu.check_header(view, ACCEPTED[self.state], self.digests, limit)
        _, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(view)
        header_bytes = pdo if kind == PduType.H2C_DATA else plen
        if len(view) < header_bytes:
            return False
        self._check_header_digest(view, kind, hlen)
        stream.start = start + header_bytes
        if kind == PduType.CAPSULE_CMD:
            self._capsule(view, pdo, plen)
        elif kind == PduType.H2C_DATA:
            self._data_header(view, flags, pdo, plen)
        elif kind == PduType.IC_REQ:
            self._ic_req(view)
        else:
            fes, fei = pdu.parse_term_req(view)
            log.warning("event=terminated_by_host fes=%#x fei=%d", fes, fei)
            self._advance(Event.FAILED)
            self._broken(f"the host terminated the connection with FES {fes:#x}")
        return True

    def _check_header_digest(self, view: memoryview, kind: int, hlen: int) -> None:
        if not self.digests & pdu.HEADER_DIGEST or kind in (PduType.IC_REQ, PduType.H2C_TERM_REQ):
            return
        got = int.from_bytes(view[hlen : hlen + 4], "little")
        if got != pdu.crc32c_of(view[:hlen]):
            raise PduError(FatalError.HEADER_DIGEST, got, "header digest is wrong", bytes(view[:hlen]))

    def _ic_req(self, view: memoryview) -> None:
        _, _, _, _, _, version, hpda, digests, _ = pdu.IC_REQ.unpack_from(view)
        seen = bytes(view[: pdu.IC_BYTES])
        if version != pdu.PDU_VERSION:
            raise PduError(FatalError.UNSUPPORTED_PARAMETER, 8, f"PDU format version {version}", seen)
        if hpda > 31:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 10, f"HPDA {hpda}", seen)
        if digests & ~(pdu.HEADER_DIGEST | pdu.DATA_DIGEST):
            raise PduError(FatalError.UNSUPPORTED_PARAMETER, 11, f"digests {digests:#x}", seen)
        self.digests = digests
        self._align = (hpda + 1) * 4
        self._data_start = _DATA_HEADER + -_DATA_HEADER % self._align
        self.out.append(pdu.ic_resp(digests, self.port.limits.transfer_bytes_max))
        self._advance(Event.IC)

    # --- commands

    def _capsule(self, view: memoryview, pdo: int, plen: int) -> None:
        sqe = bytes(view[pdu.COMMON_BYTES : pdu.CAPSULE_CMD_BYTES])
        data: Buffer = b""
        digest_bad = False
        if pdo and plen > pdo:
            stop = plen - (pdu.DIGEST_BYTES if self.digests & pdu.DATA_DIGEST else 0)
            data = view[pdo:stop]
            if stop != plen:
                digest_bad = view[stop:plen] != pdu.digest(data)
        opcode, cid = sqe[0], sqe[2] | sqe[3] << 8
        self.sqhd = (self.sqhd + 1) % self.sqhd_end
        if self.state is QueueState.WAIT_CONNECT:
            self._connect(sqe, cid, data, digest_bad)
        elif cid in self.busy and not (self.controller is not None and self.controller.gives_up_event(self, cid)):
            raise PduError(FatalError.PDU_SEQUENCE, 0, f"command id {cid} is in use", bytes(view[: pdu.COMMON_BYTES]))
        elif len(self.busy) >= self.entries:
            raise PduError(FatalError.LIMIT_EXCEEDED, 0, "more commands than the queue has entries", sqe)
        elif opcode == _FABRICS:
            self._fabrics(sqe, cid, data, digest_bad)
        elif self.authenticating:
            self.complete(cid, Status.AUTHENTICATION_REQUIRED, dnr=True)
        elif self.io is not None:
            self.io.command(sqe, data, digest_bad, self.stream.current)
        elif self.controller is not None:
            self.controller.command(self, sqe, data, digest_bad)

    def _fabrics(self, sqe: bytes, cid: int, data: Buffer, digest_bad: bool) -> None:
        kind = sqe[4]
        if digest_bad:
            self.complete(cid, Status.TRANSIENT_TRANSPORT_ERROR)
        elif self._authentication is not None and kind == FabricsType.AUTHENTICATION_SEND:
            self.note_step()
            self._authentication.send(self, sqe, data, self._heard_ns)
        elif self._authentication is not None and kind == FabricsType.AUTHENTICATION_RECEIVE:
            self._authentication.receive(self, sqe, self._heard_ns)
        elif self.authenticating:
            self.complete(cid, Status.AUTHENTICATION_REQUIRED, dnr=True)
        elif self.controller is not None and self.queue_id == 0 and kind == FabricsType.PROPERTY_GET:
            self.controller.property_get(self, sqe)
        elif self.controller is not None and self.queue_id == 0 and kind == FabricsType.PROPERTY_SET:
            self.controller.property_set(self, sqe)
        elif kind == FabricsType.CONNECT:
            self.complete(cid, Status.COMMAND_SEQUENCE_ERROR, dnr=True)
        elif kind == FabricsType.DISCONNECT and self.association is not None:
            self.complete(cid, Status.SUCCESS)
            self.association.queue_gone(self.queue_id, "the host disconnected")
            self.end("the host disconnected")
        else:
            self.complete(cid, Status.INVALID_FIELD, dnr=True)

    def _connect(self, sqe: bytes, cid: int, data: Buffer, digest_bad: bool) -> None:
        """The first command; what follows a refusal may try again, but not for ever."""
        outcome = connect(self, sqe, data, digest_bad)
        if isinstance(outcome, Admitted):
            self._connected(cid, outcome)
            return
        self.complete(cid, outcome.status, outcome.dw0, dnr=outcome.do_not_retry)
        self._connects_refused += 1
        if self._connects_refused >= CONNECTS_REFUSED_MAX:
            self.failure = "too many Connects were refused"
            self._advance(Event.FAILED)

    def _connected(self, cid: int, admitted: Admitted) -> None:
        association = self.association = admitted.association
        self.controller = association.controller
        self.queue_id = admitted.queue_id
        self.entries = entries = admitted.entries
        self._flow_control = admitted.flow_control
        self.sqhd_end = entries if self._flow_control else 1
        self.sqhd = 1 % entries if self._flow_control else pdu.SQHD_NOT_KEPT
        self._advance(Event.CONNECTED)
        dw0 = association.controller_id
        if association.authentication is not None:
            host_nqn = association.host_name
            self._authentication = QueueAuthentication(association.authentication, host_nqn, self._heard_ns)
            self.authenticating = self._authentication.pending
            dw0 |= self._authentication.connect_bits
        association.add(self)
        self.complete(cid, Status.SUCCESS, dw0)
        self.sqhd %= self.sqhd_end
        if not self.authenticating:
            self._open()

    def authenticated(self) -> None:
        """The host has proved itself; from now on its commands are carried out."""
        association = self.association
        if self.queue_id == 0 and association is not None:
            association.prove()
        if self.authenticating and self.state is QueueState.LIVE:
            if association is not None and not association.proved(self):
                self.end("another connection of this host has the queue")
                return
            self.authenticating = False
            self._open()

    def _open(self) -> None:
        if self.controller is not None:
            controller = self.controller
            self.io = controller.io_path(self, self.entries) if self.queue_id else controller.admin_path(self)

    # --- H2CData

    def _data_header(self, view: memoryview, flags: int, pdo: int, plen: int) -> None:
        _, _, _, _, _, cccid, ttag, offset, length = pdu.H2C_DATA.unpack_from(view)
        seen = bytes(view[: pdu.DATA_HEADER_BYTES])
        digest_bytes = pdu.DIGEST_BYTES if self.digests & pdu.DATA_DIGEST else 0
        transfer = self.io.transfers.get(ttag) if self.io is not None else None
        if transfer is None:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 10, f"transfer tag {ttag} is not known", seen)
        if transfer.cid != cccid:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 8, f"command id {cccid} is not that of the R2T", seen)
        if length != plen - pdo - digest_bytes:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 16, f"data length {length} is not the PDU's", seen)
        if offset != transfer.received or offset + length > transfer.total:
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 12, f"data at {offset}, {transfer.received} is next", seen)
        if bool(flags & pdu.LAST_FLAG) != (offset + length == transfer.total):
            raise PduError(FatalError.INVALID_HEADER_FIELD, 1, "LAST_PDU is not where the data ends", seen)
        self._data_for = transfer
        self._data_left = length
        self._digest_left = digest_bytes
        transfer.crc = 0

    def _take_data(self, transfer: Transfer) -> None:
        """Move what is there of an H2CData's payload, then of its digest."""
        stream = self.stream
        source = stream.current.view
        count = min(self._data_left, stream.end - stream.start)
        if count:
            part = source[stream.start : stream.start + count]
            transfer.data[transfer.received : transfer.received + count] = part
            if self.digests & pdu.DATA_DIGEST:
                transfer.crc = pdu.crc32c_of_more(part, transfer.crc)
            transfer.received += count
            self._data_left -= count
            stream.start += count
        while self._digest_left and not self._data_left and stream.start < stream.end:
            shift = 8 * (pdu.DIGEST_BYTES - self._digest_left)
            transfer.digest_bad |= stream.current.view[stream.start] != transfer.crc >> shift & 0xFF
            self._digest_left -= 1
            stream.start += 1
        if self._data_left or self._digest_left:
            return
        self._data_for = None
        if transfer.received == transfer.total and self.io is not None:
            self.io.data_complete(transfer)
