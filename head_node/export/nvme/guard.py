"""What a head knows of the secrets of a volume's hosts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sled_controller.fabric.dhchap.terms import Terms


@dataclass(frozen=True, slots=True)
class Guard:
    """By host NQN, on which terms it is let in; other hosts on the list are believed by their names.

    `locked`: there are secrets, but this head cannot read them. None is let in then: hosts cannot be told apart.
    """

    terms: Mapping[str, Terms] = field(default_factory=dict)
    locked: bool = False


UNGUARDED: Final = Guard()
LOCKED: Final = Guard(locked=True)
