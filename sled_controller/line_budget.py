"""How many lines a log takes of each kind: what a peer can cause, however often, must not fill a disk.

A kind is what the code says: logger and format string, and the volume where the line names one. Lines beyond a kind's
budget are left out and counted; the next one that is let through ends with ` lines_left_out=N`, and where none comes a
line of its own says so.
"""

import asyncio
import logging
import re
from typing import Final

LINES_BURST: Final = 200
"""Of one kind at once: an attach on each of many sleds, a page of refusals."""
LINES_PER_SECOND: Final = 1.0
"""Of one kind for as long as it goes on."""
KINDS_MAX: Final = 1024
"""Kinds told apart; with so many in use, further ones share the budget of their logger."""
FORMATS_MAX: Final = 4096
QUIET_SECONDS: Final = 5.0
"""After so long without a further line, those that were left out are told of by a line of their own."""

_CONVERSION: Final = re.compile(r"%[^a-zA-Z%]*[a-zA-Z%]")
_VOLUME: Final = "volume=%s"
_JUDGED: Final = "line_budget_admits"

_Kind = tuple[str, str, str]


class _Budget:
    __slots__ = ("at_s", "left_out", "lines")

    def __init__(self, now_s: float) -> None:
        self.lines = float(LINES_BURST)
        self.at_s = now_s
        self.left_out = 0

    def refill(self, now_s: float) -> None:
        """The time of records is the wall clock's, which may jump."""
        self.lines = min(LINES_BURST, self.lines + max(0.0, now_s - self.at_s) * LINES_PER_SECOND)
        self.at_s = now_s

    @property
    def idle(self) -> bool:
        return not self.left_out and self.lines >= LINES_BURST


class LineBudget(logging.Filter):
    """A filter for the handlers of a program's root logger, one for all of them: it counts each record once."""

    def __init__(self) -> None:
        super().__init__()
        self._budgets: dict[_Kind, _Budget] = {}
        self._volume_at: dict[str, int] = {}
        self._owing: dict[_Kind, int] = {}
        """Kinds of which lines were left out, and at which level."""
        self._timer: asyncio.TimerHandle | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        judged: bool | None = getattr(record, _JUDGED, None)
        if judged is None:
            judged = self._admits(record)
            setattr(record, _JUDGED, judged)
        return judged

    def tell(self) -> None:
        """Say now what was left out."""
        self._timer = None
        owing, self._owing = self._owing, {}
        for kind, level in owing.items():
            budget = self._budgets[kind]
            count, budget.left_out = budget.left_out, 0
            if count:
                logger, text, volume = kind
                logging.getLogger(logger).log(
                    level, "event=lines_left_out count=%d of=%r volume=%s", count, text.partition(" ")[0], volume or "-"
                )

    def _admits(self, record: logging.LogRecord) -> bool:
        kind = self._kind(record)
        budget = self._budgets.get(kind)
        if budget is None:
            budget = self._budgets[kind] = _Budget(record.created)
        budget.refill(record.created)
        if budget.lines < 1:
            budget.left_out += 1
            self._owing.setdefault(kind, record.levelno)
            self._tell_later()
            return False
        budget.lines -= 1
        if budget.left_out:
            record.msg = f"{record.msg} lines_left_out={budget.left_out}"
            budget.left_out = 0
            self._owing.pop(kind, None)
        return True

    def _kind(self, record: logging.LogRecord) -> _Kind:
        text = str(record.msg)
        at = self._volume_at.get(text)
        if at is None:
            before, found, _ = text.partition(_VOLUME)
            at = sum(part[-1] != "%" for part in _CONVERSION.findall(before)) if found else -1
            if len(self._volume_at) < FORMATS_MAX:
                self._volume_at[text] = at
        arguments = record.args
        volume = str(arguments[at]) if at >= 0 and isinstance(arguments, tuple) and at < len(arguments) else ""
        kind = (record.name, text, volume)
        if kind in self._budgets or len(self._budgets) < KINDS_MAX:
            return kind
        self._forget(record.created)
        return kind if len(self._budgets) < KINDS_MAX else (record.name, "", "")

    def _forget(self, now_s: float) -> None:
        for budget in self._budgets.values():
            budget.refill(now_s)
        for kind in [kind for kind, budget in self._budgets.items() if budget.idle]:
            del self._budgets[kind]

    def _tell_later(self) -> None:
        """Where an event loop runs in this thread. A later line of the kind says it as well."""
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(QUIET_SECONDS, self.tell)
