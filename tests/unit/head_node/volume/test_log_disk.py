"""A log disk that fails, rots or is full: what was acknowledged stays, and nothing stops for good (D1, D2)."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from kit.volume import GEOMETRY, Bench, check, fill, pattern, run, until
from kit.volume_pair import Pair

from head_node.volume.errors import LogDamaged, LogRotten
from head_node.volume.geometry import Geometry
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.limits import Limits
from head_node.volume.overlay import Overlay
from sled_controller.errors import SledUnavailable

SEGMENT = "segment-000001"
FULL = GEOMETRY.stripe_blocks
WIDE = Geometry(data_shards=4, parity_shards=2, shard_blocks=64)
"""252 blocks make a stripe, as by default."""


def flip(bench: Bench, name: str, offset: int) -> None:
    bench.disk.files[name].durable[offset] ^= 0x10


def place_of(bench: Bench, data: bytes) -> tuple[str, int]:
    """(segment, byte) of a block in the log."""
    for name, content in bench.disk.files.items():
        if name.startswith("segment") and (at := bytes(content.durable).find(data)) >= 0:
            return name, at
    raise AssertionError("not in the log")


async def until_full(bench: Bench) -> None:
    """Write over the same blocks until the log takes nothing more; block 5, which is in no stripe, keeps all of it."""
    assert await bench.write(5, pattern(1)) == 0
    for blocks in (256, 1):
        while bench.engine.has_room(blocks * BLOCK_BYTES):
            assert await bench.write(6, pattern(1, blocks)) == 0


def without_sleds(bench: Bench) -> None:
    for index in range(bench.geometry.shards):
        bench.engine.set_column(index, None)


def with_sleds(bench: Bench) -> None:
    for index, column in enumerate(bench.attach()):
        bench.engine.set_column(index, column)


async def one_batch_each(bench: Bench, lbas: Sequence[int], seed: int = 1) -> dict[int, bytes]:
    content: dict[int, bytes] = {}
    for lba in lbas:
        content |= await fill(bench, lba, 1, seed)
    return content


async def copy_log(source: Bench, target: Bench) -> None:
    """What the cluster does after a full resync: fetch the records from the tail on."""
    tail, engine = source.engine.tail.opnum, target.engine
    while engine.tail.opnum < tail:
        pieces = source.engine.read_log(engine.tail.opnum + 1, 1 << 20)
        assert pieces
        for piece in pieces:
            engine.follow_append(bytes(piece))
        await until(lambda: engine.durable == engine.tail.opnum)
    engine.follow_committed(source.engine.committed)


# --- a sync that fails ------------------------------------------------------------------------------------------------


def test_d1_a_restart_after_a_failed_sync_does_not_trust_the_page_cache() -> None:
    """Linux leaves the pages clean and readable: only what is written again, and synced, counts."""

    async def scenario(full: bool) -> None:
        bench = Bench()
        bench.disk.clean_when_failed = True
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 1, 1, seed=1)
        bench.disk.fail_commits = True
        bench.write(1, pattern(2))
        await until(lambda: bench.engine.failure is not None)
        bench.disk.fail_commits = False
        bench.disk.crash()
        if full:
            for name in ("segment-000002", "segment-000003"):
                bench.disk.files.pop(name, None)
            bench.disk.capacity_bytes = bench.disk.used_bytes()
        await bench.open()
        await bench.lead(2)
        content[1] = await bench.read(1)
        if not full:
            content |= await fill(bench, 2, 1, seed=3)
        bench.disk.power_cut(random.Random(1))
        await bench.open()
        await bench.lead(3)
        await check(bench, content)

    for full in (False, True):
        run(scenario(full))


def test_f5_a_promise_whose_sync_failed_is_written_again_before_it_counts() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.disk.clean_when_failed = True
        engine = await bench.create()
        await engine.see_epoch(3)
        bench.disk.fail_commits = True
        with pytest.raises(Exception, match="injected"):
            await engine.see_epoch(9)
        bench.disk.fail_commits = False
        bench.disk.crash()
        seen = (await bench.open()).highest_epoch
        bench.disk.power_cut(random.Random(1))
        assert (await bench.open()).highest_epoch >= seen

    run(scenario())


def test_the_segment_that_is_written_again_survives_a_power_cut_at_any_step() -> None:
    async def scenario(steps: int) -> bool:
        bench = Bench()
        bench.disk.clean_when_failed = True
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(3))
        bench.disk.crash()
        left = steps

        def gate(finish: object) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                asyncio.get_running_loop().call_soon(finish)  # type: ignore[arg-type]

        bench.disk.gate = gate
        opening = asyncio.ensure_future(bench.open())
        await until(lambda: left <= 0 or opening.done())
        ended = opening.done() and left > 0
        bench.disk.gate = None
        bench.disk.power_cut(random.Random(steps))
        opening.cancel()
        await bench.open()
        await bench.lead(2)
        await check(bench, content)
        bench.disk.power_cut(random.Random(steps))
        await bench.open()
        await bench.lead(3)
        await check(bench, content)
        return ended

    steps = 1
    while not run(scenario(steps)):
        steps += 1
    assert steps > 5


# --- rot --------------------------------------------------------------------------------------------------------------


def test_d2_what_is_read_from_the_log_for_a_member_is_verified() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(5))
        name, at = place_of(bench, content[2])
        for offset in (at + 100, at - 10):  # client data, then the record's own header
            flip(bench, name, offset)
            with pytest.raises(LogRotten, match="has rotted"):
                bench.engine._log.read(1, 1 << 20)
            flip(bench, name, offset)
        assert bench.engine._log.read(1, 1 << 20)

    run(scenario())


def test_a_primary_destages_checkpoints_and_drops_a_segment_that_has_rotted() -> None:
    """The follower that needed it then gets everything by a full resync, out of nothing but what is whole."""

    async def scenario(blocks: int) -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(blocks))
        await bench.settle()
        name, at = place_of(bench, content[2])
        flip(bench, name, at)
        with pytest.raises(LogRotten):
            engine.read_log(1, 1 << 20)
        assert "has rotted" in str(engine.status()["log_rotten"])
        await until(lambda: engine.status()["log_rotten"] is None)
        assert engine.read_log(1, 1 << 20) is None
        await check(bench, content)
        other = Bench()
        other.stores = bench.stores
        follower = await other.create()
        await follower.see_epoch(1)
        await follower.install_checkpoint(b"".join(await engine.export_checkpoint()))
        await copy_log(bench, other)
        await other.lead(2)
        await check(other, content)
        await engine.close()

    for blocks in (5, FULL):  # with something to destage, and with nothing left of it
        run(scenario(blocks))


def test_rot_is_looked_for_on_a_member_that_nobody_reads_and_waits_for_the_primarys_stripes() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        content = await one_batch_each(pair.primary, range(3))
        engine = pair.follower.engine
        await until(lambda: engine.committed == pair.primary.engine.committed)
        flip(pair.follower, *place_of(pair.follower, content[1]))
        for _ in range(4):
            await engine._look_for_rot()
        assert engine.status()["log_rotten"] is not None
        assert engine.failure is None, "what it has in memory is whole"
        content |= await fill(pair.primary, 3, FULL, seed=1)
        await until(lambda: engine.status()["log_rotten"] is None)
        await pair.close()

    run(scenario())


def test_a_sole_member_opens_a_log_that_is_rotten_where_nothing_needs_it() -> None:
    """Below what the checkpoint needs, in stripes already, or written again later."""

    async def scenario(destage: bool, offset: int) -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(5))
        name, at = place_of(bench, content[2])
        if destage:
            await bench.engine.close(destage=True)
        else:
            content |= await fill(bench, 2, 1, seed=7)
            bench.disk.crash()
        flip(bench, name, at + offset)
        await bench.open()
        await bench.lead(2)
        await check(bench, content)
        await until(lambda: bench.engine.status()["log_rotten"] is None)
        await check(bench, content)
        await bench.engine.close()

    for destage, offset in ((True, 100), (True, -10), (True, -90), (False, 100)):
        run(scenario(destage, offset))


def test_a_rotten_segment_header_costs_nothing() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=8192)
        await bench.create()
        await bench.lead(1)
        without_sleds(bench)
        for at in range(0, 5120, 256):
            await bench.write(at, pattern(at, 256))
        bench.disk.crash()
        for number in (1, 2, 3):
            header = bench.disk.files[f"segment-{number:06d}"].durable
            assert header[:7] == b"PALSEGM"
            header[20] ^= 1
        await bench.open()
        await bench.lead(2)
        assert await bench.read(0, 5120) == b"".join(pattern(at, 256) for at in range(0, 5120, 256))
        await bench.engine.close()

    run(scenario())


def test_d2_a_loss_is_named_is_accepted_by_its_code_only_and_reads_as_an_error_until_it_is_written_again() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(5))
        name, at = place_of(bench, content[2])
        bench.disk.crash()
        flip(bench, name, at + 100)
        with pytest.raises(LogDamaged, match=r"1 blocks \(lba 2 of opnum 4\)") as caught:
            await bench.open()
        code = str(caught.value).rpartition(" ")[2]
        bench.disk.crash()
        with pytest.raises(LogDamaged):
            await bench.open(accepted_loss="deadbeef")
        bench.disk.crash()
        engine = await bench.open(accepted_loss=code)
        await bench.lead(2)
        del content[2]
        await check(bench, content)
        assert (await bench.reading(2))[0] == 5
        await until(lambda: engine.status()["log_rotten"] is None)
        assert engine.status()["overlay_blocks"] == 0
        assert (await bench.reading(2))[0] == 5, "it is not what the block was before"
        await engine.close()
        await bench.open()
        await bench.lead(3)
        assert (await bench.reading(2))[0] == 5
        content |= await fill(bench, 2, 1, seed=9)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_records_that_cannot_be_read_at_all_end_the_log_once_that_is_accepted() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(5))
        name, at = place_of(bench, content[2])
        bench.disk.crash()
        flip(bench, name, at - 20)
        with pytest.raises(LogDamaged, match="everything of opnums 4 to 6") as caught:
            await bench.open()
        bench.disk.crash()
        await bench.open(accepted_loss=str(caught.value).rpartition(" ")[2])
        await bench.lead(2)
        await check(bench, {lba: content[lba] for lba in (0, 1)})
        for lba in (2, 3, 4):
            assert await bench.read(lba) == bytes(BLOCK_BYTES)
        content = {lba: content[lba] for lba in (0, 1)} | await one_batch_each(bench, range(5, 9))
        bench.disk.crash()
        await bench.open()
        await bench.lead(3)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


def test_one_rotten_byte_of_identity_or_of_the_mark_of_a_resync_costs_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.create()
        await bench.lead(1)
        content = await fill(bench, 0, 3, seed=1)
        for offset in (20, BLOCK_BYTES + 20):
            bench.disk.crash()
            flip(bench, "identity", offset)
            await bench.open()
            flip(bench, "identity", offset)
        await bench.lead(2)
        await check(bench, content)
        await bench.engine.close()

    run(scenario())


# --- memory -----------------------------------------------------------------------------------------------------------


def spoil(bench: Bench, lba: int) -> None:
    opnum, crc, data = bench.engine.state.overlay.fresh[lba]
    bench.engine.state.overlay.fresh[lba] = (opnum, crc, bytes([data[0] ^ 1]) + data[1:])


def test_d2_a_bit_that_flipped_in_memory_is_corrected_from_the_log_before_it_is_read_or_destaged() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(FULL - 1))
        spoil(bench, 3)
        assert await bench.read(3) == content[3]
        spoil(bench, 4)
        spoil(bench, 5)
        assert await bench.read(4, 2) == content[4] + content[5]
        spoil(bench, 3)
        content |= await fill(bench, FULL, 1, seed=1)
        await until(lambda: not len(engine.state.overlay))
        await check(bench, content)
        assert engine.status()["overlay_blocks_corrected"] == 4
        assert engine.status()["blocks_mismatched"] == 0
        await engine.close()

    run(scenario())


def test_d2_a_block_without_a_good_copy_stays_out_of_the_stripe_and_reads_as_an_error() -> None:
    async def scenario() -> None:
        bench = Bench()
        engine = await bench.create()
        await bench.lead(1)
        content = await one_batch_each(bench, range(FULL - 1))
        flip(bench, *place_of(bench, content[3]))
        spoil(bench, 3)
        content |= await fill(bench, FULL, 1, seed=1)
        await until(lambda: engine.status()["overlay_blocks"] == 1)
        del content[3]
        await check(bench, content)
        assert (await bench.reading(3))[0] == (await bench.reading(2, 3))[0] == 5
        assert engine.status()["overlay_blocks_spoiled"] == 1
        assert engine._needed_from() == 5, "the log keeps its record"
        content |= await fill(bench, 3, 1, seed=2)
        await check(bench, content)
        assert engine.status()["overlay_blocks_spoiled"] == 0
        await engine.close()

    run(scenario())


def test_d1_a_block_without_a_good_copy_is_left_to_a_member_that_has_it() -> None:
    async def scenario() -> None:
        pair = Pair()
        await pair.start()
        content = await one_batch_each(pair.primary, range(FULL - 1))
        flip(pair.primary, *place_of(pair.primary, content[3]))
        spoil(pair.primary, 3)
        content |= await fill(pair.primary, FULL, 1, seed=1)
        await until(lambda: pair.primary.engine.failure is not None)
        pair.follower.stores = pair.primary.stores
        await pair.follower.lead(2)
        await check(pair.follower, content)
        await pair.follower.engine.close()

    run(scenario())


# --- room -------------------------------------------------------------------------------------------------------------


def test_trims_and_write_zeroes_wait_for_the_log_like_writes() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=4096)
        engine = await bench.create()
        await bench.lead(1)
        without_sleds(bench)
        bound = engine.limits.client_log_bytes_max
        trims = [bench.trim(1000 + at % 1000, 1) for at in range(40)]
        assert not any(await asyncio.gather(*trims))
        await until_full(bench)
        while engine.has_room_without_data(BLOCK_BYTES):
            assert await bench.trim(1000, 1) == 0
        waiting = bench.trim(1000, 1)
        await until(lambda: engine.durable == engine.tail.opnum)
        assert not waiting.done()
        assert engine.status()["requests"]["waiting"] == 1
        assert bound < engine.status()["log_bytes"] <= bound + engine.limits.segment_bytes // 2
        with_sleds(bench)
        assert await waiting == 0
        await engine.close()

    run(scenario())


def test_a_trim_gets_through_where_no_slot_is_left() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=4096)
        engine = await bench.create()
        await bench.lead(1)
        without_sleds(bench)
        await until_full(bench)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(engine, "no_space", lambda: True)
            assert await bench.trim(6, 256) == 0
            assert await bench.write(6, pattern(2)) == 28
        await engine.close()

    run(scenario())


@pytest.mark.parametrize(("mib", "sleds_away"), [(24, False), (30, True)])
def test_a_full_disk_of_a_head_never_stops_destage_checkpoint_and_trim(mib: int, sleds_away: bool) -> None:
    """Segments of 8 MiB. Clients write until they wait, then everything goes on without a byte of room more."""

    async def scenario() -> None:
        bench = Bench(size_blocks=16384, geometry=WIDE)
        engine = await bench.create()
        bench.disk.capacity_bytes = mib << 20
        await bench.lead(1)
        content: dict[int, bytes] = {}
        if sleds_away:
            without_sleds(bench)
        for at in range(0, 16384, 256):
            write = bench.write(at, pattern(at, 256))
            content[at] = pattern(at, 256)
            if sleds_away and engine.status()["requests"]["waiting"]:
                await until(lambda: engine.durable == engine.tail.opnum)
                with_sleds(bench)
            assert await write == 0
        assert engine.status()["checkpoints"] > 0
        for at in range(0, 16384, 256):
            assert await bench.read(at, 256) == content[at]
        await engine.close()

    run(scenario())


def test_a_head_that_waits_for_room_on_its_disk_owes_nothing_and_one_whose_disk_hangs_does() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=16384, geometry=WIDE)
        engine = await bench.create(Limits(segment_bytes=8 << 20, log_bytes_max=64 << 20))
        await bench.lead(1)
        without_sleds(bench)
        while engine._log.segment_count < 3:
            await bench.write(0, pattern(0, 256))
        bench.disk.capacity_bytes = bench.disk.used_bytes()
        writes = [bench.write(at, pattern(at, 256)) for at in range(256, 16384, 256)]
        await until(lambda: engine.status()["log_no_room"] is not None)
        await until(lambda: engine.durable == engine.tail.opnum)
        assert engine.owed == 0
        assert engine._log._spares, "a segment is kept for STRIPE records"
        bench.disk.capacity_bytes = 1 << 40
        with_sleds(bench)
        assert not any(await asyncio.gather(*writes))
        for at in range(0, 16384, 256):
            assert await bench.write(at, pattern(at, 256)) == 0
        assert engine.status()["log_no_room"] is None, "spares came by a trim"
        engine._log.no_room = "no space left on device"
        bench.disk.gate = lambda finish: None
        hanging = bench.write(0, pattern(1))
        await until(lambda: engine.owed > 0)
        assert not hanging.done()

    run(scenario())


# --- what two mutants lost that no test saw ---------------------------------------------------------------------------


def test_d1_a_full_resync_brings_what_is_in_no_stripe_yet() -> None:
    async def scenario() -> None:
        source, target = Bench(), Bench()
        await source.create()
        await source.lead(1)
        without_sleds(source)
        content = await one_batch_each(source, range(FULL + 5))
        follower = await target.create()
        target.stores = source.stores
        await follower.see_epoch(1)
        await follower.install_checkpoint(b"".join(await source.engine.export_checkpoint()))
        await copy_log(source, target)
        await follower.wait_committed(await follower.lead(2, [None] * GEOMETRY.shards))
        await check(target, content)
        await follower.close()

    run(scenario())


def test_d1_blocks_that_come_back_from_a_stripe_are_as_old_as_they_were() -> None:
    """What is oldest in the overlay is what the log must keep: put back at its end, they would be trimmed away."""
    overlay = Overlay()
    for opnum in range(1, 4):
        overlay.put(opnum, opnum, (0,), bytes(BLOCK_BYTES))
    taken = overlay.take(2)
    overlay.put(9, 9, (0,), bytes(BLOCK_BYTES))
    overlay.put_back(taken)
    assert [entry[0] for entry in overlay.fresh.values()] == [1, 2, 3, 9]
    assert overlay.oldest_opnum() == 1


def test_d1_a_stripe_that_is_given_up_is_not_trimmed_from_the_log() -> None:
    async def scenario() -> None:
        bench = Bench(size_blocks=256)
        engine = await bench.create()
        await bench.lead(1)
        for column in bench.columns:
            column.held = []
        content = await fill(bench, 0, FULL, seed=1)
        content |= await fill(bench, 100, 1, seed=2)
        for column in bench.columns:
            column.error = lambda: SledUnavailable("gone")
            held, column.held = column.held or [], None
            for finish in held:
                finish()
        await until(lambda: engine.status()["stripes_given_up"] == 1)
        assert engine._needed_from() == 2
        await check(bench, content)
        await engine.close()

    run(scenario())
