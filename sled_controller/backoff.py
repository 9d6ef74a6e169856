"""How long to wait before something that failed is tried again: twice as long each time, up to a bound, never in step.

One helper for every loop that retries, so that none of them asks a peer for ever at the rate at which it refuses.
"""

from typing import Final

from sled_controller.environment import Environment

JITTER: Final = 0.25
"""The part of a pause that is left to chance: heads that lost the same peer do not come back to it together."""


class Backoff:
    """The pauses of one loop, in seconds. `reset` it when there was success, or news that may bring one."""

    def __init__(self, env: Environment | None, first_s: float, max_s: float) -> None:
        """Without `env` nothing is left to chance: for a disk of one's own, which no other asks in step."""
        assert 0 < first_s <= max_s
        self._env = env
        self._first_s = first_s
        self._max_s = max_s
        self.failures = 0
        """In a row, since the last `reset`."""

    def next_s(self) -> float:
        """It failed once more: the pause from now on, at most `max_s`."""
        pause_s = min(self._max_s, self._first_s * 2.0 ** min(self.failures, 64))
        self.failures += 1
        return pause_s if self._env is None else pause_s * (1 - JITTER * self._env.entropy.bytes(1)[0] / 255)

    def next_ns(self) -> int:
        """`next_s` in nanoseconds."""
        return int(self.next_s() * 1_000_000_000)

    def reset(self) -> None:
        """The next pause is a short one again."""
        self.failures = 0
