"""What any `Device` does, emulated or real: whole blocks, ranges, statuses, PENDING and done, reset, close."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
from kit import spdk_drive
from kit.drive import block, run, status_of
from kit.spdk_drive import read, write
from peers.spdk import Target

from spdk_bindings.device import PENDING, Device
from spdk_bindings.emulator import FileDevice, MemoryDevice
from spdk_bindings.log_pages import SMART_FORMAT
from spdk_bindings.nvme import Status
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.environment import SpdkEnvironment

Opened: TypeAlias = Callable[[], AbstractAsyncContextManager[Device]]


@pytest.fixture(params=["memory", "file", "fake SPDK", "SPDK"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens a drive that is all zero, in the running loop."""
    if request.param == "memory":
        return lambda: closing(MemoryDevice(1024))
    if request.param == "file":
        return lambda: closing(FileDevice.create(tmp_path / "drive", 1024))
    if request.param == "fake SPDK":
        environment, _ = spdk_drive.fake()
        return lambda: by_spdk(environment, spdk_drive.FAKE_ADDRESS)
    environment = spdk_drive.real()
    target: Target = request.getfixturevalue("target")
    return lambda: by_spdk(environment, spdk_drive.address(target.port, target.nqn))


@asynccontextmanager
async def closing(device: Device) -> AsyncIterator[Device]:
    yield device
    device.close()
    device.close()


@asynccontextmanager
async def by_spdk(environment: SpdkEnvironment, address: str) -> AsyncIterator[Device]:
    device = await SpdkDevice.open(environment, address, spdk_drive.QUICK)
    assert await status_of(lambda done: device.write_zeroes(0, device.block_count, False, done)) == 0
    async with closing(device):
        yield device


def test_what_was_written_is_read_back(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            assert await write(device, 3, block(7, 2)) == 0
            assert await read(device, 2, 4) == block(0) + block(7, 2) + block(0)
            last = device.block_count - 1
            view = memoryview(block(9))
            assert await status_of(lambda done: device.write(last, view, True, done)) == 0
            assert await read(device, last) == block(9)

    run(scenario())


def test_a_view_is_filled_and_nothing_beside_it(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            await write(device, 1, block(5))
            around = bytearray(block(1, 3))
            view = memoryview(around)[4096:8192]
            assert await status_of(lambda done: device.read(1, view, done)) == 0
            assert around == block(1) + block(5) + block(1)

    run(scenario())


def test_allocated_buffers_serve_reads_and_writes(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            buffer = device.allocate(3 * 4096)
            assert len(buffer) == 3 * 4096
            buffer[:] = block(1) + block(2) + block(3)
            assert await status_of(lambda done: device.write(8, buffer[4096:], False, done)) == 0
            buffer[:] = block(0, 3)
            assert await status_of(lambda done: device.read(8, buffer[:8192], done)) == 0
            assert buffer == block(2) + block(3) + block(0)

    run(scenario())


def test_more_than_one_command_may_carry_goes_in_pieces(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            data = b"".join(block(number % 251) for number in range(600))
            assert await write(device, 100, data) == 0
            assert await read(device, 100, 600) == data

    run(scenario())


@pytest.mark.parametrize(("from_end", "count"), [(0, 1), (1, 2), (None, 1), (-(2**60), 1)])
def test_out_of_range_is_refused_and_changes_nothing(opened: Opened, from_end: int | None, count: int) -> None:
    async def scenario() -> None:
        async with opened() as device:
            lba = -1 if from_end is None else device.block_count - from_end
            assert await write(device, lba, block(1, count)) == Status.LBA_OUT_OF_RANGE
            into = bytearray(count * 4096)
            assert await status_of(lambda done: device.read(lba, into, done)) == Status.LBA_OUT_OF_RANGE
            zeroed = await status_of(lambda done: device.write_zeroes(lba, count, False, done))
            assert zeroed == Status.LBA_OUT_OF_RANGE
            assert await status_of(lambda done: device.deallocate(lba, count, done)) == Status.LBA_OUT_OF_RANGE
            assert await read(device, 0, 64) == block(0, 64)
            assert await read(device, device.block_count - 1) == block(0)

    run(scenario())


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_lengths_that_are_no_whole_blocks_are_refused(opened: Opened, size: int) -> None:
    async def scenario() -> None:
        async with opened() as device:
            assert await write(device, 0, bytes(size)) == Status.INVALID_FIELD
            into = bytearray(size)
            assert await status_of(lambda done: device.read(0, into, done)) == Status.INVALID_FIELD

    run(scenario())


def test_no_blocks_cannot_be_zeroed_or_deallocated(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            assert await status_of(lambda done: device.write_zeroes(0, 0, False, done)) == Status.LBA_OUT_OF_RANGE
            assert await status_of(lambda done: device.deallocate(0, 0, done)) == Status.LBA_OUT_OF_RANGE

    run(scenario())


def test_zeroed_and_deallocated_blocks_read_zero(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            await write(device, 0, block(5, 10))
            assert await status_of(lambda done: device.write_zeroes(2, 3, True, done)) == 0
            assert await status_of(lambda done: device.deallocate(7, 2, done)) == 0
            assert await read(device, 0, 10) == block(5, 2) + block(0, 3) + block(5, 2) + block(0, 2) + block(5)

    run(scenario())


def test_each_command_ends_once_inline_or_later_but_never_inside_the_call(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            ends: dict[int, list[int]] = {}
            finished = asyncio.Event()

            def note(number: int) -> Callable[[int], None]:
                ends[number] = []

                def done(status: int) -> None:
                    ends[number].append(status)
                    if all(ends.values()):
                        finished.set()

                return done

            data, into = block(3), bytearray(4096)
            commands: list[Callable[[Callable[[int], None]], int]] = [
                device.flush,
                lambda done: device.write(1, data, True, done),
                lambda done: device.write_zeroes(2, 1, True, done),
                lambda done: device.read(5, into, done),
                device.flush,
            ]
            for number, start in enumerate(commands):
                done = note(number)
                status = start(done)
                assert not ends[number]
                if status != PENDING:
                    done(status)
            async with asyncio.timeout(10):
                await finished.wait()
            assert ends == {number: [0] for number in range(5)}
            assert await read(device, 1) == data

    run(scenario())


def test_a_thousand_commands_of_one_turn_all_end(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            starts = [
                lambda done, lba=number % 512, byte=number % 251: device.write(lba, block(byte), False, done)
                for number in range(2000)
            ]
            assert set(await asyncio.gather(*map(status_of, starts))) == {0}

    run(scenario())


def test_after_a_reset_nothing_is_outstanding_and_the_drive_goes_on(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            before = [
                asyncio.ensure_future(status_of(lambda done, lba=lba: device.write(lba, block(1), True, done)))
                for lba in range(50)
            ]
            await asyncio.sleep(0)
            assert await status_of(device.reset) == 0
            assert all(one.done() for one in before)
            assert {await one for one in before} <= {0, Status.ABORT_REQUESTED, Status.ABORTED_SQ_DELETION}
            assert await write(device, 0, block(2), fua=True) == 0
            assert await read(device, 0) == block(2)
            assert await status_of(device.reset) == 0

    run(scenario())


def test_smart_has_every_field_of_the_log(opened: Opened) -> None:
    async def scenario() -> None:
        async with opened() as device:
            named = {field.name for field in SMART_FORMAT.subcons if field.name}
            assert set(device.smart()) == named

    run(scenario())
