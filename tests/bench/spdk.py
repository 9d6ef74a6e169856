"""A volume over NVMe/TCP on this machine, by SPDK's initiator: beside the same volume by NBD, and SPDK's own target.

SPDK polls, one core per process. Its target is frozen while others are measured, and initiators run as idle tasks, fio
too: the heads and sleds have the cores that they ask for.
"""

import asyncio
import contextlib
import re
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from bench.jobs import AS_IDLE, NVME_JOBS, RUN_S, Job, processor_seconds
from bench.nbd import NbdTarget, empty_file, program
from bench.racks import VOLUME
from bench.report import Table, side_by_side
from peers import spdk
from rackctl import peer_programs
from rackctl.errors import RackError
from rackctl.rack import Rack

TARGET_NQN: Final = "nqn.2014-08.org.nvmexpress:uuid:73706468-7400-4000-8000-000000000001"
INITIATOR: Final = "spdk_nvme_perf"
TARGET: Final = "nvmf_tgt"
BY_NVME: Final = "volume, NVMe/TCP (spdk_nvme_perf)"
BY_NBD: Final = "the same volume, NBD (fio)"
_START_S: Final = 30.0
_TOTAL: Final = re.compile(r"^Total\s*:\s*([\d.]+)\s+([\d.]+)", re.MULTILINE)  # IOPS, MiB/s


def compare(by_nbd: NbdTarget, rack: Rack, rounds: int, leave_out: Callable[[str], None]) -> list[Table]:
    """What a volume does by either protocol and what that takes of its head; nothing where SPDK is missing.

    Raises RackError.
    """
    for name in (INITIATOR, TARGET):
        if peer_programs.find(name) is None:
            leave_out(peer_programs.missing(name))
            return []
    by_nbd.fill()
    by_nbd = replace(by_nbd, prefix=AS_IDLE)
    nqn = rack.paths(VOLUME).nqn
    primary = rack.node(rack.roles(VOLUME).primary or "")
    assert primary.process is not None
    meter = _Meter(primary.process.pid)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        exported = spdk.exported(TARGET_NQN, file=empty_file(by_nbd.scratch / "spdk.img"))
        target = runner.run(stack.enter_async_context(exported))

        def ours(name: str, measured: Callable[[Job], float]) -> Callable[[Job], float]:
            def measure(job: Job) -> float:
                with target.frozen():
                    return meter.measured(name, job, measured)

            return measure

        columns = {
            BY_NVME: ours(BY_NVME, lambda job: run(job, primary.ports["nvme"], nqn)),
            BY_NBD: ours(BY_NBD, by_nbd.run),
            "SPDK nvmf_tgt, aio bdev over a file (spdk_nvme_perf)": lambda job: run(job, target.port, TARGET_NQN),
        }
        try:
            return [side_by_side("NVMe/TCP on this machine", NVME_JOBS, columns, rounds), meter.table()]
        finally:
            runner.run(stack.aclose())


class _Meter:
    """What commands take of the processor of a head, in us, by column and job."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._us: dict[tuple[str, str], list[float]] = {}

    def measured(self, column: str, job: Job, run_it: Callable[[Job], float]) -> float:
        """The job's result, unchanged."""
        before_s = processor_seconds(self._pid)
        result = run_it(job)
        used_us = (processor_seconds(self._pid) - before_s) * 1e6
        self._us.setdefault((column, job.name), []).append(used_us / job.commands(result))
        return result

    def table(self) -> Table:
        """Medians."""
        names = list(dict.fromkeys(job for _, job in self._us))
        rows = [
            (name, *(f"{statistics.median(self._us[column, name]):,.0f} us" for column in (BY_NVME, BY_NBD)))
            for name in names
        ]
        return Table("Processor time of the primary for a command", ("job", BY_NVME, BY_NBD), rows)


def run(job: Job, port: int, nqn: str, prefix: Sequence[str] = AS_IDLE) -> float:
    """A job by SPDK's initiator against a subsystem on loopback, in the job's figure. Raises RackError."""
    where = f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}"
    argv = [*prefix, program(INITIATOR), *spdk.MEMORY, "-c", "0x2", "-q", str(job.depth), "-o", str(job.block_bytes)]
    argv += ["-w", job.pattern, "-t", str(RUN_S), "-r", where]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S + _START_S, check=False)
    found = _TOTAL.search(done.stdout)
    if done.returncode or found is None:
        raise RackError(f"{INITIATOR} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return float(found[1] if job.figure == "IOPS" else found[2])
