"""Sled time: what a sled without a trustworthy clock holds against a credential's expiry."""

from sled_controller.environment import Clock

NS_PER_MS = 1_000_000


class SledTime:
    """max(RTC, newest signed issue time kept + uptime since it was learned), in Unix milliseconds.

    An attacker who sets the RTC back gains nothing below the newest issue time seen; safety rests on epochs.
    """

    def __init__(self, clock: Clock, kept_ms: int) -> None:
        self._clock = clock
        self._base_ms = kept_ms
        self._base_ns = clock.boottime_ns()
        self.newest_issued_ms = kept_ms

    def now_ms(self) -> int:
        """Sled time."""
        kept = self._base_ms + (self._clock.boottime_ns() - self._base_ns) // NS_PER_MS
        return max(self._clock.wall_ms(), kept)

    def learn(self, issued_ms: int) -> bool:
        """Take the issue time of something whose signature was verified; True when it is the newest so far."""
        if issued_ms <= self.newest_issued_ms:
            return False
        self.newest_issued_ms = issued_ms
        now_ns = self._clock.boottime_ns()
        if issued_ms > self._base_ms + (now_ns - self._base_ns) // NS_PER_MS:
            self._base_ms, self._base_ns = issued_ms, now_ns
        return True
