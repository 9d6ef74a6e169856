"""What a run promises, and what was found against it."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from rackctl.account import Verdict

SHOWN_MAX: Final = 20
"""Findings against one promise that are kept: the first ones tell the most."""


class Promise(StrEnum):
    """Every claim that a run may judge, with the rules of docs/architecture.md that it rests on."""

    LINEAR = "every block's history is linearizable: nothing acknowledged is lost, nothing old is read (F5, F7, D1)"
    WHOLE = "no block is torn, misplaced or from nowhere (D2, D3)"
    EPOCHS = "the record's epoch only rises (F4)"
    LEADERS = "each epoch is served by one run of one head (F4)"
    FENCES = "whoever was fenced off held an older epoch than the sled's (F1, F6)"
    RESTORED = "redundancy and service come back after each round (F5)"
    SERVED = "no client waits long while service is promised"
    ANSWERED = "no request fails while service is promised"
    ALIVE = "no program ends by itself"
    SANE = "no program meets what it did not expect: no traceback in any log"
    SMALL = "programs that live on hold no more descriptors and memory than before"
    VERIFIED = "fio reads back what it wrote"
    CLEAN = "nothing is left running"


class Findings:
    """What was found against promises, from any thread."""

    def __init__(self) -> None:
        self._against: dict[Promise, list[str]] = defaultdict(list)
        self._lock = threading.Lock()
        self.fatal = threading.Event()
        """Set once something was found that makes the rest of the run pointless."""

    def accuse(self, promise: Promise, text: str, *, fatal: bool = True) -> None:
        """Something speaks against a promise."""
        with self._lock:
            if len(self._against[promise]) < SHOWN_MAX:
                self._against[promise].append(text)
        if fatal:
            self.fatal.set()

    def verdict(self, promise: Promise, shown_by: str) -> Verdict:
        """Whether a promise held; `shown_by` are the figures that show it if it did."""
        found: Sequence[str] = self._against.get(promise, ())
        return Verdict(promise.value, not found, "\n".join(found) if found else shown_by)
