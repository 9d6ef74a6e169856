"""What was committed is never cut in silence: the volume freezes, both logs are kept, an operator chooses (D1)."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cluster import BLOCK, KitHead, Rack, until, with_rack
from kit.lost_tail import lose_last_batches

from head_node.authority import transitions
from head_node.cluster.errors import LinkError
from head_node.cluster.frames import Truncate
from head_node.cluster.replication import common_opnum, holds
from head_node.cluster.states import VolumeState
from head_node.store.records import Member
from head_node.store.records import VolumeState as RecordState

ONE, TWO, THREE = (bytes([value]) * BLOCK for value in (1, 2, 3))


def frozen(rack: Rack) -> bool:
    return rack.record.state is RecordState.FROZEN


def choose(rack: Rack, head: KitHead) -> None:
    """What `force-takeover` does to the record of a frozen volume."""
    member = Member(head.id, head.engine.log_id)
    rack.authority.put(transitions.recover(rack.record, rack.record.epoch, RecordState.ACTIVE, member))


async def note_commit_point(head: KitHead) -> None:
    await head.engine._promise.note_committed(head.engine.committed, 1)


async def parted(rack: Rack) -> tuple[KitHead, KitHead]:
    """Both heads lost their power, the first its last batch too and the note of it. It came back alone, and has
    acknowledged a write since; the second, which has what it lost and knows that it was committed, is off."""
    first, second = await rack.start_serving()
    assert await first.write(0, ONE) == 0
    await until(lambda: second.engine.committed == 2)
    await note_commit_point(second)
    for head in (first, second):
        await head.crash()
    lose_last_batches(first.disk)
    first.disk.files["promise"].durable[:] = bytes(2 * BLOCK)
    first.disk.files["promise"].cached.clear()
    await first.start()
    await until(lambda: first.serving)
    assert await first.write(1, TWO) == 0
    return first, second


def says(head: KitHead, text: str) -> bool:
    return head.state is not None and text in head.controller.reason


def test_d1_committed_records_that_the_primary_lacks_freeze_the_volume_and_nothing_is_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await parted(rack)
        await second.start()
        kept = second.disk
        await until(lambda: frozen(rack) and first.state is VolumeState.FOLLOWING)
        assert second.engine.tail.opnum == second.engine.committed == 2
        assert second.disk is kept
        assert second.engine.epoch_history() == [(1, 1)]
        assert first.engine.epoch_history() == [(1, 1), (2, 2)]
        assert first.controller.status()["last_end"] == "frozen"
        _, common, ends = next(entry for entry in rack.authority.journal if entry[0] == "diverged")
        assert common == 1
        assert [(end.head, end.tail, end.tail_epoch, end.committed, end.committed_epoch) for end in ends] == [
            (first.id, 3, 2, 3, 2), (second.id, 2, 1, 2, 1),
        ]  # fmt: skip
        assert "event=logs_diverged" in caplog.text
        assert "was committed and is not in the log of this primary" in second.controller._follower.reason  # type: ignore[union-attr]

    with_rack(scenario)


@pytest.mark.parametrize("choice", [0, 1])
def test_d1_an_operator_chooses_a_log_and_the_other_one_is_set_aside(
    choice: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rack: Rack) -> None:
        heads = await parted(rack)
        await heads[1].start()
        await until(lambda: frozen(rack) and heads[0].state is VolumeState.FOLLOWING)
        chosen, other = heads[choice], heads[1 - choice]
        former, former_disk = other.engine.log_id, other.disk
        choose(rack, chosen)
        await until(lambda: chosen.serving and rack.is_member(other))
        assert [await chosen.read(lba) for lba in (0, 1)] == (
            [bytes(BLOCK), TWO] if choice == 0 else [ONE, bytes(BLOCK)]
        )
        assert other.aside == [former_disk], "the log that was not chosen is kept"
        assert other.engine.log_id != former
        assert "event=records_given_up" in caplog.text
        assert "event=log_forfeited" in caplog.text
        assert await chosen.write(2, THREE) == 0
        await chosen.crash()
        await until(lambda: other.serving)
        assert await other.read(2) == THREE

    with_rack(scenario)


def test_d1_nothing_is_acknowledged_while_the_freeze_is_on_its_way() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await parted(rack)
        gate = first.api.gates["report_divergence"] = asyncio.Event()
        first.api.lose_replies.add("report_divergence")
        await second.start()
        await until(lambda: first.state is VolumeState.HOLDING)
        late = first.write(3, THREE)
        assert not late.done()
        gate.set()
        await until(lambda: frozen(rack) and first.state is VolumeState.FOLLOWING)
        assert not late.done()

    with_rack(scenario)


def test_d1_a_log_that_lost_its_end_waits_for_the_member_that_has_it() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await note_commit_point(first)
        for head in (first, second):
            await head.crash()
        lose_last_batches(first.disk)
        await first.start()
        await until(lambda: says(first, "was committed"))
        assert first.controller.status()["engine"]["missing"] == 1
        first.clock.jump(100 * rack.tail_wait_ms)
        await second.start()
        await until(lambda: second.serving and rack.is_member(first))
        assert ("takeover", first.id, 2) not in rack.authority.journal
        assert first.engine.missing == 0
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_d1_a_log_that_lost_its_end_goes_on_alone_only_when_an_operator_says_so() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        assert await first.write(1, TWO) == 0
        await note_commit_point(first)
        for head in (first, second):
            await head.crash()
        lose_last_batches(first.disk)
        await first.start()
        await until(lambda: says(first, "an operator has to choose this log"))
        rack.authority.put(transitions.freeze(rack.record))
        choose(rack, first)
        await until(lambda: first.serving)
        assert [await first.read(lba) for lba in (0, 1)] == [ONE, bytes(BLOCK)]
        assert first.engine.missing == 0
        await second.start()
        await until(lambda: rack.is_member(second))
        assert len(second.aside) == 1, "it had what the operator gave up"

    with_rack(scenario)


def test_d1_what_a_takeover_without_all_answers_may_lack_is_set_aside_and_not_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The disk lost a batch of which no head knew yet that it was committed, and the one that has it came too late."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await until(lambda: second.engine.durable == 2)
        assert await first.write(1, TWO) == 0
        for head in (first, second):
            head.disk.files["promise"].durable[:] = bytes(2 * BLOCK)
            await head.crash()
        lose_last_batches(first.disk)
        await first.start()
        await until(lambda: first.serving)
        assert rack.record.doubtful_epoch == 2
        kept = second.disk
        await second.start()
        await until(lambda: rack.is_member(second))
        assert second.aside == [kept]
        assert "event=records_given_up" in caplog.text
        await first.crash()
        await until(lambda: second.serving)
        await first.start()
        await until(lambda: rack.is_member(first))
        assert first.aside == [], "who followed since is no longer in doubt"

    with_rack(scenario)


def test_d1_a_log_that_is_to_be_set_aside_takes_no_epoch_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told while its takeover is on its way. Leading first, it would be set aside with what it acknowledged."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        follower = second.controller._follower
        assert follower is not None
        seal = follower.seal

        async def told_meanwhile() -> None:
            await seal()
            follower.on_forfeited()

        monkeypatch.setattr(follower, "seal", told_meanwhile)
        await first.crash()
        await until(lambda: bool(second.aside) or second.serving)
        assert second.aside
        assert rack.record.epoch == 1

    with_rack(scenario)


def test_a_member_that_is_only_behind_is_no_divergence() -> None:
    """What a member had and never knew as committed is cut as before; see also the full resyncs of test_replication."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        first.api.cut_off = True
        first.head._stopping = True
        role = first.controller._role
        assert role is not None
        role.links.close("the network breaks")
        unacknowledged = first.write(0, THREE)
        await until(lambda: first.engine.durable == 3)
        await first.crash()
        await until(lambda: second.serving)
        assert await second.write(1, TWO) == 0
        await first.start()
        await until(lambda: rack.is_member(first))
        assert not unacknowledged.done()
        assert first.aside == []
        assert not frozen(rack)

    with_rack(scenario)


