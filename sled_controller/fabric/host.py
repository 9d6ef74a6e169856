"""The host's end of one NVMe/TCP queue, without I/O: bytes in, events out, buffers to send.

Source: NVM Express TCP Transport Specification 1.0, section 3; Connect from NVM Express Base 2.0, section 6.3. A queue
is one connection. `start()` sends ICReq; ICResp is answered by Connect; then commands may be submitted up to the depth.
Data is never copied on its way out, and on its way in it goes to the caller's buffer: `receive_buffer` names that very
buffer when a long C2HData is under way.
"""

from enum import Enum, auto
from struct import Struct
from typing import Final
from uuid import UUID

from sled_controller.errors import QueueFull, SledError
from sled_controller.fabric import pdu
from sled_controller.fabric.command import Command, Completed, Connected, Data, Event, Refused, Terminated, cut
from sled_controller.fabric.pdu import Digest, FatalError, PduError, PduFlag, PduType
from sled_controller.session import QueueMac
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, STATUS_MASK, AdminOpcode, FabricsType, Status

STAGE_BYTES: Final = 128 * 1024  # PDUs are parsed here; one read takes what 32 completed 4 KiB reads send
DIRECT_BYTES_MIN: Final = 16 * 1024  # a payload this long is received straight into the caller's buffer
ADMIN_IN_CAPSULE_BYTES: Final = 8192  # fixed for the admin queue (TCP transport 1.0, section 3.4)
MAXH2CDATA_BYTES_MIN: Final = 4096
DEPTH_MAX: Final = 4096
SGL_OFFSET: Final = 24
CID: Final = Struct("<H")

# Plain numbers of what is compared per PDU: operators of an IntFlag cost more than all the rest.
_CAPSULE_CMD: Final = int(PduType.CAPSULE_CMD)
_C2H_DATA: Final = int(PduType.C2H_DATA)
_CAPSULE_RESP: Final = int(PduType.CAPSULE_RESP)
_SUCCESS: Final = int(PduFlag.SUCCESS)
_LAST_SUCCESS: Final = int(PduFlag.LAST | PduFlag.SUCCESS)


class HostState(Enum):
    """The life of one queue."""

    START = auto()
    IC_SENT = auto()
    CONNECT_SENT = auto()
    LIVE = auto()
    TERMINATED = auto()  # one side broke the protocol, or refused; nothing more is sent or understood
    CLOSED = auto()  # the connection is gone


class HostInput(Enum):
    """What moves a queue from one state to the next."""

    BEGIN = auto()
    IC_RESP = auto()
    CONNECTED = auto()
    REFUSED = auto()
    TERM_REQ = auto()
    BAD_PDU = auto()
    END_OF_STREAM = auto()


TRANSITIONS: Final[dict[tuple[HostState, HostInput], HostState]] = {
    (HostState.START, HostInput.BEGIN): HostState.IC_SENT,
    (HostState.START, HostInput.END_OF_STREAM): HostState.CLOSED,
    (HostState.IC_SENT, HostInput.IC_RESP): HostState.CONNECT_SENT,
    (HostState.IC_SENT, HostInput.TERM_REQ): HostState.TERMINATED,
    (HostState.IC_SENT, HostInput.BAD_PDU): HostState.TERMINATED,
    (HostState.IC_SENT, HostInput.END_OF_STREAM): HostState.CLOSED,
    (HostState.CONNECT_SENT, HostInput.CONNECTED): HostState.LIVE,
    (HostState.CONNECT_SENT, HostInput.REFUSED): HostState.TERMINATED,
    (HostState.CONNECT_SENT, HostInput.TERM_REQ): HostState.TERMINATED,
    (HostState.CONNECT_SENT, HostInput.BAD_PDU): HostState.TERMINATED,
    (HostState.CONNECT_SENT, HostInput.END_OF_STREAM): HostState.CLOSED,
    (HostState.LIVE, HostInput.TERM_REQ): HostState.TERMINATED,
    (HostState.LIVE, HostInput.BAD_PDU): HostState.TERMINATED,
    (HostState.LIVE, HostInput.END_OF_STREAM): HostState.CLOSED,
    (HostState.TERMINATED, HostInput.END_OF_STREAM): HostState.CLOSED,
    (HostState.CLOSED, HostInput.END_OF_STREAM): HostState.CLOSED,
}

