"""Which of a sled's associations keep their place, and which make room: what holds now decides, nothing that was.

A head that holds a volume here keeps its association. A key has few of them, however many volumes it holds, and keys
share: the one with the most gives first. A quarter of all places is never taken by heads that hold something, so that
the authority, and a head that is not here yet, always get as far as an ATTACH.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from sled_controller.fabric.associations import Standing

if TYPE_CHECKING:
    from sled_controller.association import Association

log = logging.getLogger(__name__)

KEY_ASSOCIATIONS_MAX: Final = 4
"""Of one head key: a head has one, and an older one that hangs behind a cut link until its keep-alive timer fires."""


class Places:
    """The places of one sled, `bound` in all, for the associations in `live` (oldest first)."""

    def __init__(self, bound: int, live: Mapping[int, "Association"]) -> None:
        self._live = live
        self._holders_max = bound - max(1, bound // 4)
        self._sessions_min = max(1, bound // 8)
        self._of_key: dict[bytes, dict[Association, None]] = {}

    def opened(self, association: "Association") -> None:
        """Its host has proved that it holds a key: its session is live."""
        same = self._of_key.setdefault(association.key, {})
        same[association] = None
        while len(same) > KEY_ASSOCIATIONS_MAX:
            lowest = _first_to_go(each for each in same if each is not association)
            del same[lowest]
            lowest.end("its key has opened too many associations")
        if len(self._live) > self._holders_max:
            self._bound_sessions(association)

    def hold(self, association: "Association") -> None:
        """A volume is held through it now: it has a place, unless other keys that hold something have all of them."""
        if association.placed:
            return
        if len(self._live) > self._holders_max:
            holders = [each for each in self._live.values() if each.standing is Standing.TRUSTED]
            if len(holders) >= self._holders_max and not self._share(association, holders):
                log.warning(
                    "event=no_place_for_holder controller=%d holders=%d", association.controller_id, len(holders)
                )
                return
        association.placed = True

    def fenced(self, holder: bytes, spared: "Association | None") -> None:
        """A fence was raised above a holder: its associations that held something and hold nothing now end. The one
        that lost the volume is spared, as it is to learn by whom (F6); so are those that have only a session yet."""
        for association in list(self._of_key.get(holder, ())):
            if association is not spared and association.held_once and not association.holds:
                association.end("its head was fenced off")

    def forget(self, association: "Association") -> None:
        """It has ended."""
        same = self._of_key.get(association.key, {})
        same.pop(association, None)
        if not same:
            self._of_key.pop(association.key, None)

    def _share(self, association: "Association", holders: list["Association"]) -> bool:
        """Take the place of the oldest of the key that has the most, if that has more than this one's would."""
        count = Counter(each.key for each in holders)
        key, most = count.most_common(1)[0]
        if most <= count[association.key] + 1:
            return False
        next(each for each in holders if each.key == key).placed = False
        return True

    def _bound_sessions(self, fresh: "Association") -> None:
        """Keys are free to make: sessions that hold nothing leave room for hosts that are on their way."""
        sessions = [each for each in self._live.values() if each.standing is Standing.SESSION]
        holders = sum(each.standing is Standing.TRUSTED for each in self._live.values())
        while len(sessions) > max(self._sessions_min, self._holders_max - holders):
            lowest = _first_to_go(each for each in sessions if each is not fresh)
            sessions.remove(lowest)
            lowest.end("it makes room for another session")


def _first_to_go(associations: Iterable["Association"]) -> "Association":
    """The oldest of the lowest standing; of sessions, one whose key never held anything here before others."""
    return min(associations, key=lambda each: (each.standing, each.held_once))
