"""The health gate of a rollout: whether a rack can do without one more sled for a moment."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rackctl.errors import ApiRefused, ApiUnreachable, RackError

POLL_S: Final = 0.2


class RackApi(Protocol):
    """What is asked of the authority."""

    def volumes(self) -> list[dict[str, Any]]:
        """Records, and the latest reports of heads."""

    def nodes(self) -> dict[str, Any]:
        """Heads with the times of their reports, and sleds."""


class GateClosed(RackError):
    """The rack was not healthy for long enough in the time that it was given; the text says what is wrong."""


def problems(volumes: list[dict[str, Any]], nodes: Mapping[str, Any]) -> list[str]:
    """What speaks against taking a sled away now, in words; nothing when all is well.

    A volume has to be served by a primary that has all its columns and all its heads as members: then it can lose two
    sleds and a head, and a restart takes one of these sleds.
    """
    found = [f"sled {sled['name']} is not reachable" for sled in nodes["sleds"] if sled["reachable"] is False]
    for record in volumes:
        health, name = record["health"], record["name"]
        engine = health["reports"].get(record["primary"] or "", {}).get("engine") or {}
        if record["state"] != "active":
            found.append(f"volume {name} is {record['state']}")
        elif not health["primary_live"] or not health["serving"]:
            found.append(f"volume {name} is not served")
        elif health["stopped"]:
            found.append(f"volume {name} is stopped: {health['stopped']}")
        elif len(record["current"]) < len(record["heads"]):
            found.append(f"volume {name} has {len(record['current'])} of {len(record['heads'])} heads")
        elif engine.get("columns_missing") != 0:
            found.append(f"volume {name} lacks columns: {engine.get('columns_missing', 'its primary says nothing')}")
    return found


def reported(nodes: Mapping[str, Any]) -> dict[str, int]:
    """When each live head has last reported."""
    return {head["id"]: head["reported_ms"] for head in nodes["heads"] if head["live"]}


@dataclass(slots=True)
class Gate:
    """Waits for a healthy rack. Only reports that are made after `mark` count, so that no old one opens the gate.

    `settle_s`: for how long all has to be well without a break; `timeout_s`: until when.
    """

    api: RackApi
    settle_s: float
    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _marked: dict[str, int] = field(default_factory=dict)

    def mark(self) -> None:
        """Something has changed: what was reported until now is history. An authority that is away, or has
        no answer, says nothing."""
        try:
            self._marked = reported(self.api.nodes())
        except (ApiUnreachable, ApiRefused):
            self._marked = {}

    def wait(self) -> None:
        """Return when the rack has been healthy for `settle_s`; raises GateClosed."""
        deadline = self.clock() + self.timeout_s
        well_since: float | None = None
        while True:
            wrong = self._look()
            now = self.clock()
            if wrong:
                well_since = None
            elif well_since is None:
                well_since = now
            if well_since is not None and now - well_since >= self.settle_s:
                return
            if now >= deadline:
                said = "; ".join(wrong) or "it is healthy now, but was not for long enough"
                raise GateClosed(f"the rack is not healthy after {self.timeout_s:g} s: {said}")
            self.sleep(POLL_S)

    def _look(self) -> list[str]:
        try:
            nodes = self.api.nodes()
            fresh = reported(nodes)
            heads = {head["id"]: head["name"] for head in nodes["heads"] if not head["revoked"]}
            stale = [name for head, name in heads.items() if fresh.get(head) == self._marked.get(head, -1)]
            if stale or not fresh:
                return [f"no fresh report of {' '.join(stale) or 'any head'}"]
            return problems(self.api.volumes(), nodes)
        except (ApiUnreachable, ApiRefused) as error:
            return [str(error)]
