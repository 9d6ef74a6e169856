"""Bounds of one engine: bytes, and how long a column may take."""

from dataclasses import dataclass
from typing import Final

from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.records import RECORD_BYTES_MAX
from head_node.volume.segments import MARK, aligned

SEGMENT_BYTES_MIN: Final = BLOCK_BYTES + aligned(MARK.size + RECORD_BYTES_MAX)
"""The largest record is a batch of its own, and must fit behind a segment's header."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine may take and wait for."""

    segment_bytes: int = 32 << 20
    """Large enough that rolling is rare and its unused end small, small enough to be zeroed in 50 ms."""
    log_bytes_max: int = 256 << 20
    """Client writes wait above this; a follower's log may pass it, since it cannot refuse."""
    overlay_bytes_max: int = 128 << 20
    """Committed blocks in memory that are in no stripe yet."""
    unanswered_bytes_max: int = 32 << 20
    """Client data admitted and not yet acknowledged."""
    held_log_bytes_max: int = 256 << 20
    """How much longer than it needs to be the log may become for members that catch up."""
    column_seconds_max: float = 3.0
    """A command of a column that takes longer makes the column count as away: longer than a healthy drive collects its
    garbage, shorter than a client notices."""

    def __post_init__(self) -> None:
        if self.segment_bytes < SEGMENT_BYTES_MIN or self.segment_bytes % BLOCK_BYTES:
            raise ValueError(f"segment_bytes {self.segment_bytes}: whole blocks, at least {SEGMENT_BYTES_MIN}")
        if self.log_bytes_max < 4 * self.segment_bytes:
            raise ValueError(f"log_bytes_max {self.log_bytes_max}: at least four segments")

    @property
    def client_log_bytes_max(self) -> int:
        """Log bytes that client writes may fill; the rest is for STRIPE records, which is how the log gets free."""
        return self.log_bytes_max - self.segment_bytes
