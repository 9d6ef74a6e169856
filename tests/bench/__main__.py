"""Measure beside programs that nobody here wrote: `make bench`. With `--write` docs/benchmarks.md is renewed."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.pop(0)  # this folder, whose spdk.py is not the package spdk
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import driver, floods, floor, linux, nbd, racks, sled, spdk
from bench.report import PAGE, Report
from peers.guest import packages
from rackctl import peer_programs
from rackctl.errors import RackError
from rackctl.ports import PortReservations
from rackctl.rack import Rack
from rackctl.state import NodeKind
from rackctl.table import aligned

PARTS: Final = ("sled", "sled-spdk", "start", "memory", "nbd", "nvme", "linux", "floor", "driver", "failover", "floods")
OF_A_RACK: Final = frozenset({"memory", "nbd", "nvme", "linux", "failover", "floods"})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of which the median is shown (5)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE}")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if arguments.write and arguments.parts:
        parser.error("--write takes a whole run")
    report = Report(arguments.rounds)
    try:
        with tempfile.TemporaryDirectory(prefix="palisade-bench-") as scratch:
            measure(report, frozenset(arguments.parts or PARTS), Path(scratch))
    except RackError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for table in report.tables:
        print(f"\n{table.title}\n\n{aligned(table.header, table.rows)}", flush=True)
    if arguments.write:
        report.write()
    return 0


def measure(report: Report, parts: frozenset[str], scratch: Path) -> None:
    """Put the tables of these parts into the report; raises RackError."""
    rounds = report.rounds
    if "sled" in parts:
        report.tables.append(sled.alone(rounds, scratch))
    if "sled-spdk" in parts:
        report.tables += sled.on_spdk(rounds, scratch, report.leave_out)
    if "start" in parts:
        report.tables.append(racks.starts(rounds))
    if parts & OF_A_RACK:
        with Rack.running() as rack:
            rack.create_volume(racks.VOLUME, nbd.FILE_BYTES)
            rack.wait_members(racks.VOLUME, len(rack.state.of_kind(NodeKind.HEAD)))
            measure_rack(report, parts, rack, scratch)
    if "floor" in parts:
        report.tables.append(floor.table(rounds, scratch))
    if "driver" in parts and (of_driver := driver.table(rounds, report.leave_out)):
        report.tables.append(of_driver)


def measure_rack(report: Report, parts: frozenset[str], rack: Rack, scratch: Path) -> None:
    """What a rack with one volume on both heads is measured for; raises RackError."""
    rounds = report.rounds
    if "memory" in parts:
        report.tables.append(racks.memory(rack))
    if "nbd" in parts or "nvme" in parts:
        measure_fio(report, parts, rack, scratch)
    if "linux" in parts:
        try:
            report.tables += linux.compare(rack, rounds, scratch)
        except packages.Missing as missing:
            report.leave_out(str(missing))
    if "failover" in parts:
        report.tables.append(racks.failovers(rack, rounds))
    if "floods" in parts:
        report.tables += floods.ratios(rack, racks.VOLUME, rounds)


def measure_fio(report: Report, parts: frozenset[str], rack: Rack, scratch: Path) -> None:
    """The volume through programs on this machine; raises RackError."""
    if peer_programs.find("fio") is None:
        report.leave_out(peer_programs.missing("fio"))
        return
    primary = rack.roles(racks.VOLUME).primary or ""
    ours = nbd.NbdTarget("volume, 2 heads, 6 sleds, 4+2", rack.nbd_uri(racks.VOLUME, primary), scratch)
    ports = PortReservations()
    try:
        if "nbd" in parts:
            report.tables.append(nbd.compare(ours, report.rounds, ports, report.leave_out))
        if "nvme" in parts:
            report.tables += spdk.compare(ours, rack, report.rounds, report.leave_out)
    finally:
        ports.release()


if __name__ == "__main__":
    raise SystemExit(main())
