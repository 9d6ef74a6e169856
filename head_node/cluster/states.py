"""The life of one volume on one head: every state, and every step that is allowed. docs/cluster.md draws the table."""

import enum
from typing import Final

from head_node.cluster.errors import IllegalTransition


class VolumeState(enum.Enum):
    """What this head is to the volume."""

    OPENING = "opening"
    FOLLOWING = "following"
    SEALED = "sealed"
    ATTACHING = "attaching"
    LEADING = "leading"
    SERVING = "serving"
    HOLDING = "holding"
    STEPPING_DOWN = "stepping-down"
    DELETING = "deleting"
    RETIRED = "retired"
    FAILED = "failed"
    CLOSED = "closed"


_S = VolumeState

TRANSITIONS: Final[dict[VolumeState, frozenset[VolumeState]]] = {
    _S.OPENING: frozenset({_S.FOLLOWING, _S.FAILED, _S.CLOSED}),
    _S.FOLLOWING: frozenset({_S.OPENING, _S.SEALED, _S.RETIRED, _S.FAILED, _S.CLOSED}),
    _S.SEALED: frozenset({_S.ATTACHING, _S.FOLLOWING, _S.FAILED, _S.CLOSED}),
    _S.ATTACHING: frozenset({_S.LEADING, _S.HOLDING, _S.DELETING, _S.STEPPING_DOWN}),
    _S.LEADING: frozenset({_S.SERVING, _S.HOLDING, _S.STEPPING_DOWN}),
    _S.SERVING: frozenset({_S.HOLDING, _S.DELETING, _S.STEPPING_DOWN}),
    _S.HOLDING: frozenset({_S.ATTACHING, _S.LEADING, _S.SERVING, _S.DELETING, _S.STEPPING_DOWN}),
    _S.DELETING: frozenset({_S.HOLDING, _S.STEPPING_DOWN}),
    _S.STEPPING_DOWN: frozenset({_S.FOLLOWING, _S.RETIRED, _S.FAILED, _S.CLOSED}),
    _S.RETIRED: frozenset(),
    _S.FAILED: frozenset({_S.RETIRED, _S.CLOSED}),
    _S.CLOSED: frozenset(),
}

PRIMARY_STATES: Final = frozenset({_S.ATTACHING, _S.LEADING, _S.SERVING, _S.HOLDING, _S.DELETING})
"""This head holds the epoch."""


def check(old: VolumeState, new: VolumeState) -> None:
    """Raise IllegalTransition unless the table has this step."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"a volume that is {old.value} cannot become {new.value}")
