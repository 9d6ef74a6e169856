"""Where logs part, and a member that catches up from the log or from a checkpoint."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cluster import BLOCK, Rack, until, with_rack

from head_node.cluster.errors import LinkError
from head_node.cluster.replication import WINDOW_BYTES, common_opnum, split
from head_node.volume.records import RECORD_HEADER
from head_node.volume.segments import BATCH_BYTES_MAX
from spdk_bindings.device import Buffer

DATA = bytes(range(256)) * 16


@pytest.mark.parametrize(
    ("ours", "our_tail", "theirs", "their_tail", "common"),
    [
        ([(1, 1)], 10, [(1, 1)], 10, 10),
        ([(1, 1)], 10, [(1, 1)], 7, 7),
        ([(1, 1), (3, 101)], 120, [(1, 1), (2, 101)], 105, 100),
        ([(1, 1), (3, 91)], 120, [(1, 1)], 100, 90),
        ([(1, 1), (2, 50), (4, 80)], 90, [(1, 1), (2, 50), (3, 70)], 75, 69),
        ([(1, 1)], 10, [], 0, 0),
        ([(5, 100)], 120, [(1, 1)], 50, 0),
    ],
)
def test_logs_agree_up_to_the_earlier_end_of_the_newest_epoch_that_both_have(
    ours: list[tuple[int, int]], our_tail: int, theirs: list[tuple[int, int]], their_tail: int, common: int
) -> None:
    assert common_opnum(ours, our_tail, theirs, their_tail) == common


@given(shared=st.lists(st.integers(1, 9), min_size=1, max_size=5), ours=st.lists(st.integers(1, 9), max_size=3),
       theirs=st.lists(st.integers(1, 9), max_size=3), cut=st.integers(0, 8))  # fmt: skip
def test_the_common_point_is_where_two_histories_really_part(
    shared: list[int], ours: list[int], theirs: list[int], cut: int
) -> None:
    """Lists of epoch lengths: a shared beginning, the last of it perhaps cut short in ours, then epochs of our own."""

    def build(lengths: list[int], epochs: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        history, log = [], []
        for epoch, length in zip(epochs, lengths, strict=True):
            history.append((epoch, len(log) + 1))
            log += [epoch] * length
        return history, log

    short = [*shared[:-1], max(1, shared[-1] - cut)]
    base = list(range(1, len(shared) + 1))
    our_history, our_log = build(short + ours, base + [20 + 2 * index for index in range(len(ours))])
    their_history, their_log = build(shared + theirs, base + [21 + 2 * index for index in range(len(theirs))])
    expected = 0
    while expected < min(len(our_log), len(their_log)) and our_log[expected] == their_log[expected]:
        expected += 1
    assert common_opnum(our_history, len(our_log), their_history, len(their_log)) == expected


def records(*data_bytes: int) -> bytes:
    return b"".join(
        RECORD_HEADER.pack(0, 2, 0, 0, 8, length, opnum, 1, 0) + bytes(8 + length)
        for opnum, length in enumerate(data_bytes, 1)
    )


def test_a_batch_is_cut_between_records() -> None:
    batch = records(100, 100, 100, 1000, 100)
    pieces = split(batch, 400)
    assert [last for last, _ in pieces] == [2, 3, 4, 5]
    assert b"".join(piece for _, piece in pieces) == batch


@pytest.mark.parametrize("batch", [bytes(10), records(100)[:-1]])
def test_a_batch_that_ends_inside_a_record_is_noticed(batch: bytes) -> None:
    with pytest.raises(LinkError):
        split(batch, 400)


def test_a_member_that_comes_late_gets_the_log_from_its_beginning() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        for lba in range(30):
            assert await first.write(lba, DATA) == 0
        await second.start()
        await until(lambda: rack.is_member(second))
        assert second.engine.durable >= 31
        assert second.engine.epoch_history() == first.engine.epoch_history()

    with_rack(scenario)


def test_a_member_behind_a_trimmed_log_is_filled_from_a_checkpoint() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        piece = DATA * 16
        await asyncio.gather(*(first.write(lba % 32, piece) for lba in range(600)))
        await until(lambda: first.engine.read_log(1, BLOCK) is None)
        await second.start()
        await until(lambda: rack.is_member(second))
        await first.crash()
        await until(lambda: second.serving)
        assert await second.read(3) == DATA

    with_rack(scenario)


def test_a_member_whose_checkpoint_could_not_be_made_begins_anew() -> None:
    async def scenario(rack: Rack) -> None:
        rack.create_volume()
        first, second = rack.heads
        await first.start()
        await until(lambda: first.serving)
        await asyncio.gather(*(first.write(lba % 32, DATA * 16) for lba in range(600)))
        await until(lambda: first.engine.read_log(1, BLOCK) is None)
        export, failures = first.engine.export_checkpoint, []

        async def fails_once() -> list[Buffer]:
            if not failures:
                failures.append(OSError("no memory"))
                raise failures[0]
            return await export()

        first.engine.export_checkpoint = fails_once  # type: ignore[method-assign]
        await second.start()
        await until(lambda: rack.is_member(second))
        assert failures

    with_rack(scenario)


def test_f5_a_member_is_caught_up_when_it_holds_everything_committed_durably() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, DATA) == 0
        role = first.controller._role
        assert role is not None
        sender = role.links.sender(second.id)
        assert sender is not None
        await until(lambda: sender.caught_up)
        sender.durable = first.engine.committed - 1  # all is sent, and the member has not said that it has the last
        assert not sender.caught_up
        assert not role.members.ready(sender.member)
        sender.durable = first.engine.committed
        assert sender.caught_up
        assert role.members.ready(sender.member)

    with_rack(scenario)


def test_what_is_in_flight_to_a_stuck_member_is_bounded() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        role = first.controller._role
        assert role is not None
        sender = role.links.sender(second.id)
        assert sender is not None
        sender.connection.pause_receiving()  # nothing that the member says arrives
        piece = DATA * 64
        answers = [first.write(0, piece) for _ in range(60)]
        await until(lambda: first.engine.durable == first.engine.tail.opnum)
        assert sender._in_flight_bytes < WINDOW_BYTES + BATCH_BYTES_MAX
        sender.connection.resume_receiving()
        assert set(await asyncio.gather(*answers)) == {0}

    with_rack(scenario)
