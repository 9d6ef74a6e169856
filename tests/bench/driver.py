"""The SPDK driver from Python beside spdk_nvme_perf, against the same target over memory: random 4 KiB blocks.

Target and initiators have a core each; the driver's reactor and its event loop share theirs. As a program it is the
initiator from Python: `driver.py ADDRESS PATTERN DEPTH own|copied`.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import uvloop

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose spdk.py is not the package spdk
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.jobs import KIB, RUN_S, Job
from bench.report import Table, side_by_side
from bench.spdk import INITIATOR, TARGET, TARGET_NQN, run
from kit import spdk_drive
from peers import spdk
from rackctl import peer_programs
from rackctl.errors import RackError

from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.spdk.build import output
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.environment import SpdkEnvironment

JOBS: Final = tuple(Job(pattern, 4 * KIB, depth) for pattern in ("randread", "randwrite") for depth in (1, 32, 256))
OWN, COPIED = "own", "copied"
CORE: Final = 1
START_SECONDS_MAX: Final = 30.0


def table(rounds: int, leave_out: Callable[[str], None]) -> Table | None:
    """IOPS side by side; nothing where SPDK or the shim is missing. Raises RackError."""
    for name in (INITIATOR, TARGET):
        if peer_programs.find(name) is None:
            leave_out(peer_programs.missing(name))
            return None
    if not output().exists():
        leave_out("the driver: its shim is not built, python -m spdk_bindings.spdk.build")
        return None
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        target = runner.run(stack.enter_async_context(spdk.exported(TARGET_NQN)))
        address = spdk_drive.address(target.port, target.nqn)
        columns: dict[str, Callable[[Job], float]] = {
            "the driver, buffers of its own": partial(from_python, address, OWN),
            "the driver, other buffers": partial(from_python, address, COPIED),
            INITIATOR: lambda job: run(job, target.port, target.nqn, prefix=()),
        }
        try:
            return side_by_side("The SPDK driver over NVMe/TCP to memory", JOBS, columns, rounds)
        finally:
            runner.run(stack.aclose())


def from_python(address: str, buffers: str, job: Job) -> float:
    """A job in a process of its own; its IOPS. Raises RackError."""
    argv = [sys.executable, __file__, address, job.pattern, str(job.depth), buffers]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S + START_SECONDS_MAX, check=False)
    if done.returncode:
        raise RackError(f"the driver ended with status {done.returncode}: {done.stderr}")
    return float(done.stdout)


class Load:
    """Keeps `depth` commands going until the time is over."""

    def __init__(self, device: SpdkDevice, pattern: str, depth: int, buffers: str) -> None:
        self._device = device
        self._writes = pattern == "randwrite"
        allocate: Callable[[int], memoryview | bytearray] = device.allocate if buffers == OWN else bytearray
        self._buffers = [allocate(BLOCK_BYTES) for _ in range(depth)]
        random = Random(depth)
        self._lbas = [random.randrange(device.block_count) for _ in range(1 << 14)]
        self._started = self._running = 0
        self._end_s = 0.0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, seconds: float) -> float:
        """Commands a second."""
        begin_s = time.perf_counter()
        self._end_s = begin_s + seconds
        self._running = len(self._buffers)
        for buffer in self._buffers:
            self._keep_going(buffer)
        await self._over
        return self._started / (time.perf_counter() - begin_s)

    def _keep_going(self, buffer: memoryview | bytearray) -> None:
        """One command after the other with the buffer."""
        device, lbas, mask = self._device, self._lbas, len(self._lbas) - 1

        def proceed(status: int) -> None:
            if status:
                self._over.set_exception(RackError(f"a command ended with {status:#x}"))
            elif time.perf_counter() < self._end_s:
                lba = lbas[self._started & mask]
                self._started += 1
                if self._writes:
                    device.write(lba, buffer, False, proceed)
                else:
                    device.read(lba, buffer, proceed)
            else:
                self._running -= 1
                if not self._running:
                    self._over.set_result(None)

        proceed(0)


async def measure(address: str, pattern: str, depth: int, buffers: str) -> float:
    """Attach, load, detach; IOPS."""
    device = await SpdkDevice.open(SpdkEnvironment.start(spdk_drive.SETTINGS), address)
    try:
        return await Load(device, pattern, depth, buffers).run(RUN_S)
    finally:
        device.close()


if __name__ == "__main__":
    os.sched_setaffinity(0, {CORE})
    print(uvloop.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
