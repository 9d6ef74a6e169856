"""The jobs that every target is given, and how fio says what came of them."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rackctl.errors import RackError

RUN_S: Final = 2
AS_IDLE: Final = ("chrt", "--idle", "0")
"""In front of an initiator that may poll: it has what the servers leave of these cores, which never wait for it."""
KIB: Final = 1024
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """`pattern` is fio's and spdk_nvme_perf's word: randread, randwrite, read, write."""

    pattern: str
    block_bytes: int
    depth: int

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.block_bytes // MIB} MiB" if self.block_bytes >= MIB else f"{self.block_bytes // KIB} KiB"
        order, verb = ("random", self.pattern[4:]) if self.pattern.startswith("rand") else ("sequential", self.pattern)
        return f"{size} {order} {verb}, depth {self.depth}"

    @property
    def figure(self) -> str:
        """What its result is counted in."""
        return "IOPS" if self.pattern.startswith("rand") else "MiB/s"

    @property
    def fio(self) -> tuple[str, ...]:
        """As options of fio, which runs it for RUN_S seconds and says what came of it in JSON."""
        return (
            "--name=bench", f"--rw={self.pattern}", f"--bs={self.block_bytes}", f"--iodepth={self.depth}",
            "--time_based", f"--runtime={RUN_S}", "--randrepeat=0", "--norandommap", "--output-format=json",
        )  # fmt: skip

    def commands(self, result: float) -> float:
        """How many were carried out in a run with this result."""
        return result * RUN_S * (1 if self.figure == "IOPS" else MIB / self.block_bytes)

    def result(self, said: str) -> float:
        """From what fio printed, in the job's figure. Raises RackError."""
        job = fio_job(said)
        side = job["read" if "read" in self.pattern else "write"]
        return float(side["bw_bytes"]) / MIB if self.figure == "MiB/s" else float(side["iops"])


def fio_job(said: str) -> dict[str, dict[str, float]]:
    """The one job in fio's JSON, in front of which it puts notes. Raises RackError."""
    try:
        (job,) = json.loads(said[said.index("{") :])["jobs"]
    except (ValueError, KeyError) as error:
        raise RackError(f"fio printed no result: {said[:500]!r}") from error
    found: dict[str, dict[str, float]] = job
    return found


def processor_seconds(pid: int) -> float:
    """User and system time that a running process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


NBD_JOBS: Final = (
    Job("randwrite", 4 * KIB, 32),
    Job("randwrite", 4 * KIB, 1),
    Job("randread", 4 * KIB, 32),
    Job("write", MIB, 4),
)
NVME_JOBS: Final = (
    Job("randwrite", 4 * KIB, 32),
    Job("randwrite", 4 * KIB, 1),
    Job("randread", 4 * KIB, 32),
    Job("randread", 4 * KIB, 1),
    Job("write", 128 * KIB, 8),
    Job("read", 128 * KIB, 8),
)