ACCEPTED: Final[dict[HostState, frozenset[int]]] = {
    HostState.IC_SENT: frozenset({PduType.IC_RESP, PduType.C2H_TERM_REQ}),
    HostState.CONNECT_SENT: frozenset({PduType.CAPSULE_RESP, PduType.C2H_TERM_REQ}),
    HostState.LIVE: frozenset({PduType.CAPSULE_RESP, PduType.C2H_DATA, PduType.R2T, PduType.C2H_TERM_REQ}),
}


class HostQueue:
    """One queue. Depth counts commands outstanding at once (the controller is asked for one entry more)."""

    def __init__(
        self, *, queue_id: int, depth: int, subsystem_nqn: str, host_nqn: str, host_id: UUID,
        controller_id: int = CONTROLLER_ID_DYNAMIC, in_capsule_bytes: int = ADMIN_IN_CAPSULE_BYTES, kato_ms: int = 0,
        digests: int = 0,
    ) -> None:  # fmt: skip
        if not 0 < depth <= DEPTH_MAX:
            raise ValueError(f"a depth of {depth}, 1 to {DEPTH_MAX} are possible")
        self.state = HostState.START
        self.queue_id = queue_id
        self.depth = depth
        self.mac: QueueMac | None = None
        self._agree(digests)
        self.outstanding: dict[int, Command] = {}  # by CID, the oldest first
        self._connect = (subsystem_nqn, host_nqn, host_id, controller_id, kato_ms)
        self._in_capsule_bytes = in_capsule_bytes
        self._maxh2cdata_bytes = MAXH2CDATA_BYTES_MIN
        self._free_cids = list(range(depth - 1, -1, -1))
        self._into_bytes_max = 0
        self._out: list[Buffer] = []
        self._stage = memoryview(bytearray(STAGE_BYTES))
        self._start = 0
        self._end = 0
        self._direct = False
        self._filling: Command | None = None  # the command whose C2HData is under way
        self._fill_from = 0
        self._fill_left = 0
        self._fill_flags = 0

    @property
    def has_room(self) -> bool:
        """Whether `submit` would find a command identifier."""
        return bool(self._free_cids)

    def start(self) -> None:
        """Send ICReq; once."""
        self._move(HostInput.BEGIN)
        self._out.append(pdu.ic_req(self.digests))

    def submit(self, command: Command, now_s: float = 0.0) -> None:
        """Send `command`; its CID, SGL and MAC are filled in here. Raises QueueFull.

        The data must stay as it is until the command is over.
        """
        if self.state is not HostState.LIVE:
            raise SledError(f"a command on a queue that is {self.state.name}")
        self._submit(command, now_s)

    def data_to_send(self) -> list[Buffer]:
        """What to write now, in order; taken once."""
        out = self._out
        self._out = []
        return out

    def receive_buffer(self) -> memoryview:
        """Where the next bytes from the connection go; call `received` with how many there were."""
        if self._filling is not None and self._start == self._end and self._fill_left >= DIRECT_BYTES_MIN:
            self._direct = True
            into = self._filling.into
            assert into is not None
            at = self._filling.received
            return into[at : at + self._fill_left]
        self._direct = False
        if self._start:
            # What is left is less than one header: payload is taken out as it comes.
            left = self._end - self._start
            if left:
                self._stage[:left] = bytes(self._stage[self._start : self._end])
            self._start, self._end = 0, left
        return self._stage[self._end :]

    def received(self, count: int) -> list[Event]:
        """`count` bytes have arrived in the last `receive_buffer`."""
        events: list[Event] = []
        if self.state not in ACCEPTED:
            return events
        try:
            if self._direct and self._filling is not None:
                self._filling.received += count
                self._fill_left -= count
                if not self._fill_left and not self._ddgst_bytes:
                    self._payload_complete(events)
            else:
                self._end += count
                self._parse(events)
        except PduError as error:
            self._terminate(error, events)
        return events

    def receive(self, data: Buffer) -> list[Event]:
        """`receive_buffer` and `received` for a caller that has the bytes already."""
        events: list[Event] = []
        view = memoryview(data)
        while len(view) and self.state in ACCEPTED:
            into = self.receive_buffer()
            count = min(len(into), len(view))
            into[:count] = view[:count]
            events += self.received(count)
            view = view[count:]
        return events

    def end_of_stream(self) -> None:
        """The connection is gone; what is in `outstanding` will not be answered."""
        self._move(HostInput.END_OF_STREAM)

    def _move(self, what: HostInput) -> None:
        state = TRANSITIONS.get((self.state, what))
        if state is None:
            raise SledError(f"{what.name} does not fit a queue that is {self.state.name}")
        self.state = state

    def _submit(self, command: Command, now_s: float) -> None:
        if not self._free_cids:
            raise QueueFull(f"{self.depth} commands are outstanding")
        cid = command.cid = self._free_cids.pop()
        command.submitted_s = now_s
        self.outstanding[cid] = command
        sqe = command.sqe
        CID.pack_into(sqe, 2, cid)
        length = command.data_bytes
        in_capsule: Data = ()
        if length and length <= self._in_capsule_bytes:
            in_capsule = command.data
            command.requested = length
            pdu.SGL.pack_into(sqe, SGL_OFFSET, 0, length, pdu.SGL_IN_CAPSULE)
        else:
            if command.into is not None:
                length = len(command.into)
                self._into_bytes_max = max(self._into_bytes_max, length)
            pdu.SGL.pack_into(sqe, SGL_OFFSET, 0, length, pdu.SGL_TRANSPORT)
        if command.authenticated:
            mac = self.mac
            if mac is None:
                raise SledError("an authenticated command before the session")
            sqe[pdu.MAC_OFFSET :] = mac.tag_parts(mac.next_count(), (sqe, *command.data))
        if self.digests:
            self._out += pdu.capsule_cmd(sqe, in_capsule, self.digests)
            return
        head = pdu.CAPSULE_CMD_BYTES
        pdo, plen = (head, head + length) if in_capsule else (0, head)
        self._out.append(pdu.COMMON.pack(_CAPSULE_CMD, 0, head, pdo, plen) + sqe)
        self._out += in_capsule

    def _parse(self, events: list[Event]) -> None:
        """Take every whole PDU out of the stage; payload as it comes."""
        stage = self._stage
        while self.state in ACCEPTED:
            if self._filling is not None:
                if not self._take_payload(events):
                    return
                continue
            have = self._end - self._start
            if have < pdu.COMMON_BYTES:
                return
            at = self._start
            if stage[at : at + pdu.COMMON_BYTES] == self._simple_resp and self.state is HostState.LIVE:
                if not self._take_simple_response(at, have, events):
                    return
                continue
            header_bytes = self._check_header(at)
            if have < header_bytes:
                return
            self._check_header_digest(at)
            self._start += header_bytes
            self._take_header(stage[at : at + header_bytes], events)

    def _agree(self, digests: int) -> None:
        """Use these digests from now on."""
        self.digests = digests
        self._hdgst_bytes = pdu.DIGEST_BYTES if digests & Digest.HEADER else 0
        self._ddgst_bytes = pdu.DIGEST_BYTES if digests & Digest.DATA else 0
        size = pdu.CAPSULE_RESP_BYTES
        flags = PduFlag.HDGST if self._hdgst_bytes else 0
        self._simple_resp = pdu.COMMON.pack(PduType.CAPSULE_RESP, flags, size, 0, size + self._hdgst_bytes)

    def _take_simple_response(self, at: int, have: int, events: list[Event]) -> bool:
        """The hot path: a CapsuleResp whose common header is exactly what it has to be."""
        size = pdu.CAPSULE_RESP_BYTES + self._hdgst_bytes
        if have < size:
            return False
        if self._hdgst_bytes:
            self._check_header_digest(at)
        self._start = at + size
        self._complete(self._stage[at + pdu.COMMON_BYTES : at + pdu.CAPSULE_RESP_BYTES], events)
        return True

    def _check_header(self, at: int) -> int:
        """Check a common header; returns how many bytes precede the payload, all of them for a PDU without."""
        kind, flags, hlen, pdo, plen = pdu.COMMON.unpack_from(self._stage, at)
        simple = (
            kind == _C2H_DATA and hlen == pdo == pdu.DATA_HEADER_BYTES and not flags & ~_LAST_SUCCESS
            and hlen < plen <= hlen + self._into_bytes_max and self.state is HostState.LIVE and not self.digests
        )  # fmt: skip
        if not simple:
            header = self._stage[at : at + pdu.COMMON_BYTES]
            pdu.check_header(header, ACCEPTED[self.state], self.digests, self._into_bytes_max)
        return int(pdo if kind == _C2H_DATA else plen)

    def _check_header_digest(self, at: int) -> None:
        if not self._hdgst_bytes or self._stage[at] in (PduType.IC_RESP, PduType.C2H_TERM_REQ):
            return
        hlen = self._stage[at + 2]
        seen = bytes(self._stage[at + hlen : at + hlen + pdu.DIGEST_BYTES])
        if pdu.digest(self._stage[at : at + hlen]) != seen:
            fei = int.from_bytes(seen, "little")
            raise PduError(FatalError.HEADER_DIGEST, fei, "header digest", bytes(self._stage[at : at + hlen]))

    def _take_header(self, header: memoryview, events: list[Event]) -> None:
        kind = header[0]
        if kind == _CAPSULE_RESP:
            self._complete(header[pdu.COMMON_BYTES : pdu.CAPSULE_RESP_BYTES], events)
        elif kind == _C2H_DATA:
            self._begin_payload(header)
        elif kind == PduType.R2T:
            self._answer_r2t(header)
        elif kind == PduType.IC_RESP:
            self._take_ic_resp(header)
        else:
            fes, fei = pdu.parse_term_req(header)
            self._move(HostInput.TERM_REQ)
            events.append(Terminated(fes, fei, "the controller sent C2HTermReq", True))

    def _take_ic_resp(self, header: memoryview) -> None:
        *_, pfv, cpda, dgst, maxh2cdata_bytes = pdu.IC_RESP.unpack_from(header)
        seen = bytes(header)
        hdgst_bytes = pdu.DIGEST_BYTES if dgst & Digest.HEADER else 0
        alignment = (cpda + 1) * 4
        if pfv != pdu.PDU_VERSION:
            raise PduError(FatalError.UNSUPPORTED_PARAMETER, 8, f"PDU format {pfv}", seen)
        if (pdu.CAPSULE_CMD_BYTES + hdgst_bytes) % alignment or (pdu.DATA_HEADER_BYTES + hdgst_bytes) % alignment:
            raise PduError(FatalError.UNSUPPORTED_PARAMETER, 10, f"data aligned to {alignment}", seen)
        if dgst & ~self.digests:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 11, f"digests {dgst:#x} that nobody asked for", seen)
        if maxh2cdata_bytes < MAXH2CDATA_BYTES_MIN or maxh2cdata_bytes % 4:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 12, f"MAXH2CDATA {maxh2cdata_bytes}", seen)
        self._agree(dgst)
        self._maxh2cdata_bytes = maxh2cdata_bytes
        self._move(HostInput.IC_RESP)
        self._submit(self._connect_command(), 0.0)

    def _connect_command(self) -> Command:
        subsystem_nqn, host_nqn, host_id, controller_id, kato_ms = self._connect
        data = pdu.CONNECT_DATA.pack(host_id.bytes, controller_id, subsystem_nqn.encode(), host_nqn.encode())
        sqe = bytearray(
            pdu.CONNECT_SQE.pack(
                AdminOpcode.FABRICS,
                pdu.PSDT_SGL,
                0,
                FabricsType.CONNECT,
                0,
                0,
                0,
                0,
                self.queue_id,
                self.depth,
                pdu.NO_FLOW_CONTROL,
                kato_ms,
            )
        )
        return Command(sqe, (memoryview(data),))

    def _complete(self, cqe: memoryview, events: list[Event]) -> None:
        dw0, dw1, _, _, cid, status = pdu.CQE.unpack(cqe)
        command = self.outstanding.pop(cid, None)
        if command is None:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 20, f"completion of CID {cid}, not outstanding", bytes(cqe))
        self._free_cids.append(cid)
        if self.state is HostState.LIVE:
            status = Status.TRANSIENT_TRANSPORT_ERROR if command.damaged else (status >> 1) & STATUS_MASK
            events.append(Completed(command, status, dw0, dw1))
        elif status >> 1:
            self._move(HostInput.REFUSED)
            events.append(Refused((status >> 1) & STATUS_MASK))
        else:
            self._move(HostInput.CONNECTED)
            events.append(Connected(dw0 & 0xFFFF))

    def _begin_payload(self, header: memoryview) -> None:
        _, flags, _, pdo, plen, cid, datao, datal = pdu.C2H_DATA.unpack_from(header)
        command = self.outstanding.get(cid)
        if command is None or command.into is None:
            raise PduError(
                FatalError.INVALID_HEADER_FIELD, 8, f"data for CID {cid}, which reads nothing", bytes(header)
            )
        payload = plen - pdo - self._ddgst_bytes
        if datal != payload:
            raise PduError(
                FatalError.INVALID_HEADER_FIELD, 16, f"{payload} bytes of data, DATAL {datal}", bytes(header)
            )
        if datao != command.received or datao + datal > len(command.into):
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 0, f"data at {datao} + {datal} of CID {cid}", bytes(header))
        if flags & _LAST_SUCCESS == _SUCCESS:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 1, "SUCCESS without LAST", bytes(header))
        self._filling = command
        self._fill_from = datao
        self._fill_left = datal
        self._fill_flags = flags

    def _take_payload(self, events: list[Event]) -> bool:
        """Move what is there of the payload to its buffer; False when more bytes are needed."""
        command = self._filling
        assert command is not None
        assert command.into is not None
        count = min(self._fill_left, self._end - self._start)
        if count:
            command.into[command.received : command.received + count] = self._stage[self._start : self._start + count]
            command.received += count
            self._start += count
            self._fill_left -= count
        if self._fill_left:
            return False
        if self._ddgst_bytes:
            if self._end - self._start < pdu.DIGEST_BYTES:
                return False
            seen = bytes(self._stage[self._start : self._start + pdu.DIGEST_BYTES])
            self._start += pdu.DIGEST_BYTES
            if pdu.digest(command.into[self._fill_from : command.received]) != seen:
                command.damaged = True
        self._payload_complete(events)
        return True

    def _payload_complete(self, events: list[Event]) -> None:
        command = self._filling
        assert command is not None
        self._filling = None
        if self._fill_flags & _SUCCESS:
            del self.outstanding[command.cid]
            self._free_cids.append(command.cid)
            events.append(Completed(command, Status.TRANSIENT_TRANSPORT_ERROR if command.damaged else 0, 0, 0))

    def _answer_r2t(self, header: memoryview) -> None:
        *_, cid, ttag, offset, length = pdu.R2T.unpack_from(header)
        seen = bytes(header[: pdu.DATA_HEADER_BYTES])
        command = self.outstanding.get(cid)
        if command is None or not command.data_bytes:
            raise PduError(FatalError.INVALID_HEADER_FIELD, 8, f"R2T for CID {cid}, which sends nothing", seen)
        if offset != command.requested or not length or offset + length > command.data_bytes:
            raise PduError(FatalError.DATA_OUT_OF_RANGE, 0, f"R2T for {offset} + {length} of CID {cid}", seen)
        command.requested = end = offset + length
        while offset < end:
            count = min(self._maxh2cdata_bytes, end - offset)
            parts = cut(command.data, offset, count)
            self._out += pdu.h2c_data(cid, ttag, offset, parts, offset + count == end, self.digests)
            offset += count

    def _terminate(self, error: PduError, events: list[Event]) -> None:
        self._filling = None
        self._start = self._end = 0
        self._out.append(pdu.term_req(PduType.H2C_TERM_REQ, error.fes, error.fei, error.header))
        self._move(HostInput.BAD_PDU)
        events.append(Terminated(error.fes, error.fei, error.reason, False))
