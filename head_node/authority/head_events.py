"""What heads may say happened: a closed list of kinds, and plain values of bounded size.

A head with a stolen key says what it likes. It cannot speak in the authority's words (a revocation, a frozen volume),
nor bring escape sequences to a terminal, nor values of a shape that the program which shows them does not expect.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from head_node.authority.plain_text import plain

KINDS: Final = frozenset(
    {
        "blocks-lost",
        "fenced-off",
        "member-fast",
        "member-slow",
        "sled-faulty",
        "stepped-down",
        "takeover-without-tails",
    }
)
FIELDS_MAX: Final = 16
NAME_CHARS_MAX: Final = 32
LIST_MAX: Final = 16
NUMBER_END: Final = 1 << 64
IDS: Final = frozenset({"volume", "sled", "slow_head"})
RESERVED: Final = frozenset({"kind", "head", "sequence", "time_ms"})
"""What the authority says of an event itself."""


def checked(event: object) -> tuple[str, dict[str, Any]] | None:
    """Kind and fields of an event as a head sent it; None when it is none that a head may report."""
    kind = event.get("kind") if isinstance(event, Mapping) else None
    if not isinstance(event, Mapping) or not isinstance(kind, str) or kind not in KINDS:
        return None
    fields: dict[str, Any] = {}
    for name, value in event.items():
        if name in RESERVED:
            continue
        if len(fields) >= FIELDS_MAX or not _is_name(name) or not _is_value(name, value):
            return None
        fields[name] = [_shown(one) for one in value] if isinstance(value, list) else _shown(value)
    return kind, fields


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= NAME_CHARS_MAX


def _is_value(name: str, value: object) -> bool:
    if name in IDS:
        return _is_id(value)
    if isinstance(value, list):
        return len(value) <= LIST_MAX and all(_is_scalar(one) for one in value)
    return _is_scalar(value)


def _is_scalar(value: object) -> bool:
    if isinstance(value, int):
        return -NUMBER_END < value < NUMBER_END
    return value is None or isinstance(value, str | bool)


def _is_id(value: object) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value
    except ValueError:
        return False


def _shown(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value
