"""The driver over SPDK's target for longer: random commands against a model, load without growth, an idle reactor.

PALISADE_SPDK_COMMANDS is how many random commands there are (100000), PALISADE_SPDK_LOAD_S how long the load is (10).
"""

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

from kit import spdk_drive
from kit.drive import block, status_of
from kit.spdk_drive import attached, play
from peers import spdk
from peers.spdk import Target

from spdk_bindings.device import BLOCK_BYTES, PENDING
from spdk_bindings.spdk.device import SpdkDevice

COMMANDS = int(os.environ.get("PALISADE_SPDK_COMMANDS", "100000"))
LOAD_S = float(os.environ.get("PALISADE_SPDK_LOAD_S", "10"))
OTHER_NQN = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000004"
BLOCKS = 2048
LANES = 32
BLOCKS_OF_A_LANE = BLOCKS // LANES
IDLE_S = 2.0
IDLE_SHARE_MAX = 0.10
GROWTH_BYTES_MAX = 4 << 20


class Lane:
    """One command after another in blocks of its own, each read compared with what the model has."""

    def __init__(self, device: SpdkDevice, number: int, buffer: memoryview | bytearray) -> None:
        self.device = device
        self.first = number * BLOCKS_OF_A_LANE
        self.random = Random(number)
        self.buffer = memoryview(buffer)
        self.model = [0] * BLOCKS_OF_A_LANE

    async def run(self, commands: int) -> None:
        """That many of them."""
        for _ in range(commands):
            await self.command()

    async def command(self) -> None:
        """One, at random."""
        count = self.random.randrange(1, 9)
        at = self.random.randrange(BLOCKS_OF_A_LANE - count + 1)
        lba, part = self.first + at, self.buffer[: count * BLOCK_BYTES]
        kind = self.random.choices(["read", "write", "zero", "deallocate", "flush"], [8, 8, 1, 1, 1])[0]
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        byte = 0
        if kind == "read":
            part[:] = bytes(len(part))
            started = self.device.read(lba, part, ended.set_result)
        elif kind == "write":
            byte = self.random.randrange(1, 256)
            part[:] = block(byte, count)
            started = self.device.write(lba, part, self.random.random() < 0.2, ended.set_result)
        elif kind == "zero":
            started = self.device.write_zeroes(lba, count, False, ended.set_result)
        elif kind == "deallocate":
            started = self.device.deallocate(lba, count, ended.set_result)
        else:
            started = self.device.flush(ended.set_result)
        assert started == PENDING
        assert await ended == 0
        if kind == "read":
            assert part == b"".join(map(block, self.model[at : at + count]))
        elif kind != "flush":
            self.model[at : at + count] = [byte] * count


async def lanes(device: SpdkDevice) -> list[Lane]:
    """Half of them with buffers that the drive can use itself."""
    assert await status_of(lambda done: device.write_zeroes(0, BLOCKS, False, done)) == 0
    size = 8 * BLOCK_BYTES
    return [Lane(device, number, device.allocate(size) if number % 2 else bytearray(size)) for number in range(LANES)]


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_random_commands_do_what_a_model_does(target: Target) -> None:
    async def scenario() -> None:
        async with attached(target) as device:
            await asyncio.gather(*(lane.run(COMMANDS // LANES) for lane in await lanes(device)))
            assert device.counters.failures == 0

    play(scenario, seconds_max=60 + COMMANDS / 500)


def test_two_drives_share_a_core_and_buffers(target: Target) -> None:
    async def scenario() -> None:
        async with spdk.exported(OTHER_NQN) as other, attached(target) as first, attached(other) as second:
            assert await status_of(lambda done: second.write_zeroes(0, BLOCKS, False, done)) == 0
            working = await lanes(first)
            for lane in working[::2]:
                lane.device = second
            await asyncio.gather(*(lane.run(100) for lane in working))
            assert first.counters.failures == second.counters.failures == 0
            assert second.counters.writes > 0

    play(scenario)


def test_load_for_a_while_takes_no_more_memory_at_its_end(target: Target) -> None:
    async def scenario() -> None:
        async with attached(target) as device:
            working = await lanes(device)
            await asyncio.gather(*(lane.run(200) for lane in working))
            before_bytes, end_s = resident_bytes(), time.monotonic() + LOAD_S
            while time.monotonic() < end_s:
                await asyncio.gather(*(lane.run(200) for lane in working))
            assert resident_bytes() - before_bytes < GROWTH_BYTES_MAX
            assert device.counters.failures == 0

    play(scenario, seconds_max=60 + LOAD_S)


def test_an_idle_drive_takes_little_of_a_core_and_keeps_alive(target: Target) -> None:
    settings = replace(spdk_drive.QUICK, keep_alive_s=IDLE_S / 2)

    async def scenario() -> None:
        async with attached(target, settings) as device:
            used_s, start_s = time.process_time(), time.monotonic()
            await asyncio.sleep(IDLE_S)
            share = (time.process_time() - used_s) / (time.monotonic() - start_s)
            assert share < IDLE_SHARE_MAX
            assert device.counters.lost == 0
            assert await spdk_drive.write(device, 0, block(1)) == 0

    play(scenario)
