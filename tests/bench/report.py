"""What a run of benchmarks found, and the page that it goes to."""

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.jobs import RUN_S, Job
from rackctl.errors import RackError
from rackctl.table import markdown

PAGE: Final = Path("docs/benchmarks.md")
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results and what it shows."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(slots=True)
class Report:
    """All tables, and what was left out."""

    rounds: int
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, note: str) -> None:
        """Remember and show something that was left out."""
        print(f"left out: {note}", flush=True)
        self.notes.append(note)

    def write(self, page: Path = PAGE) -> None:
        """Replace what stands between the marks of the page; raises RackError when it has none."""
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise RackError(f"{page}: lacks the lines {BEGIN} and {END} between which the tables go")
        parts = [
            f"Measured on {datetime.now(UTC):%Y-%m-%d} with `make bench ARGS=--write`: medians of {self.rounds} runs "
            f"of {RUN_S} s, side by side, on {os.cpu_count()} cores, Linux {platform.release()}, "
            f"Python {platform.python_version()}."
        ]
        parts += [f"### {table.title}\n\n{markdown(table.header, table.rows)}" for table in self.tables]
        parts += [f"Left out: {note}." for note in self.notes]
        page.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}", encoding="utf-8")


def side_by_side(title: str, jobs: Sequence[Job], columns: Mapping[str, Callable[[Job], float]], rounds: int) -> Table:
    """Every job against every target in turn, round after round, so that a slow minute hits all; medians.

    Every second round goes through the targets backwards: what one leaves behind, like pages that are not written back
    yet, does not always meet the same next one.
    """
    order = list(columns)
    results: dict[tuple[str, str], list[float]] = {}
    for number in range(1, rounds + 1):
        for job in jobs:
            for name in order:
                results.setdefault((job.name, name), []).append(columns[name](job))
        order.reverse()
        print(f"{title}: round {number} of {rounds} done", flush=True)
    rows = [
        (f"{job.name} ({job.figure})", *(f"{statistics.median(results[job.name, name]):,.0f}" for name in columns))
        for job in jobs
    ]
    return Table(title, ("job", *columns), rows)


def median_and_worst(title: str, seconds: Sequence[float]) -> Table:
    """Of times."""
    row = (f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s", str(len(seconds)))
    return Table(title, ("median", "worst", "runs"), [row])
