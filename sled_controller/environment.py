"""Where time and randomness come from: the one place that asks the operating system for either.

Production code takes an `Environment` and never calls `time` or `os.urandom` itself, so that a simulator can
run it on virtual time from a seed.
"""

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """Two readings: one that never jumps and counts suspend, one that people and certificates use."""

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspend included (CLOCK_BOOTTIME). Leases are measured with this one (F7)."""

    def wall_ms(self) -> int:
        """Unix time in milliseconds; may jump. Only issue and expiry times use it."""


class Entropy(Protocol):
    """A source of unpredictable bytes."""

    def bytes(self, count: int) -> bytes:
        """Return `count` fresh random bytes."""


class SystemClock:
    """The machine's clocks, read when asked (a loop's cached time goes stale across a pause)."""

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """The kernel's random number generator."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


@dataclass(frozen=True, slots=True)
class Environment:
    """The clock and the entropy that a component is given."""

    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=SystemEntropy)

    def new_uuid(self) -> uuid.UUID:
        """A random UUID (version 4) from this environment's entropy."""
        return uuid.UUID(bytes=self.entropy.bytes(16), version=4)
