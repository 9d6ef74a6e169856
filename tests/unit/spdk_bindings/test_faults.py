"""Each fault wrapper does its one thing, and they stack."""

import asyncio

from kit.drive import block, read, run, status_of, unexpected

from spdk_bindings.device import PENDING
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.faults import (
    BitRot,
    DeadDevice,
    Latency,
    Misdirected,
    Operation,
    Rule,
    StatusFault,
    TornWrite,
    Wrapper,
)
from spdk_bindings.nvme import Status
from spdk_bindings.volatile_cache import VolatileCache


def test_a_wrapper_without_a_fault_changes_nothing() -> None:
    drive = Wrapper(MemoryDevice(16, "S"))
    assert (drive.block_count, drive.serial) == (16, "S")
    drive.write(1, block(1, 2), True, unexpected)
    drive.deallocate(1, 1, unexpected)
    assert drive.flush(unexpected) == 0
    assert drive.reset(unexpected) == 0
    assert read(drive, 0, 3) == block(0, 2) + block(1)
    assert drive.smart()["host_write_commands"] == 1
    drive.close()


def test_statuses_by_range_operation_and_number() -> None:
    drive = StatusFault(MemoryDevice(16))
    drive.rules = [Rule(Status.WRITE_FAULT, 4, 2, (Operation.WRITE,), times=1)]
    assert drive.write(3, block(1), False, unexpected) == 0
    assert drive.write(6, block(1), False, unexpected) == 0
    assert drive.read(4, bytearray(4096), unexpected) == 0
    assert drive.write(3, block(1, 2), False, unexpected) == Status.WRITE_FAULT
    assert drive.write(3, block(1, 2), False, unexpected) == 0
    drive.rules = [Rule(Status.INTERNAL_ERROR, operations=(Operation.FLUSH, Operation.WRITE_ZEROES))]
    assert drive.flush(unexpected) == Status.INTERNAL_ERROR
    assert drive.write_zeroes(0, 1, False, unexpected) == Status.INTERNAL_ERROR
    assert drive.smart()["critical_warning"] == 0x04


def test_an_error_may_hide_a_command_that_was_carried_out() -> None:
    drive = StatusFault(MemoryDevice(16), Rule(Status.INTERNAL_ERROR, applied=True, operations=(Operation.WRITE,)))
    assert drive.write(0, block(1), False, unexpected) == Status.INTERNAL_ERROR
    assert read(drive, 0) == block(1)


def test_late_commands_take_effect_late() -> None:
    async def scenario() -> None:
        drive = Latency(MemoryDevice(16), lambda operation: 0.0)
        write = asyncio.ensure_future(status_of(lambda done: drive.write(0, block(1), False, done)))
        await asyncio.sleep(0)
        assert drive.outstanding == 1
        assert read(drive.device, 0) == block(0)
        assert await write == 0
        assert read(drive.device, 0) == block(1)

    run(scenario())


def test_a_held_device_goes_on_when_released() -> None:
    async def scenario() -> None:
        drive = Latency(MemoryDevice(16), lambda operation: 0.0)
        drive.hold()
        writes = [
            asyncio.ensure_future(status_of(lambda done, data=data: drive.write(0, block(data), False, done)))
            for data in (1, 2)
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        assert drive.outstanding == 2
        drive.release()
        assert await asyncio.gather(*writes) == [0, 0]
        assert read(drive.device, 0) == block(2)

    run(scenario())


def test_a_reset_ends_what_was_not_submitted() -> None:
    async def scenario() -> None:
        drive = Latency(MemoryDevice(16), lambda operation: 0.0)
        drive.hold()
        write = asyncio.ensure_future(status_of(lambda done: drive.write(0, block(1), False, done)))
        await asyncio.sleep(0)
        assert await status_of(drive.reset) == 0
        assert await write == Status.ABORT_REQUESTED
        drive.release()
        assert read(drive.device, 0) == block(0)
        assert await status_of(lambda done: drive.write(0, block(2), False, done)) == 0
        assert drive.reset(unexpected) == 0

    run(scenario())


def test_a_block_rots_until_it_is_written_again() -> None:
    drive = BitRot(MemoryDevice(16))
    drive.write(0, block(0xF0, 2), False, unexpected)
    drive.rot(1, byte=10, mask=0x0F)
    assert read(drive, 0, 2)[4096 + 10] == 0xFF
    assert read(drive, 0) == block(0xF0)
    drive.write(1, block(1), False, unexpected)
    assert read(drive, 1) == block(1)


def test_rot_shows_in_reads_that_complete_late() -> None:
    async def scenario() -> bytes:
        drive = BitRot(Latency(MemoryDevice(16), lambda operation: 0.0))
        drive.rot(0, byte=4095, mask=0x80)
        into = bytearray(4096)
        assert await status_of(lambda done: drive.read(0, into, done)) == 0
        return bytes(into)

    assert run(scenario()) == block(0)[:-1] + b"\x80"


def test_a_misdirected_write_lands_elsewhere_once() -> None:
    drive = Misdirected(MemoryDevice(16))
    drive.misdirect(3, to=9)
    assert drive.write(3, block(1), True, unexpected) == 0
    assert read(drive, 3) == block(0)
    assert read(drive, 9) == block(1)
    drive.write(3, block(2), True, unexpected)
    assert read(drive, 3) == block(2)


def test_a_torn_write_keeps_whole_blocks_of_its_choice() -> None:
    drive = TornWrite(MemoryDevice(16))
    drive.tear({0, 2, 99}, Status.POWER_LOSS_ABORT)
    assert drive.write(0, block(9), False, unexpected) == 0
    assert drive.write(4, block(1, 3), True, unexpected) == Status.POWER_LOSS_ABORT
    assert read(drive, 4, 3) == block(1) + block(0) + block(1)
    assert drive.write(4, block(2, 3), True, unexpected) == 0


def test_a_dead_device_answers_with_errors_or_not_at_all() -> None:
    drive = DeadDevice(MemoryDevice(16))
    drive.die()
    assert drive.write(0, block(1), False, unexpected) == Status.INTERNAL_PATH_ERROR
    assert drive.reset(unexpected) == Status.INTERNAL_PATH_ERROR
    assert drive.smart()["critical_warning"] == 0x04
    drive.die(silent=True)
    assert drive.flush(unexpected) == PENDING
    assert drive.reset(unexpected) == PENDING
    drive.revive()
    assert read(drive, 0) == block(0)


def test_faults_stack() -> None:
    medium = MemoryDevice(16)
    rotten = BitRot(Misdirected(medium))
    drive = StatusFault(rotten, Rule(Status.INTERNAL_ERROR, 8, 1))
    rotten.rot(0)
    assert read(drive, 0)[0] == 1
    assert drive.read(8, bytearray(4096), unexpected) == Status.INTERNAL_ERROR


def test_buffers_are_those_of_the_device_below() -> None:
    class Lender(MemoryDevice):
        def allocate(self, size_bytes: int) -> memoryview:
            return memoryview(b"lent".ljust(size_bytes))

    for device in (Wrapper(Lender(8)), VolatileCache(Lender(8))):
        assert bytes(device.allocate(6)) == b"lent  "
