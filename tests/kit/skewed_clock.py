"""The machine's clocks as a suspended process sees them."""

import time

from head_node.cluster.lease import MS


class SkewedClock:
    """The machine's clocks, moved on by as much as a test likes: what a suspended process sees when it wakes."""

    def __init__(self) -> None:
        self.skew_ns = 0

    def jump(self, milliseconds: int) -> None:
        self.skew_ns += milliseconds * MS

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self.skew_ns

    def wall_ms(self) -> int:
        return time.time_ns() // MS
