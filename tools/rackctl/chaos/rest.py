"""Waits until a rack is as it was before the faults, doing what an operator would do meanwhile and nothing else."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, Final

from rackctl.errors import RackError
from rackctl.nbd_probe import is_served
from rackctl.processes import ProcessState
from rackctl.rack import Rack
from rackctl.state import Node, NodeKind

CALM_SECONDS: Final = 2.0
"""What silence may still be noticed is noticed by then."""
POLL_SECONDS: Final = 0.1


class Rest:
    """One wait. `missing` says what is not as it should be."""

    def __init__(self, rack: Rack, volume: str, note: Callable[[str, str], None]) -> None:
        self._rack = rack
        self._volume = volume
        self._note = note
        self._restarted: set[str] = set()
        self.missing = "nobody has looked"

    def wait(self, seconds_max: float, go_on: Callable[[], bool] = lambda: True) -> bool:
        """Whether everything was there and unchanged for a while, within `seconds_max`, or before `go_on` said no."""
        deadline_s = time.monotonic() + seconds_max
        version, since_s = -1, time.monotonic()
        while time.monotonic() < deadline_s and go_on():
            try:
                record = self._rack.api.volume(self._volume)
                self.missing = self._lacking(record)
                now = int(record["version"])
            except RackError as error:
                self.missing, now = str(error), -1
            if self.missing or now != version:
                version, since_s = now, time.monotonic()
            elif time.monotonic() - since_s > CALM_SECONDS:
                return True
            time.sleep(POLL_SECONDS)
        self.missing = self.missing or "the record went on changing"
        return False

    def _lacking(self, record: dict[str, Any]) -> str:
        now = self._rack.state
        for node in now.nodes:
            if node.state is not ProcessState.RUNNING:
                return f"{node.name} is {node.state.value}"
            if not self._is_up(node):
                return f"{node.name} is not up"
        reports = record["health"]["reports"]
        self._restart_failed(now.of_kind(NodeKind.HEAD), reports)
        members = {member["head"] for member in record["current"]}
        absent = [node.name for node in now.of_kind(NodeKind.HEAD) if node.id not in members]
        if absent:
            return f"{' '.join(absent)} is no member"
        primary = next((node for node in now.nodes if node.id == record["primary"]), None)
        if primary is None or record["state"] != "active":
            return f"the volume is {record['state']} without a primary"
        report = reports.get(primary.id) or {}
        if not report.get("serving") or report.get("receipts") != len(record["columns"]):
            return f"{primary.name} serves {report.get('serving')} with {report.get('receipts')} receipts"
        if not is_served(primary.host, primary.ports["nbd"], self._volume):
            return f"{primary.name} grants no client the volume"
        return ""

    def _is_up(self, node: Node) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            said = json.loads((self._rack.layout.state_dir(node) / "endpoints.json").read_text(encoding="utf-8"))
            return node.process is not None and said.get("pid") == node.process.pid
        return False

    def _restart_failed(self, heads: list[Node], reports: dict[str, dict[str, Any]]) -> None:
        """A head that has given the volume up because its log failed is restarted by its operator, once."""
        for node in heads:
            if reports.get(node.id, {}).get("state") == "failed" and node.name not in self._restarted:
                self._restarted.add(node.name)
                self._note("director", f"restarts {node.name}, which has failed: {reports[node.id].get('reason')}")
                self._rack.begin(node.name)
