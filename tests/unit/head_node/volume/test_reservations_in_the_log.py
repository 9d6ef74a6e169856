"""Reservations take effect at their place among the writes, and are kept as writes are: F5, F6, F7, D1."""

import asyncio
import errno
import random
from functools import partial
from typing import Any

import pytest
from kit.volume import Bench, pattern, run, until
from kit.volume_pair import FOLLOWER, Pair

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.reservations import (
    NO_HOST,
    Acquire,
    AcquireAction,
    Command,
    Notice,
    NoticeKind,
    Register,
    RegisterAction,
    Release,
    ReleaseAction,
    Reservations,
    ReservationType,
)
from spdk_bindings.nvme import Status

A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))
OK, CONFLICT = Status.SUCCESS, Status.RESERVATION_CONFLICT
WE, EA = ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS


def register(key: int) -> Register:
    return Register(RegisterAction.REGISTER, new_key=key)


def acquire(type_: ReservationType, key: int) -> Acquire:
    return Acquire(AcquireAction.ACQUIRE, type_, key)


def preempt(type_: ReservationType, key: int, victim: int) -> Acquire:
    return Acquire(AcquireAction.PREEMPT_AND_ABORT, type_, key, victim)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def change(bench: Bench, host: bytes, command: Command) -> "asyncio.Future[Status]":
    future: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
    bench.engine.served.change_reservation(host, command, future.set_result)
    return future


def write(bench: Bench, host: bytes, lba: int, data: bytes) -> "asyncio.Future[int]":
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    bench.engine.served.write(lba * BLOCK_BYTES, data, False, future.set_result, host=host)
    return future


def read(bench: Bench, host: bytes, lba: int) -> "asyncio.Future[tuple[int, bytes]]":
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def done(error: int, buffers: Any) -> None:
        future.set_result((error, b"".join(buffers)))

    bench.engine.served.read(lba * BLOCK_BYTES, BLOCK_BYTES, done, host=host)
    return future


async def reserved(bench: Bench) -> Reservations:
    future: asyncio.Future[Reservations] = asyncio.get_running_loop().create_future()
    bench.engine.served.reservations(future.set_result)
    return await future


async def primary(type_: ReservationType | None = WE) -> Bench:
    """A lone primary; A and B are registered with keys 1 and 2, A holds a reservation of `type_`."""
    bench = Bench()
    await bench.create()
    await bench.lead(1)
    await reserve(bench, type_)
    return bench


async def reserve(bench: Bench, type_: ReservationType | None = WE) -> Reservations:
    assert await change(bench, A, register(1)) is OK
    assert await change(bench, B, register(2)) is OK
    if type_ is not None:
        assert await change(bench, A, acquire(type_, 1)) is OK
    return bench.engine.state.reservations


HELD = Reservations(2, WE, A, {A: 1, B: 2})


# --- kept as writes are -----------------------------------------------------------------------------------------------


def test_f5_a_change_is_answered_only_when_every_member_has_it_durably() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await until(lambda: pair.follower.engine.durable == 1)
        pair.acks = False
        changed = change(pair.primary, A, register(1))
        refused = change(pair.primary, B, acquire(WE, 1))
        repeated = change(pair.primary, A, acquire(WE, 1))
        await until(lambda: pair.follower.engine.durable == 3)
        assert not any(one.done() for one in (changed, refused, repeated))
        assert pair.primary.engine.state.reservations == await reserved(pair.primary) == Reservations()
        pair.catch_up()
        assert [await one for one in (changed, refused, repeated)] == [OK, CONFLICT, OK]
        assert await reserved(pair.primary) == Reservations(1, WE, A, {A: 1})
        await pair.close()

    run(scenario())


def test_f7_a_change_and_a_report_wait_for_the_lease_at_both_ends() -> None:
    async def scenario() -> None:
        bench = await primary(None)
        lease = False
        bench.engine.lease = lambda: lease
        tail = bench.engine.tail
        waiting, report = change(bench, A, acquire(WE, 1)), asyncio.ensure_future(reserved(bench))
        await turns()
        assert bench.engine.tail == tail
        lease = True
        assert await waiting is OK
        assert (await report).registrants == HELD.registrants
        changed, conflict = change(bench, A, register(1)), change(bench, B, acquire(WE, 2))
        lease = False
        report = asyncio.ensure_future(reserved(bench))
        await until(lambda: bench.engine.committed == bench.engine.tail.opnum)
        await turns()
        assert not changed.done()
        assert not conflict.done()
        assert not report.done()
        lease = True
        assert (await changed, await conflict, (await report).generation) == (OK, CONFLICT, 3)
        await bench.engine.close()

    run(scenario())


