"""Where time and randomness come from: the one place that asks the operating system for either.

Production code takes an `Environment` and never calls `time` or `os.urandom` itself, so that a simulator can
run it on virtual time from a seed.
"""

import asyncio
import errno
import mmap
import os
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

CLOCK_FAULTS: Final = struct.Struct("<qq")
"""What a `FaultyClock` reads in its file: how many milliseconds its wall clock is ahead, how many parts per million its
boot clock is too fast. Eight aligned bytes each, so that neither is ever seen half written."""


TIME_MS_MAX: Final = 253_402_300_799_999
"""The end of the year 9999, in Unix milliseconds: a clock, or an issue time, beyond it is broken."""


class Clock(Protocol):
    """Two readings: one that never jumps and counts suspend, one that people and certificates use."""

    def boottime_ns(self) -> int:
        """Nanoseconds since boot, suspend included (CLOCK_BOOTTIME). Leases are measured with this one (F7)."""

    def wall_ms(self) -> int:
        """Unix time in milliseconds; may jump. Only issue and expiry times use it."""


def civil_ms(clock: Clock) -> int:
    """What the clock shows, Unix milliseconds, held within the years 1970 to 9999: for what is shown, signed or kept,
    where a clock that is out of all reason must not leave the range of a field."""
    return max(0, min(clock.wall_ms(), TIME_MS_MAX))


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


class FaultyClock(SystemClock):
    """For tests of real processes: the machine's clocks, made wrong by a file that may change at any moment.

    The rate of the boot clock is read once: a clock may be fast or slow (F7 leaves room for that), but never jumps.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError when there is no such file, or one that is too short."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < CLOCK_FAULTS.size:
                raise OSError(errno.EINVAL, f"is shorter than {CLOCK_FAULTS.size} bytes", str(path))
            self._faults = mmap.mmap(file.fileno(), CLOCK_FAULTS.size, access=mmap.ACCESS_READ)
        self._too_fast_ppm: int = CLOCK_FAULTS.unpack_from(self._faults)[1]
        self._begun_ns = super().boottime_ns()

    def boottime_ns(self) -> int:
        now_ns = super().boottime_ns()
        return now_ns + (now_ns - self._begun_ns) * self._too_fast_ppm // 1_000_000

    def wall_ms(self) -> int:
        ahead_ms: int = CLOCK_FAULTS.unpack_from(self._faults)[0]
        return super().wall_ms() + ahead_ms


class SystemEntropy:
    """The kernel's random number generator."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


@dataclass(frozen=True, slots=True)
class Environment:
    """The clock and the entropy that a component is given."""

    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=SystemEntropy)

    @classmethod
    def of_program(cls, clock_faults: Path | None) -> "Environment":
        """What a program runs in: the machine's own, but for the clock of one whose `clock_faults` are set.

        Raises OSError.
        """
        return cls() if clock_faults is None else cls(clock=FaultyClock(clock_faults))

    def in_thread(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Carry out what takes long and lets other threads run, beside the running event loop."""
        return asyncio.get_running_loop().run_in_executor(None, work)

    def new_uuid(self) -> uuid.UUID:
        """A random UUID (version 4) from this environment's entropy."""
        return uuid.UUID(bytes=self.entropy.bytes(16), version=4)
