"""How the connections of a head's NVMe/TCP port are shared: by volume, and hosts that have proved who they are first.

A host that is believed by its name may be anyone. All of them together never have the last quarter of the connections,
hosts that authenticate never the last eighth, which is for those on their way. As long as there is room a volume
has as many as its hosts ask for; when there is none, one that has less than its share takes from the one with most.
"""

from collections.abc import Iterable
from typing import Final, Protocol

CONNECTIONS_MAX: Final = 256
"""Queues of all hosts together, where nothing else is set or known of the machine."""


class Sharer(Protocol):
    """A volume at this port."""

    occupied: int
    """Connections of its hosts that are past Connect and authentication."""

    named: int
    """Associations of hosts without a secret."""

    def put_out_named(self) -> None:
        """End an association of such a host."""

    def put_out_proven(self) -> None:
        """End an association of a host that has authenticated."""


class Shares:
    """The shares of one port."""

    def __init__(self, connections_max: int = CONNECTIONS_MAX) -> None:
        self.total = 0
        self._named_max = connections_max - max(1, connections_max // 4)
        self._settled_max = connections_max - max(1, connections_max // 8)
        self._volumes: dict[Sharer, None] = {}

    def occupy(self, volume: Sharer, change: int) -> None:
        """The volume has so many connections more, or less."""
        volume.occupied += change
        self.total += change
        if volume.occupied:
            self._volumes[volume] = None
        else:
            self._volumes.pop(volume, None)

    def left(self, volume: Sharer) -> int:
        """How many connections more a host without a secret may have there; not exact when it is crowded."""
        return max(self._named_max - self.total, self._share(volume) - volume.occupied)

    def admit_named(self, volume: Sharer) -> bool:
        """Whether there is room for one more connection of a host without a secret; others are put out for it only
        where they have more than their share and this volume has less."""
        if self.total < self._named_max:
            return True
        share = self._share(volume)
        most = _most(each for each in self._volumes if each.named and each is not volume)
        if volume.occupied >= share or most is None or most.occupied <= share:
            return False
        most.put_out_named()
        return True

    def admit_proven(self, volume: Sharer) -> bool:
        """Whether there is room for one more connection of a host that has authenticated; hosts that are believed by
        their names give way."""
        if self.total < self._settled_max:
            return True
        named = _most(each for each in self._volumes if each.named)
        if named is not None:
            named.put_out_named()
            return True
        most = _most(self._volumes)
        if most is None or most.occupied <= volume.occupied + 1:
            return False
        most.put_out_proven()
        return True

    def _share(self, volume: Sharer) -> int:
        return self._named_max // len({**self._volumes, volume: None})


def _most(volumes: Iterable[Sharer]) -> Sharer | None:
    return max(volumes, key=lambda each: each.occupied, default=None)
