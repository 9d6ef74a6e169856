"""What a volume does when the log disk of one of its heads fails, hangs or comes back."""

import asyncio
import errno
from itertools import pairwise
from uuid import UUID

import pytest
from kit.cluster import (
    BLOCK,
    TERMS,
    VOLUME,
    Rack,
    until,
    with_rack,
)
from kit.virtual_time import run_virtual

from head_node.cluster import follower, primary, reopening
from head_node.cluster.primary import End
from head_node.cluster.states import VolumeState
from head_node.volume.errors import LogFailed

ONE, TWO = (bytes([value]) * BLOCK for value in (1, 2))


def test_a_failed_log_ends_the_volume_here_and_the_other_head_takes_over() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        first.disk.fail_commits = True
        first.write(0, TWO)
        await until(lambda: first.state is VolumeState.FAILED)
        await until(lambda: second.serving)
        assert await second.read(0) in (ONE, TWO)

    with_rack(scenario)


def test_a_log_that_fails_while_its_primary_steps_down_ends_the_volume_here() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        role = first.controller._role
        assert role is not None
        role.end(End.GAVE_UP, "for the test")
        first.engine._fail(LogFailed("the disk is gone"))
        await first.controller.reached(VolumeState.FAILED)
        await until(lambda: second.serving)

    with_rack(scenario)


def test_a_log_that_fails_while_a_member_seals_ends_the_volume_here() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        first.write(0, ONE)
        await until(lambda: bool(held))
        await first.crash()
        follower = second.controller._follower
        assert follower is not None
        await until(lambda: follower.promise.sealed)
        second.disk.gate, second.disk.fail_commits = None, True
        for finish in held:
            finish()
        await second.controller.reached(VolumeState.FAILED)
        await asyncio.wait_for(second.stop(), 2)

    with_rack(scenario)


def test_a_member_whose_log_disk_hangs_while_it_seals_fails_the_volume_instead_of_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follower, "SETTLE_SECONDS_MAX", 0.05)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        first.write(0, ONE)
        await until(lambda: bool(held))
        await first.crash()
        await second.controller.reached(VolumeState.FAILED)
        assert rack.record.epoch == 1, "an unsettled log asked for the epoch"
        assert "did not answer" in second.controller.status()["reason"]
        assert "event=volume_failed" in caplog.text
        await until(lambda: second.controller.ended)
        assert not second.head.ready
        await first.start()
        await until(lambda: first.serving)
        held[0]()
        assert await first.read(0) == ONE
        await asyncio.wait_for(second.stop(), 2)
        second.api.cut_off = True

    with_rack(scenario)


def test_a_primary_whose_log_disk_hangs_lets_a_member_take_over_and_follows_it_when_the_disk_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(primary, "OWN_PATIENCE", 1)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        held = first.hold_commits()
        unanswered = first.write(0, TWO)
        await until(lambda: second.serving)
        assert rack.record.epoch == 2
        assert not unanswered.done()
        # The head whose disk hangs is still a member: it goes when it owes the new primary for as long.
        assert await second.write(1, ONE) == 0
        assert not rack.is_member(first)
        first.disk.gate = None
        for finish in held:
            finish()
        await until(lambda: rack.is_member(first))
        assert first.state is VolumeState.FOLLOWING
        assert first.engine.durable == second.engine.durable

    with_rack(scenario)


def test_a_head_whose_log_disk_hangs_lets_the_member_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "OWN_PATIENCE", 1)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        gate = second.api.gates["takeover"] = asyncio.Event()
        held = first.hold_commits()
        first.write(0, ONE)
        await until(lambda: second.state is VolumeState.SEALED and first.state is VolumeState.FOLLOWING)
        follower = first.controller._follower
        assert follower is not None
        await asyncio.sleep(TERMS.ttl_ms / 1000)
        assert not follower.promise.sealed, "it would wait for a disk that hangs, and follow nobody meanwhile"
        gate.set()
        await until(lambda: second.serving)
        first.disk.gate = None
        for finish in held:
            finish()
        await until(lambda: rack.is_member(first))

    with_rack(scenario)


