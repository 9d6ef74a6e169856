"""What a volume does while sleds are away, as its owner wants it; part of the volume's record."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SledPolicy:
    """How long, and how exposed, a volume goes on without some of its sleds."""

    exposed_stripes: bool = True
    """Write stripes with exactly k shards while no more sleds can be had: the loss of one more sled may lose what is in
    them. Without, writes wait when the log is full."""
    read_wait_s: float | None = None
    """How long a read waits for sleds before it fails with EIO; None is for ever."""
