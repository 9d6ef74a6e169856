"""Leave faults out of a failing run while it goes on failing, until every one that is left is needed.

A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28, 2002 (ddmin).
"""

from collections.abc import Callable, Sequence

from rackctl.simulation.faults import Fault
from rackctl.simulation.run import Report, simulate


def kind_of(failure: str | None) -> str:
    """What went wrong, without the times, numbers and names that differ from run to run."""
    words = (failure or "").split("\n")[0]
    return "".join(letter for letter in words if letter.isalpha() or letter == " ")[:60]


def shrink(report: Report, tell: Callable[[str], None]) -> Report:
    """The report of the smallest failing run found; `tell` is called with a line for each success."""
    wanted = kind_of(report.failure)
    best = report

    def fails(faults: Sequence[Fault]) -> bool:
        nonlocal best
        tried = simulate(report.seed, faults=faults)
        if kind_of(tried.failure) != wanted:
            return False
        best = tried
        tell(f"{len(faults)} of {len(report.faults)} faults still fail: {tried.failure}")
        return True

    left = list(report.faults)
    chunk = max(1, len(left) // 2)
    while left:
        removed = False
        for start in range(0, len(left), chunk):
            fewer = left[:start] + left[start + chunk :]
            if fails(fewer):
                left, removed = fewer, True
                break
        if not removed:
            if chunk == 1:
                break
            chunk = max(1, chunk // 2)
    return best
