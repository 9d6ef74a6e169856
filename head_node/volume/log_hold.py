"""What a primary's log keeps for members that catch up, and how fast clients may write meanwhile.

A member that was away longer than the log lasts gets a checkpoint and then what follows it. Under load that is trimmed
before the checkpoint has arrived, and it would begin again, for ever. So the log is held from the checkpoint's position
on, up to a bound of its own. When half of it is used, clients get half of the bytes that the member takes, until it has
caught up: it gains on them, and they are slowed smoothly instead of being stopped. A member that does not get on loses
the hold when the bound is reached. Bookkeeping alone: nothing here waits, reads or writes.
"""

from typing import Final
from uuid import UUID

CLIENT_SHARE: Final = 2
"""Clients get one byte for so many that the slowest member takes."""
FLOOR_BYTES_PER_S: Final = 4 << 20
"""Clients get this much in any case: a member that is slower loses the hold rather than stop the volume."""
CREDIT_BYTES_MAX: Final = 2 << 20
"""What is not used is not saved up, or clients would write in bursts."""
NS_PER_S: Final = 1_000_000_000


class LogHold:
    """Holders by head, each with the oldest opnum that it still needs."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._needs: dict[UUID, int] = {}
        self._credit_bytes = 0
        self.throttled = False
        """Whether clients are slowed now."""
        self.given_up_count = 0

    @property
    def oldest(self) -> int | None:
        """The oldest opnum that is to be kept; None without a holder."""
        return min(self._needs.values(), default=None)

    def keep(self, holder: UUID, opnum: int, taken_bytes: int = 0) -> None:
        """Keep what follows from `opnum` on for `holder`, which has taken so many bytes since it was last said."""
        slowest = self._needs.get(holder, opnum) == self.oldest
        self._needs[holder] = opnum
        if slowest:
            self._credit(taken_bytes // CLIENT_SHARE)

    def release(self, holder: UUID) -> bool:
        """`holder` has caught up, or is gone; whether it had held anything."""
        held = self._needs.pop(holder, None) is not None
        if not self._needs:
            self.throttled = False
        return held

    def clear(self) -> None:
        """This head is primary no longer."""
        self._needs.clear()
        self.throttled = False

    def measured(self, held_bytes: int) -> bool:
        """The log is so much longer than it would be without the holders. True: the bound is reached, and they have
        lost their hold."""
        if not self._needs:
            return False
        if held_bytes > self._bytes_max:
            return self.give_up()
        if held_bytes > self._bytes_max // 2 and not self.throttled:
            self.throttled, self._credit_bytes = True, 0
        return False

    def give_up(self) -> bool:
        """The holders lose their hold; whether there were any."""
        held = bool(self._needs)
        self.given_up_count += len(self._needs)
        self.clear()
        return held

    def passed(self, elapsed_ns: int) -> None:
        """Time has passed."""
        self._credit(FLOOR_BYTES_PER_S * elapsed_ns // NS_PER_S)

    def admits(self) -> bool:
        """Whether clients may write now. A write may be larger than the credit, which is then owed."""
        return not self.throttled or self._credit_bytes > 0

    def spent(self, length: int) -> None:
        """A client's write was let in."""
        if self.throttled:
            self._credit_bytes -= length

    def _credit(self, length: int) -> None:
        self._credit_bytes = min(self._credit_bytes + length, CREDIT_BYTES_MAX)
