"""What must hold between log, stripes and slots (D1, D2), each interleaving a test of its own."""

import asyncio
import errno
import random

import pytest
from kit.volume import GEOMETRY, Bench, check, fill, pattern, run, until
from kit.volume_columns import MemoryColumn
from kit.volume_pair import FOLLOWER, Pair

from head_node.volume.errors import StaleEpoch
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from head_node.volume.policy import SledPolicy
from head_node.volume.shard import decode_shard_header
from sled_controller.errors import CommandFailed, FencedOff, SledUnavailable

FULL = GEOMETRY.stripe_blocks


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def gone() -> Exception:
    return SledUnavailable("gone")


def test_d1_trim_waits_for_commit() -> None:
    """The log keeps the data of a stripe whose STRIPE is durable here and not yet committed."""

    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        engine = pair.primary.engine
        for column in pair.primary.columns:
            column.held = []
        content = await fill(pair.primary, 0, FULL, seed=1)
        first_write = 2
        pair.acks = False
        for column in pair.primary.columns:
            held, column.held = column.held or [], None
            for finish in held:
                finish()
        await until(lambda: engine.durable == first_write + FULL)
        assert engine.status()["stripes_written"] == 1
        assert engine._needed_from() == first_write
        assert not any(engine.state.map.pages)
        assert engine.state.stripes.get(0) is None
        await check(pair.primary, content)
        pair.catch_up()
        await until(lambda: engine.committed == engine.durable)
        assert engine._needed_from() == engine.committed + 1
        await check(pair.primary, content)
        await pair.close()

    run(scenario())


def test_destage_waits_for_the_epoch_record() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        await fill(bench, 0, FULL - 1, seed=1)
        await bench.engine.close()
        await bench.open()
        bench.engine.set_required(frozenset({FOLLOWER}))
        opnum = await bench.engine.lead(2, bench.attach())
        write = bench.write(20, pattern(20))
        bench.engine._service._poll = None
        await turns()
        assert not any(column.write_count for column in bench.columns)
        assert not write.done()
        bench.engine.member_durable(FOLLOWER, opnum)
        await turns()
        bench.engine.member_durable(FOLLOWER, bench.engine.tail.opnum)
        bench.engine._service.pump()
        await until(lambda: bench.engine.durable == opnum + 1)
        bench.engine.member_durable(FOLLOWER, opnum + 1)
        assert await write == 0
        await until(lambda: all(column.write_count == 1 for column in bench.columns))
        await bench.engine.close()

    run(scenario())


def test_slot_reuse_waits_for_epoch_record() -> None:
    """A record that would free a slot is in the log but not committed: nobody may write that slot yet."""

    async def scenario() -> None:
        bench = Bench(slots=3)
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, FULL, seed=1)
        await bench.settle()
        await until(lambda: bench.engine.state.stripes.get(0) is not None)
        await bench.engine.close()
        await bench.open()
        bench.engine.set_required(frozenset({FOLLOWER}))
        opnum = await bench.engine.lead(2, bench.attach())
        await until(lambda: bench.engine.durable == opnum)
        stripes = bench.engine.state.stripes
        assert stripes.free_count == 0
        assert stripes.allocate() is None
        bench.engine.member_durable(FOLLOWER, opnum)
        assert stripes.free_count == 2
        trim = bench.trim(0, FULL)
        await until(lambda: bench.engine.durable == opnum + 1)
        assert stripes.get(0) is not None
        assert stripes.free_count == 2
        assert bench.engine.state.map.find(0) is not None
        bench.engine.member_durable(FOLLOWER, opnum + 1)
        assert await trim == 0
        assert stripes.free_count == 3
        assert content
        await bench.engine.close()

    run(scenario())


def test_a_slot_with_an_uncommitted_stripe_is_not_free() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        stripes = pair.primary.engine.state.stripes
        before = stripes.free_count
        for column in pair.primary.columns:
            column.held = []
        await fill(pair.primary, 0, FULL, seed=1)
        assert stripes.free_count == before - 1
        pair.acks = False
        for column in pair.primary.columns:
            for finish in column.held or []:
                finish()
        await turns()
        assert stripes.free_count == before - 1
        pair.catch_up()
        await turns()
        assert stripes.free_count == before - 1
        await pair.close()

    run(scenario())


def test_a_slot_with_an_unanswered_command_waits_for_a_new_attach() -> None:
    async def scenario() -> None:
        bench = Bench(slots=8)
        await bench.create()
        await bench.lead(1)
        stripes = bench.engine.state.stripes
        bench.columns[0].error = gone
        await fill(bench, 0, FULL, seed=1)
        await until(lambda: stripes.get(0) is not None)
        assert bench.engine.status()["stripes_exposed"] == 1
        await bench.trim(0, FULL)
        assert stripes.get(0) is None
        assert stripes.free_count == 7
        bench.engine.set_column(0, MemoryColumn(bench.stores[0]))
        assert stripes.free_count == 8
        await bench.engine.close()

    run(scenario())