def test_a_lone_primary_waits_for_a_log_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "OWN_PATIENCE", 0)

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        await second.crash()
        await until(lambda: not rack.is_member(second))
        held = first.hold_commits()
        answer = first.write(0, ONE)
        await until(lambda: bool(held))
        await asyncio.sleep(5 * TERMS.heartbeat_ms / 1000)
        assert first.serving
        assert rack.record.epoch == 1
        first.disk.gate = None
        held[0]()
        assert await answer == 0

    with_rack(scenario)


def test_a_member_whose_log_disk_hangs_is_removed_and_comes_back_with_it() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        held = second.hold_commits()
        assert await first.write(0, ONE) == 0, "a member that answers heartbeats but syncs nothing holds up all writes"
        assert not rack.is_member(second)
        assert first.serving
        second.disk.gate = None
        for finish in held:
            finish()
        await until(lambda: rack.is_member(second))
        assert await first.write(0, TWO) == 0

    with_rack(scenario)


def test_a_volume_that_is_deleted_before_it_began_leaves_no_log_behind() -> None:
    async def scenario(rack: Rack) -> None:
        for head in rack.heads:
            head.sleds_cut = True
        rack.create_volume()
        await rack.start()
        first, second = rack.heads[:2]
        await until(lambda: bool(first.disk.files) and bool(second.disk.files))
        await until(lambda: VolumeState.FOLLOWING in (first.state, second.state))
        del rack.authority.records[VOLUME]
        rack.authority.touch()
        await until(lambda: not first.disk.files and not second.disk.files)

    with_rack(scenario)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reopening, "FIRST_SECONDS", 0.02)


@pytest.mark.usefixtures("soon")
def test_d1_a_volume_whose_log_failed_begins_again_and_redundancy_comes_back() -> None:
    """Nobody restarts the head: what was wrong with the disk is over."""

    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0
        first.disk.fail_commits = True
        first.write(1, TWO)
        await until(lambda: first.state is VolumeState.FAILED)
        await until(lambda: second.serving and not rack.is_member(first))
        assert await second.write(0, TWO) == 0
        first.disk.fail_commits = False
        await until(lambda: rack.is_member(first))
        assert first.engine.failure is None
        await second.crash()
        await until(lambda: first.serving)
        assert await first.read(0) == TWO

    with_rack(scenario)


@pytest.mark.usefixtures("soon")
def test_a_full_resync_that_fails_for_want_of_room_is_tried_again() -> None:
    async def scenario(rack: Rack) -> None:
        first, second = await rack.start_serving()
        assert await first.write(0, ONE) == 0

        async def full(checkpoint: object) -> None:
            await second.engine._log.discard()
            raise OSError(errno.ENOSPC, "no space left on device")

        second.engine._install = full  # type: ignore[assignment, method-assign]
        data = b"".join(await first.engine.export_checkpoint())
        with pytest.raises(OSError, match="no space"):
            await second.engine.install_checkpoint(data)
        await until(lambda: not rack.is_member(second))
        await until(lambda: rack.is_member(second))
        await first.crash()
        await until(lambda: second.serving)
        assert await second.read(0) == ONE

    with_rack(scenario)


def test_a_volume_that_goes_on_failing_is_tried_less_and_less_often() -> None:
    async def scenario() -> None:
        begun: list[float] = []
        loop = asyncio.get_running_loop()

        def begin(volume: UUID) -> None:
            begun.append(loop.time())
            again.failed(volume)

        again = reopening.Reopening(begin)
        again.failed(VOLUME)
        await asyncio.sleep(3600)
        pauses = [round(after - before) for before, after in pairwise([0.0, *(at - begun[0] + 5 for at in begun)])]
        assert pauses[:8] == [5, 10, 20, 40, 80, 160, 320, 600]
        assert set(pauses[8:]) == {600}
        again.close()

    run_virtual(scenario())


def test_a_volume_that_was_well_for_long_is_tried_at_once_again() -> None:
    async def scenario() -> None:
        begun: list[UUID] = []
        again = reopening.Reopening(begun.append)
        for _ in range(3):
            again.failed(VOLUME)
            again.failed(VOLUME)
            await asyncio.sleep(reopening.FIRST_SECONDS + 1)
            await asyncio.sleep(2 * reopening.LONGEST_SECONDS)
        assert len(begun) == 3
        again.failed(VOLUME)
        again.forget(VOLUME)
        await asyncio.sleep(reopening.FIRST_SECONDS + 1)
        assert len(begun) == 3

    run_virtual(scenario())
