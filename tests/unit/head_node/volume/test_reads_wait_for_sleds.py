"""Reads whose sleds are away: they wait for what may come back, and fail only for what cannot."""

import asyncio
import errno
from collections.abc import Callable

import pytest
from kit.volume import Bench, check, run, until
from kit.volume_sleds import FULL, attach, lose, striped, turns

from head_node.volume import sled_waits
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.policy import SledPolicy
from sled_controller.errors import CommandFailed, CredentialRefused, SledUnavailable, Superseded
from spdk_bindings.nvme import Status

EIO = (errno.EIO, b"")


def test_a_read_waits_for_its_sleds_as_long_as_it_takes_and_is_answered_when_they_are_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sled_waits, "MOMENT_SECONDS", 3600)

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, *range(6))
        reads = [bench.reading(lba) for lba in content]
        await turns()
        asked = sum(column.read_count for column in bench.columns)
        requests = bench.engine.status()["requests"]
        assert (requests["waiting"], requests["waiting_for_sleds"]) == (FULL, FULL)
        waits = bench.engine.status()["sled_waits"]
        assert (waits["reads"], waits["columns"]) == (FULL, [0, 1, 2, 3, 4, 5])
        assert waits["oldest_s"] >= 0
        attach(bench, 0, 1, 2)
        await turns()
        assert sum(column.read_count for column in bench.columns) == asked, "three of four are not asked"
        attach(bench, 3)
        assert [await read for read in reads] == [(0, data) for data in content.values()]
        assert bench.engine.status()["sled_waits"] == {"reads": 0, "oldest_s": 0.0, "columns": []}
        await bench.engine.close()

    run(scenario())


def unavailable() -> Exception:
    return SledUnavailable("the association ended")


def failing(status: Status) -> Callable[[], Exception]:
    return lambda: CommandFailed(status, status.name)


