"""Which heads may still have a good credential of a volume, and of which epoch: kept with the claim of its epoch.

Pure functions over the claim as it is in the store. Who has the claim may renew; who had one before may not, and what
it holds ends by the horizon of the moment in which it lost the claim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Holding:
    """The highest epoch that a head was given and whose credential is good until `end_ms` at the latest."""

    epoch: int
    end_ms: int


def former_of(claim: Mapping[str, Any] | None, head: UUID, horizon_ms: int, now_ms: int) -> list[dict[str, Any]]:
    """What a claim that replaces `claim`, for `head`, has to keep of other heads: at most one entry each."""
    if claim is None:
        return []
    given = {"head": claim["head"], "epoch": claim["epoch"], "end_ms": horizon_ms}
    known = [*claim.get("former", ()), given]
    return [entry for entry in known if entry["head"] != str(head) and entry["end_ms"] > now_ms]


def holding_of(claim: Mapping[str, Any] | None, head: UUID, horizon_ms: int, now_ms: int) -> Holding | None:
    """What `head` may hold of the volume with that claim; None when every credential of it has expired."""
    if claim is None:
        return None
    if claim["head"] == str(head):
        return Holding(claim["epoch"], horizon_ms) if horizon_ms > now_ms else None
    for entry in claim.get("former", ()):
        if entry["head"] == str(head) and entry["end_ms"] > now_ms:
            return Holding(entry["epoch"], entry["end_ms"])
    return None
