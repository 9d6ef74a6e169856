"""A running account on the terminal, and the table of what held at its end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from rackctl.table import aligned


@dataclass(frozen=True, slots=True)
class Verdict:
    """One claim, whether it held, and the figures that show it."""

    claim: str
    held: bool
    shown_by: str


@dataclass(slots=True)
class Account:
    """Says what happens, one line each with the seconds since the start, and keeps the verdicts."""

    out: TextIO = sys.stdout
    verdicts: list[Verdict] = field(default_factory=list)
    _begun_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun_s

    def say(self, text: str) -> None:
        """One thing that happened."""
        print(f"{self.elapsed_s:6.2f} s  {text}", file=self.out, flush=True)

    @contextmanager
    def chapter(self, title: str) -> Iterator[None]:
        """A part of the story under a heading."""
        print(f"\n-- {title}", file=self.out, flush=True)
        yield

    def verdict(self, claim: str, held: bool, shown_by: str) -> None:
        """Note whether a claim held, and say so."""
        self.verdicts.append(Verdict(claim, held, shown_by))
        self.say(f"{'held' if held else 'FAILED'}: {claim} ({shown_by})")

    @property
    def all_held(self) -> bool:
        """Whether there were claims and all of them held."""
        return bool(self.verdicts) and all(verdict.held for verdict in self.verdicts)

    def summary(self) -> str:
        """The table of all verdicts."""
        rows = [("yes" if verdict.held else "NO", verdict.claim, verdict.shown_by) for verdict in self.verdicts]
        return aligned(("HELD", "WHAT", "SHOWN BY"), rows)
