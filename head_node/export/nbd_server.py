"""The server's side of the NBD transmission phase without I/O: requests in, replies out, a volume behind.

The owner fills the buffer that `get_buffer` gives and says `received(count)`; replies gather until `take_output`. All
requests that have come are parsed in one loop over the receive buffer, and the payload of a write is a slice of that
buffer: it is handed to the volume uncopied, which may keep it, so memory that held a payload is never written again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final

from head_node.export import nbd_protocol as nbd
from head_node.export.budget import MemoryBudget
from head_node.export.counters import NbdCounters
from head_node.export.nbd_protocol import Chunk, Command, CommandFlag, NbdError
from head_node.export.replies import HOLE_BYTES_MIN, chunk, data_and_hole_chunks, merge_extents
from head_node.export.requests import Terms, judge, whole_blocks
from head_node.volume.interface import ServedVolume
from spdk_bindings.device import Buffer

SLAB_BYTES: Final = 256 * 1024
"""Receive buffer: some 60 requests of 4 KiB, few enough that a payload kept for long pins little else."""

SLAB_ROOM_BYTES_MIN: Final = 64 * 1024
"""With less room than this the next read would be short: take a fresh slab (what has come of a request moves along)."""

LARGE_PAYLOAD_BYTES: Final = 64 * 1024
"""A longer payload that has not come yet is received straight into memory of its own."""

EXTENTS_BYTES_MAX: Final = 1 << 30
"""BLOCK_STATUS answers at most this much of the range; clients ask on for the rest (the specification allows it)."""

EXTENTS_MAX: Final = 8192
"""Extents per BLOCK_STATUS reply, 64 KiB of them."""

EXTENTS_REPLY_BYTES_MAX: Final = 4 + 8 * EXTENTS_MAX

OUTPUT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Replies per loop turn: reads that complete at once would otherwise pile up unbounded."""

TURN_SHARE: Final = 128
OTHER_SHARE: Final = 16
"""Requests of one connection per loop turn, and how many of them anything but a read or write counts for (a block
status walks maps). Thousands of requests fit into the receive buffer; heartbeats and others cannot wait for all."""

_DISCARD: Final = memoryview(bytearray(SLAB_ROOM_BYTES_MIN))
"""Where bytes go that nobody reads: what comes after a connection was dropped, payloads of rejected writes. In a slab
they would cost its memory for as long as a write beside them is in flight."""

_BLOCK_MASK: Final = nbd.BLOCK_BYTES_MIN - 1

_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FUA, _DF = int(CommandFlag.FUA), int(CommandFlag.DF)
_OFFSET_DATA = int(Chunk.OFFSET_DATA)


class Phase(Enum):
    """The life of a transmission."""

    ACTIVE = auto()
    DISCONNECTING = auto()  # DISC has come: answer what is in flight, take nothing more
    ENDED = auto()  # the client closed its side without DISC: answer what the volume has begun
    BROKEN = auto()  # the byte stream lost its framing: reset
    DROPPED = auto()  # the owner let go of it: answers are thrown away


_LAST: Final = (Phase.DISCONNECTING, Phase.ENDED)
"""Nothing more is taken; the end of the connection follows the last answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection. `bytes_in_flight_max` must hold one request of the maximum payload."""

    requests_in_flight_max: int = 128
    bytes_in_flight_max: int = nbd.PAYLOAD_BYTES_MAX

    def __post_init__(self) -> None:
        assert self.bytes_in_flight_max >= nbd.PAYLOAD_BYTES_MAX


