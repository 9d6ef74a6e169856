"""A device that leaves commands unanswered is reset, then given up; nobody is answered before that (F3)."""

import asyncio

from kit.drive import DEVICE_BLOCKS, SLED, block, environment
from kit.virtual_time import run_virtual

from sled_controller.storage import DeviceState, SledStorage
from sled_controller.storage.timed_device import (
    COMMAND_SECONDS_MAX,
    RESET_SECONDS_MAX,
    RESETS_MAX,
    RESETS_WITHIN_SECONDS,
    TimedDevice,
)
from spdk_bindings.device import PENDING, Buffer, Done
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.nvme import Status

ABORTED, INTERRUPTED = int(Status.ABORT_REQUESTED), int(Status.COMMAND_INTERRUPTED)


class HangingDrive(MemoryDevice):
    """Keeps commands while `hangs`; a reset ends them, unless it hangs too."""

    def __init__(self) -> None:
        super().__init__(DEVICE_BLOCKS, "HANG")
        self.hangs = self.reset_hangs = False
        self.reset_status = 0
        self.held: list[Done] = []
        self.reset_count = 0

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        if not self.hangs:
            return super().write(lba, data, fua, done)
        self.held.append(done)
        return PENDING

    def flush(self, done: Done) -> int:
        if not self.hangs:
            return 0
        self.held.append(done)
        return PENDING

    def reset(self, done: Done) -> int:
        self.reset_count += 1
        if self.reset_hangs:
            return PENDING
        loop = asyncio.get_running_loop()
        held, self.held = self.held, []
        for waiting in held:
            loop.call_soon(waiting, ABORTED)
        loop.call_soon(done, self.reset_status)
        return PENDING


class Watched:
    """A hanging drive under a time limit, and what it has said."""

    def __init__(self) -> None:
        self.drive = HangingDrive()
        self.device = TimedDevice(self.drive)
        self.answers: list[tuple[float, int]] = []
        self.given_up: list[str] = []
        self.device.on_unresponsive = lambda device, reason: self.given_up.append(reason)

    def write(self) -> int:
        loop = asyncio.get_running_loop()
        return self.device.write(1, block(1), True, lambda status: self.answers.append((loop.time(), status)))


def test_f3_a_command_that_is_overdue_is_answered_only_when_the_device_was_reset() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs = True
        assert watched.write() == PENDING
        await asyncio.sleep(COMMAND_SECONDS_MAX - 0.1)
        assert watched.answers == []
        assert watched.drive.reset_count == 0
        await asyncio.sleep(0.2)
        assert watched.drive.reset_count == 1
        assert [status for _, status in watched.answers] == [INTERRUPTED]
        watched.drive.hangs = False
        assert watched.write() == 0
        assert watched.given_up == []

    run_virtual(scenario())


def test_a_device_that_answers_in_time_is_left_alone() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs = True
        for _ in range(8):
            watched.write()
            await asyncio.sleep(COMMAND_SECONDS_MAX * 0.6)
            watched.write()
            await asyncio.sleep(COMMAND_SECONDS_MAX * 0.3)
            watched.drive.held.pop(0)(0)
            watched.drive.held.pop(0)(0)
        await asyncio.sleep(COMMAND_SECONDS_MAX * 2)
        assert watched.drive.reset_count == 0
        assert {status for _, status in watched.answers} == {0}

    run_virtual(scenario())


def test_a_reset_by_a_drain_is_not_said_to_be_an_interruption() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs = True
        watched.write()
        watched.device.reset(lambda status: None)
        await asyncio.sleep(0.1)
        assert [status for _, status in watched.answers] == [ABORTED]

    run_virtual(scenario())


def test_f3_a_device_whose_reset_does_not_end_is_given_up_and_answers_nobody() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs = watched.drive.reset_hangs = True
        watched.write()
        await asyncio.sleep(COMMAND_SECONDS_MAX + RESET_SECONDS_MAX + 0.1)
        assert watched.given_up == ["unresponsive: a reset does not end"]
        assert watched.answers == [], "its buffer is the device's still"
        await asyncio.sleep(60)
        assert len(watched.given_up) == 1

    run_virtual(scenario())


def test_a_device_whose_reset_fails_is_given_up() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs, watched.drive.reset_status = True, int(Status.INTERNAL_ERROR)
        watched.write()
        await asyncio.sleep(COMMAND_SECONDS_MAX + 0.1)
        assert len(watched.given_up) == 1
        assert "a reset failed" in watched.given_up[0]

    run_virtual(scenario())


def test_a_device_that_hangs_again_and_again_is_given_up_and_one_that_hangs_seldom_is_not() -> None:
    async def scenario(pause_s: float) -> Watched:
        watched = Watched()
        watched.drive.hangs = True
        for _ in range(RESETS_MAX + 1):
            watched.write()
            await asyncio.sleep(COMMAND_SECONDS_MAX + 0.1 + pause_s)
        return watched

    often, seldom = run_virtual(scenario(0.0)), run_virtual(scenario(RESETS_WITHIN_SECONDS))
    assert often.drive.reset_count == RESETS_MAX
    assert len(often.given_up) == 1
    assert seldom.given_up == []


def test_what_was_not_taken_in_while_this_process_was_stopped_is_not_overdue() -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.drive.hangs = True
        watched.write()
        await asyncio.sleep(1)
        asyncio.get_running_loop()._now_s += 60  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
        assert watched.drive.reset_count == 0
        watched.drive.held.pop()(0)
        await asyncio.sleep(COMMAND_SECONDS_MAX)
        assert [status for _, status in watched.answers] == [0]

    run_virtual(scenario())


def test_an_unresponsive_device_goes_offline_and_the_others_are_served() -> None:
    async def scenario() -> None:
        drives = [HangingDrive(), HangingDrive()]
        drives[1].serial = "OTHER"
        devices = [TimedDevice(drive) for drive in drives]
        storage = await SledStorage.open(devices, sled_id=SLED, env=environment(), format=True, table_records=64)
        for device in devices:
            device.on_unresponsive = storage.unresponsive
        drives[0].hangs = drives[0].reset_hangs = True
        (index, first), (_, second) = storage.online_devices()
        assert first.flush(lambda status: None) == PENDING
        await asyncio.sleep(COMMAND_SECONDS_MAX + RESET_SECONDS_MAX + 0.1)
        assert dict(storage.device_states())[index] is DeviceState.OFFLINE
        assert [report.reason for report in storage.reports() if report.index == index] == [
            "unresponsive: a reset does not end"
        ]
        assert second.flush(lambda status: None) == 0
        assert [device for _, device in storage.online_devices()] == [second]

    run_virtual(scenario())
