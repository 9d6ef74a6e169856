"""`make bench`: a sled alone and a volume through NBD beside qemu-nbd and nbdkit, medians in one run.

Only with `--write` the tables go to docs/benchmarks.md, between its marks.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rackctl import bench_floor, bench_nbd, bench_sled, peer_programs
from rackctl.bench_nbd import FILE_BYTES, RUN_S, WORKLOADS, Target
from rackctl.errors import RackError
from rackctl.options import add_option, add_switch, whole_number
from rackctl.ports import HOST, PortReservations
from rackctl.processes import proportional_bytes, resident_bytes
from rackctl.rack import Rack
from rackctl.state import NodeKind
from rackctl.table import aligned, markdown
from rackctl.verified_writer import VerifiedWriter

PAGE: Final = Path("docs/benchmarks.md")
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"
ROUNDS_DEFAULT: Final = 5
VOLUME: Final = "bench"
SLED_WRITES: Final = 40_000


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results and what it shows."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(slots=True)
class Measured:
    """All tables, and what was left out."""

    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, note: str) -> None:
        """Remember and show something that was left out."""
        print(f"left out: {note}", flush=True)
        self.notes.append(note)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page when asked."""
    parser = argparse.ArgumentParser(prog="python -m rackctl.bench", description="Measure beside qemu-nbd and nbdkit.")
    add_option(
        parser,
        "--rounds",
        variable="RACKCTL_BENCH_ROUNDS",
        kind=whole_number,
        default=ROUNDS_DEFAULT,
        metavar="N",
        text="runs of which the median is shown",
    )
    add_switch(parser, "--write", variable="RACKCTL_BENCH_WRITE", text=f"put the tables into {PAGE}")
    arguments = parser.parse_args(argv)
    measured = Measured()
    try:
        with tempfile.TemporaryDirectory(prefix="palisade-bench-") as scratch:
            measured.tables.append(sled_alone(arguments.rounds, Path(scratch)))
            measured.tables += volumes(arguments.rounds, Path(scratch), measured)
            measured.tables.append(floor(arguments.rounds, Path(scratch)))
            measured.tables.append(failovers(arguments.rounds))
        for table in measured.tables:
            print(f"\n{table.title}\n\n{aligned(table.header, table.rows)}", flush=True)
        if arguments.write:
            write_page(PAGE, measured, arguments.rounds)
    except RackError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def sled_alone(rounds: int, scratch: Path) -> Table:
    """A sled with credentialed commands, without heads, and the same with the MAC check left out."""
    try:
        found = bench_sled.measure(rounds, SLED_WRITES, scratch)
    except bench_sled.BenchFailed as error:
        raise RackError(f"the sled alone: {error}") from None
    median = found["median"]
    print(f"sled alone: {median['write_depth32_iops']:,.0f} IOPS at depth 32", flush=True)
    rows = [
        ("4 KiB random write, depth 32", f"{median['write_depth32_iops']:,.0f} IOPS"),
        ("4 KiB random write, depth 1", f"{median['write_depth1_iops']:,.0f} IOPS"),
        ("depth 32 without the check of MACs", f"{median['write_depth32_unchecked_iops']:,.0f} IOPS"),
        ("what the check costs", f"{found['verification_cost_percent']:.1f} %"),
        ("flush (fdatasync) after 1024 writes", f"{median['flush_after_1024_writes_ms']:.1f} ms"),
        ("flush after 1 write", f"{median['flush_after_1_write_ms']:.1f} ms"),
    ]
    return Table("A sled alone, every command credentialed", ("figure", "median"), rows)


def volumes(rounds: int, scratch: Path, measured: Measured) -> list[Table]:
    """A rack's start, its memory, and a volume under fio beside the other servers."""
    started_s = []
    ports = PortReservations()
    for number in range(rounds):
        begun = time.monotonic()
        with Rack.running() as rack:
            rack.create_volume(VOLUME, FILE_BYTES)
            started_s.append(time.monotonic() - begun)
            if number < rounds - 1:
                continue
            rack.wait_members(VOLUME, len(rack.state.of_kind(NodeKind.HEAD)))
            tables = [memory(rack)]
            if peer_programs.find("fio") is None:
                measured.say(peer_programs.missing("fio"))
            else:
                primary = rack.roles(VOLUME).primary or ""
                ours = Target("volume, 2 heads, 6 sleds, 4+2", rack.nbd_uri(VOLUME, primary))
                with bench_nbd.other_servers(scratch, ports, measured.say) as others:
                    tables.append(nbd_table([ours, *others], rounds, scratch))
    ports.release()
    start = Table(
        "From nothing to a served volume (`rackctl up`, 9 processes)",
        ("median", "worst"),
        [(f"{statistics.median(started_s):.2f} s", f"{max(started_s):.2f} s")],
    )
    return [start, *tables]