class Transmission:
    """One client in the transmission phase. Nothing in here is called again by the volume once a request is done."""

    def __init__(
        self,
        volume: ServedVolume,
        *,
        structured: bool,
        allocation: bool,
        wake: Callable[[], None],
        peer_gone: Callable[[], bool],
        unsent: Callable[[], int],
        evict: Callable[[str], None],
        counters: NbdCounters,
        budget: MemoryBudget,
        limits: Limits | None = None,
    ) -> None:
        """`wake` is called once when there is output, or room for more requests, outside of `received`; after that
        not again before `take_output`. `peer_gone` says whether the client has left, noticed yet or not: what waits in
        the volume is not begun then. `unsent` says how many bytes of the output still wait for the client; `evict`
        ends the connection, with the reason, because others wait for memory that it keeps.
        """
        limits = limits or Limits()
        self.phase = Phase.ACTIVE
        self.fault = ""
        self.first_rejection = ""
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.output_blocked = False
        self.abandoned = False
        """A request of a client that had closed its side was not begun: it gets no answer, so reset the connection."""
        self.limited = False
        """What has come is kept back, by more than a turn's share or a client that has answers to read first."""
        self.behind = False
        """More than a turn's share has come: the owner says `resume` when others had their turn."""
        self._volume = volume
        self._size_bytes = volume.size_bytes
        self._structured = structured
        self._terms = Terms(volume.size_bytes, structured, allocation)
        self._wake = wake
        self._peer_gone = peer_gone
        self._evict = evict
        self._awake = False
        self._counters = counters
        self._read_flags = _FUA | (_DF if structured else 0)
        self._requests_max = limits.requests_in_flight_max
        self._bytes_max = limits.bytes_in_flight_max
        self._output: list[Buffer] = []
        self._output_bytes = 0
        self._account = budget.open(self, unsent)
        self._replied_bytes = 0
        self._large_bytes = 0
        self._slab = memoryview(bytearray(SLAB_BYTES))
        self._slab_lent = False
        self._start = 0
        self._end = 0
        self._large: memoryview | None = None
        self._large_request = (0, 0, 0)
        self._large_filled = 0
        self._skip_bytes = 0
        self._skip_reply: tuple[int, int, int, str] | None = None
        self._stalled = False
        self._turn_over = False
        self._ready_asked = False

    # --- the owner's side -------------------------------------------------------------------------------------------

    @property
    def stalled(self) -> bool:
        """A limit is reached: read no more of the connection until it is over."""
        return self._stalled

    @property
    def finished(self) -> bool:
        """Nothing more will come out: close once the output is written."""
        return self.phase in _LAST and self.in_flight == 0

    def get_buffer(self) -> memoryview:
        """Where to put the next bytes of the connection; never empty."""
        if self._large is not None and self._large_filled < len(self._large):
            return self._large[self._large_filled :]
        if self._skip_bytes and self._start == self._end:
            return _DISCARD[: self._skip_bytes]
        return self._slab[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were put into the buffer that `get_buffer` gave."""
        self._awake = True
        if self._large is not None and self._large_filled < len(self._large):
            self._large_filled += count
        elif self._skip_bytes and self._start == self._end:
            self._skip(0, count)
        else:
            self._end += count
        self._parse()

    def feed(self, data: Buffer) -> None:
        """Take bytes that came in somebody else's memory (a relay's frame, what followed the negotiation)."""
        rest = memoryview(data)
        while rest and self.phase is Phase.ACTIVE:
            space = self.get_buffer()
            taken = min(len(space), len(rest))
            space[:taken] = rest[:taken]
            rest = rest[taken:]
            self.received(taken)

    def take_output(self) -> list[Buffer]:
        """The replies since the last call. When a turn's share was used up, `wake` is called from here at once."""
        self._awake = False
        self._output_bytes = 0
        output, self._output = self._output, []
        if self._turn_over:
            self._turn_over = False
            self._notify()
        return output

    def handed_over(self, size: int) -> None:
        """What `take_output` gave, `size` bytes, was passed on to the client's transport."""
        charge, self._replied_bytes = self._replied_bytes, 0
        self._account.output(size, charge)

    def resume(self) -> None:
        """Take up parsing where a limit stopped it; to be called, once per loop turn, after `wake`."""
        if self._stalled:
            self._awake = True
            self._parse()

    def end_of_input(self) -> bool:
        """The client has closed its side, and all that it sent was received. Whether answers may follow: not where
        requests wait, as a client that is gone looks the same, and may have repeated them elsewhere.
        """
        if self.phase is Phase.ACTIVE and not self.limited and self._volume.ready():
            self.phase = Phase.ENDED
        return self.phase in _LAST

    def drop(self) -> None:
        """The connection is gone or has to go: answer nothing any more; what waits here never gets to the volume."""
        if self.phase is not Phase.DROPPED:
            self.phase = Phase.DROPPED
            self._counters.requests_unanswered += self.in_flight
            self._output.clear()
            self._start = self._end = 0
            self._large = None
            self._slab = _DISCARD  # a volume that is stuck may hold on to this object for long
            self._account.close()

    # --- the account's side (budget.Client) ---------------------------------------------------------------------------

    def owes_payload(self) -> bool:
        """Whether the rest of a large payload has not come."""
        return self._large is not None and self._large_filled < len(self._large)

    def received_bytes(self) -> int:
        """Large payloads received so far."""
        return self._large_bytes + (self._large_filled if self._large is not None else 0)

    def granted(self) -> None:
        """There is memory for the request that waits."""
        self._notify()

    def evict(self) -> None:
        """Others wait for memory that this client keeps."""
        self._counters.evicted += 1
        self._evict("others wait for the memory of replies or payloads that it leaves unfinished")

    def _gone(self) -> bool:
        # Whoever closed after DISC has a right to the end of what came before it.
        if self.phase is Phase.ENDED or (self.phase is Phase.ACTIVE and self._peer_gone()):
            self.abandoned = True
            self._notify()
            return True
        return self.phase is Phase.DROPPED

    # --- the parse loop ---------------------------------------------------------------------------------------------

    def _parse(self) -> None:
        self._stalled = self.limited = self.behind = False
        share = TURN_SHARE
        unpack = nbd.REQUEST.unpack_from
        slab, start, end = self._slab, self._start, self._end
        volume, size_bytes = self._volume, self._size_bytes
        ready = volume.ready
        requests_max, read_flags, gone = self._requests_max, self._read_flags, self._gone
        account = self._account
        while self.phase is Phase.ACTIVE:
            if self._skip_bytes:
                start = self._skip(start, end)
            if self._large is not None:
                if self._large_filled < len(self._large):
                    break
            elif end - start < 28:
                break
            if self.in_flight >= requests_max or (self._large is not None and not ready()):
                self._stall()
                break
            if self.output_blocked:
                self._stalled = True
                break
            if share <= 0 or self._output_bytes > OUTPUT_BYTES_MAX:
                self._stalled = self._turn_over = self.behind = True
                break
            share -= 1
            if self._large is not None:
                self._submit_large()
                continue
            magic, flags, command, cookie, offset, length = unpack(slab, start)
            if magic != 0x25609513:
                self._break(f"bad request magic {magic:#010x}")
                break
            if (
                command > 1
                or (offset | length) & _BLOCK_MASK
                or offset + length > size_bytes
                or flags & ~(_FUA if command else read_flags)
                or not 0 < length <= 33554432
            ):
                if command == _DISC and not ready():  # its writes are still to be begun: it may yet leave without them
                    self._stall()
                    break
                if account.held + EXTENTS_REPLY_BYTES_MAX > account.limit:
                    if not account.borrow(EXTENTS_REPLY_BYTES_MAX):
                        self._stall()
                        break
                    account.reserved = 0
                start += 28
                share -= OTHER_SHARE - 1
                self._counters.requests += 1
                self._other(flags, command, cookie, offset, length)
                continue
            if command and not ready():
                self._stall()
                break
            if self.bytes_in_flight + length > self._bytes_max:
                self._stall()
                break
            if account.held + length > account.limit and not account.borrow(length):
                self._stall()
                break
            if command:
                payload = start + 28
                if end - payload < length:
                    if length > LARGE_PAYLOAD_BYTES:
                        self._begin_large(cookie, offset, length, flags, slab[payload:end])
                        start = end
                    break
                start = payload + length
                self._slab_lent = True
                self.in_flight += 1
                self.bytes_in_flight += length
                account.held += length
                account.reserved = 0
                done = partial(self._done, cookie, length)
                volume.write(offset, slab[payload:start], flags & 1 == 1, done, gone)
            else:
                start += 28
                self.in_flight += 1
                self.bytes_in_flight += length
                account.held += length
                account.reserved = 0
                volume.read(offset, length, partial(self._read_done, cookie, offset, length, flags), gone)
            self._counters.requests += 1
        if self.phase is not Phase.DROPPED:
            self._make_room(start, end)

    def _make_room(self, start: int, end: int) -> None:
        """Keep what is unparsed, and leave room to receive. Lent memory is never reused.

        While stalled the unparsed bytes may fill the slab: then the next one is larger, which is bounded because the
        owner reads no more (by at most what it was reading just then).
        """
        left = end - start
        if not self._slab_lent:
            if start and len(self._slab) - end < SLAB_ROOM_BYTES_MIN:
                self._slab[:left] = self._slab[start:end]
                start, end = 0, left
            elif not left:
                start = end = 0
        if len(self._slab) - end < SLAB_ROOM_BYTES_MIN:
            fresh = memoryview(bytearray(max(SLAB_BYTES, left + SLAB_BYTES // 2)))
            fresh[:left] = self._slab[start:end]
            self._slab, self._slab_lent = fresh, False
            start, end = 0, left
        self._start, self._end = start, end

    def _begin_large(self, cookie: int, offset: int, length: int, flags: int, part: memoryview) -> None:
        self.bytes_in_flight += length
        self._account.held += length
        self._account.reserved = 0
        self._large = memoryview(bytearray(length))
        self._large[: len(part)] = part
        self._large_filled = len(part)
        self._large_request = (cookie, offset, flags)

    def _submit_large(self) -> None:
        """A large payload is complete: admit it. Its memory was taken, and counted, when its header came."""
        data = self._large
        assert data is not None
        self._large = None
        self._large_bytes += len(data)
        cookie, offset, flags = self._large_request
        self.in_flight += 1
        self._counters.requests += 1
        self._volume.write(offset, data, flags & _FUA != 0, partial(self._done, cookie, len(data)), self._gone)

    def _skip(self, start: int, end: int) -> int:
        """Pass over the payload of a rejected write, then reject it."""
        taken = min(self._skip_bytes, end - start)
        self._skip_bytes -= taken
        if not self._skip_bytes and self._skip_reply is not None:
            reply, self._skip_reply = self._skip_reply, None
            self._reject(*reply)
        return start + taken

    def _stall(self) -> None:
        self._stalled = self.limited = True
        if not self._ready_asked and not self._volume.ready():
            self._ready_asked = True
            self._volume.on_ready(self._volume_ready)

    def _volume_ready(self) -> None:
        self._ready_asked = False
        self._notify()

    def _notify(self) -> None:
        if not self._awake and self.phase is not Phase.DROPPED:
            self._awake = True
            self._wake()

    def _break(self, fault: str) -> None:
        self.phase = Phase.BROKEN
        self.fault = fault
        self._counters.garbage += 1

    # --- everything but well-formed reads and writes ----------------------------------------------------------------

    def _other(self, flags: int, command: int, cookie: int, offset: int, length: int) -> None:
        if command == Command.DISC:
            self.phase = Phase.DISCONNECTING
            return
        error, text = judge(self._terms, flags, command, offset, length)
        if error:
            if command == Command.WRITE and length:
                self._skip_bytes = length
                self._skip_reply = (cookie, command, error, text)
            else:
                self._reject(cookie, command, error, text)
            return
        if command == Command.TRIM:
            offset, length = whole_blocks(offset, length)
        if command == Command.CACHE or (length == 0 and command != Command.FLUSH):
            self._succeed(cookie, command)
            return
        self.in_flight += 1
        if command == Command.FLUSH:
            self._volume.flush(partial(self._done, cookie, 0))
        elif command == Command.TRIM:
            self._volume.trim(offset, length, partial(self._done, cookie, 0), self._gone)
        elif command == Command.WRITE_ZEROES:
            no_hole = bool(flags & CommandFlag.NO_HOLE)
            done = partial(self._done, cookie, 0)
            self._volume.write_zeroes(offset, length, no_hole=no_hole, done=done, gone=self._gone)
        else:
            one = bool(flags & CommandFlag.REQ_ONE)
            asked = min(length, EXTENTS_BYTES_MAX)
            self._volume.extents(offset, asked, partial(self._extents_done, cookie, asked, one), self._gone)

    # --- replies ----------------------------------------------------------------------------------------------------

    def _done(self, cookie: int, length: int, error: int) -> None:
        """A request without data in its reply is done (simple replies are allowed for those in both modes)."""
        self.in_flight -= 1
        self.bytes_in_flight -= length
        if self.phase is Phase.DROPPED:
            return
        self._account.release(length)
        if error:
            self._fail(cookie, error, "")
        else:
            self._output.append(nbd.SIMPLE_REPLY.pack(0x67446698, 0, cookie))
        if not self._awake:
            self._awake = True
            self._wake()

    def _read_done(
        self, cookie: int, offset: int, length: int, flags: int, error: int, buffers: Sequence[Buffer]
    ) -> None:
        self.in_flight -= 1
        self.bytes_in_flight -= length
        if self.phase is Phase.DROPPED:
            return
        self._replied_bytes += length
        if error:
            self._fail(cookie, error, "")
        elif sum(map(len, buffers)) != length:
            self._counters.internal_errors += 1
            self._fail(cookie, NbdError.EIO, "the volume returned another length than was asked for")
        elif not self._structured:
            self._output_bytes += length
            self._output.append(nbd.SIMPLE_REPLY.pack(0x67446698, 0, cookie))
            self._output += buffers
        elif length < HOLE_BYTES_MIN or flags & _DF:
            self._output.append(nbd.DATA_CHUNK.pack(0x668E33EF, 1, _OFFSET_DATA, cookie, length + 8, offset))
            self._output += buffers
            self._output_bytes += length
        else:
            self._output_bytes += length
            self._output += data_and_hole_chunks(cookie, offset, buffers)
        if not self._awake:
            self._awake = True
            self._wake()

    def _extents_done(
        self, cookie: int, length: int, one: bool, error: int, extents: Sequence[tuple[int, int]]
    ) -> None:
        self.in_flight -= 1
        if self.phase is Phase.DROPPED:
            return
        merged = merge_extents(extents, length, 1 if one else EXTENTS_MAX)
        if not error and not merged:
            self._counters.internal_errors += 1
            error = NbdError.EIO
        if error:
            self._fail(cookie, error, "")
        else:
            body = nbd.U32.pack(nbd.META_CONTEXT_ALLOCATION_ID) + b"".join(
                nbd.EXTENT.pack(*extent) for extent in merged
            )
            self._output.append(chunk(cookie, Chunk.BLOCK_STATUS, body))
            self._output_bytes += len(body)
            self._account.held += len(body)
            self._replied_bytes += len(body)
        self._notify()

    def _succeed(self, cookie: int, command: int) -> None:
        if self._structured and command == Command.READ:
            self._output.append(chunk(cookie, Chunk.NONE, b""))
        else:
            self._output.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))

    def _reject(self, cookie: int, command: int, error: int, text: str) -> None:
        self._counters.requests_rejected += 1
        self.first_rejection = self.first_rejection or f"command={command} error={error} {text}"
        self._error(cookie, error, text)

    def _fail(self, cookie: int, error: int, text: str) -> None:
        self._counters.requests_failed += 1
        self._error(cookie, nbd.wire_error(error), text)

    def _error(self, cookie: int, error: int, text: str) -> None:
        if self._structured:
            said = text.encode()
            self._output.append(chunk(cookie, Chunk.ERROR, nbd.ERROR_CHUNK.pack(error, len(said)) + said))
        else:
            self._output.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie))