def test_f6_a_change_is_never_answered_after_the_role_ended_and_gives_no_notice() -> None:
    async def scenario() -> None:
        bench = await primary()
        heard: list[Notice] = []
        bench.engine.served.watch_reservations(heard.append)
        changed = change(bench, B, preempt(WE, 2, 1))
        await bench.engine.step_down()
        await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
        await turns()
        assert not changed.done()
        assert heard == []
        await bench.engine.close()

    run(scenario())


def test_a_waiting_change_is_forgotten_when_its_host_is_gone_before_its_turn() -> None:
    async def scenario() -> None:
        bench = await primary(None)
        lease = False
        bench.engine.lease = lambda: lease
        answers: list[object] = []
        bench.engine.served.change_reservation(A, acquire(WE, 1), answers.append, lambda: True)
        bench.engine.served.reservations(answers.append, lambda: True)
        lease = True
        assert (await reserved(bench)).type is None
        assert answers == []
        await bench.engine.close()

    run(scenario())


def test_d1_reservations_outlive_the_power_of_everything() -> None:
    async def scenario() -> None:
        bench = await primary()
        bench.disk.power_cut(random.Random(1))
        await bench.open()
        await bench.lead(2)
        assert await reserved(bench) == HELD
        assert await write(bench, B, 0, pattern(1)) == errno.EPERM
        assert await write(bench, A, 0, pattern(1)) == 0
        await bench.engine.close()

    run(scenario())


def test_reservations_are_in_the_checkpoint_that_replaces_the_log() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=4096)
        await bench.create()
        await bench.lead(1)
        await reserve(bench)
        for lba in range(0, 4096, 256):
            assert await write(bench, A, lba, pattern(lba, 256)) == 0
        for lba in range(0, 4096, 256):
            assert await write(bench, A, lba, pattern(lba + 1, 256)) == 0
        await until(lambda: bench.engine.read_log(4, 1) is None)
        bench.disk.power_cut(random.Random(1))
        await bench.open()
        assert bench.engine.state.reservations == HELD
        await bench.lead(2)
        assert await write(bench, B, 0, pattern(1)) == errno.EPERM
        await bench.engine.close()

    run(scenario())


def test_a_follower_that_takes_over_keeps_the_reservations() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        held = await reserve(pair.primary)
        await until(lambda: pair.follower.engine.state.reservations == held)
        await pair.primary.engine.close()
        await pair.follower.lead(2)
        assert await reserved(pair.follower) == HELD
        assert await write(pair.follower, B, 0, pattern(1)) == errno.EPERM
        assert await change(pair.follower, B, preempt(EA, 2, 1)) is OK
        assert (await read(pair.follower, A, 0))[0] == errno.EPERM
        await pair.follower.engine.close()

    run(scenario())


def test_a_new_primary_judges_by_what_its_log_holds_uncommitted() -> None:
    """The follower has the change and does not know whether it was committed: it is, with the first of its epoch."""

    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        pair.announce = False
        await reserve(pair.primary)
        await until(lambda: pair.follower.engine.durable == 4)
        assert pair.follower.engine.state.reservations == Reservations()
        await pair.primary.engine.close()
        opnum = await pair.follower.engine.lead(2, pair.follower.attach())
        late = write(pair.follower, B, 0, pattern(1))
        await pair.follower.engine.wait_committed(opnum)
        assert await late == errno.EPERM
        assert await reserved(pair.follower) == HELD
        await pair.follower.engine.close()

    run(scenario())


def test_a_change_that_was_never_committed_is_undone_with_its_record() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        await reserve(pair.primary)
        await until(lambda: pair.follower.engine.state.reservations == HELD)
        pair.primary.engine.on_append = lambda first, last, buffers: None
        lost = change(pair.primary, B, preempt(EA, 2, 1))
        refused = write(pair.primary, A, 0, pattern(1))
        await until(lambda: pair.primary.engine.durable == 5)
        await pair.primary.engine.step_down()
        await pair.follower.lead(2)
        assert await write(pair.follower, A, 0, pattern(2)) == 0
        old, new = pair.primary.engine, pair.follower.engine
        await old.see_epoch(2)
        await old.truncate_after(4)
        for raw in new.read_log(5, 1 << 20) or ():
            old.follow_append(raw)
        await until(lambda: old.durable == new.tail.opnum)
        pair.announce = False
        old.follow_committed(new.committed)
        assert old.state.reservations == new.state.reservations == HELD
        assert not lost.done()
        assert not refused.done()
        await new.close()
        await pair.primary.lead(3)
        assert await write(pair.primary, A, 0, pattern(3)) == 0
        await old.close()

    run(scenario())


