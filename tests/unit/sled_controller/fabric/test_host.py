"""The host core against a controller made of PDUs: set-up, data both ways, digests, bad controllers of every kind."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import host

from sled_controller import session
from sled_controller.errors import QueueFull, SledError
from sled_controller.fabric import pdu
from sled_controller.fabric.command import Command, Completed, Connected, Event, Refused, Terminated, cut
from sled_controller.fabric.host import STAGE_BYTES, TRANSITIONS, HostInput, HostQueue, HostState
from sled_controller.fabric.pdu import Digest, FatalError, PduFlag, PduType
from sled_controller.fabric.vendor import vendor_sqe
from sled_controller.session import nonce_of
from spdk_bindings.nvme import Status, VendorIo

MAXH2CDATA = 8192
DIGESTS = [0, Digest.HEADER, Digest.DATA, Digest.HEADER | Digest.DATA]


def queue(depth: int = 8, digests: int = 0, in_capsule_bytes: int = 16384) -> HostQueue:
    return HostQueue(
        queue_id=1, depth=depth, subsystem_nqn=host.NQN, host_nqn="nqn.host", host_id=host.HEAD, controller_id=3,
        in_capsule_bytes=in_capsule_bytes, digests=digests,
    )  # fmt: skip


def response(cid: int, status: int = 0, dw0: int = 0, dw1: int = 0, digests: int = 0) -> bytes:
    return pdu.capsule_resp(pdu.CQE.pack(dw0, dw1, 0, 0, cid, status << 1), digests)


def live(depth: int = 8, digests: int = 0, in_capsule_bytes: int = 16384) -> HostQueue:
    core = queue(depth, digests, in_capsule_bytes)
    core.start()
    core.receive(pdu.ic_resp(digests, MAXH2CDATA))
    assert core.receive(response(connect_cid(core), dw0=3, digests=digests)) == [Connected(3)]
    core.data_to_send()
    return core


def connect_cid(core: HostQueue) -> int:
    return next(iter(core.outstanding))


def read(blocks: int = 1) -> Command:
    return Command(vendor_sqe(VendorIo.READ, nsid=1, nlb=blocks - 1), into=memoryview(bytearray(4096 * blocks)))


def write(*parts: bytes) -> Command:
    return Command(vendor_sqe(VendorIo.WRITE, nsid=1), tuple(memoryview(part) for part in parts))


def joined(buffers: Sequence[bytes | bytearray | memoryview]) -> bytes:
    return b"".join(buffers)


def ended(events: list[Event], fes: FatalError) -> Terminated:
    last = events[-1]
    assert isinstance(last, Terminated), events
    assert last.fes == fes, last
    assert not last.by_peer
    return last


# --- set-up


def test_a_queue_opens_with_icreq_then_connect_then_is_live() -> None:
    core = queue()
    core.start()
    assert core.data_to_send() == [pdu.ic_req(0)]
    assert core.receive(pdu.ic_resp(0, MAXH2CDATA)) == []
    capsule = joined(core.data_to_send())
    sqe = pdu.CONNECT_SQE_LAYOUT.parse(capsule[8:72])
    assert (sqe.opcode, sqe.fctype, sqe.qid, sqe.sqsize) == (0x7F, 1, 1, 8)
    assert (sqe.sgl.identifier, sqe.sgl.length) == (pdu.SGL_IN_CAPSULE, 1024)
    data = pdu.CONNECT_DATA_LAYOUT.parse(capsule[72:])
    assert data.subnqn.rstrip(b"\0") == host.NQN.encode()
    assert (data.hostid, data.cntlid) == (host.HEAD.bytes, 3)
    assert core.receive(response(connect_cid(core), dw0=3)) == [Connected(3)]
    assert core.state is HostState.LIVE


def test_a_refused_connect_ends_the_queue() -> None:
    core = queue()
    core.start()
    core.receive(pdu.ic_resp(0, MAXH2CDATA))
    refused = response(connect_cid(core), Status.CONNECT_INVALID_HOST | 1 << 14)
    assert core.receive(refused) == [Refused(Status.CONNECT_INVALID_HOST)]
    assert core.state is HostState.TERMINATED


@pytest.mark.parametrize(
    ("answer", "fes"),
    [
        (pdu.IC_RESP.pack(1, 0, 128, 0, 128, 1, 0, 0, 8192), FatalError.UNSUPPORTED_PARAMETER),
        (pdu.ic_resp(0, MAXH2CDATA, cpda=31), FatalError.UNSUPPORTED_PARAMETER),
        (pdu.ic_resp(Digest.DATA, MAXH2CDATA), FatalError.INVALID_HEADER_FIELD),
        (pdu.ic_resp(0, 2048), FatalError.INVALID_HEADER_FIELD),
        (pdu.ic_resp(0, 8193), FatalError.INVALID_HEADER_FIELD),
        (response(0), FatalError.PDU_SEQUENCE),
        (pdu.r2t(0, 0, 0, 4), FatalError.PDU_SEQUENCE),
    ],
)
def test_a_bad_icresp_is_answered_with_a_termreq(answer: bytes, fes: FatalError) -> None:
    core = queue()
    core.start()
    core.data_to_send()
    ended(core.receive(answer), fes)
    sent = joined(core.data_to_send())
    assert sent[0] == PduType.H2C_TERM_REQ
    assert pdu.parse_term_req(sent)[0] == fes


def test_a_second_icresp_is_out_of_sequence() -> None:
    core = live()
    ended(core.receive(pdu.ic_resp(0, MAXH2CDATA)), FatalError.PDU_SEQUENCE)


def test_nothing_is_submitted_before_connect() -> None:
    core = queue()
    with pytest.raises(SledError, match="START"):
        core.submit(read())


def test_every_transition_leads_to_a_state_that_can_end() -> None:
    for (state, _), target in TRANSITIONS.items():
        assert (state, HostInput.END_OF_STREAM) in TRANSITIONS
        assert (target, HostInput.END_OF_STREAM) in TRANSITIONS
    with pytest.raises(SledError, match="BEGIN"):
        live().start()


# --- commands


def test_command_ids_are_unique_and_come_back() -> None:
    core = live(depth=4)
    commands = [read() for _ in range(4)]
    for command in commands:
        core.submit(command)
    assert len({command.cid for command in commands}) == 4
    with pytest.raises(QueueFull):
        core.submit(read())
    events = core.receive(response(commands[2].cid, Status.LBA_OUT_OF_RANGE, 7, 8))
    assert events == [Completed(commands[2], Status.LBA_OUT_OF_RANGE, 7, 8)]
    core.submit(again := read())
    assert again.cid == commands[2].cid
    assert [c.cid for c in core.outstanding.values()] == [commands[i].cid for i in (0, 1, 3)] + [again.cid]


def test_small_data_travels_in_the_capsule_uncopied() -> None:
    core = live()
    data = bytes(4096)
    core.submit(write(data[:64], data))
    buffers = core.data_to_send()
    assert isinstance(buffers[2], memoryview)
    assert buffers[2].obj is data
    assert pdu.SGL.unpack_from(joined(buffers), 8 + 24) == (0, 4160, pdu.SGL_IN_CAPSULE)
    assert len(joined(buffers)) == 72 + 4160


@pytest.mark.parametrize("digests", DIGESTS)
def test_large_data_waits_for_r2t_and_keeps_to_maxh2cdata(digests: int) -> None:
    core = live(digests=digests)
    data = bytes(range(256)) * 120  # 30720 bytes: over the in-capsule limit
    command = write(data[:10000], data[10000:])
    core.submit(command)
    head = 72 + (4 if digests & Digest.HEADER else 0)
    assert len(joined(core.data_to_send())) == head
    got = bytearray()
    for offset, length in ((0, 20000), (20000, 10720)):
        core.receive(pdu.r2t(command.cid, 9, offset, length, digests))
        stream = joined(core.data_to_send())
        while stream:
            _, flags, _, pdo, plen, cid, ttag, datao, datal = pdu.H2C_DATA.unpack_from(stream)
            assert (cid, ttag, datao) == (command.cid, 9, len(got))
            assert datal <= MAXH2CDATA
            payload = stream[pdo : pdo + datal]
            if digests & Digest.DATA:
                assert stream[plen - 4 : plen] == pdu.digest(payload)
            got += payload
            assert bool(flags & PduFlag.LAST) == (len(got) == offset + length)
            stream = stream[plen:]
    assert got == data
    assert core.receive(response(command.cid, digests=digests)) == [Completed(command, 0, 0, 0)]


@pytest.mark.parametrize("digests", DIGESTS)
@pytest.mark.parametrize("success", [False, True])
def test_data_to_the_host_lands_in_the_callers_buffer(digests: int, success: bool) -> None:
    core = live(digests=digests)
    command = read(64)
    core.submit(command)
    data = bytes(range(256)) * 1024
    stream = b""
    for offset in range(0, len(data), 65536):
        last = offset + 65536 == len(data)
        parts = pdu.c2h_data(command.cid, offset, (data[offset : offset + 65536],), last, digests)
        stream += joined(with_success(parts, digests) if last and success else parts)
    if not success:
        stream += response(command.cid, digests=digests)
    assert core.receive(stream) == [Completed(command, 0, 0, 0)]
    assert bytes(command.into or b"") == data
    assert command.received == len(data)
    assert not core.outstanding


def with_success(parts: list[pdu.Buffer], digests: int) -> list[pdu.Buffer]:
    header = bytearray(parts[0])
    header[1] |= PduFlag.SUCCESS
    if digests & Digest.HEADER:
        header[24:28] = pdu.digest(header[:24])
    return [bytes(header), *parts[1:]]


def test_a_long_payload_is_received_straight_into_the_callers_buffer() -> None:
    core = live()
    command = read(16)
    core.submit(command)
    core.receive(joined(pdu.c2h_data(command.cid, 0, (bytes(65536),), True))[:24])
    into = core.receive_buffer()
    assert command.into is not None
    assert into.obj is command.into.obj
    assert len(into) == 65536


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=40), st.sampled_from(DIGESTS))
def test_any_chunking_of_the_stream_means_the_same(sizes: list[int], digests: int) -> None:
    core = queue(digests=digests)
    core.start()
    small, large, sent = read(1), read(40), write(bytes(40000))
    data = bytes(range(251)) * 700
    core.data_to_send()
    stream = pdu.ic_resp(digests, MAXH2CDATA) + response(0, dw0=3, digests=digests)
    events, rest = feed(core, stream, sizes)
    assert events == [Connected(3)]
    assert rest == 0
    for command in (small, large, sent):
        core.submit(command)
    core.data_to_send()
    stream = joined(pdu.c2h_data(large.cid, 0, (data[:100000],), False, digests))
    stream += joined(pdu.c2h_data(small.cid, 0, (data[:4096],), True, digests))
    stream += pdu.r2t(sent.cid, 1, 0, 40000, digests) + response(small.cid, digests=digests)
    stream += joined(with_success(pdu.c2h_data(large.cid, 100000, (data[100000:163840],), True, digests), digests))
    stream += response(sent.cid, dw0=4, digests=digests)
    events, _ = feed(core, stream, sizes)
    assert events == [Completed(small, 0, 0, 0), Completed(large, 0, 0, 0), Completed(sent, 0, 4, 0)]
    assert bytes(large.into or b"") == data[:163840]
    assert bytes(small.into or b"") == data[:4096]
    assert sum(map(len, core.data_to_send())) > 40000


def feed(core: HostQueue, stream: bytes, sizes: list[int]) -> tuple[list[Event], int]:
    """Feed `stream` in chunks of these sizes, over and over; returns events and the bytes left over."""
    events: list[Event] = []
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        events += core.receive(stream[at : at + size])
        at += size
        turn += 1
    return events, max(0, len(stream) - at)


def test_a_chunk_that_ends_within_a_header_leaves_a_whole_stage_for_the_rest() -> None:
    core = live()
    for _ in range(STAGE_BYTES // 1000):
        command = read()
        core.submit(command)
        stream = joined(pdu.c2h_data(command.cid, 0, (bytes(4096),), True)) + response(command.cid)
        core.receive(stream[:-3])
        assert len(core.receive_buffer()) >= STAGE_BYTES - pdu.CAPSULE_RESP_BYTES
        assert core.receive(stream[-3:]) == [Completed(command, 0, 0, 0)]


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_cut_gives_the_very_bytes(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    offset = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - offset))
    assert joined(cut([memoryview(part) for part in parts], offset, length)) == whole[offset : offset + length]


# --- MACs


def test_gmac_nonce_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over two queues, in-capsule and R2T data, refused and completed commands, and two sessions."""
    ledger = host.NonceLedger()
    counts: list[int] = []

    def recording(count: int) -> bytes:
        counts.append(count)
        return nonce_of(count)

    monkeypatch.setattr(session, "nonce_of", recording)
    for seed in ("one", "two"):
        keys = host.session(seed)[1]
        for queue_id in (0, 1):
            core = live(depth=3)
            core.mac = keys.queue_mac(queue_id)
            submit_many(core)
            assert counts == list(range(30))
            for count in counts:
                ledger.note(f"{seed} {queue_id}".encode(), nonce_of(count))
            counts.clear()
    assert len(ledger.seen) == 4 * 30


