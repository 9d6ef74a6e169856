"""A volume over NVMe/TCP on this machine, by SPDK's initiator: beside the same volume by NBD, and SPDK's own target.

SPDK polls, one core per process, so its target is frozen while others are measured. What NBD is measured with, fio,
leaves that core to the heads and sleds.
"""

import asyncio
import contextlib
import re
import subprocess
from collections.abc import Callable
from typing import Final

from bench.jobs import NVME_JOBS, RUN_S, Job
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
_START_S: Final = 30.0
_TOTAL: Final = re.compile(r"^Total\s*:\s*([\d.]+)\s+([\d.]+)", re.MULTILINE)  # IOPS, MiB/s


def compare(by_nbd: NbdTarget, rack: Rack, rounds: int, leave_out: Callable[[str], None]) -> list[Table]:
    """One table, or none where SPDK is missing; raises RackError."""
    for name in (INITIATOR, TARGET):
        if peer_programs.find(name) is None:
            leave_out(peer_programs.missing(name))
            return []
    by_nbd.fill()
    nqn = rack.paths(VOLUME).nqn
    port = rack.node(rack.roles(VOLUME).primary or "").ports["nvme"]
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        exported = spdk.exported(TARGET_NQN, file=empty_file(by_nbd.scratch / "spdk.img"))
        target = runner.run(stack.enter_async_context(exported))

        def meanwhile_frozen(measured: Callable[[Job], float]) -> Callable[[Job], float]:
            def measure(job: Job) -> float:
                with target.frozen():
                    return measured(job)

            return measure

        columns = {
            "volume, NVMe/TCP (spdk_nvme_perf)": meanwhile_frozen(lambda job: run(job, port, nqn)),
            "the same volume, NBD (fio)": meanwhile_frozen(by_nbd.run),
            "SPDK nvmf_tgt, aio bdev over a file (spdk_nvme_perf)": lambda job: run(job, target.port, TARGET_NQN),
        }
        try:
            return [side_by_side("NVMe/TCP on this machine", NVME_JOBS, columns, rounds)]
        finally:
            runner.run(stack.aclose())


def run(job: Job, port: int, nqn: str) -> float:
    """A job by SPDK's initiator against a subsystem on loopback, in the job's figure. Raises RackError."""
    where = f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}"
    argv = [program(INITIATOR), *spdk.MEMORY, "-c", "0x2", "-q", str(job.depth), "-o", str(job.block_bytes)]
    argv += ["-w", job.pattern, "-t", str(RUN_S), "-r", where]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S + _START_S, check=False)
    found = _TOTAL.search(done.stdout)
    if done.returncode or found is None:
        raise RackError(f"{INITIATOR} ended with status {done.returncode}: {done.stdout}{done.stderr}")
    return float(found[1] if job.figure == "IOPS" else found[2])
