"""Sled time: what a sled holds against a credential's expiry, whatever its clock and the authority's say.

Expiry is hygiene (safety rests on epochs), so a wrong clock must never outlive its repair: what signed issue times say
is believed only as far as the sled's own clock bears it out, and what is kept durably moves no faster than uptime does.
docs/credentials.md says what each clock may do when it is wrong.
"""

from typing import Final

from sled_controller.environment import TIME_MS_MAX, Clock

NS_PER_MS: Final = 1_000_000
LEAD_MS_MAX: Final = 60_000
"""How far a signed issue time may move a sled ahead of its own clock; that of a machine with NTP is off by less."""
HOLD_MS: Final = 3_600_000
"""How long time has to be ahead of what was kept before it is kept: wrong clocks are noticed and put right earlier."""
RELEASED_MS: Final = 1_672_531_200_000
"""2023-01-01: a clock before it was never set (1970, a date of manufacture)."""
OFF_MS_MAX: Final = 5 * 365 * 86_400_000
"""A sled without a clock of its own believes that it was switched off for as long as this, and no longer."""


class SledTime:
    """max(clock, time kept + uptime, newest signed issue time + uptime since), in Unix milliseconds.

    While the clock goes (it is not behind what was kept) issue times count up to LEAD_MS_MAX ahead of the sled's own
    time, asked again each time: once a clock is put right, what was learnt from the wrong one does not count any more.
    Without a clock to go by the issue times are all there is. `rtc_ahead_ms`: by how much the clock is known to be
    ahead, since a statement of time said so.
    """

    def __init__(self, clock: Clock, kept_ms: int, *, rtc_ahead_ms: int = 0) -> None:
        self._clock = clock
        self._base_ns = clock.boottime_ns()
        self._kept_ms = min(kept_ms, TIME_MS_MAX)
        self._learned_ms = 0
        self._lead: tuple[int, int] | None = None
        """Since when, and at least how far, time has been ahead of what is kept."""
        self._unsure_until_ms: int | None = self._kept_ms + LEAD_MS_MAX if self._kept_ms else None
        """What was issued up to then may have expired while the sled was off; None once something newer was heard."""
        self.rtc_ahead_ms = rtc_ahead_ms
        self.newest_issued_ms = kept_ms

    def now_ms(self) -> int:
        """Sled time."""
        run_on_ms = (self._clock.boottime_ns() - self._base_ns) // NS_PER_MS
        kept_ms, learned_ms = self._kept_ms + run_on_ms, self._learned_ms + run_on_ms
        rtc_ms = self._clock.wall_ms() - self.rtc_ahead_ms
        if not self._goes(rtc_ms, kept_ms):
            return min(TIME_MS_MAX, kept_ms if kept_ms > learned_ms else learned_ms)
        own_ms = rtc_ms if rtc_ms > kept_ms else kept_ms
        if learned_ms <= own_ms:
            return own_ms
        return min(learned_ms, own_ms + LEAD_MS_MAX)

    @property
    def has_clock(self) -> bool:
        """Whether the machine's clock is one to go by: it was set, and is not behind what was kept."""
        return self._goes(self._clock.wall_ms() - self.rtc_ahead_ms, self._kept_ms + self._run_on_ms())

    def learn(self, issued_ms: int) -> bool:
        """Take the issue time of something whose signature was verified; True when it is the newest so far."""
        run_on_ms = self._run_on_ms()
        kept_ms = self._kept_ms + run_on_ms
        if issued_ms > min(TIME_MS_MAX, max(kept_ms, RELEASED_MS) + OFF_MS_MAX):
            return False
        rtc_ms = self._clock.wall_ms() - self.rtc_ahead_ms
        if self._goes(rtc_ms, kept_ms):
            bound_ms = max(rtc_ms, kept_ms) + LEAD_MS_MAX - run_on_ms
            self._learned_ms = min(self._learned_ms, bound_ms)
            believed_ms = min(issued_ms - run_on_ms, bound_ms)
        else:
            believed_ms = issued_ms - run_on_ms
        self._learned_ms = max(self._learned_ms, believed_ms)
        if self._unsure_until_ms is not None and issued_ms > self._unsure_until_ms:
            self._unsure_until_ms = None
        if issued_ms <= self.newest_issued_ms:
            return False
        self.newest_issued_ms = issued_ms
        return True

    def unsure_of(self, issued_ms: int) -> bool:
        """Whether something issued then may have expired without this sled's knowing: it has started without a clock to
        go by, has heard nothing newer since than what it knew before, and this is no newer either."""
        return self._unsure_until_ms is not None and issued_ms <= self._unsure_until_ms and not self.has_clock

    def to_keep_ms(self) -> int:
        """What of sled time should be kept durably now: ahead of what was kept plus uptime by LEAD_MS_MAX at most,
        until it has been so for HOLD_MS; all of it where nothing was kept before, or without a clock to go by."""
        run_on_ms = self._run_on_ms()
        now_ms, kept_ms = self.now_ms(), self._kept_ms + run_on_ms
        lead_ms = now_ms - kept_ms
        if lead_ms <= LEAD_MS_MAX:
            self._lead = None
            return now_ms
        if not self._kept_ms or not self.has_clock:
            return self.keep(now_ms)
        since_ms, least_ms = self._lead or (run_on_ms, lead_ms)
        self._lead = since_ms, min(least_ms, lead_ms)
        if run_on_ms - since_ms < HOLD_MS:
            return kept_ms + LEAD_MS_MAX
        return self.keep(kept_ms + self._lead[1])

    def keep(self, time_ms: int) -> int:
        """Time is never before `time_ms` again, which is being made durable; returns what is kept now."""
        run_on_ms = self._run_on_ms()
        self._kept_ms = max(self._kept_ms, min(time_ms, TIME_MS_MAX) - run_on_ms)
        self._lead = None
        return self._kept_ms + run_on_ms

    def rtc_ahead_of(self, time_ms: int) -> int:
        """By how much the machine's clock is ahead of a statement of time: 0 for one that is right or behind."""
        rtc_ms = self._clock.wall_ms()
        return rtc_ms - time_ms if time_ms + LEAD_MS_MAX < rtc_ms <= TIME_MS_MAX else 0

    def state(self, time_ms: int, rtc_ahead_ms: int) -> None:
        """The root key says that it is `time_ms` now, whatever was kept, learnt or shown by the clock."""
        self._kept_ms = time_ms - self._run_on_ms()
        self._learned_ms = 0
        self._lead = self._unsure_until_ms = None
        self.newest_issued_ms = time_ms
        self.rtc_ahead_ms = rtc_ahead_ms

    def _run_on_ms(self) -> int:
        return (self._clock.boottime_ns() - self._base_ns) // NS_PER_MS

    @staticmethod
    def _goes(rtc_ms: int, kept_ms: int) -> bool:
        return rtc_ms >= RELEASED_MS and kept_ms - LEAD_MS_MAX <= rtc_ms <= TIME_MS_MAX