def submit_many(core: HostQueue) -> None:
    """Thirty authenticated commands of all kinds, with a full queue and failures between."""
    for turn in range(30):
        data = (memoryview(bytes((0, 4096, 100_000)[turn % 3])),) if turn % 3 else ()
        command = Command(vendor_sqe(VendorIo.WRITE, nsid=1), data, authenticated=True)
        if not core.has_room:
            with pytest.raises(QueueFull):
                core.submit(command)
            oldest = next(iter(core.outstanding.values()))
            core.receive(response(oldest.cid, Status.WRITE_FAULT if turn % 2 else 0))
        core.submit(command)
        core.data_to_send()


def test_the_mac_covers_the_entry_and_all_of_the_data() -> None:
    sled, head = host.session()
    core = live()
    core.mac = head.queue_mac(1)
    for count, data in enumerate((bytes(range(256)) * 16, bytes(range(256)) * 200)):
        core.submit(Command(vendor_sqe(VendorIo.WRITE, nsid=1), (memoryview(data),), authenticated=True))
        sent = bytearray(joined(core.data_to_send())[8:72])
        tag = bytes(sent[48:])
        sent[48:] = bytes(16)
        assert sled.queue_mac(1).check(count, tag, bytes(sent) + data)


def test_an_authenticated_command_needs_a_session() -> None:
    with pytest.raises(SledError, match="before the session"):
        live().submit(Command(vendor_sqe(VendorIo.FLUSH), authenticated=True))


