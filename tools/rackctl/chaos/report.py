"""The report of a run: as text for people, and as JUnit XML for whatever collects tests."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.etree import ElementTree

from rackctl.account import Verdict
from rackctl.chaos.budget import Suspended
from rackctl.chaos.plan import Kind, Round
from rackctl.table import aligned

STALLS_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Line:
    """Who did what, at which second of the run."""

    at_s: float
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_s:9.3f} s  {self.who:<10} {self.what}"


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which no client was answered; `promised`: service was promised throughout."""

    from_s: float
    to_s: float
    promised: bool

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.to_s - self.from_s


@dataclass(slots=True)
class Report:
    """What became of a run."""

    seed: int
    minutes: float
    setting: str
    rounds: Sequence[Round]
    begun: Counter[Kind] = field(default_factory=Counter)
    refused: Counter[Kind] = field(default_factory=Counter)
    impossible: Counter[Kind] = field(default_factory=Counter)
    suspended: set[Suspended] = field(default_factory=set)
    timeline: list[Line] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    stalls: list[Stall] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    directory: str = ""
    """Where the rack's logs and state are, empty when they are removed."""

    @property
    def all_held(self) -> bool:
        """Whether there were promises and all of them held."""
        return bool(self.verdicts) and all(verdict.held for verdict in self.verdicts)

    def as_text(self) -> str:
        """The whole report."""
        return "\n".join(map(str, self.timeline)) + "\n\n" + self.summary()

    def summary(self) -> str:
        """All but the timeline."""
        parts = [f"chaos, seed {self.seed}, {self.minutes:g} minutes under faults ({self.seconds:.0f} s in all)"]
        parts.append(
            f"{self.setting}\nreplay the plan with: rackctl chaos --seed {self.seed} --minutes {self.minutes:g}"
        )
        kinds = [(kind.value, self.begun[kind], self.refused[kind], self.impossible[kind]) for kind in Kind]
        parts.append(aligned(("FAULT", "BEGUN", "NOT ADMITTED", "NOT POSSIBLE"), kinds))
        parts.append(aligned(("COUNT", ""), sorted(self.counts.items())))
        parts.append(self._stalls_as_text())
        suspended = "; ".join(sorted(self.suspended)) or "nothing"
        parts.append(f"suspended at times: {suspended}")
        rows = [("yes" if verdict.held else "NO", verdict.claim, _short(verdict.shown_by)) for verdict in self.verdicts]
        parts.append(aligned(("HELD", "PROMISE", "SHOWN BY"), rows))
        parts += [f"{verdict.claim}:\n{verdict.shown_by}" for verdict in self.verdicts if not verdict.held]
        if self.directory:
            parts.append(f"logs and state are in {self.directory}")
        parts.append("every promise was kept" if self.all_held else "A PROMISE WAS BROKEN")
        return "\n\n".join(parts) + "\n"

    def as_junit(self) -> str:
        """One test case for each promise (the format that Jenkins' JUnit plugin reads)."""
        failed = [verdict for verdict in self.verdicts if not verdict.held]
        suite = ElementTree.Element(
            "testsuite", name="rackctl chaos", tests=str(len(self.verdicts)), failures=str(len(failed)), errors="0",
            skipped="0", time=f"{self.seconds:.3f}",
        )  # fmt: skip
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("seed", self.seed), ("minutes", f"{self.minutes:g}"), ("setting", self.setting)):
            ElementTree.SubElement(properties, "property", name=name, value=str(value))
        for verdict in self.verdicts:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"chaos.seed-{self.seed}", name=verdict.claim, time="0"
            )
            if not verdict.held:
                failure = ElementTree.SubElement(case, "failure", message=_printable(_short(verdict.shown_by)))
                failure.text = _printable(verdict.shown_by)
        ElementTree.SubElement(suite, "system-out").text = _printable(self.as_text())
        suites = ElementTree.Element("testsuites")
        suites.append(suite)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"

    def _stalls_as_text(self) -> str:
        if not self.stalls:
            return "no client ever waited long"
        worst = sorted(self.stalls, key=lambda stall: -stall.seconds)[:STALLS_SHOWN]
        rows = [
            (f"{stall.seconds:.2f} s", f"at {stall.from_s:.2f} s", "promised" if stall.promised else "suspended")
            for stall in worst
        ]
        return aligned(("LONGEST STALLS", "", "SERVICE WAS"), rows)


def _short(text: str) -> str:
    first, *rest = text.split("\n")
    return first[:160] + (" ..." if rest or len(first) > 160 else "")


def _printable(text: str) -> str:
    """XML 1.0 has no way to write most control characters."""
    return "".join(letter if letter in "\t\n" or letter >= " " else "?" for letter in text)
