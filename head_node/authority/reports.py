"""What heads say about themselves, and what happened lately: soft state in bounded memory.

It is lost with the process and rebuilt by the next heartbeats; no decision about epochs or members rests on it.
"""

import contextlib
import heapq
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from head_node.authority import head_events
from head_node.authority.report_parts import Assembly
from head_node.store.records import VolumeRecord
from sled_controller.environment import Environment, civil_ms
from sled_controller.sled_start import SledStart

EVENTS_MAX = 1024
"""The authority's own."""
EVENTS_PER_HEAD_MAX = 128
"""Each head has a ring of its own: what it says washes out what it said before, and nothing else."""
HEADS_MAX = 128
"""Heads whose events are kept, revoked ones among them; as many as may be enrolled, and as many again."""
EVENTS_PER_REPORT_MAX = 64
EVENT_CHARS_MAX = 2048
# Three missed heartbeats of a head that reports each second.
FRESH_MS = 3_500


@dataclass(frozen=True, slots=True)
class Report:
    """The latest status of a head as it sent it, and when it came (Unix milliseconds)."""

    status: Mapping[str, Any]
    received_ms: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an operator may want to know. `sequence` rises by one within a run of the authority."""

    sequence: int
    time_ms: int
    kind: str
    fields: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"sequence": self.sequence, "time_ms": self.time_ms, "kind": self.kind, **self.fields}


_log = logging.getLogger(__name__)


class Reports:
    """The latest report of each head, and rings of events: the authority's own, and one for each head."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._reports: dict[UUID, Report] = {}
        self._assemblies: dict[UUID, Assembly] = {}
        self._revoked: set[UUID] = set()
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._events_of: OrderedDict[UUID, deque[Event]] = OrderedDict()
        self._refused_of: set[UUID] = set()
        self._sequence = 0
        self.on_own_event: Callable[[Event], None] = lambda event: None
        """Called with what the authority itself has done."""

    def add_event(self, kind: str, **fields: Any) -> Event:
        """Append something that the authority itself has done or seen; the oldest falls out of a full ring."""
        event = self._event(kind, fields)
        self._events.append(event)
        self.on_own_event(event)
        return event

    def events(self, after: int) -> list[Event]:
        """Events with a sequence above `after`, oldest first."""
        rings = heapq.merge(self._events, *self._events_of.values(), key=lambda event: event.sequence)
        return [event for event in rings if event.sequence > after]

    def add_report(self, head: UUID, status: Mapping[str, Any]) -> None:
        """Keep the status of `head`, or a part of it until the others have come; its `events` list moves to the ring.

        A head that reports is alive, whatever becomes of what it says.
        """
        if head in self._revoked:
            return
        whole = self._assemblies.setdefault(head, Assembly()).take(status)
        known = self._reports.get(head)
        if whole is None:
            kept: Mapping[str, Any] = {} if known is None else known.status
        else:
            kept = {key: value for key, value in whole.items() if key != "events"}
        self._reports[head] = Report(kept, civil_ms(self._env.clock), self._env.clock.boottime_ns())
        events = None if whole is None else whole.get("events")
        for event in events[:EVENTS_PER_REPORT_MAX] if isinstance(events, list) else ():
            self._add_event_of(head, event)

    def report(self, head: UUID) -> Report | None:
        return self._reports.get(head)

    def is_live(self, head: UUID) -> bool:
        """Whether the head has reported lately."""
        report = self._reports.get(head)
        return report is not None and self._env.clock.boottime_ns() - report.received_ns <= FRESH_MS * 1_000_000

    def forget(self, head: UUID) -> None:
        """The head is revoked: a report that is still on its way counts for nothing either."""
        self._revoked.add(head)
        self._reports.pop(head, None)
        self._assemblies.pop(head, None)
        self._refused_of.discard(head)

    def _add_event_of(self, head: UUID, said: object) -> None:
        """Something that a head says, if it is something that heads say."""
        found = head_events.checked(said) if len(str(said)) <= EVENT_CHARS_MAX else None
        if found is None:
            if head not in self._refused_of:  # one line for each head: it decides how many there are
                self._refused_of.add(head)
                _log.warning("event=head-event-refused head=%s said=%.100r", head, str(said))
            return
        ring = self._events_of.setdefault(head, deque(maxlen=EVENTS_PER_HEAD_MAX))
        self._events_of.move_to_end(head)
        if len(self._events_of) > HEADS_MAX:
            self._events_of.popitem(last=False)
        kind, fields = found
        ring.append(self._event(kind, {"head": str(head), **fields}))

    def _event(self, kind: str, fields: Mapping[str, Any]) -> Event:
        self._sequence += 1
        return Event(self._sequence, civil_ms(self._env.clock), kind, fields)

    def of_volume(self, record: VolumeRecord) -> dict[UUID, Mapping[str, Any]]:
        """What live heads say about a volume that they have a part in; others have no say."""
        found: dict[UUID, Mapping[str, Any]] = {}
        for head, report in self._reports.items():
            volumes = report.status.get("volumes")
            said = volumes.get(str(record.volume)) if isinstance(volumes, dict) else None
            if isinstance(said, dict) and record.assigned(head) and self.is_live(head):
                found[head] = said
        return found

    def sled_starts(self) -> dict[UUID, set[SledStart]]:
        """Which starts of each sled live heads have met."""
        found: defaultdict[UUID, set[SledStart]] = defaultdict(set)
        for head, report in self._reports.items():
            sleds = report.status.get("sleds")
            for sled, about in sleds.items() if isinstance(sleds, dict) and self.is_live(head) else ():
                start = _start_in(about) if isinstance(about, dict) else None
                with contextlib.suppress(ValueError):
                    if start is not None:
                        found[UUID(sled)].add(start)
        return found

    def sled_reachable(self, sled: UUID) -> bool | None:
        """Whether some live head reaches the sled; None when nobody says anything about it."""
        said = []
        for head, report in self._reports.items():
            sleds = report.status.get("sleds")
            about = sleds.get(str(sled)) if isinstance(sleds, dict) else None
            if isinstance(about, dict) and "reachable" in about and self.is_live(head):
                said.append(bool(about["reachable"]))
        return any(said) if said else None


def _start_in(about: Mapping[str, object]) -> SledStart | None:
    """The start in what a head says of a sled, None when it says none that could be one."""
    counter, boot_id = about.get("boot_counter"), about.get("boot_id")
    if not isinstance(counter, int) or not 0 < counter < 1 << 64 or not isinstance(boot_id, str):
        return None
    try:
        return SledStart(counter, bytes.fromhex(boot_id))
    except ValueError:
        return None