# --- a bad controller


def reading() -> tuple[HostQueue, Command]:
    core = live()
    command = read()
    core.submit(command)
    core.data_to_send()
    return core, command


def writing() -> tuple[HostQueue, Command]:
    core = live()
    command = write(bytes(40000))
    core.submit(command)
    core.data_to_send()
    return core, command


def test_a_completion_of_an_unknown_command_ends_the_queue() -> None:
    core, command = reading()
    ended(core.receive(response(command.cid + 1)), FatalError.INVALID_HEADER_FIELD)


def test_a_completion_twice_ends_the_queue() -> None:
    core, command = reading()
    events = core.receive(response(command.cid) * 2)
    assert events[0] == Completed(command, 0, 0, 0)
    ended(events, FatalError.INVALID_HEADER_FIELD)


def test_data_for_an_unknown_command_ends_the_queue() -> None:
    core, command = reading()
    stream = joined(pdu.c2h_data(command.cid + 1, 0, (bytes(4096),), True))
    ended(core.receive(stream), FatalError.INVALID_HEADER_FIELD)


def test_data_for_a_command_that_reads_nothing_ends_the_queue() -> None:
    core, command = reading()
    core.submit(other := write(bytes(40000)))
    stream = joined(pdu.c2h_data(other.cid, 0, (bytes(4096),), True))
    ended(core.receive(stream), FatalError.INVALID_HEADER_FIELD)
    assert command.received == 0


