"""What the logs of a run say: who led which epoch, who was fenced off, and whether a program lost its way."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_FIELD: Final = re.compile(r"(\w+)=(\S+)")
_EVENT: Final = re.compile(r"event=(serving|fenced_off|sled_faulty) .*")
_LOST: Final = re.compile(r"Traceback \(most recent call last\)|never retrieved|was never awaited|Exception ignored")
LOG_FILES_MAX: Final = 100
"""More former files no program keeps."""
LINES_QUOTED: Final = 12
"""Of a traceback: from where it begins on."""


@dataclass(frozen=True, slots=True)
class FencedOff:
    """A head met a sled that knew a newer epoch."""

    head: str
    stale_epoch: int
    sled_epoch: int


@dataclass(slots=True)
class LogEvidence:
    """Of all logs together."""

    leaders: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """By volume and epoch: the heads that began to serve it, one for each time."""
    fenced: list[FencedOff] = field(default_factory=list)
    faulty: list[str] = field(default_factory=list)
    """Sleds that claimed to be fenced and could not prove it."""
    lost: list[str] = field(default_factory=list)
    """Where a program met what it did not expect, quoted."""
    lines: int = 0

    @property
    def wrong_leaders(self) -> list[str]:
        """Epochs that more than one run of a head has led (F4)."""
        return [
            f"epoch {epoch} of volume {volume} was served by {' and by '.join(heads)}"
            for (volume, epoch), heads in sorted(self.leaders.items())
            if len(heads) > 1
        ]

    @property
    def wrong_fences(self) -> list[str]:
        """Heads refused although nothing was newer, and sleds that lied (F1, F6)."""
        return [
            f"{fence.head} was fenced off in epoch {fence.stale_epoch} by {fence.sled_epoch}"
            for fence in self.fenced
            if fence.stale_epoch >= fence.sled_epoch
        ] + self.faulty


def read_logs(logs: Mapping[str, Path]) -> LogEvidence:
    """Read the logs of all nodes, by name, former files of a log that was rotated included. One that is not there is
    empty."""
    found = LogEvidence()
    for name, path in sorted(logs.items()):
        parts = [path.with_name(f"{path.name}.{number}") for number in range(1, LOG_FILES_MAX + 1)]
        for part in (*reversed(parts), path):
            try:
                text = part.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue
            read_log(name, text.splitlines(), found)
    return found


def read_log(name: str, lines: Iterable[str], found: LogEvidence) -> None:
    """Add what one log says."""
    kept = list(lines)
    found.lines += len(kept)
    for number, line in enumerate(kept):
        if _LOST.search(line):
            quoted = kept[max(0, number - 1) : number + LINES_QUOTED]
            found.lost.append("\n".join(f"{name}: {text}" for text in quoted))
            continue
        event = _EVENT.search(line)
        if event is None:
            continue
        fields = dict(_FIELD.findall(event[0]))
        if fields["event"] == "serving" and "epoch" in fields:
            found.leaders.setdefault((fields["volume"], int(fields["epoch"])), []).append(name)
        elif fields["event"] == "fenced_off":
            found.fenced.append(FencedOff(name, int(fields["epoch"]), int(fields["sled_epoch"])))
        elif fields["event"] == "sled_faulty":
            found.faulty.append(f"{name}: {line.strip()}")
