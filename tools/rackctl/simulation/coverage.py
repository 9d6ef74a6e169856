"""What many runs together have reached and what not: faults, transitions, branches of the engine, situations.

A run of RUNS_FOR_HOLES seeds or more that leaves a hole has failed: what was never reached was never tested. Branches
that no simulated rack can reach are named in `unreached`, with the reason; known holes in `holes`.
"""

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from head_node.cluster.states import TRANSITIONS
from rackctl.simulation.branches import branches
from rackctl.simulation.faults import DRAWN
from rackctl.simulation.holes import OPEN, RARE
from rackctl.simulation.run import Report
from rackctl.simulation.situations import Situation
from rackctl.simulation.unreached import reason_for

RUNS_FOR_HOLES: Final = 200
"""With fewer seeds what never happened says nothing."""
RUNS_FOR_RARE: Final = 2000


def everything() -> list[str]:
    """All that is counted."""
    found = [f"fault {kind.value}" for kind in sorted(DRAWN)]
    found += [f"state {old.value} to {new.value}" for old, news in TRANSITIONS.items() for new in sorted(news, key=str)]
    found += [f"situation: {situation.value}" for situation in Situation]
    found += [f"branch {name}" for name in branches().names]
    return found


@functools.cache
def wanted(runs: int = RUNS_FOR_HOLES) -> list[str]:
    """All that so many runs must reach together."""
    excused = {*OPEN, *(RARE if runs < RUNS_FOR_RARE else ())}
    return [name for name in everything() if name not in excused and reason_for(name) is None]


def reached(report: Report) -> set[str]:
    """What one run has reached."""
    found = {f"fault {kind.value}" for kind in report.begun}
    found |= {f"state {old} to {new}" for old, new in report.transitions}
    found |= {f"situation: {situation.value}" for situation in report.situations}
    found |= {f"branch {name}" for name, taken in zip(branches().names, report.taken, strict=True) if taken}
    return found


class Coverage:
    """Adds up runs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By name, how many runs have reached it."""
        self.runs = 0

    def add(self, report: Report) -> None:
        """Count one run."""
        self.counts.update(reached(report))
        self.runs += 1

    @property
    def holes(self) -> list[str]:
        """What none has reached."""
        return [name for name in wanted(self.runs) if name not in self.counts]

    @property
    def closed(self) -> list[str]:
        """Holes that are known and are none any more."""
        return [name for name in OPEN if name in self.counts]

    def rarest(self, runs_max: int) -> list[tuple[int, str]]:
        """What at most so many runs have reached: (how many, what)."""
        return sorted((count, name) for name in wanted(RUNS_FOR_RARE) if 0 < (count := self.counts[name]) <= runs_max)


def choose(found: Mapping[str, Collection[str]], cost_s: Mapping[str, float], times: int) -> list[str]:
    """Few cheap seeds which reach everything that `found` (by seed) has, `times` each where as many seeds do.

    Greedy set cover: what brings most that is still wanted per second comes next.
    """
    names = set(wanted())
    total = Counter(name for reached_names in found.values() for name in names & set(reached_names))
    owed = {name: min(times, count) for name, count in total.items()}
    left = {seed: names & set(reached_names) for seed, reached_names in found.items()}
    chosen: list[str] = []
    while owed and left:
        best = max(left, key=lambda seed: (sum(name in owed for name in left[seed]) / (0.3 + cost_s[seed]), seed))
        chosen.append(best)
        for name in left.pop(best):
            if name in owed:
                owed[name] -= 1
                if not owed[name]:
                    del owed[name]
    return chosen


def as_lines(chosen: Sequence[str]) -> str:
    """The file of chosen seeds."""
    head = "# Seeds that together reach all that `make sim` asks for; `make sim ARGS='--choose FILE'` writes this file."
    return "\n".join([head, *chosen]) + "\n"