def nbd_table(targets: Sequence[Target], rounds: int, scratch: Path) -> Table:
    """Every job against every target in turn, round after round, so that a slow minute hits all."""
    results: dict[tuple[str, str], list[float]] = {}
    for target in targets:
        bench_nbd.fill(target, scratch)
    for number in range(1, rounds + 1):
        for workload in WORKLOADS:
            for target in targets:
                result = bench_nbd.fio(target, workload, scratch)
                results.setdefault((workload.name, target.name), []).append(result)
        print(f"fio round {number} of {rounds} done", flush=True)
    rows = [
        (
            f"{workload.name} ({workload.figure})",
            *(f"{statistics.median(results[workload.name, target.name]):,.0f}" for target in targets),
        )
        for workload in WORKLOADS
    ]
    return Table("NBD under `fio --ioengine=nbd`", ("job", *(target.name for target in targets)), rows)


def floor(rounds: int, scratch: Path) -> Table:
    """What is left of a single write when the heads do nothing but pass it on and sync it."""
    rows = []
    for name, threaded in (("syncing in a thread, as heads do", True), ("syncing on the event loop", False)):
        figure = statistics.median(bench_floor.measure(scratch, threaded) for _ in range(rounds))
        rows.append((name, f"{figure:,.0f} IOPS"))
    return Table("The floor below single writes: two bare processes, both syncing", ("way", "median"), rows)


def memory(rack: Rack) -> Table:
    """Resident memory of each process of an idle rack with one volume."""
    rows, total, total_proportional = [], 0, 0
    for node in rack.state.nodes:
        if node.process:
            resident, proportional = resident_bytes(node.process), proportional_bytes(node.process)
            total, total_proportional = total + resident, total_proportional + proportional
            rows.append((node.name, _mib(resident), _mib(proportional)))
    rows.append(("all", _mib(total), _mib(total_proportional)))
    return Table("Memory of an idle rack", ("process", "resident", "proportional share"), rows)


def failovers(rounds: int) -> Table:
    """How long a writing client waits when its primary is killed."""
    with Rack.running() as rack:
        rack.create_volume(VOLUME, FILE_BYTES)
        stalls_s = asyncio.run(_failover_stalls(rack, rounds))
    return Table(
        "Stall of a client on `kill -9` of the primary",
        ("median", "worst", "runs"),
        [(f"{statistics.median(stalls_s):.2f} s", f"{max(stalls_s):.2f} s", str(rounds))],
    )


async def _failover_stalls(rack: Rack, rounds: int) -> list[float]:
    heads = rack.state.of_kind(NodeKind.HEAD)
    addresses = [(HOST, head.ports["nbd"]) for head in heads]
    stalls_s = []
    for number in range(rounds):
        roles = await asyncio.to_thread(rack.wait_members, VOLUME, len(heads))
        assert roles.primary is not None
        writer = VerifiedWriter(addresses, VOLUME, FILE_BYTES // 4096, seed=number)
        await writer.start()
        try:
            await writer.wait_acknowledged(500)
            writer.forget_stalls()
            await asyncio.to_thread(rack.kill, roles.primary)
            await writer.wait_acknowledged(500)
            stalls_s.append(writer.longest_stall_s)
            await writer.stop()
        finally:
            await writer.close()
        await asyncio.to_thread(rack.restart, roles.primary)
    return stalls_s


def write_page(page: Path, measured: Measured, rounds: int) -> None:
    """Replace what stands between the marks of the page; raises RackError when it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RackError(f"{page}: lacks the lines {BEGIN} and {END} between which the tables go")
    parts = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} with `make bench ARGS=--write`: medians of {rounds} runs of "
        f"{RUN_S} s, side by side, on {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}. "
    ]
    parts += [f"### {table.title}\n\n{markdown(table.header, table.rows)}" for table in measured.tables]
    parts += [f"Left out: {note}." for note in measured.notes]
    page.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}", encoding="utf-8")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):.0f} MiB"


if __name__ == "__main__":
    raise SystemExit(main())
