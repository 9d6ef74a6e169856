"""Whether processes that live through a run come to hold more and more descriptors or memory."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from rackctl.processes import ProcessIdentity, ProcessState, resident_bytes, state_of

DESCRIPTORS_MORE_MAX: Final = 24
"""A primary has connections to every sled and member that a secondary has not, and more after a takeover."""
BYTES_MORE_MAX: Final = 96 << 20
"""What an overlay, a map and caches may come to hold for the volume of a run."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one moment."""

    descriptors: int
    resident_bytes: int


def held(process: ProcessIdentity) -> Held | None:
    """What it holds now, None when it is gone."""
    try:
        descriptors = len(os.listdir(f"/proc/{process.pid}/fd"))
    except OSError:
        return None
    found = Held(descriptors, resident_bytes(process))
    return found if state_of(process) is not ProcessState.GONE else None


@dataclass(slots=True)
class Growth:
    """What each process held when it was first and last seen at rest."""

    first: dict[ProcessIdentity, Held] = field(default_factory=dict)
    last: dict[ProcessIdentity, Held] = field(default_factory=dict)
    names: dict[ProcessIdentity, str] = field(default_factory=dict)

    def look(self, processes: Iterable[tuple[str, ProcessIdentity]]) -> None:
        """Note what is held now, by nodes at rest."""
        for name, process in processes:
            now = held(process)
            if now is not None:
                self.names[process] = name
                self.first.setdefault(process, now)
                self.last[process] = now

    @property
    def compared(self) -> int:
        """How many processes were seen at two rests or more."""
        return sum(1 for process, first in self.first.items() if self.last[process] is not first)

    @property
    def grown(self) -> list[str]:
        """Those that came to hold more than their work explains."""
        found = []
        for process, first in self.first.items():
            last, name = self.last[process], f"{self.names[process]} (pid {process.pid})"
            if last.descriptors - first.descriptors > DESCRIPTORS_MORE_MAX:
                found.append(f"{name}: {first.descriptors} descriptors became {last.descriptors}")
            if last.resident_bytes - first.resident_bytes > BYTES_MORE_MAX:
                found.append(f"{name}: {first.resident_bytes >> 20} MiB became {last.resident_bytes >> 20} MiB")
        return found
