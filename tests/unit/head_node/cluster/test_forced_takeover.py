"""An operator lets a volume go on from the log of a head that is no member: the rest of the old log is given up."""

from kit.cluster import BLOCK, KitHead, Rack, until, with_rack

from head_node.authority import transitions
from head_node.cluster.states import VolumeState
from head_node.store.records import Member
from head_node.store.records import VolumeState as RecordState

ONE, TWO, THREE = (bytes([value]) * BLOCK for value in (1, 2, 3))


async def left_behind(rack: Rack) -> tuple[KitHead, KitHead]:
    """A primary that has died alone, and a head whose log lacks its last write."""
    first, second = await rack.start_serving()
    assert await first.write(0, ONE) == 0
    await second.crash()
    assert await first.write(0, TWO) == 0
    assert not rack.is_member(second)
    await first.crash()
    await second.start()
    await until(lambda: second.state is VolumeState.FOLLOWING)
    return first, second


def force(rack: Rack, head: KitHead) -> None:
    frozen = transitions.freeze(rack.record)
    member = Member(head.id, head.engine.log_id)
    rack.authority.put(transitions.recover(frozen, frozen.epoch, RecordState.ACTIVE, member))


def test_a_head_that_was_left_behind_goes_on_when_an_operator_says_so() -> None:
    async def scenario(rack: Rack) -> None:
        _, second = await left_behind(rack)
        force(rack, second)
        await until(lambda: second.serving)
        assert rack.record.epoch == 3
        assert await second.read(0) == ONE
        assert await second.write(1, THREE) == 0

    with_rack(scenario)


def test_the_former_primary_gives_up_what_only_it_had_when_it_is_back() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await left_behind(rack)
        force(rack, second)
        await until(lambda: second.serving)
        assert await second.write(1, THREE) == 0
        await first.start()
        await until(lambda: rack.is_member(first))
        assert first.engine.epoch_history() == second.engine.epoch_history()
        assert len(first.aside) == 1, "what it had is kept"
        await second.crash()
        await until(lambda: first.serving)
        assert [await first.read(lba) for lba in (0, 1)] == [ONE, THREE]

    with_rack(scenario)
