"""The transmission core: requests in any chunking, answers in step, bad input answered or the stream given up."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.transmission import SIZE, Bench, chunks, ok, refused, request

from head_node.export import nbd_protocol as nbd
from head_node.export.nbd_protocol import Chunk, Command, CommandFlag, NbdError
from head_node.export.nbd_server import (
    LARGE_PAYLOAD_BYTES,
    OTHER_SHARE,
    OUTPUT_BYTES_MAX,
    SLAB_BYTES,
    TURN_SHARE,
    Limits,
    Phase,
)
from head_node.export.replies import HOLE_BYTES_MIN, data_and_hole_chunks, merge_extents

K4 = 4096


def test_what_is_written_is_read_back() -> None:
    bench = Bench()
    data = bytes(range(256)) * 32
    assert bench.ask(request(Command.WRITE, K4, data=data)) == ok()
    assert bench.ask(request(Command.READ, K4, len(data), cookie=8)) == ok(8) + data


def test_structured_reads_carry_their_offset() -> None:
    bench = Bench(structured=True)
    bench.volume.data[K4 : 2 * K4] = b"x" * K4
    reply = bench.ask(request(Command.READ, K4, K4))
    assert chunks(reply) == [(Chunk.OFFSET_DATA, 1, nbd.CHUNK_OFFSET.pack(K4) + b"x" * K4)]


def test_zeroes_in_a_long_read_become_holes() -> None:
    bench = Bench(structured=True)
    piece = HOLE_BYTES_MIN
    bench.volume.data[piece : 2 * piece] = b"x" * piece
    bench.volume.data[4 * piece - 1] = 1
    reply = bench.ask(request(Command.READ, 0, 5 * piece))
    assert [(kind, flags, len(body)) for kind, flags, body in chunks(reply)] == [
        (Chunk.OFFSET_HOLE, 0, 12),
        (Chunk.OFFSET_DATA, 0, piece + 8),
        (Chunk.OFFSET_HOLE, 0, 12),
        (Chunk.OFFSET_DATA, 0, piece + 8),
        (Chunk.OFFSET_HOLE, 1, 12),
    ]
    assert nbd.OFFSET_HOLE.unpack(chunks(reply)[4][2]) == (4 * piece, piece)


def test_df_gets_one_chunk() -> None:
    bench = Bench(structured=True)
    ((kind, flags, body),) = chunks(bench.ask(request(Command.READ, 0, SIZE, flags=CommandFlag.DF)))
    assert (kind, flags, len(body)) == (Chunk.OFFSET_DATA, 1, SIZE + 8)


def test_trim_zero_flush_and_cache_reach_the_volume() -> None:
    bench = Bench()
    bench.volume.record_calls = True
    flags = CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO | CommandFlag.FUA
    assert bench.ask(
        request(Command.TRIM, 0, K4, cookie=1),
        request(Command.WRITE_ZEROES, K4, K4, flags=flags, cookie=2),
        request(Command.FLUSH, cookie=3),
        request(Command.CACHE, 0, K4, cookie=4),
    ) == ok(1) + ok(2) + ok(3) + ok(4)
    assert bench.volume.calls == [("trim", 0, K4), ("write_zeroes", K4, K4), ("flush", 0, 0)]


def test_block_status_joins_neighbours() -> None:
    bench = Bench(structured=True, allocation=True)
    bench.ask(request(Command.WRITE, 2 * K4, data=b"x" * K4))
    ((kind, flags, body),) = chunks(bench.ask(request(Command.BLOCK_STATUS, 0, SIZE)))
    assert (kind, flags) == (Chunk.BLOCK_STATUS, 1)
    parsed = nbd.BlockStatus.parse(body)
    assert [(extent.length, extent.flags) for extent in parsed.extents] == [
        (2 * K4, 3),
        (K4, 0),
        (SIZE - 3 * K4, 3),
    ]
    ((_, _, body),) = chunks(bench.ask(request(Command.BLOCK_STATUS, 0, SIZE, flags=CommandFlag.REQ_ONE)))
    assert len(nbd.BlockStatus.parse(body).extents) == 1


def test_extents_are_cut_at_the_range_and_the_bound() -> None:
    assert merge_extents([(K4, 0), (K4, 0), (9 * K4, 3)], 5 * K4, 8) == [(2 * K4, 0), (3 * K4, 3)]
    assert merge_extents([(K4, 0), (K4, 3), (K4, 0)], SIZE, 2) == [(K4, 0), (K4, 3)]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (request(Command.READ, 1, K4), NbdError.EINVAL),
        (request(Command.READ, 0, 512), NbdError.EINVAL),
        (request(Command.READ, SIZE, K4), NbdError.EINVAL),
        (request(Command.READ, (1 << 64) - K4, K4), NbdError.EINVAL),
        (request(Command.READ, 0, 33 << 20), NbdError.EOVERFLOW),
        (request(Command.READ, 0, K4, flags=CommandFlag.DF), NbdError.EINVAL),
        (request(Command.READ, 0, K4, flags=1 << 15), NbdError.EINVAL),
        (request(Command.WRITE, 0, data=b"x" * 100), NbdError.EINVAL),
        (request(Command.WRITE, SIZE - K4, data=b"x" * 2 * K4), NbdError.ENOSPC),
        (request(Command.WRITE, 0, data=b"x" * K4, flags=CommandFlag.DF), NbdError.EINVAL),
        (request(Command.WRITE, 0, data=bytes((32 << 20) + K4)), NbdError.EOVERFLOW),
        (request(Command.WRITE_ZEROES, SIZE, K4), NbdError.ENOSPC),
        (request(Command.TRIM, SIZE, K4), NbdError.EINVAL),
        (request(Command.TRIM, 0, K4, flags=CommandFlag.NO_HOLE), NbdError.EINVAL),
        (request(Command.CACHE, SIZE, K4), NbdError.EINVAL),
        (request(Command.BLOCK_STATUS, 0, K4), NbdError.EINVAL),
        (request(8, 0, K4), NbdError.EINVAL),
        (request(0xFFFF, 1, 2), NbdError.EINVAL),
    ],
)
def test_a_bad_request_is_answered_and_the_stream_stays_in_step(bad: bytes, error: int) -> None:
    bench = Bench()
    before = bytes(bench.volume.data)
    assert bench.ask(bad, request(Command.FLUSH, cookie=9)) == refused(error) + ok(9)
    assert bench.counters.requests_rejected == 1
    assert bench.core.first_rejection
    assert bench.volume.data == before
    assert len(bench.core._slab) == SLAB_BYTES


def test_a_bad_request_of_a_structured_client_is_explained() -> None:
    bench = Bench(structured=True)
    ((kind, flags, body),) = chunks(bench.ask(request(Command.READ, 512, 512)))
    assert (kind, flags) == (Chunk.ERROR, 1)
    error = nbd.ErrorChunk.parse(body)
    assert error.error == NbdError.EINVAL
    assert b"4096" in error.text


def test_requests_of_length_zero_succeed_without_the_volume() -> None:
    bench = Bench()
    bench.volume.record_calls = True
    names = (Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
    assert bench.ask(*(request(command) for command in names)) == ok() * 4
    assert bench.volume.calls == []
    assert chunks(Bench(structured=True).ask(request(Command.READ))) == [(Chunk.NONE, 1, b"")]


def test_errors_of_the_volume_are_passed_on_as_the_specification_has_them() -> None:
    bench = Bench()
    bench.volume.error = 28
    assert bench.ask(request(Command.WRITE, data=b"x" * K4)) == refused(28)
    bench.volume.error = 110
    assert bench.ask(request(Command.READ, 0, K4)) == refused(NbdError.EIO)
    assert bench.counters.requests_failed == 2


def test_a_late_error_wakes_the_owner() -> None:
    bench = Bench()
    bench.volume.hold, bench.volume.error = True, 5
    assert bench.ask(request(Command.READ, 0, K4), request(Command.FLUSH, cookie=8)) == b""
    bench.volume.release()
    assert bench.wakes == 1
    assert bench.output() == refused(5) + refused(5, 8)


def test_replies_that_come_at_once_are_taken_before_more_is_read() -> None:
    bench = Bench()
    bench.core.feed(request(Command.READ, 0, SIZE) * 64)
    assert bench.core.stalled
    assert len(b"".join(bench.core.take_output())) <= OUTPUT_BYTES_MAX + 2 * SIZE
    assert bench.wakes == 1


def test_one_connection_gets_its_share_of_a_loop_turn_and_no_more() -> None:
    bench = Bench(structured=True, allocation=True)
    bench.volume.record_calls = True
    bench.core.feed(request(Command.BLOCK_STATUS, 0, SIZE) * 100)
    assert bench.core.stalled
    assert len(bench.volume.calls) == TURN_SHARE // OTHER_SHARE
    bench.output()
    assert len(bench.volume.calls) == 100
    assert not bench.core.stalled


def test_short_runs_of_zeroes_stay_data() -> None:
    blocks = [b"x" * K4, bytes(K4), b"y" * K4, *[bytes(K4)] * 8, *[b"z" * K4] * 2, bytes(K4)]
    found = chunks(b"".join(data_and_hole_chunks(7, 0, blocks)))
    assert [(kind, len(body)) for kind, _, body in found] == [
        (Chunk.OFFSET_DATA, 8 + 3 * K4),
        (Chunk.OFFSET_HOLE, 12),
        (Chunk.OFFSET_DATA, 8 + 2 * K4),
        (Chunk.OFFSET_DATA, 8 + K4),
    ]


def test_a_volume_that_returns_too_little_costs_an_error_not_the_framing() -> None:
    bench = Bench()
    bench.volume.read = lambda offset, length, done, gone: done(0, (b"short",))  # type: ignore[method-assign]
    assert bench.ask(request(Command.READ, 0, K4)) == refused(NbdError.EIO)
    assert bench.counters.internal_errors == 1


def test_garbage_breaks_the_stream_for_good() -> None:
    bench = Bench()
    assert bench.ask(request(Command.FLUSH), b"garbage that is no request, long enough") == ok()
    assert bench.core.phase is Phase.BROKEN
    assert "magic" in bench.core.fault
    assert bench.counters.garbage == 1
    assert bench.ask(request(Command.FLUSH)) == b""


def test_disconnect_answers_what_is_in_flight_first() -> None:
    bench = Bench()
    bench.volume.hold = True
    assert bench.ask(request(Command.FLUSH), request(Command.DISC), request(Command.FLUSH, cookie=9)) == b""
    assert not bench.core.finished
    bench.volume.release()
    assert bench.wakes == 1
    assert bench.output() == ok()
    assert bench.core.finished


def test_a_dropped_connection_answers_nothing_and_admits_nothing() -> None:
    bench = Bench(limits=Limits(requests_in_flight_max=1))
    bench.volume.hold = True
    bench.volume.record_calls = True
    bench.ask(request(Command.WRITE, 0, data=b"a" * K4), request(Command.WRITE, K4, data=b"b" * K4))
    bench.core.drop()
    bench.volume.release()
    assert bench.output() == b""
    assert bench.volume.calls == [("write", 0, K4)]
    assert bench.counters.requests_unanswered == 1


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    bench = Bench(limits=Limits(requests_in_flight_max=2))
    bench.volume.hold = True
    bench.volume.record_calls = True
    bench.ask(*(request(Command.WRITE, n * K4, data=b"x" * K4, cookie=n) for n in range(5)))
    assert bench.core.stalled
    assert len(bench.volume.calls) == 2
    bench.volume.release()
    assert bench.wakes == 1
    assert bench.output() == b"".join(ok(n) for n in range(5))
    assert not bench.core.stalled


def test_bytes_in_flight_are_bounded_before_memory_is_taken() -> None:
    bench = Bench(size=64 << 20)
    bench.volume.hold = True
    large = 32 << 20
    bench.ask(request(Command.READ, 0, large), request(Command.WRITE, 0, large, cookie=2))
    assert bench.core.stalled
    assert bench.core._large is None
    bench.volume.release()
    assert len(bench.output()) == 16 + large
    assert bench.core._large is not None


def test_the_payload_of_a_rejected_write_takes_no_memory_beside_one_in_flight() -> None:
    bench = Bench()
    bench.volume.hold = True
    assert bench.ask(request(Command.WRITE, 0, data=b"x" * K4), request(Command.WRITE, SIZE, 1 << 20)) == b""
    slab = bench.core._slab
    for _ in range(16):
        bench.core.feed(bytes(1 << 16))
    assert bench.core._slab is slab
    bench.volume.release()
    assert bench.output() == refused(NbdError.ENOSPC) + ok()
    assert bench.ask(request(Command.FLUSH, cookie=9)) == ok(9)


def test_requests_wait_here_while_the_volume_is_not_ready() -> None:
    bench = Bench()
    bench.volume.is_ready = False
    bench.volume.record_calls = True
    assert bench.ask(request(Command.WRITE, 0, data=b"x" * K4)) == b""
    assert bench.core.stalled
    assert bench.volume.calls == []
    bench.volume.become_ready()
    assert bench.output() == ok()


def test_requests_without_data_do_not_wait_here_while_the_volume_keeps_writes_back() -> None:
    """Reads, queries and trims need none of the room that writes wait for; what is behind a write in the stream waits
    with it."""
    bench = Bench()
    bench.volume.is_ready = False
    bench.volume.record_calls = True
    bench.ask(
        request(Command.READ, 0, K4),
        request(Command.TRIM, 0, K4),
        request(Command.WRITE_ZEROES, 0, K4),
        request(Command.FLUSH),
        request(Command.BLOCK_STATUS, 0, K4),
        request(Command.WRITE, 0, data=b"x" * K4),
        request(Command.READ, K4, K4),
    )
    names = [name for name, _, _ in bench.volume.calls]
    assert names == ["read", "trim", "write_zeroes", "flush", *(["extents"] if "extents" in names else [])]
    assert bench.core.stalled
    bench.volume.become_ready()
    bench.output()
    assert bench.volume.calls[-2:] == [("write", 0, K4), ("read", K4, K4)]


def test_payloads_stay_as_they_were_as_long_as_the_volume_keeps_them() -> None:
    bench = Bench()
    bench.volume.keep_payloads = True
    for number in range(400):
        size = K4 * (1 + number % 20)
        bench.ask(request(Command.WRITE, 0, data=bytes((number % 251,)) * size))
    assert all(bytes(data) == copy for _, data, copy in bench.volume.kept)


def test_a_payload_is_not_copied() -> None:
    bench = Bench()
    bench.volume.keep_payloads = True
    slab = bench.core.get_buffer()
    data = request(Command.WRITE, 0, data=b"x" * K4)
    slab[: len(data)] = data
    bench.core.received(len(data))
    ((_, payload, _),) = bench.volume.kept
    assert isinstance(payload, memoryview)
    assert payload.obj is slab.obj


def stream() -> bytes:
    return b"".join(
        (
            request(Command.WRITE, 0, data=b"a" * K4, cookie=1),
            request(Command.WRITE, K4, data=b"b" * (LARGE_PAYLOAD_BYTES + 3 * K4), cookie=2),
            request(Command.READ, 0, 2 * K4, cookie=3),
            request(Command.WRITE, 5, data=b"c" * 777, cookie=4),
            request(Command.WRITE, 0, data=b"d" * SLAB_BYTES, cookie=5),
            request(Command.READ, SIZE, K4, cookie=6),
            request(Command.TRIM, K4, K4, cookie=7),
            request(Command.READ, 0, 3 * K4, cookie=8),
            request(Command.BLOCK_STATUS, 0, SIZE, cookie=9),
            request(Command.DISC),
        )
    )


STREAM = stream()


def replay(pieces: list[bytes], structured: bool) -> tuple[bytes, bytes]:
    bench = Bench(structured=structured, allocation=structured)
    said = b"".join(bench.ask(piece) for piece in pieces)
    assert bench.core.finished
    return said, bytes(bench.volume.data)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=40), st.booleans())
def test_chunking_changes_nothing(cuts: list[int], structured: bool) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert replay(pieces, structured) == replay([STREAM], structured)


def test_byte_by_byte_changes_nothing() -> None:
    head = STREAM[: 28 + K4 + 28 + 40]
    bench = Bench()
    said = b"".join(bench.ask(head[n : n + 1]) for n in range(len(head)))
    assert said == ok(1)
    assert bench.ask(STREAM[len(head) :]).endswith(refused(NbdError.EINVAL, 9))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.builds(
                request,
                st.integers(0, 12),
                st.integers(0, (1 << 64) - 1),
                st.integers(0, (1 << 32) - 1),
                flags=st.integers(0, 0xFFFF),
            ),
            st.builds(request, st.sampled_from(Command), st.sampled_from([0, K4, SIZE - K4]), st.just(K4)),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_garbage_never_raises_and_never_leaves_the_volume(pieces: list[bytes], structured: bool) -> None:
    bench = Bench(structured=structured, allocation=structured)
    bench.volume.record_calls = True  # the fake asserts that every range lies within it
    for piece in pieces:
        bench.ask(piece)
        assert bench.core.in_flight == 0
        assert len(bench.core._slab) == SLAB_BYTES
    assert bench.counters.internal_errors == 0
