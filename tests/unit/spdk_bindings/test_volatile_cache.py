"""A power cut loses any subset of what was not flushed, and nothing of what was."""

import asyncio
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.drive import block, read, run, status_of, unexpected

from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.nvme import Status
from spdk_bindings.volatile_cache import VolatileCache


def test_reads_see_the_cache() -> None:
    drive = VolatileCache(MemoryDevice(16))
    drive.write(3, block(1, 2), False, unexpected)
    drive.write(4, block(2), False, unexpected)
    assert read(drive, 2, 4) == block(0) + block(1) + block(2) + block(0)
    assert read(drive.medium, 3) == block(0)
    assert drive.dirty_blocks == 2


def test_d1_flush_after_power_cycle() -> None:
    """A flush after the power cycle succeeds and says nothing of writes before it: they may be gone."""
    drive = VolatileCache(MemoryDevice(16))
    drive.write(0, block(1), True, unexpected)
    lost = kept = False
    for seed in range(20):
        drive.write(0, block(2), False, unexpected)
        drive.power_cut(Random(seed))
        drive.power_on()
        assert drive.flush(unexpected) == 0
        found = read(drive, 0)
        assert found in (block(1), block(2))
        lost, kept = lost or found == block(1), kept or found == block(2)
        drive.write(0, block(1), True, unexpected)
    assert lost
    assert kept


def test_flushed_and_fua_writes_survive() -> None:
    drive = VolatileCache(MemoryDevice(16))
    drive.write(0, block(1), False, unexpected)
    assert drive.flush(unexpected) == 0
    drive.write(1, block(2), True, unexpected)
    drive.power_cut(Random(1))
    drive.power_on()
    assert read(drive, 0, 2) == block(1) + block(2)


def test_an_older_write_does_not_come_back_over_a_fua_write() -> None:
    for seed in range(10):
        drive = VolatileCache(MemoryDevice(16))
        drive.write(0, block(1), False, unexpected)
        drive.write(0, block(2), True, unexpected)
        drive.power_cut(Random(seed))
        drive.power_on()
        assert read(drive, 0) == block(2)


def test_nothing_answers_while_the_power_is_off() -> None:
    drive = VolatileCache(MemoryDevice(16))
    drive.power_cut(Random(1))
    off = Status.INTERNAL_PATH_ERROR
    assert drive.read(0, bytearray(4096), unexpected) == off
    assert drive.write(0, block(1), False, unexpected) == off
    assert drive.flush(unexpected) == off
    assert drive.smart()["unsafe_shutdowns"] == 1


def test_a_cut_during_a_fua_write_tears_it_and_it_never_completes() -> None:
    async def scenario(seed: int) -> set[int]:
        drive = VolatileCache(MemoryDevice(16), latency_s=lambda: 0.0)
        drive.write(0, block(7, 8), True, unexpected)
        drive.power_cut(Random(seed))
        drive.power_on()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return {read(drive, lba)[0] for lba in range(8)}

    assert run(scenario(3)) == {0, 7}


def test_a_late_flush_covers_what_came_before_it_only() -> None:
    async def scenario() -> None:
        drive = VolatileCache(MemoryDevice(16), latency_s=lambda: 0.0)
        drive.write(0, block(1), False, unexpected)
        flush = asyncio.ensure_future(status_of(drive.flush))
        await asyncio.sleep(0)
        drive.write(0, block(2), False, unexpected)
        assert await flush == 0
        assert read(drive.medium, 0) == block(1)
        assert read(drive, 0) == block(2)

    run(scenario())


def test_a_reset_aborts_what_is_pending_and_keeps_the_cache() -> None:
    async def scenario() -> None:
        drive = VolatileCache(MemoryDevice(16), latency_s=lambda: 60.0)
        write = asyncio.ensure_future(status_of(lambda done: drive.write(0, block(1), True, done)))
        await asyncio.sleep(0)
        assert await status_of(drive.reset) == 0
        assert await write == Status.ABORT_REQUESTED
        assert read(drive, 0) == block(1)
        assert drive.reset(unexpected) == 0

    run(scenario())


def test_a_full_cache_sends_the_oldest_to_the_medium() -> None:
    drive = VolatileCache(MemoryDevice(16), capacity_blocks=2)
    for lba in range(4):
        drive.write(lba, block(lba + 1), False, unexpected)
    assert drive.dirty_blocks == 2
    assert read(drive.medium, 0, 4) == block(1) + block(2) + block(0, 2)


def test_zeroes_are_as_volatile_as_data_and_ranges_are_checked() -> None:
    drive = VolatileCache(MemoryDevice(16))
    drive.write(0, block(1, 2), True, unexpected)
    assert drive.deallocate(0, 1, unexpected) == 0
    assert drive.write_zeroes(1, 1, True, unexpected) == 0
    assert read(drive.medium, 0, 2) == block(1) + block(0)
    assert drive.write_zeroes(16, 1, False, unexpected) == Status.LBA_OUT_OF_RANGE
    assert drive.write(0, b"x", False, unexpected) == Status.INVALID_FIELD
    drive.close()
    assert read(drive.medium, 0) == block(0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "fua", "flush", "zero"]), st.integers(0, 5), st.integers(1, 3)),
        max_size=30,
    ),
    st.integers(0, 2**32),
)
def test_a_cut_leaves_each_block_at_its_last_durable_version_or_a_later_one(
    commands: list[tuple[str, int, int]], seed: int
) -> None:
    drive = VolatileCache(MemoryDevice(8), capacity_blocks=10**6)
    possible: list[list[bytes]] = [[block(0)] for _ in range(8)]
    for number, (kind, lba, count) in enumerate(commands, start=1):
        if kind == "flush":
            drive.flush(unexpected)
            possible = [versions[-1:] for versions in possible]
            continue
        data = block(0) if kind == "zero" else block(number % 256)
        if kind == "zero":
            drive.write_zeroes(lba, count, False, unexpected)
        else:
            drive.write(lba, data * count, kind == "fua", unexpected)
        for at in range(lba, lba + count):
            possible[at] = [data] if kind == "fua" else [*possible[at], data]
    drive.power_cut(Random(seed))
    drive.power_on()
    for lba, versions in enumerate(possible):
        assert read(drive, lba) in versions
