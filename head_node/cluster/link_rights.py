"""Which links between heads stand: each is judged by the view as it begins and with each newer one, at both ends.

A link gives its peer a volume's log, or lets in clients that were checked nowhere here. So only heads that the volume's
record names have one, and what a view takes away ends in the turn in which the view comes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from head_node.cluster.connection import PeerConnection
from head_node.cluster.frames import Purpose
from head_node.store.records import HeadRecord, VolumeRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What a link is for, and whom it is with: the head `peer`, by the key that it proved to hold."""

    purpose: Purpose
    volume: UUID
    peer: UUID
    peer_public: bytes
    dialled: bool
    """This head dialled the peer; else the peer dialled this head."""


def refusal(use: LinkUse, peer: HeadRecord | None, record: VolumeRecord | None) -> str:
    """Why a link of that use must not stand, empty when it may. `peer` and `record` are what the view says now, None
    where it says nothing."""
    if peer is None or peer.revoked or peer.public_key != use.peer_public:
        return f"head {use.peer} is not enrolled"
    if record is None:
        return f"volume {use.volume} is not on this head"
    if not record.assigned(use.peer):
        return f"head {use.peer} is not assigned to volume {use.volume}"
    if use.dialled and use.purpose is Purpose.RELAY and record.primary != use.peer:
        return f"head {use.peer} is not the primary of volume {use.volume}"
    return ""


class OpenLinks:
    """The links of this head that are open, and what each is for. `judge` is `refusal` by the newest view."""

    def __init__(self, judge: Callable[[LinkUse], str]) -> None:
        self._judge = judge
        self._links: dict[PeerConnection, LinkUse] = {}

    def __len__(self) -> int:
        return len(self._links)

    def admit(self, connection: PeerConnection, use: LinkUse) -> str:
        """Why the link must not stand; when it may (empty), it is judged again by `recheck` until it ends."""
        reason = self._judge(use)
        if reason or connection.closed:
            return reason
        self._links[connection] = use
        gone = connection.on_gone

        def forget() -> None:
            self._links.pop(connection, None)
            gone()

        connection.on_gone = forget
        return ""

    def recheck(self) -> None:
        """The view has changed: reset every link that must not stand any more; what is unsent is not sent."""
        for connection, use in list(self._links.items()):
            reason = self._judge(use)
            if reason:
                log.warning(
                    "event=link_ended purpose=%s volume=%s head=%s reason=%s",
                    use.purpose.name, use.volume, use.peer, reason,
                )  # fmt: skip
                connection.abort(reason)