def test_a_slot_held_by_a_reader_is_not_free() -> None:
    async def scenario() -> None:
        bench = Bench(slots=8)
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, FULL, seed=1)
        await until(lambda: bench.engine.state.map.find(0) is not None)
        stripes = bench.engine.state.stripes
        for column in bench.columns:
            column.held = []
        reading = bench.reading(0)
        await bench.trim(0, FULL)
        assert stripes.free_count == 7
        while not reading.done():
            for column in bench.columns:
                for finish in column.held or []:
                    finish()
            await asyncio.sleep(0)
        assert (await reading) == (0, content[0])
        assert stripes.free_count == 8
        await bench.engine.close()

    run(scenario())


def test_d2_same_epoch_old_sequence() -> None:
    """A sled that lost a write still shows the slot's former stripe of the same epoch: it does not count."""

    async def scenario() -> None:
        bench = Bench(slots=8)
        await bench.create()
        await bench.lead(1)
        same = {lba: pattern(lba) for lba in range(FULL)}
        for _ in range(2):
            await asyncio.gather(*(bench.write(lba, data) for lba, data in same.items()))
            await until(lambda: not len(bench.engine.state.overlay))
        first = bench.engine.state.map.find(0)
        assert first is not None
        column = GEOMETRY.column_of(first.slot, 0)
        old = GEOMETRY.column_of(0, 0)
        # The very same client blocks, in a shard of an older sequence: only the header tells.
        now = {row: bench.stores[column].data[first.slot * 4 + row] for row in range(4)}
        header = decode_shard_header(now[0])
        assert header is not None
        assert (header.epoch, header.sequence) == (1, 2)
        stale = bench.stores[old].data[0]
        stale_header = decode_shard_header(stale)
        assert stale_header is not None
        assert (stale_header.epoch, stale_header.sequence, stale_header.index) == (1, 1, 0)
        bench.stores[column].data[first.slot * 4] = stale
        await check(bench, same)
        status = bench.engine.status()
        assert status["blocks_mismatched"] > 0
        assert status["blocks_reconstructed"] == GEOMETRY.rows
        await bench.engine.close()

    run(scenario())


def test_reads_survive_any_two_columns_missing() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 3 * FULL, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        for one in range(6):
            for two in range(one):
                for index in range(6):
                    bench.engine.set_column(index, None if index in (one, two) else MemoryColumn(bench.stores[index]))
                await check(bench, content)
                assert await bench.read(0, 3 * FULL) == b"".join(content.values())
        bench.engine.set_policy(SledPolicy(read_wait_s=0))
        bench.engine.set_column(0, None)
        bench.engine.set_column(1, None)
        bench.engine.set_column(2, None)
        results = [await bench.reading(lba) for lba in content]
        assert {error for error, _ in results} == {0, 5}
        assert all(data == content[lba] for lba, (error, data) in enumerate(results) if not error)
        await bench.engine.close()

    run(scenario())


def test_rot_on_two_sleds_is_found_and_repaired_in_the_answer() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, FULL, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        for column in (0, 3):
            bench.stores[column].data = {
                lba: bytes(reversed(block)) for lba, block in bench.stores[column].data.items()
            }
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_a_stripe_needs_one_more_shard_than_a_read() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        bench.columns[0].error = gone
        bench.columns[1].error = gone
        content = await fill(bench, 0, FULL, seed=1)
        await until(lambda: bench.engine.status()["stripes_given_up"] == 1)
        assert bench.engine.status()["stripes_written"] == 0
        assert len(bench.engine.state.overlay.fresh) == FULL
        await check(bench, content)
        bench.engine.set_column(0, MemoryColumn(bench.stores[0]))
        await until(lambda: not len(bench.engine.state.overlay))
        assert bench.engine.status()["stripes_exposed"] == 1
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_fenced_off_is_reported_and_no_stripe_is_recorded() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        seen: list[tuple[int, BaseException]] = []

        def fenced(column: int, error: BaseException) -> None:
            seen.append((column, error))
            bench.engine.hold()

        bench.engine.on_fenced = fenced
        bench.columns[2].error = lambda: FencedOff(2)
        await fill(bench, 0, FULL - 1, seed=1)
        last = bench.write(FULL, pattern(1))
        await until(lambda: bool(seen))
        assert seen[0][0] == 2
        assert bench.engine.status()["stripes_written"] == 0
        assert await last == 0
        held = bench.write(0, pattern(2))
        await turns()
        assert not held.done()
        await bench.engine.step_down()
        await turns()
        assert not held.done()
        await bench.engine.close()

    run(scenario())