@pytest.mark.parametrize(
    "error",
    [
        unavailable,
        TimeoutError,
        asyncio.CancelledError,
        lambda: CredentialRefused("expired"),
        lambda: Superseded(1, 7),
        failing(Status.NAMESPACE_NOT_READY),
        failing(Status.COMMAND_INTERRUPTED),
        failing(Status.INTERNAL_PATH_ERROR),
        failing(Status.INTERNAL_ERROR),
        failing(Status.ABORT_REQUESTED),
        failing(Status.INVALID_NAMESPACE),
        failing(Status.TRANSIENT_TRANSPORT_ERROR),
        failing(Status.NOT_ATTACHED),
    ],
)
def test_no_failure_that_may_pass_is_an_error_for_a_read(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns are attached all the time: nothing tells that they are well again but asking them."""
    monkeypatch.setattr(sled_waits, "MOMENT_SECONDS", 0.001)

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        for column in bench.columns[:3]:
            column.error = error
        read = bench.reading(0)
        await until(lambda: bool(bench.engine.status()["requests"]["waiting_for_sleds"]))
        await turns()
        assert not read.done()
        for column in bench.columns[:3]:
            column.error = None
        assert await read == (0, content[0])
        await bench.engine.close()

    run(scenario())


@pytest.mark.parametrize("status", [Status.UNRECOVERED_READ_ERROR, Status.END_TO_END_GUARD_ERROR])
def test_a_read_fails_when_the_drives_answer_that_they_do_not_have_it(status: Status) -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        for column in bench.columns[:2]:
            column.error = failing(status)
        assert await bench.read(0) == content[0]
        bench.columns[2].error = failing(status)
        assert await bench.reading(0) == EIO
        assert bench.engine.status()["blocks_unreadable_ranges"] == [(0, 1)]
        await bench.engine.close()

    run(scenario())


def test_a_read_that_not_even_the_missing_sleds_could_serve_does_not_wait_for_them() -> None:
    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        for column in bench.columns[:3]:
            column.error = failing(Status.UNRECOVERED_READ_ERROR)
        lose(bench, 5)
        assert await bench.reading(0) == EIO
        await bench.engine.close()

    run(scenario())


def test_a_sled_that_is_attached_while_a_read_fails_for_want_of_it_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sled_waits, "MOMENT_SECONDS", 3600)

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        former = list(bench.columns)
        held: list[Callable[[], None]] = []
        former[0].error = unavailable
        for column in former[1:]:
            column.held = held
        read = bench.reading(0)
        await turns()
        assert held, "the other shards were asked for through the former attaches"
        lose(bench, *range(6))
        attach(bench, *range(6))
        for column in former:
            column.error = unavailable
        while held:
            held.pop()()
        assert await read == (0, content[0])
        await bench.engine.close()

    run(scenario())


def test_the_volumes_policy_says_how_long_a_read_waits() -> None:
    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        lose(bench, 0, 1, 2)
        read = bench.reading(0)
        await turns()
        assert not read.done()
        bench.engine.set_policy(SledPolicy(read_wait_s=0.01))
        assert await read == EIO
        assert await bench.reading(0) == EIO
        assert bench.engine.status()["requests"]["timed_out"] == 2
        assert bench.engine.status()["blocks_unreadable"] == 0, "nothing says that it is lost"
        await bench.engine.close()

    run(scenario())


def test_the_wait_counts_from_the_first_try() -> None:
    async def scenario() -> None:
        bench = Bench()
        await striped(bench)
        lose(bench, 0, 1, 2, 3)
        read = bench.reading(0)
        await turns()
        (waiting,) = bench.engine._service._away._reads
        attach(bench, 3)
        await turns()
        (again,) = bench.engine._service._away._reads
        assert again is not waiting
        assert again.since_s == waiting.since_s
        assert not read.done()
        await bench.engine.close()

    run(scenario())


def test_waiting_reads_of_a_client_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sled_waits, "MOMENT_SECONDS", 0.001)

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 0, 1, 2)
        left, answers = False, []
        bench.engine.served.read(0, BLOCK_BYTES, lambda error, buffers: answers.append(error), lambda: left)
        stays = bench.reading(0)
        await turns()
        left = True
        await until(lambda: bench.engine.status()["requests"]["waiting_for_sleds"] == 1)
        attach(bench, 0)
        assert await stays == (0, content[0])
        assert answers == []
        assert bench.engine.status()["requests"]["forgotten"] == 1
        await bench.engine.close()

    run(scenario())


def test_f6_reads_that_wait_for_sleds_are_dropped_unanswered_at_step_down_and_hold_nothing_up() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 0, 1, 2)
        reads = [bench.reading(0) for _ in range(3)]
        await turns()
        await bench.engine.step_down()
        await bench.lead(2)
        await turns()
        assert not any(read.done() for read in reads)
        assert bench.engine.status()["requests"]["waiting"] == 0
        assert await bench.read(0) == content[0]
        lose(bench, 0, 1, 2)
        late = bench.reading(0)
        await turns()
        await bench.engine.close(destage=True)
        assert not late.done()

    run(scenario())


def test_f7_a_read_that_waited_for_sleds_is_not_answered_without_the_lease() -> None:
    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 0, 1, 2)
        read = bench.reading(0)
        await turns()
        lease = False
        bench.engine.lease = lambda: lease
        attach(bench, 0)
        await turns()
        assert not read.done()
        lease = True
        assert await read == (0, content[0])
        await bench.engine.close()

    run(scenario())


def test_many_waiting_reads_are_begun_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sled_waits, "PER_TURN_MAX", 8)

    async def scenario() -> None:
        bench = Bench()
        content = await striped(bench)
        lose(bench, 0, 1, 2)
        reads = [bench.reading(0) for _ in range(40)]
        await turns()
        attach(bench, 0)
        most = 0
        while not all(read.done() for read in reads):
            before = bench.engine.status()["requests"]["waiting_for_sleds"]
            await asyncio.sleep(0)
            most = max(most, before - bench.engine.status()["requests"]["waiting_for_sleds"])
        assert most == 8
        assert {read.result() for read in reads} == {(0, content[0])}
        await bench.engine.close()

    run(scenario())


def test_compaction_skips_what_waits_for_sleds_and_goes_on_with_the_rest() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        content = await striped(bench, 2 * FULL)
        await bench.trim(1, FULL - 1)
        await bench.trim(FULL + 1, FULL - 1)
        destager = bench.engine._destager
        assert destager is not None
        # Of the two blocks that live, one is in column 0 (slot 0), the other in column 1 (slot 1).
        bench.columns[0].error = unavailable
        for column in bench.columns[4:]:
            column.error = unavailable
        before = bench.engine.state.map.find(0)
        compacting = asyncio.ensure_future(destager._compact())
        await until(lambda: destager.held_slots == 1)
        await turns()
        assert bench.engine.state.map.find(0) == before
        for column in bench.columns:
            column.error = None
        await compacting
        await check(bench, {0: content[0], FULL: content[FULL]})
        await bench.engine.close()

    run(scenario())
