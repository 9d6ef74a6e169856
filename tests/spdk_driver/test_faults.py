"""SPDK's target goes away, stands still, loses its namespace; the drive says so by status and comes back by itself."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from kit import spdk_drive
from kit.drive import block, status_of
from kit.spdk_drive import attached, play, read, until, write
from peers import spdk

from spdk_bindings.nvme import Status
from spdk_bindings.spdk.controller import DriveState
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.errors import AttachError

NQN = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000003"
FILE_BYTES = 16 << 20
DEPTH = 64
IMPATIENT = replace(spdk_drive.QUICK, io_timeout_s=1.0)
WITHOUT_A_DRIVE = {Status.ABORTED_SQ_DELETION, Status.HOST_PATHING_ERROR, Status.ABORT_REQUESTED}
"""How commands end that a drive could not carry out."""


class Writers:
    """Writes one block after another, over and over, and remembers what was acknowledged."""

    def __init__(self, device: SpdkDevice) -> None:
        self.device = device
        self.acknowledged: dict[int, int] = {}
        self.failed: dict[int, set[int]] = {}
        self.statuses: set[int] = set()
        self.rounds = 0
        self._stopping = False

    async def one(self, lba: int) -> None:
        byte = 0
        while not self._stopping:
            byte = byte % 250 + 1
            status = await write(self.device, lba, block(byte), fua=True)
            self.statuses.add(status)
            self.rounds += not status
            if status:
                self.failed.setdefault(lba, set()).add(byte)
                await asyncio.sleep(0.01)
            else:
                self.acknowledged[lba] = byte
                self.failed.pop(lba, None)

    def start(self) -> "asyncio.Future[list[None]]":
        return asyncio.gather(*(self.one(lba) for lba in range(DEPTH)))

    def stop(self) -> None:
        self._stopping = True


def test_a_target_killed_in_mid_write_and_started_again_is_written_on(tmp_path: Path) -> None:
    spdk_drive.real()
    file = tmp_path / "drive"
    file.write_bytes(bytes(FILE_BYTES))

    async def scenario() -> None:
        async with AsyncExitStack() as drive:
            async with spdk.exported(NQN, file=file) as first:
                device = await drive.enter_async_context(attached(first))
                writers = Writers(device)
                writing = writers.start()
                await until(lambda: writers.rounds > 20 * DEPTH)
                await first.end()
                await until(lambda: device.state is not DriveState.READY)
            async with spdk.exported(NQN, file=file, port=first.port):
                await until(lambda: device.state is DriveState.READY)
                rounds = writers.rounds
                await until(lambda: writers.rounds > rounds + 20 * DEPTH)
                writers.stop()
                await writing
                assert writers.statuses - {0} <= WITHOUT_A_DRIVE
                assert device.counters.lost >= 1
                for lba, byte in writers.acknowledged.items():
                    assert (await read(device, lba))[0] in {byte} | writers.failed.get(lba, set())

    play(scenario)


def test_what_is_outstanding_at_a_kill_ends_and_new_commands_fail_at_once() -> None:
    spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN) as target, attached(target) as device:
            with target.frozen():
                outstanding = [asyncio.ensure_future(write(device, lba, block(1))) for lba in range(DEPTH)]
                await until(lambda: device.counters.writes >= DEPTH)
                await target.end()
            assert {await one for one in outstanding} <= WITHOUT_A_DRIVE
            await until(lambda: device.state is DriveState.RECOVERING)
            assert await write(device, 0, block(1)) == Status.HOST_PATHING_ERROR

    play(scenario)


def test_a_target_that_stands_still_costs_its_commands_and_nothing_more() -> None:
    spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN) as target, attached(target, IMPATIENT) as device:
            with target.frozen():
                stuck = [asyncio.ensure_future(write(device, lba, block(1))) for lba in range(DEPTH)]
                assert {await one for one in stuck} <= WITHOUT_A_DRIVE
                assert device.counters.timeouts == DEPTH
            await until(lambda: device.state is DriveState.READY)
            assert await write(device, 0, block(2)) == 0
            assert await read(device, 0) == block(2)

    play(scenario)


def test_a_reset_of_a_target_that_stands_still_does_not_claim_success() -> None:
    spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN) as target, attached(target, IMPATIENT) as device:
            with target.frozen():
                stuck = asyncio.ensure_future(write(device, 0, block(1)))
                await until(lambda: device.counters.writes == 1)
                assert await status_of(device.reset) == Status.HOST_PATHING_ERROR
                assert stuck.done()
            await until(lambda: device.state is DriveState.READY)
            assert await status_of(device.reset) == 0

    play(scenario)


def test_a_namespace_that_is_taken_away_is_gone_until_it_is_back() -> None:
    spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN) as target, attached(target) as device:
            assert await write(device, 7, block(7)) == 0
            await target.rpc.call("nvmf_subsystem_remove_ns", nqn=NQN, nsid=spdk.NSID)
            await until(lambda: device.state is DriveState.GONE)
            assert await write(device, 7, block(8)) == Status.INVALID_NAMESPACE
            await target.rpc.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "drive", "nsid": spdk.NSID})
            await until(lambda: device.state is DriveState.READY)
            assert await read(device, 7) == block(7)

    play(scenario)


def test_what_a_target_does_not_support_is_refused_with_its_own_status() -> None:
    async def scenario() -> None:
        async with spdk.exported(NQN) as target, attached(target) as device:
            assert await device.controller.format() == Status.INVALID_OPCODE
            assert await device.controller.update_firmware(bytes(4096), slot=1) == Status.INVALID_OPCODE
            assert await device.controller.error_log() == []
            assert await write(device, 0, block(1)) == 0

    play(scenario)


def test_a_drive_with_other_blocks_is_refused_and_told_how_to_format() -> None:
    environment = spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN, block_bytes=512) as target:
            with pytest.raises(AttachError, match=r"blocks have 512 bytes.*spdk_bindings\.spdk format"):
                await SpdkDevice.open(environment, spdk_drive.address(target.port, NQN))

    play(scenario)


def test_nobody_at_the_address_is_an_error_that_says_so() -> None:
    environment = spdk_drive.real()

    async def scenario() -> None:
        async with spdk.exported(NQN) as target:
            await target.end()
            await target.process.wait()
            with pytest.raises(AttachError, match="no NVMe controller answers there"):
                await SpdkDevice.open(environment, spdk_drive.address(target.port, NQN))

    play(scenario)