def test_without_columns_writes_go_on_until_the_log_is_full_and_then_wait() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=16384)
        await bench.create(Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20))
        await bench.engine.wait_committed(await bench.engine.lead(1, [None] * 6))
        writes = [bench.write(at, pattern(at, 256)) for at in range(0, 16384, 256)]
        await until(lambda: bench.engine._service._waiting and bench.engine.durable == bench.engine.tail.opnum)
        await turns()
        answered = sum(write.done() for write in writes)
        assert 10 < answered < 30
        assert not bench.engine.served.ready()
        for index, column in enumerate(bench.attach()):
            bench.engine.set_column(index, column)
        assert not any(await asyncio.gather(*writes))
        assert bench.engine.status()["checkpoints"] > 0
        assert bench.engine.status()["log_bytes"] <= 32 << 20
        data = await bench.read(0, 16384)
        assert data == b"".join(pattern(at, 256) for at in range(0, 16384, 256))
        await bench.engine.close()

    run(scenario())


def test_move_loses_to_newer_write() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=96, slots=16)
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, FULL, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        engine = bench.engine
        destager = engine._destager
        assert destager is not None
        before = engine.state.map.find(0)
        assert before is not None
        for column in bench.columns:
            column.held = []
        moving = asyncio.ensure_future(destager._compact())
        victims = [slot for slot in range(16) if engine.state.stripes.get(slot)]
        assert victims == [0]
        # The full stripe is no victim; make it one.
        content |= await fill(bench, 0, 1, seed=2)
        moving.cancel()
        for column in bench.columns:
            column.held = None
        content |= await fill(bench, FULL, FULL, seed=3)
        await until(lambda: not engine.state.overlay.leaving)
        assert engine.state.stripes.emptiest(9, FULL) == [0]
        for column in bench.columns:
            column.held = []
        moving = asyncio.ensure_future(destager._compact())
        while not any(column.write_count > 2 for column in bench.columns):
            for column in bench.columns:
                if column.write_count <= 2:
                    held, column.held = column.held or [], []
                    for finish in held:
                        finish()
            await asyncio.sleep(0)
        # Between copy and MOVE: one block is written anew, one is trimmed.
        content |= await fill(bench, 5, 1, seed=4)
        await bench.trim(6, 1)
        content[6] = bytes(BLOCK_BYTES)
        for column in bench.columns:
            held, column.held = column.held or [], None
            for finish in held:
                finish()
        await moving
        moved = engine.state.map.find(7)
        assert moved is not None
        assert moved.slot != 0
        assert moved.opnum < 20
        assert engine.state.map.find(6) is None
        await check(bench, content)
        await engine.close(destage=True)
        await bench.open()
        await bench.lead(2)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_d2_copier_keeps_crc() -> None:
    """Compaction never blesses rotten bytes with a new CRC: it copies what the map's CRC verifies, or nothing."""

    async def scenario(rotten_columns: int, headers_too: bool) -> None:
        bench = Bench(size_blocks=96, slots=16)
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, FULL, seed=1)
        await until(lambda: not len(bench.engine.state.overlay))
        await bench.trim(0, 1)
        del content[0]
        engine, destager = bench.engine, bench.engine._destager
        assert destager is not None
        crcs = {lba: engine.state.map.find(lba) for lba in content}
        for column in range(rotten_columns):
            store = bench.stores[column]
            for at, block in store.data.items():
                if headers_too or at % GEOMETRY.shard_blocks:
                    store.data[at] = b"rot!" + block[4:]
        if rotten_columns <= 2:
            await destager._compact()
            await check(bench, content)
            for lba, before in crcs.items():
                after = engine.state.map.find(lba)
                assert after is not None
                assert before is not None
                assert (after.crc, after.opnum) == (before.crc, before.opnum)
                assert after.slot != before.slot
        else:
            await destager._compact()
            assert engine.status()["blocks_left_unreadable"] > 0
            for lba, before in crcs.items():
                after = engine.state.map.find(lba)
                assert after is not None
                assert before is not None
                assert (after.crc, after.opnum) == (before.crc, before.opnum)
                error, data = await bench.reading(lba)
                assert (error, data) == (0, content[lba]) if after.slot != before.slot else error == errno.EIO
        await engine.close()

    for rotten_columns in (0, 2, 3):
        run(scenario(rotten_columns, headers_too=True))
        run(scenario(rotten_columns, headers_too=False))


