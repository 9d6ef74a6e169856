"""When a read is worth a second one: a percentile of the recent latency, within a budget of extra reads."""

from typing import Final

HEDGE_SECONDS_MIN: Final = 0.005
"""Below this a timer costs more than it wins; also how often reads under way are looked at."""
HEDGE_SECONDS_MAX: Final = 1.0
HEDGE_SECONDS_FIRST: Final = 0.05
"""Before anything is known of the columns."""
SLOW_SHARE: Final = 0.01
"""Reads that are slower than what is waited: the 99th percentile."""
STEP: Final = 0.05
"""How far one slow read moves it; a hundred fast ones move it back."""
_BACK: Final = 1 - STEP * SLOW_SHARE / (1 - SLOW_SHARE)
EXTRA_SHARE: Final = 0.05
"""Extra shard reads, of all that are asked for anyway: a rack that is slow as a whole must not be asked for more."""
EXTRA_MAX: Final = 60.0
"""Shard reads saved up for the moment at which a drive stops answering."""


class Hedging:
    """Pure; times are seconds. Kept by multiplicative steps that balance where `SLOW_SHARE` of the reads are slower."""

    def __init__(self) -> None:
        self.wait_s = HEDGE_SECONDS_FIRST
        self._extra = EXTRA_MAX

    def asked(self) -> None:
        """A shard is read the usual way."""
        if self._extra < EXTRA_MAX:
            self._extra += EXTRA_SHARE

    def took(self, seconds: float) -> None:
        """A read has been answered, or was given up as slow, after so long."""
        if seconds > self.wait_s:
            self.wait_s = min(self.wait_s * (1 + STEP), HEDGE_SECONDS_MAX)
        elif self.wait_s > HEDGE_SECONDS_MIN:
            self.wait_s = max(self.wait_s * _BACK, HEDGE_SECONDS_MIN)

    def spend(self, reads: int) -> bool:
        """Whether so many extra reads are within the budget; they count from now on."""
        if self._extra < reads:
            return False
        self._extra -= reads
        return True