@pytest.mark.parametrize(("offset", "length"), [(4, 100), (4, 4096), (4092, 8), (2**32 - 4, 4), (4096, 4)])
def test_data_out_of_the_buffer_or_out_of_order_ends_the_queue_and_touches_nothing(offset: int, length: int) -> None:
    core, command = reading()
    ended(
        core.receive(joined(pdu.c2h_data(command.cid, offset, (b"\xff" * length,), True))), FatalError.DATA_OUT_OF_RANGE
    )
    assert not any(command.into or b"\1")


def test_more_data_than_any_command_reads_ends_the_queue_before_it_is_stored() -> None:
    core, command = reading()
    header = pdu.C2H_DATA.pack(PduType.C2H_DATA, 4, 24, 24, 24 + 2**30, command.cid, 0, 2**30)
    ended(core.receive(header), FatalError.LIMIT_EXCEEDED)


def test_data_of_another_length_than_it_says_ends_the_queue() -> None:
    core, command = reading()
    header = pdu.C2H_DATA.pack(PduType.C2H_DATA, 4, 24, 24, 24 + 4096, command.cid, 0, 2048)
    ended(core.receive(header), FatalError.INVALID_HEADER_FIELD)


def test_flags_that_data_does_not_have_end_the_queue() -> None:
    core, command = reading()
    flags = PduFlag.LAST | PduFlag.HDGST  # no digest is agreed
    header = pdu.C2H_DATA.pack(PduType.C2H_DATA, flags, 24, 24, 24 + 4096, command.cid, 0, 4096)
    ended(core.receive(header), FatalError.INVALID_HEADER_FIELD)


