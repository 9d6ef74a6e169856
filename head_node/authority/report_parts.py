"""A head's report in parts: it grows with the volumes of the head, and a request's body is bounded.

What is said of each volume travels in one of the parts, all else in the first. The authority takes a report when it has
every part of it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

PART_BYTES_MAX: Final = 256 * 1024
"""A report that is longer goes in parts of about this much."""
PARTS_MAX: Final = 64
"""16 MiB: a head with all the volumes that a rack may have."""
_BY_VOLUME: Final = (("volumes",), ("nvme", "volumes"))
"""What has an entry per volume."""


def split(status: Mapping[str, Any], new_id: Callable[[], str]) -> list[dict[str, Any]]:
    """The status as it is if it is short, else in parts that name a new id, their number and how many there are."""
    whole = dict(status)
    if len(json.dumps(whole)) <= PART_BYTES_MAX:
        return [whole]
    parts: list[dict[str, Any]] = [_without_volumes(whole)]
    left = PART_BYTES_MAX - len(json.dumps(parts[0]))
    for path, volume, said in _entries(whole):
        size = len(volume) + len(json.dumps(said)) + 8
        if size > left:
            parts.append({})
            left = PART_BYTES_MAX
        left -= size
        _place(parts[-1], path)[volume] = said
    report_id = new_id()
    for number, part in enumerate(parts):
        part["part"] = {"id": report_id, "number": number, "of": len(parts)}
    return parts


class Assembly:
    """The parts of one head's report that have come so far."""

    def __init__(self) -> None:
        self._id = ""
        self._parts: dict[int, Mapping[str, Any]] = {}

    def take(self, part: Mapping[str, Any]) -> dict[str, Any] | None:
        """The whole report once it has all its parts, None before that; one of another report starts over."""
        named = part.get("part")
        if not isinstance(named, dict):
            return dict(part)
        report_id, number, count = named.get("id"), named.get("number"), named.get("of")
        if not isinstance(report_id, str) or not isinstance(number, int) or not isinstance(count, int):
            return None
        if not 0 <= number < count <= PARTS_MAX:
            return None
        if report_id != self._id:
            self._id, self._parts = report_id, {}
        self._parts[number] = part
        if len(self._parts) < count:
            return None
        parts, self._parts = [self._parts[at] for at in sorted(self._parts)], {}
        whole = {key: value for key, value in parts[0].items() if key != "part"}
        for each in parts:
            for path, volume, said in _entries(each):
                _place(whole, path)[volume] = said
        return whole


def _entries(status: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    for path in _BY_VOLUME:
        found: Any = status
        for name in path:
            found = found.get(name, {}) if isinstance(found, dict) else {}
        if isinstance(found, dict):
            for volume, said in found.items():
                yield path, volume, said


def _place(status: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        if not isinstance(status.get(name), dict):
            status[name] = {}
        status = status[name]
    return status


def _without_volumes(status: Mapping[str, Any]) -> dict[str, Any]:
    bare = dict(status)
    for path in _BY_VOLUME:
        if isinstance(bare.get(path[0]), dict):
            bare[path[0]] = {} if len(path) == 1 else dict(bare[path[0]]) | {path[1]: {}}
    return bare