def test_a_full_resync_brings_the_reservations() -> None:
    async def scenario() -> None:
        source = await primary()
        newcomer = Bench()
        await newcomer.create()
        await newcomer.engine.see_epoch(1)
        checkpoint = await source.engine.export_checkpoint()
        assert await change(source, B, preempt(EA, 2, 1)) is OK
        await newcomer.engine.install_checkpoint(b"".join(checkpoint))
        for raw in source.engine.read_log(newcomer.engine.tail.opnum + 1, 1 << 20) or ():
            newcomer.engine.follow_append(raw)
        await until(lambda: newcomer.engine.durable == source.engine.tail.opnum)
        for committed in (2, 3, 4):
            # The checkpoint covers these: following the log to its end brings nothing older back meanwhile.
            newcomer.engine.follow_committed(committed)
            assert newcomer.engine.committed == committed
            assert newcomer.engine.state.reservations == HELD
        newcomer.engine.follow_committed(5)
        assert newcomer.engine.state.reservations == source.engine.state.reservations
        newcomer.disk.power_cut(random.Random(1))
        await newcomer.open()
        await source.engine.close()
        await newcomer.lead(2)
        assert await reserved(newcomer) == Reservations(3, EA, B, {B: 2})
        await newcomer.engine.close()

    run(scenario())


# --- at its place among the writes ------------------------------------------------------------------------------------


