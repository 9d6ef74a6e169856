"""Debian's kernel in a guest: a volume by NVMe/TCP and by NBD, beside the kernel's own target over a file there.

All three are block devices of one kernel under one fio, so what differs is what is behind them. Where the guest's
processor is emulated, its figures say how the three compare, and nothing of how fast any of them is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.jobs import NVME_JOBS, RUN_S, Job, fio_job
from bench.racks import VOLUME
from bench.report import Table, median_and_worst, side_by_side
from kit.volumes import Volume
from peers.guest import Guest, nbd, nvme, nvmet
from peers.guest.multipath import connected
from rackctl.rack import Rack

SPAN_MIB: Final = 128
NVMET_NQN: Final = "nqn.2014-08.org.nvmexpress:uuid:6e766d65-7400-4000-8000-000000000001"
KILLED_AFTER_S: Final = 2
STALL_RUN_S: Final = 8
_FIO: Final = f"fio --ioengine=libaio --direct=1 --size={SPAN_MIB}m --filename="

Await = Callable[[Coroutine[Any, Any, Any]], Any]


def compare(rack: Rack, rounds: int, scratch: Path) -> list[Table]:
    """Jobs side by side, and the stall when a primary is killed; raises packages.Missing and GuestError."""
    with asyncio.Runner() as runner:
        guest = runner.run(Guest.boot(scratch))
        try:
            volume = Volume(rack, VOLUME, 0, rack.roles(VOLUME))
            return [_jobs(runner.run, guest, volume, rounds), runner.run(_stalls(guest, volume, rounds))]
        finally:
            guest.stop()


def _jobs(wait: Await, guest: Guest, volume: Volume, rounds: int) -> Table:
    stack = AsyncExitStack()
    try:
        devices = wait(_devices(stack, guest, volume))
        for device in devices.values():
            wait(_fio(guest, device, ("--name=fill", "--rw=write", "--bs=1m", "--iodepth=4", "--refill_buffers")))

        def runs(device: str) -> Callable[[Job], float]:
            return lambda job: job.result(wait(_fio(guest, device, job.fio)))

        columns = {name: runs(device) for name, device in devices.items()}
        title = f"Linux {wait(guest.check('uname -r')).strip()} in a guest, `fio --ioengine=libaio`"
        return side_by_side(title, NVME_JOBS, columns, rounds)
    finally:
        wait(stack.aclose())


async def _devices(stack: AsyncExitStack, guest: Guest, volume: Volume) -> dict[str, str]:
    """Block devices of the guest by what is behind them."""
    port = volume.rack.node(volume.primary).ports["nbd"]
    host = await stack.enter_async_context(connected(guest, volume))
    return {
        "volume, NVMe/TCP, 2 paths": host.device,
        "the same volume, NBD": await stack.enter_async_context(nbd.connected(guest, volume.name, port)),
        "nvmet-tcp over a file in the guest": await stack.enter_async_context(_own_target(guest)),
    }


@asynccontextmanager
async def _own_target(guest: Guest) -> AsyncIterator[str]:
    async with (
        nvmet.exported(guest, NVMET_NQN, size_mib=SPAN_MIB, file=True),
        nvme.connected(guest, NVMET_NQN, nvmet.PORT, address="127.0.0.1") as connection,
    ):
        yield (await connection.namespaces(1))[nvmet.NSID]


async def _fio(guest: Guest, device: str, options: tuple[str, ...], run_s: float = RUN_S) -> str:
    command = f"[ -b {device} ] && {_FIO}{device} {' '.join(options)}"
    return await guest.check(command, timeout_s=run_s + 60)


async def _stalls(guest: Guest, volume: Volume, rounds: int) -> Table:
    """The longest that one write took while the primary was killed, as Linux saw it."""
    options = ("--name=stall", "--rw=randwrite", "--bs=4k", "--iodepth=1", "--time_based", "--output-format=json")
    stalls_s = []
    async with connected(guest, volume) as host:
        for _ in range(rounds):
            primary = volume.primary
            writing = asyncio.create_task(
                _fio(guest, host.device, (*options, f"--runtime={STALL_RUN_S}"), run_s=STALL_RUN_S)
            )
            await asyncio.sleep(KILLED_AFTER_S)
            await asyncio.to_thread(volume.rack.kill, primary)
            latency = fio_job(await writing)["write"]["clat_ns"]
            stalls_s.append(latency["max"] / 1e9)  # type: ignore[index]
            await asyncio.to_thread(volume.rack.restart, primary)
            await asyncio.to_thread(volume.rack.wait_members, volume.name, 2)
            await host.until("[ $(cat /sys/class/nvme/nvme*/state | grep -c live) = 2 ]")
    return median_and_worst("Stall of Linux on `kill -9` of the primary, NVMe/TCP with two paths", stalls_s)
