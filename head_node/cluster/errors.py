"""What can go wrong between head nodes, and what the caller can do about it."""

from head_node.store.records import VolumeRecord


class ClusterError(Exception):
    """The root of this package's errors."""


class LinkError(ClusterError):
    """The peer broke the framing, the handshake or a bound. The link is closed; dial again."""


class LinkClosed(ClusterError):
    """The link is gone. Whether the last frames arrived is unknown; dial again."""


class LinkRefused(ClusterError):
    """The peer answered and said no; the text says why. Look at the volume record again before the next try."""


class FrameMalformed(LinkError):
    """A frame's payload does not have the layout of its type."""


class IllegalTransition(ClusterError):
    """A state machine was asked for a step that its table does not have: a bug, never an input error."""


class SealRefused(ClusterError):
    """A member tried to seal before its last promise ran out (F7). Wait until then."""


class TakeoverImpossible(ClusterError):
    """The pre-check or a step of a takeover failed; nothing was served. Try again, or follow the present primary."""


class NotServing(ClusterError):
    """This head does not serve the volume now."""


class Deposed(ClusterError):
    """The record names another epoch or primary: this head is primary no longer. Step down (F6)."""

    def __init__(self, record: VolumeRecord) -> None:
        super().__init__(f"volume {record.volume} is in epoch {record.epoch} of head {record.primary}")
        self.record = record
