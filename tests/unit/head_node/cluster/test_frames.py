"""Frames: what is packed by struct is what the construct layouts say, and nothing else is taken."""

from uuid import UUID

import pytest
from kit.host import golden

from head_node.cluster import frames
from head_node.cluster.errors import FrameMalformed
from head_node.cluster.frames import Heartbeat, Join, Tail, Truncate

JOIN = Join(UUID(int=5), 1000, 77, 3, 45, 3, ((1, 1), (3, 40)))
TAIL = Tail(UUID(int=5), 77, 3, 78, 2)


def test_join_is_laid_out_as_described() -> None:
    assert JOIN.encode() == frames.JOIN_LAYOUT.build(
        {
            "log": UUID(int=5).bytes, "ttl_ms": 1000, "tail_opnum": 77, "tail_epoch": 3, "committed_opnum": 45,
            "committed_epoch": 3,
            "history": [{"epoch": 1, "first_opnum": 1}, {"epoch": 3, "first_opnum": 40}],
        }
    )  # fmt: skip
    assert Join.decode(JOIN.encode()) == JOIN


@pytest.mark.parametrize(
    ("packed", "layout", "fields"),
    [
        (
            Truncate(4, True, 9, 3, 2).encode(),
            frames.TRUNCATE_LAYOUT,
            {"epoch": 4, "resync": 1, "after_opnum": 9, "forced_epoch": 3, "doubtful_epoch": 2},
        ),
        (
            TAIL.encode(),
            frames.TAIL_LAYOUT,
            {
                "log": UUID(int=5).bytes,
                "tail_opnum": 77,
                "tail_epoch": 3,
                "committed_opnum": 78,
                "committed_epoch": 2,
            },
        ),
        (frames.encode_opnum(12), frames.OPNUM_LAYOUT, {"opnum": 12}),
        (frames.encode_opnum(12), frames.DELETED_LAYOUT, {"epoch": 12}),
        (
            Heartbeat(1, 2, 3, 4).encode(),
            frames.HEARTBEAT_LAYOUT,
            {"sequence": 1, "sent_ns": 2, "committed": 3, "ttl_ms": 4},
        ),
        (frames.encode_promise(1, 2), frames.PROMISE_LAYOUT, {"sequence": 1, "sent_ns": 2}),
        (frames.encode_release(1, 2), frames.RELEASE_LAYOUT, {"epoch": 1, "committed": 2}),
        (
            b"".join(frames.encode_chunk(10, 4, b"abc")),
            frames.CHECKPOINT_LAYOUT,
            {"total_bytes": 10, "offset": 4, "data": b"abc"},
        ),
    ],
)
def test_the_other_frames_are_laid_out_as_described(packed: bytes, layout: object, fields: dict[str, object]) -> None:
    assert packed == layout.build(fields)  # type: ignore[attr-defined]


def test_join_truncate_and_tail_are_the_golden_bytes() -> None:
    assert JOIN.encode() == golden("link_join")
    assert TAIL.encode() == golden("link_tail")
    assert Truncate(4, True, 9, 3, 2).encode() == golden("link_truncate")


def test_each_decodes_what_it_encodes() -> None:
    assert Tail.decode(TAIL.encode()) == TAIL
    assert Truncate.decode(Truncate(4, True, 9, 3, 2).encode()) == Truncate(4, True, 9, 3, 2)
    assert Heartbeat.decode(Heartbeat(1, 2, 3, 4).encode()) == Heartbeat(1, 2, 3, 4)
    assert frames.decode_promise(frames.encode_promise(1, 2)) == (1, 2)
    assert frames.decode_release(frames.encode_release(1, 2)) == (1, 2)
    total, offset, data = frames.decode_chunk(b"".join(frames.encode_chunk(10, 4, b"abc")))
    assert (total, offset, bytes(data)) == (10, 4, b"abc")


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_join_of_another_length_is_refused(cut: int) -> None:
    with pytest.raises(FrameMalformed):
        Join.decode(JOIN.encode()[:cut])


def test_a_join_whose_epochs_do_not_rise_is_refused() -> None:
    with pytest.raises(FrameMalformed, match="rise"):
        Join.decode(Join(UUID(int=5), 1, 1, 1, 0, 0, ((3, 40), (1, 1))).encode())


@pytest.mark.parametrize(("total", "offset", "data"), [(3, 1, b"abc"), (0, 0, b"a"), (1 << 40, 0, b"a"), (10, 0, b"")])
def test_a_checkpoint_piece_out_of_bounds_is_refused(total: int, offset: int, data: bytes) -> None:
    with pytest.raises(FrameMalformed):
        frames.decode_chunk(b"".join(frames.encode_chunk(total, offset, data)))


def test_other_short_payloads_are_refused() -> None:
    for decode in (Tail.decode, Truncate.decode, Heartbeat.decode, frames.decode_opnum, frames.decode_promise):
        with pytest.raises(FrameMalformed):
            decode(b"abc")
