"""What a volume's status says in words while sleds are away or blocks cannot be read."""

from collections.abc import Callable, Mapping
from typing import Any


def sled_notes(engine: Mapping[str, Any], columns: int, name_of: Callable[[int], str]) -> list[str]:
    """From the status of a primary's engine and the number of its columns; `name_of(column)` names a sled."""
    notes = []
    waits, requests, away = engine["sled_waits"], engine["requests"], engine["columns_away"]
    if away:
        notes.append(f"degraded: {len(away)} of {columns} sleds are away ({', '.join(map(name_of, away))})")
    if waits["reads"]:
        sleds = ", ".join(map(name_of, waits["columns"])) or "sleds"
        notes.append(f"reads waiting for {sleds}: {waits['reads']}, the oldest for {waits['oldest_s']:.0f} s")
    if requests["waiting_for_room"]:
        why = "; they go on when sleds are back" if engine["stripes_wait_for_sleds"] else ""
        notes.append(f"writes waiting for room in the log: {requests['waiting_for_room']}{why}")
    if engine["stripes_without_spare"]:
        notes.append(f"exposed: stripes that would not survive one more sled: {engine['stripes_without_spare']}")
    if engine["blocks_unreadable"]:
        more = "more than " if engine["blocks_unreadable_more"] else ""
        notes.append(f"blocks that no sleds can give: {more}{engine['blocks_unreadable']}")
    return notes
