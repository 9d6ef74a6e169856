"""Watches a volume's record from outside while a run goes on: its epochs, its members, who is primary."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from rackctl.consistency.epochs import EpochMonitor
from rackctl.consistency.history import Violation
from rackctl.errors import RackError
from rackctl.rack import Rack
from rackctl.state import NodeKind

POLL_SECONDS: Final = 0.2
STOP_SECONDS_MAX: Final = 15.0
"""A request to an authority that is silent is given up by then."""


class RecordWatch:
    """Asks the authority in a thread of its own; one that is away is asked again."""

    def __init__(
        self, rack: Rack, volume: str, epochs: EpochMonitor, note: Callable[[str, str], None],
        accuse: Callable[[Exception], None],
    ) -> None:  # fmt: skip
        self.members: tuple[str, ...] = ()
        """The heads that held everything when the authority was last heard."""
        self.polls = 0
        self._volume = volume
        self._epochs = epochs
        self._note = note
        self._accuse = accuse
        now = rack.state
        self._names = {node.id: node.name for node in now.of_kind(NodeKind.HEAD)}
        self._api = rack.connect()
        self._seen: tuple[int, str, tuple[str, ...]] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking. Safe to call again."""
        self._stop.set()
        self._thread.join(STOP_SECONDS_MAX)
        self._api.close()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                with contextlib.suppress(RackError):
                    self._look(self._api.volume(self._volume))
            except Violation as violation:
                self._accuse(violation)

    def _look(self, record: dict[str, Any]) -> None:
        self.polls += 1
        self._epochs.recorded(UUID(record["volume"]), int(record["epoch"]))
        self.members = tuple(sorted(self._names.get(member["head"], member["head"]) for member in record["current"]))
        primary = self._names.get(record["primary"] or "", "nobody")
        now = (int(record["epoch"]), primary, self.members)
        if now != self._seen:
            self._seen = now
            self._note("record", f"epoch {now[0]}, primary {primary}, members {' '.join(self.members)}")