def test_success_before_the_last_data_ends_the_queue() -> None:
    core, command = reading()
    parts = with_success(pdu.c2h_data(command.cid, 0, (bytes(2048),), False), 0)
    ended(core.receive(joined(parts)), FatalError.INVALID_HEADER_FIELD)


@pytest.mark.parametrize(("offset", "length"), [(0, 40001), (4, 100), (0, 0), (2**32 - 4, 8)])
def test_an_r2t_out_of_range_ends_the_queue_and_sends_nothing_of_the_data(offset: int, length: int) -> None:
    core, command = writing()
    ended(core.receive(pdu.r2t(command.cid, 0, offset, length)), FatalError.DATA_OUT_OF_RANGE)
    assert len(core.data_to_send()) == 1


def test_an_r2t_for_data_already_sent_ends_the_queue() -> None:
    core, command = writing()
    core.receive(pdu.r2t(command.cid, 0, 0, 4096))
    core.data_to_send()
    ended(core.receive(pdu.r2t(command.cid, 0, 0, 4096)), FatalError.DATA_OUT_OF_RANGE)


@pytest.mark.parametrize("cid", [1, 7, 0xFFFF])
def test_an_r2t_for_an_unknown_command_ends_the_queue(cid: int) -> None:
    core, command = writing()
    ended(core.receive(pdu.r2t(command.cid + cid & 0xFFFF, 0, 0, 4096)), FatalError.INVALID_HEADER_FIELD)


def test_an_r2t_for_data_sent_in_the_capsule_ends_the_queue() -> None:
    core = live()
    core.submit(command := write(bytes(4096)))
    ended(core.receive(pdu.r2t(command.cid, 0, 0, 4096)), FatalError.DATA_OUT_OF_RANGE)