def test_d1_a_member_lets_no_primary_cut_what_it_knows_as_committed() -> None:
    """The member judges for itself: a primary that does not look at what is committed gets no further."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        await until(lambda: second.engine.committed == 2)
        follower = second.controller._follower
        assert follower is not None
        session = follower.session
        assert session is not None
        for resync in (False, True):
            assert session._may_cut(Truncate(1, resync, 2, 0, 0))
            for forced, doubtful in ((0, 0), (1, 0), (1, 9)):
                with pytest.raises(LinkError, match="but 2 of epoch 1 was committed"):
                    session._may_cut(Truncate(1, resync, 1, forced, doubtful))
            assert not session._may_cut(Truncate(3, resync, 1, 2, 0)), "an operator gave it up, so it is set aside"
        second.engine.committed = 1
        assert session._may_cut(Truncate(1, False, 1, 1, 1)), "what was not committed is cut"
        for forced, doubtful in ((2, 0), (0, 2)):
            assert not session._may_cut(Truncate(3, False, 1, forced, doubtful)), "whether this was is not known"
        second.engine.committed = 2

    with_rack(scenario)


@given(
    shared=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    ours=st.lists(st.integers(1, 9), max_size=3),
    theirs=st.lists(st.integers(1, 9), max_size=3),
    data=st.data(),
)
def test_a_log_holds_a_record_exactly_where_it_is_below_the_common_point(
    shared: list[int], ours: list[int], theirs: list[int], data: st.DataObject
) -> None:
    def build(lengths: list[int], epochs: list[int]) -> tuple[list[tuple[int, int]], list[int]]:
        history, log = [], []
        for epoch, length in zip(epochs, lengths, strict=True):
            history.append((epoch, len(log) + 1))
            log += [epoch] * length
        return history, log

    base = list(range(1, len(shared) + 1))
    our_history, our_log = build(shared + ours, base + [20 + 2 * index for index in range(len(ours))])
    their_history, their_log = build(shared + theirs, base + [21 + 2 * index for index in range(len(theirs))])
    opnum = data.draw(st.integers(0, len(their_log)))
    common = common_opnum(our_history, len(our_log), their_history, len(their_log))
    epoch = their_log[opnum - 1] if opnum else 0
    assert holds(our_history, len(our_log), opnum, epoch) == (opnum <= common)


def test_a_log_that_lost_its_end_does_not_hold_what_was_there() -> None:
    history = [(1, 1), (2, 40)]
    assert holds(history, 50, 50, 2)
    assert not holds(history, 50, 51, 2)
    assert not holds(history, 50, 40, 1)
    assert not holds([], 0, 1, 1)
    assert holds([], 0, 0, 0)