def test_trim_not_resurrected() -> None:
    """WRITE, stripe begun, TRIM, STRIPE: the block stays trimmed, on both members and after restarts."""

    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        primary, follower = pair.primary, pair.follower
        for column in primary.columns:
            column.held = []
        content = await fill(primary, 0, FULL, seed=1)
        await primary.trim(3, 2)
        content[3] = content[4] = bytes(BLOCK_BYTES)
        for column in primary.columns:
            for finish in column.held or []:
                finish()
            column.held = None
        await until(lambda: primary.engine.status()["stripes_written"] == 1)
        await until(lambda: follower.engine.committed == primary.engine.tail.opnum)
        await check(primary, content)
        for bench in (primary, follower):
            assert bench.engine.state.map.find(2) is not None
            assert bench.engine.state.map.find(3) is None
            assert not len(bench.engine.state.overlay)
        await pair.close()
        follower.stores = primary.stores
        for epoch in (2, 3):
            await follower.open()
            await follower.lead(epoch)
            await check(follower, content)
            await follower.engine.close()

    run(scenario())


def test_random_overwrites_of_a_full_volume_never_wedge_it() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=240, slots=30)
        await bench.create()
        await bench.lead(1)
        chance = random.Random(5)
        content = await fill(bench, 0, 240, seed=1)
        for turn in range(60):
            lbas = [chance.randrange(240) for _ in range(24)]
            datas = [pattern(turn * 100 + at) for at in range(24)]
            assert not any(await asyncio.gather(*map(bench.write, lbas, datas)))
            content |= dict(zip(lbas, datas, strict=True))
            await until(lambda: len(bench.engine.state.overlay) < 5 * FULL)
        assert bench.engine.status()["blocks_moved"] > 0
        await check(bench, content)
        stripes = bench.engine.state.stripes
        live = sum(stripe.live for slot in range(30) if (stripe := stripes.get(slot)))
        assert live == sum(bench.engine.state.map.find(lba) is not None for lba in range(240))
        await bench.engine.close(destage=True)
        await bench.open()
        await bench.lead(2)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_enospc_when_slots_run_out_and_nothing_can_be_compacted() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=16384, slots=4)
        await bench.create(Limits(segment_bytes=8 << 20, log_bytes_max=32 << 20))
        await bench.lead(1)
        writes = [bench.write(at, pattern(at, 256)) for at in range(0, 16384, 256)]
        results = await asyncio.gather(*writes)
        assert set(results) == {0, 28}
        for at, error in zip(range(0, 16384, 256), results, strict=True):
            if not error:
                assert await bench.read(at, 256) == pattern(at, 256)
        await bench.engine.close()

    run(scenario())


def test_a_primary_of_an_old_epoch_cannot_lead() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.engine.see_epoch(5)
        with pytest.raises(StaleEpoch):
            await bench.engine.lead(4, [None] * 6)
        await bench.engine.lead(5, [None] * 6)
        await bench.engine.step_down()
        with pytest.raises(StaleEpoch):
            await bench.engine.lead(5, [None] * 6)
        await bench.engine.close()

    run(scenario())


def test_a_column_that_went_before_its_stripe_was_answered_keeps_no_slot() -> None:
    async def scenario() -> None:
        bench = Bench(slots=24)
        engine = await bench.create()
        await bench.lead(1)
        free = engine.state.stripes.free_count
        gone, slow = bench.columns[:2]
        gone.held, slow.held = [], []
        await fill(bench, 0, 12, 1)
        await until(lambda: bool(gone.held and slow.held))
        gone.error = lambda: SledUnavailable("gone")
        for finish in gone.held:
            finish()
        engine.set_column(0, None)
        for finish in slow.held:
            finish()
        await until(lambda: engine.state.stripes.used_count == 1)
        engine.set_column(0, MemoryColumn(bench.stores[0]))
        assert await bench.trim(0, 12) == 0
        await until(lambda: engine.state.stripes.used_count == 0)
        assert engine.state.stripes.free_count == free
        await engine.close()

    run(scenario())


def test_a_drive_that_refuses_every_write_does_not_use_the_slots_up() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=48, slots=12)
        engine = await bench.create()
        await bench.lead(1)
        bench.columns[0].error = lambda: CommandFailed(0x280, "write fault")
        for turn in range(2 * engine.state.stripes.slot_count):
            content = await fill(bench, 0, 12, turn + 1)
            await until(lambda: not len(engine.state.overlay))
        await check(bench, content)
        await engine.close()

    run(scenario())


def test_a_block_that_was_corrected_on_its_way_into_a_stripe_that_is_given_up_comes_back() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        overlay = engine.state.overlay
        content = await fill(bench, 0, 11, 1)
        opnum, crc, data = overlay.fresh[3]
        overlay.fresh[3] = (opnum, crc, bytes([data[0] ^ 1]) + data[1:])
        for column in bench.columns[:3]:
            column.error = lambda: CommandFailed(0x082, "")
        content |= await fill(bench, 11, 1, 1)
        await until(lambda: engine.status()["stripes_given_up"] == 1)
        assert list(overlay.fresh) == list(content)
        assert not overlay.leaving, "no stripe takes it from there, and the log keeps its record"
        await engine.close()

    run(scenario())