def test_what_was_written_before_a_preempt_is_done_and_what_comes_after_is_refused() -> None:
    async def scenario() -> None:
        bench = await primary()
        answers: list[str] = []
        served = bench.engine.served
        for number, (host, data) in enumerate([(A, pattern(1)), (A, pattern(2)), (B, pattern(3))]):
            if number == 1:
                served.change_reservation(B, preempt(WE, 2, 1), lambda status: answers.append(f"change {status.name}"))
            done = partial(lambda number, error: answers.append(f"write {number}: {error}"), number)
            served.write(number // 2 * BLOCK_BYTES, data, False, done, host=host)
        await until(lambda: len(answers) == 4)
        assert answers == ["write 0: 0", "change SUCCESS", f"write 1: {errno.EPERM}", "write 2: 0"]
        assert await bench.read(0) == pattern(1)
        await bench.engine.close()

    run(scenario())


def test_nothing_is_refused_on_the_strength_of_a_change_that_may_still_be_undone() -> None:
    async def scenario() -> None:
        bench = await primary(None)
        bench.engine.set_required(frozenset({FOLLOWER}))
        taken = change(bench, A, acquire(EA, 1))
        trims: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        bench.engine.served.trim(0, BLOCK_BYTES, trims.set_result, host=B)
        late = [write(bench, B, 0, pattern(1)), trims, change(bench, B, acquire(WE, 2))]
        # Reads know of nothing that is not committed.
        assert (await read(bench, B, 0))[0] == 0
        await until(lambda: bench.engine.durable == bench.engine.tail.opnum)
        await turns()
        assert not any(one.done() for one in (taken, *late))
        bench.engine.member_durable(FOLLOWER, bench.engine.tail.opnum)
        assert [await taken, *(await asyncio.gather(*late))] == [OK, errno.EPERM, errno.EPERM, CONFLICT]
        assert (await read(bench, B, 0))[0] == errno.EPERM
        await bench.engine.close()

    run(scenario())


def test_a_write_that_waited_is_judged_when_its_turn_comes() -> None:
    async def scenario() -> None:
        bench = await primary()
        lease = False
        bench.engine.lease = lambda: lease
        taken, late = change(bench, B, preempt(WE, 2, 1)), write(bench, A, 0, pattern(1))
        lease = True
        assert (await taken, await late) == (OK, errno.EPERM)
        assert await bench.read(0) == bytes(BLOCK_BYTES)
        await bench.engine.close()

    run(scenario())


async def reading_slowly() -> Bench:
    """A primary with block 0 on its sleds, whose reads are held back."""
    bench = await primary()
    for lba in range(12):
        assert await write(bench, A, lba, pattern(lba)) == 0
    await until(lambda: not len(bench.engine.state.overlay))
    for column in bench.columns:
        column.held = []
    return bench


def release(bench: Bench) -> None:
    for column in bench.columns:
        held, column.held = column.held or [], None
        for finish in held:
            finish()


def test_a_read_under_way_when_its_host_is_shut_out_brings_nothing() -> None:
    async def scenario() -> None:
        bench = await reading_slowly()
        held_back = read(bench, A, 0)
        await turns()
        assert await change(bench, B, preempt(EA, 2, 1)) is OK
        assert not held_back.done()
        release(bench)
        assert await held_back == (errno.EPERM, b"")
        await bench.engine.close()

    run(scenario())


def test_a_read_that_was_kept_from_its_answer_by_the_lease_is_judged_when_it_is_answered() -> None:
    async def scenario() -> None:
        bench = await reading_slowly()
        lease = True
        bench.engine.lease = lambda: lease
        held_back = read(bench, A, 0)
        await turns()
        taken = change(bench, B, preempt(EA, 2, 1))
        lease = False
        release(bench)
        await until(lambda: bench.engine.status()["requests"]["unanswered"] == 2)
        await until(lambda: bench.engine.committed == bench.engine.tail.opnum)
        assert not taken.done()
        assert not held_back.done()
        lease = True
        assert (await taken, await held_back) == (OK, (errno.EPERM, b""))
        await bench.engine.close()

    run(scenario())


def test_a_read_under_way_when_the_reservations_change_is_made_again() -> None:
    """Shut out and let in again meanwhile, it might otherwise bring what was there while it was shut out."""

    async def scenario() -> None:
        bench = await reading_slowly()
        held_back = read(bench, C, 0)
        await turns()
        assert await change(bench, A, preempt(EA, 1, 1)) is OK
        assert await write(bench, A, 0, pattern(77)) == 0
        assert await change(bench, A, Release(ReleaseAction.RELEASE, EA, 1)) is OK
        release(bench)
        assert await held_back == (0, pattern(77))
        await bench.engine.close()

    run(scenario())


@pytest.mark.parametrize(("type_", "reads"), [(WE, True), (EA, False)])
def test_every_request_of_a_host_that_is_shut_out_is_refused(type_: ReservationType, reads: bool) -> None:
    async def scenario() -> None:
        bench = await primary(type_)
        served, tail = bench.engine.served, bench.engine.tail
        for host in (B, C, NO_HOST):
            answers: list[int] = []
            served.write(0, pattern(1), True, answers.append, host=host)
            served.trim(0, BLOCK_BYTES, answers.append, host=host)
            served.write_zeroes(0, BLOCK_BYTES, no_hole=True, done=answers.append, host=host)
            served.flush(answers.append, host)
            assert answers == [errno.EPERM] * 4
            served.read(0, BLOCK_BYTES, lambda error, buffers: answers.append(error), host=host)  # noqa: B023
            served.extents(0, BLOCK_BYTES, lambda error, extents: answers.append(error), host=host)  # noqa: B023
            await until(lambda: len(answers) == 6)  # noqa: B023
            assert answers[4:] == [0 if reads else errno.EPERM] * 2
        assert bench.engine.tail == tail
        answers = []
        served.flush(answers.append, A)
        served.extents(0, BLOCK_BYTES, lambda error, extents: answers.append(error), host=A)
        assert answers == [0, 0]
        await bench.engine.close()

    run(scenario())


def test_a_change_waits_for_room_in_the_log_unless_there_will_be_none() -> None:
    async def scenario(patched: pytest.MonkeyPatch) -> None:
        bench = await primary(None)
        patched.setattr(bench.engine, "has_room", lambda length: False)
        waiting = change(bench, A, acquire(WE, 1))
        bench.engine._service.pump()
        await turns()
        assert not waiting.done()
        patched.setattr(bench.engine, "no_space", lambda: True)
        bench.engine._service.pump()
        assert await waiting is OK
        await bench.engine.close()

    with pytest.MonkeyPatch.context() as patched:
        run(scenario(patched))


# --- who is told ------------------------------------------------------------------------------------------------------


def test_watchers_hear_of_a_change_before_it_is_answered_until_they_leave() -> None:
    async def scenario() -> None:
        bench = await primary()
        heard: list[Notice | Status] = []

        def faulty(notice: Notice) -> None:
            raise RuntimeError("an export's own")

        bench.engine.served.watch_reservations(faulty)
        leave = bench.engine.served.watch_reservations(heard.append)
        taken = change(bench, B, preempt(EA, 2, 1))
        taken.add_done_callback(lambda future: heard.append(future.result()))
        await turns(0)
        assert heard == []
        await taken
        assert heard[0] == Notice(A, NoticeKind.REGISTRATION_PREEMPTED)
        assert await change(bench, A, register(1)) is OK
        leave()
        assert await change(bench, A, Release(ReleaseAction.CLEAR, 0, 1)) is OK
        assert len(heard) == 2
        await bench.engine.close()

    run(scenario())
