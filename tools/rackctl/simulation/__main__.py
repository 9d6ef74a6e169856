"""Run seeds: `python -m rackctl.simulation --seeds 200`, or one of them again with its timeline: `--seed 17`."""

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rackctl.consistency.history_file import HistoryFile
from rackctl.simulation.coverage import RUNS_FOR_HOLES, Coverage, as_lines, choose, reached
from rackctl.simulation.faults import Kind
from rackctl.simulation.run import Report, simulate
from rackctl.simulation.shrink import shrink

CHOSEN_TIMES = 3
"""How often chosen seeds reach each thing, where they can: a change of the code moves some of them elsewhere."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every promise was kept, 1 when not, 2 for wrong arguments."""
    arguments = _parser().parse_args(argv)
    if arguments.seed is not None:
        return _replay(arguments)
    return _run_many(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rackctl.simulation", description="Whole racks on virtual time under seeded faults."
    )
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many seeds to run (default 100)")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="processes (default 2)")
    parser.add_argument(
        "--first-failure", action="store_true", help="stop at the first seed that fails; ask for no coverage"
    )
    parser.add_argument("--rare", type=int, default=0, metavar="N", help="show what at most N runs have reached")
    parser.add_argument("--choose", type=Path, metavar="FILE", help="write the fewest seeds that reach as much")
    parser.add_argument("--seed", metavar="S", help="run this seed alone and show its timeline")
    parser.add_argument("--lines", type=int, default=200, metavar="N", help="of the timeline, the last N (default 200)")
    parser.add_argument(
        "--history",
        metavar="NAME",
        help="with --seed: write what clients did and saw to NAME-VOLUME.jsonl",
    )
    parser.add_argument("--quiet", action="store_true", help="warnings and faults only in the timeline")
    parser.add_argument(
        "--also",
        metavar="KIND",
        nargs="+",
        default=[],
        type=Kind,
        choices=list(Kind),
        help="kinds of faults to draw too, though the rack is known not to survive them yet",
    )
    parser.add_argument("--shrink", action="store_true", help="with --seed: leave faults out while it fails")
    return parser


def _run_many(arguments: argparse.Namespace) -> int:
    seeds = [str(number) for number in range(arguments.first, arguments.first + arguments.seeds)]
    begun_s = time.perf_counter()
    reports: list[Report] = []
    failed: list[Report] = []
    coverage = Coverage()
    found: dict[str, set[str]] = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for report in pool.map(partial(_bare, also=arguments.also, log_level=logging.INFO), seeds, chunksize=4):
            reports.append(report)
            coverage.add(report)
            found[report.seed] = reached(report)
            if report.failure is not None:
                failed.append(report)
                print(f"seed {report.seed} failed after {report.virtual_s:.3f} s: {report.failure}", flush=True)
                if arguments.first_failure:
                    pool.shutdown(cancel_futures=True)
                    break
            if len(reports) % 100 == 0:
                print(f"{len(reports)} of {len(seeds)} seeds, {len(failed)} failed", flush=True)
    _summary(reports, time.perf_counter() - begun_s, arguments.jobs)
    for report in failed:
        print(f"replay with: make sim SEED={report.seed}")
    if arguments.choose is not None:
        chosen = choose(found, {report.seed: report.cpu_s for report in reports}, CHOSEN_TIMES)
        arguments.choose.write_text(as_lines(chosen), encoding="utf-8")
        print(f"{len(chosen)} seeds chosen")
    if arguments.rare:
        for count, name in coverage.rarest(arguments.rare):
            print(f"reached by {count} of {coverage.runs}: {name}")
    if arguments.first_failure or len(reports) < RUNS_FOR_HOLES:
        return 1 if failed else 0
    for name in coverage.closed:
        print(f"reached after all, take it out of holes.OPEN: {name}")
    holes = coverage.holes
    for hole in holes:
        print(f"never reached: {hole}")
    return 1 if failed or holes else 0


def _bare(seed: str, also: Sequence[Kind], log_level: int) -> Report:
    """A report without its timeline, which is too much to send between processes."""
    report = simulate(seed, also=also, log_level=log_level)
    report.timeline, report.histories = (), {}
    return report


def _replay(arguments: argparse.Namespace) -> int:
    level = logging.WARNING if arguments.quiet else logging.INFO
    report = simulate(arguments.seed, also=arguments.also, log_level=level)
    if arguments.history is not None:
        for volume, history in report.histories.items():
            HistoryFile(Path(f"{arguments.history}-{volume}.jsonl")).finish(history)
    if report.failure is not None and arguments.shrink:
        report = shrink(report, lambda line: print(line, flush=True))
    for line in report.timeline[-arguments.lines :]:
        print(line)
    print(f"\nseed {report.seed}: {report.setting}")
    for fault in report.faults:
        print(f"  fault {fault}, at {fault.at_s:.6f} s")
    promises = ", ".join(sorted(report.suspended)) or "nothing"
    print(f"{report.operations} operations on blocks; suspended by these faults: {promises}; trace {report.digest:08x}")
    print(f"failed: {report.failure}" if report.failure is not None else "every promise was kept")
    return 0 if report.failure is None else 1


def _summary(reports: Iterable[Report], wall_s: float, jobs: int) -> None:
    reports = list(reports)
    virtual_s, cpu_s = sum(report.virtual_s for report in reports), sum(report.cpu_s for report in reports)
    begun: Counter[Kind] = sum((report.begun for report in reports), Counter())
    refused: Counter[Kind] = sum((report.refused for report in reports), Counter())
    failed = sum(1 for report in reports if report.failure is not None)
    print(
        f"{len(reports)} seeds, {failed} failed; {virtual_s / 3600:.2f} rack-hours in {wall_s:.0f} s of {jobs} "
        f"processes: {virtual_s / cpu_s:.0f} rack-hours per hour of one core"
    )
    print(
        f"{sum(report.operations for report in reports)} operations on blocks checked, "
        f"{sum(report.answers_watched for report in reports)} answers, "
        f"{sum(report.takeovers for report in reports)} epochs, "
        f"{sum(report.writes_watched for report in reports)} shards watched at the drives, "
        f"{sum(report.nonces_watched for report in reports)} nonces"
    )
    for kind in Kind:
        print(f"  {kind.value:<16} {begun[kind]:>6} begun {refused[kind]:>6} not admitted")


if __name__ == "__main__":
    sys.exit(main())
