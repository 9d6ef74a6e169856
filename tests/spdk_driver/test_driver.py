"""The Python side of the driver over the fake SPDK: what the target at hand cannot do, and the limits."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit import spdk_drive
from kit.drive import block, fence, open_storage, status_of, volume
from kit.spdk_drive import play, until, write

from spdk_bindings.device import PENDING
from spdk_bindings.nvme import Status
from spdk_bindings.spdk import controller as controllers
from spdk_bindings.spdk import device as device_module
from spdk_bindings.spdk.controller import DriveSettings, DriveState, SpdkController
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.dma import NONE_FREE, DmaArena
from spdk_bindings.spdk.environment import EnvironmentSettings, SpdkEnvironment
from spdk_bindings.spdk.errors import AttachError, EnvironmentStartError, NotBuiltError, PoolExhausted, SpdkError
from spdk_bindings.spdk.native import load
from spdk_bindings.spdk.queue import COMMANDS_MAX


@asynccontextmanager
async def opened(settings: DriveSettings = spdk_drive.QUICK) -> AsyncIterator[tuple[SpdkDevice, spdk_drive.Fake]]:
    environment, fake = spdk_drive.fake()
    device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, settings)
    try:
        yield device, fake
    finally:
        device.close()


def test_fua_and_statuses_reach_the_drive_and_come_back_unchanged() -> None:
    async def scenario() -> None:
        async with opened() as (device, fake):
            assert await write(device, 0, block(1), fua=True) == 0
            assert fake.last_flags == 1 << 30
            assert await write(device, 0, block(1)) == 0
            assert fake.last_flags == 0
            for status in (0x285, 0x281, 0x7FF, 0x370):
                fake.set(next_status=status)
                assert await write(device, 0, block(1)) == status

    play(scenario)


def test_deallocated_blocks_are_zeroed_and_given_back_only_where_that_keeps_them_zero() -> None:
    async def scenario() -> None:
        async with opened() as (device, fake):
            assert await status_of(lambda done: device.deallocate(0, 2, done)) == 0
            assert fake.last_flags & ~0xFFFF == 1 << 25
        environment, fake = spdk_drive.fake()
        fake.set(forgets=1)
        device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, spdk_drive.QUICK)
        assert await status_of(lambda done: device.deallocate(0, 2, done)) == 0
        assert fake.last_flags & ~0xFFFF == 0
        device.close()

    play(scenario)


def test_a_long_range_is_zeroed_by_a_few_commands_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_ZEROES_BLOCKS_MAX", 16)

    async def scenario() -> None:
        async with opened() as (device, fake):
            await write(device, 1000, block(1))
            fake.set(hold=1)
            begun = 0
            start = device.controller.queue.io

            def counted(*command: Any) -> int:
                nonlocal begun
                begun += 1
                return start(*command)

            monkeypatch.setattr(device.controller.queue, "io", counted)
            zeroed = asyncio.ensure_future(status_of(lambda done: device.write_zeroes(0, 1024, False, done)))
            await asyncio.sleep(0)
            assert begun == 2
            before = fake.performed
            fake.set(hold=0)
            assert await zeroed == 0
            assert fake.performed == before + 1024 // 16
            into = bytearray(4096)
            assert await status_of(lambda done: device.read(1000, into, done)) == 0
            assert not any(into)

    play(scenario)


def test_a_drive_without_write_zeroes_is_zeroed_by_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "TRANSFER_BLOCKS_MAX", 16)

    async def scenario() -> None:
        environment, fake = spdk_drive.fake()
        fake.set(only_writes=1)
        device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, spdk_drive.QUICK)
        for lba in (9, 10, 49, 50):
            await write(device, lba, block(1))
        before, bounced = fake.performed, device.counters.bounced
        assert await status_of(lambda done: device.write_zeroes(10, 40, True, done)) == 0
        assert (fake.performed - before, device.counters.bounced, fake.last_flags >> 16) == (3, bounced, 1 << 14)
        into = bytearray(42 * 4096)
        assert await status_of(lambda done: device.read(9, into, done)) == 0
        assert into == block(1) + bytes(40 * 4096) + block(1)
        assert await status_of(lambda done: device.deallocate(9, 1, done)) == 0
        assert fake.last_flags >> 16 == 0
        assert await status_of(lambda done: device.read(9, into, done)) == 0
        assert not any(into[:4096])
        device.close()

    play(scenario)


def test_f3_nothing_of_a_range_is_zeroed_after_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_ZEROES_BLOCKS_MAX", 16)

    async def scenario() -> None:
        async with opened() as (device, fake):
            fake.set(hold=1)
            zeroed = asyncio.ensure_future(status_of(lambda done: device.write_zeroes(0, 1024, False, done)))
            await asyncio.sleep(0)
            reset = asyncio.ensure_future(status_of(device.reset))
            await asyncio.sleep(0)
            fake.set(hold=0)  # what is under way still ends well
            assert await reset == 0
            performed = fake.performed
            assert await zeroed in (Status.ABORT_REQUESTED, Status.ABORTED_SQ_DELETION)
            await device.controller.smart()
            assert fake.performed == performed
            assert await status_of(lambda done: device.write_zeroes(0, 1024, False, done)) == 0

    play(scenario)


def test_a_comparison_says_whether_the_blocks_are_equal() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            await write(device, 3, block(1))
            assert await status_of(lambda done: device.compare(3, block(1), done)) == 0
            assert await status_of(lambda done: device.compare(3, block(2), done)) == Status.COMPARE_FAILURE
            assert await status_of(lambda done: device.compare(1024, block(2), done)) == Status.LBA_OUT_OF_RANGE
            assert await status_of(lambda done: device.compare(0, b"", done)) == Status.INVALID_FIELD

    play(scenario)


def test_a_failed_read_leaves_the_buffer_alone() -> None:
    async def scenario() -> None:
        async with opened() as (device, fake):
            into = bytearray(block(9))
            fake.set(next_status=0x281)
            assert await status_of(lambda done: device.read(0, into, done)) == Status.UNRECOVERED_READ_ERROR
            assert into == block(9)

    play(scenario)


def test_buffers_of_the_pool_are_not_copied_and_come_back_to_it() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            half = 1 << 19
            held = [device.allocate(2 * half)]
            held[0][:half] = b"x" * half
            assert await write(device, 0, held[0][:half]) == 0
            assert await status_of(lambda done: device.read(0, held[0][half:], done)) == 0
            assert held[0][half:] == b"x" * half
            assert device.counters.bounced == 0
            held += [device.allocate(2 * half) for _ in range(3)]
            with pytest.raises(PoolExhausted, match="are left"):
                device.allocate(4096)
            held.clear()
            gc.collect()
            assert len(device.allocate(4 << 20)) == 4 << 20

    play(scenario)


def test_commands_wait_for_bounce_buffers_and_tags_and_all_end() -> None:
    async def scenario() -> None:
        async with opened(replace(spdk_drive.QUICK, bounce_mib=1)) as (device, fake):
            fake.set(hold=1)
            large = [asyncio.ensure_future(write(device, lba, block(1, 200))) for lba in range(3)]
            small = [asyncio.ensure_future(write(device, 800, block(2))) for _ in range(COMMANDS_MAX + 100)]
            await asyncio.sleep(0)
            assert device.counters.waits > 100
            fake.set(hold=0)
            assert set(await asyncio.gather(*large, *small)) == {0}

    play(scenario)


def test_a_reset_ends_waiting_and_outstanding_commands_before_itself() -> None:
    async def scenario() -> None:
        async with opened(replace(spdk_drive.QUICK, bounce_mib=1)) as (device, fake):
            fake.set(hold=1)
            ends: list[int] = []
            data = block(1, 200)
            for _ in range(4):
                assert device.write(0, data, False, ends.append) == PENDING
            first = asyncio.ensure_future(status_of(device.reset))
            second = asyncio.ensure_future(status_of(device.reset))
            await asyncio.sleep(0)
            later = asyncio.ensure_future(write(device, 0, block(2)))
            assert await first == 0
            assert ends == [Status.ABORT_REQUESTED] * 4
            fake.set(hold=0)
            assert await second == 0
            assert await later in (0, Status.ABORT_REQUESTED)

    play(scenario)


def test_an_exception_in_one_completion_does_not_keep_others_from_theirs() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            failures: list[str] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["message"]))

            def broken(status: int) -> None:
                raise RuntimeError

            data = block(1)
            device.write(0, data, False, broken)
            assert await write(device, 1, data) == 0
            assert failures == ["a drive's completion failed"]

    play(scenario)


def test_logs_are_read_and_smart_is_kept_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdk_bindings.spdk.device.SMART_SECONDS", 0.01)

    async def scenario() -> None:
        async with opened() as (device, _):
            assert device.smart()["percentage_used"] == 2  # the fake's pages are full of their own number
            device._smart = {}
            await until(lambda: bool(device.smart()))
            entries = await device.controller.error_log()
            assert len(entries) == 64
            assert entries[0].queue_id == 0x0101

    play(scenario)


def test_more_admin_commands_than_there_are_tags_for_wait_their_turn() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            answers = await asyncio.gather(*(device.controller.log_page(7, 4096) for _ in range(20)))
            assert set(answers) == {(0, b"\x07" * 4096)}
            with pytest.raises(ValueError, match="more than 65536"):
                await device.controller.log_page(7, controllers.ADMIN_BYTES_MAX + 4)

    play(scenario)


def test_a_drive_of_512_byte_blocks_is_refused_and_usable_once_formatted() -> None:
    async def scenario() -> None:
        environment, fake = spdk_drive.fake()
        fake.set(block_bits=9)
        with pytest.raises(AttachError, match=r"python -m spdk_bindings\.spdk format 'trtype:TCP'"):
            await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS)
        controller = await SpdkController.open(environment, spdk_drive.FAKE_ADDRESS)
        assert controller.identity.format.block_bytes == 512
        with pytest.raises(SpdkError, match=r"no format with blocks of 8192 bytes, only 512\+0, 4096\+0"):
            await controller.format(8192)
        assert await controller.format() == 0
        controller.close()
        device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS)
        assert device.block_count == spdk_drive.FAKE_BLOCKS
        assert (device.serial, device.model, device.firmware) == ("FAKE0", "Fake drive", "1.0")
        device.close()

    play(scenario)


def test_firmware_is_downloaded_in_pieces_and_committed() -> None:
    async def scenario() -> None:
        async with opened() as (device, fake):
            assert await device.controller.update_firmware(bytes(150_000), slot=2, action=3) == 0
            assert fake.firmware_bytes == 150_000
            assert fake.firmware_slot == 2 | 3 << 3
            with pytest.raises(ValueError, match="whole number of dwords"):
                await device.controller.update_firmware(b"abc", slot=1)
            fake.set(next_status=0x107)
            assert await device.controller.update_firmware(bytes(8), slot=2) == 0x107

    play(scenario)


def test_a_drive_that_is_pulled_is_gone_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        environment, fake = spdk_drive.fake()
        device = await SpdkDevice.open(environment, "0000:01:00.0", spdk_drive.QUICK)
        fake.set(pulled=1)
        await until(lambda: device.state is DriveState.GONE)
        assert device.controller.error == "the drive was removed"
        assert await write(device, 0, block(1)) == Status.HOST_PATHING_ERROR
        assert "event=drive_gone address='0000:01:00.0' serial=FAKE0 reason='the drive was removed'" in caplog.text
        caplog.clear()
        device.close()
        assert not caplog.text

    play(scenario)


def test_a_closed_drive_refuses_commands_and_remembers_its_counters() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            await write(device, 0, block(1))
            data = block(2)
            assert device.write(1, data, False, list[int]().append) == PENDING
            device.close()
            assert await write(device, 0, block(1)) == Status.HOST_PATHING_ERROR
            assert await write(device, 0, block(1, 600)) == Status.HOST_PATHING_ERROR
            assert await status_of(lambda done: device.write_zeroes(0, 9, False, done)) == Status.HOST_PATHING_ERROR
            assert await status_of(device.flush) == Status.HOST_PATHING_ERROR
            assert await status_of(device.reset) == Status.HOST_PATHING_ERROR
            with pytest.raises(SpdkError, match="closed"):
                await device.controller.smart()
            assert device.state is DriveState.GONE
            assert device.counters.writes == 1

    play(scenario)


def test_a_controller_that_is_lost_is_logged_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spdk_bindings")

    async def scenario() -> None:
        async with opened() as (_, fake):
            fake.set(dead=1)
            await until(lambda: "event=drive_recovering" in caplog.text)
            fake.set(dead=0)
            await until(lambda: "event=drive_ready" in caplog.text)

    play(scenario)


def test_opening_and_closing_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        environment, fake = spdk_drive.fake()
        before = fake.queues
        for _ in range(20):
            device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, spdk_drive.QUICK)
            await write(device, 0, block(1))
            device.close()
            device.close()
        fake.set(dead=1)
        with pytest.raises(AttachError, match="no NVMe controller answers there"):
            await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, spdk_drive.QUICK)
        assert fake.queues == before

    play(scenario)


def test_an_arena_gives_out_what_it_has_and_joins_what_comes_back() -> None:
    environment, _ = spdk_drive.fake()
    arena = DmaArena(environment.native, 8 * 4096)
    offsets = [arena.take(1) for _ in range(8)]
    assert offsets == [4096 * number for number in range(8)]
    assert arena.take(1) == NONE_FREE
    for offset in offsets:
        arena.give(offset, 1)
    assert arena.take(8) == 0
    arena.give(0, 8)
    assert [arena.take(3), arena.take(3), arena.take(3)] == [0, 3 * 4096, NONE_FREE]
    arena.release()
    with pytest.raises(PoolExhausted, match="memory_mib"):
        DmaArena(environment.native, 2 << 30)


def test_spdk_is_started_once_with_one_set_of_settings() -> None:
    environment, _ = spdk_drive.fake()
    shim = spdk_drive.fake_shim()
    assert SpdkEnvironment.start(environment.settings, shim) is environment
    with pytest.raises(EnvironmentStartError, match="other settings"):
        SpdkEnvironment.start(replace(environment.settings, buffers_mib=1), shim)
    with pytest.raises(ValueError, match="no core"):
        SpdkEnvironment(EnvironmentSettings(core_mask="0x0"), environment.native)
    with pytest.raises(EnvironmentStartError, match="cores that are not here"):
        SpdkEnvironment(EnvironmentSettings(core_mask="0x1" + "0" * 64), environment.native)
    with pytest.raises(EnvironmentStartError, match="hugepages"):
        SpdkEnvironment(replace(environment.settings, memory_mib=0), environment.native)


def test_a_shim_that_is_not_there_or_broken_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(NotBuiltError, match=r"python -m spdk_bindings\.spdk\.build"):
        load(spdk_drive.STUB / "none.so")
    broken = tmp_path / "_native.so"
    broken.write_text("no library")
    with pytest.raises(NotBuiltError, match="does not load"):
        load(broken)


def test_a_sled_keeps_its_tables_on_such_a_drive() -> None:
    async def scenario() -> None:
        async with opened() as (device, _):
            storage = await open_storage([device], format=True)
            assert await status_of(lambda done: storage.raise_fence(volume(1), fence(3), done)) == 0
            assert await status_of(lambda done: storage.create_namespace(volume(1), 0, 64, done)) == 0
            again = await open_storage([device])
            assert again.fence_of(volume(1)) == fence(3)
            assert again.namespace_of(volume(1), 0) is not None

    play(scenario)