@pytest.mark.parametrize("kind", [PduType.IC_REQ, PduType.CAPSULE_CMD, PduType.H2C_DATA, PduType.H2C_TERM_REQ])
def test_a_pdu_of_the_wrong_direction_is_out_of_sequence(kind: PduType) -> None:
    core = live()
    ended(core.receive(pdu.COMMON.pack(kind, 0, pdu.HLEN[kind], 0, pdu.HLEN[kind])), FatalError.PDU_SEQUENCE)


@pytest.mark.parametrize(
    "header",
    [struct.pack("<BBBBI", 0x55, 0, 24, 0, 24), struct.pack("<BBBBI", 5, 0, 25, 0, 25), bytes([5, 0, 24, 0]) * 2],
)
def test_a_header_that_does_not_fit_its_type_ends_the_queue(header: bytes) -> None:
    ended(live().receive(header), FatalError.INVALID_HEADER_FIELD)


def test_a_wrong_header_digest_ends_the_queue() -> None:
    core = live(digests=Digest.HEADER)
    core.submit(command := read())
    data = bytearray(response(command.cid, digests=Digest.HEADER))
    data[10] ^= 1
    assert ended(core.receive(data), FatalError.HEADER_DIGEST).fei == int.from_bytes(data[-4:], "little")


def test_a_wrong_data_digest_fails_that_command_only() -> None:
    core = live(digests=Digest.DATA)
    core.submit(first := read(16))
    core.submit(second := read(16))
    damaged = bytearray(joined(pdu.c2h_data(first.cid, 0, (bytes(65536),), True, Digest.DATA)))
    damaged[1000] ^= 1
    stream = bytes(damaged) + response(first.cid)
    stream += joined(with_success(pdu.c2h_data(second.cid, 0, (bytes(65536),), True, Digest.DATA), Digest.DATA))
    assert core.receive(stream) == [
        Completed(first, Status.TRANSIENT_TRANSPORT_ERROR, 0, 0),
        Completed(second, 0, 0, 0),
    ]


def test_the_controllers_termreq_ends_the_queue_with_its_reason() -> None:
    core, command = reading()
    events = core.receive(pdu.term_req(PduType.C2H_TERM_REQ, FatalError.PDU_SEQUENCE, 5, b"seen"))
    assert events == [Terminated(FatalError.PDU_SEQUENCE, 5, "the controller sent C2HTermReq", True)]
    assert core.data_to_send() == []
    assert list(core.outstanding.values()) == [command]


def test_what_comes_after_the_end_is_dropped() -> None:
    core, command = reading()
    core.receive(bytes(8))
    for _ in range(3):
        assert core.received(len(core.receive_buffer())) == []
    assert core.receive(response(command.cid)) == []
    core.end_of_stream()
    assert core.state is HostState.CLOSED


@settings(max_examples=300)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=10), st.booleans())
def test_garbage_never_raises_and_never_completes_anything(chunks: list[bytes], connected: bool) -> None:
    core = live() if connected else queue()
    if not connected:
        core.start()
    for chunk in chunks:
        events = core.receive(chunk)
        assert not any(isinstance(event, Completed | Connected) for event in events)
    if chunks and sum(map(len, chunks)) >= 8:
        assert core.state is HostState.TERMINATED


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_bit_anywhere_in_a_stream_never_raises(data: st.DataObject) -> None:
    core, command = reading()
    core.submit(sent := write(bytes(40000)))
    stream = bytearray(joined(pdu.c2h_data(command.cid, 0, (bytes(4096),), True)))
    stream += pdu.r2t(sent.cid, 1, 0, 40000) + response(command.cid) + response(sent.cid)
    position = data.draw(st.integers(0, len(stream) - 1))
    stream[position] ^= 1 << data.draw(st.integers(0, 7))
    core.receive(stream)
    assert core.state in (HostState.LIVE, HostState.TERMINATED)
