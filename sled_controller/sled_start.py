"""Which start of a sled one speaks with: a number that only rises, and random bytes that no other start has.

A boot counter that went back, or comes a second time, is that of a sled whose devices and state directory were both put
back to what they were (a restored machine, an image): it may have forgotten fences that it vouched for (F2).
"""

from dataclasses import dataclass
from typing import Final

BOOT_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SledStart:
    """A start of a sled. `boot_id` is empty where only the number is known, `boot_counter` 0 where nothing is."""

    boot_counter: int = 0
    boot_id: bytes = b""

    def went_back(self, now: "SledStart") -> str:
        """What is wrong with a start `now` when this one was seen before; empty when it may come after this one."""
        if now.boot_counter < self.boot_counter:
            return f"its boot counter went back from {self.boot_counter} to {now.boot_counter}"
        same = now.boot_counter == self.boot_counter
        if same and self.boot_id and now.boot_id and now.boot_id != self.boot_id:
            return f"its boot counter {now.boot_counter} is that of another start, too"
        return ""

    def is_after(self, other: "SledStart") -> bool:
        """Whether this is a later start, or says more of the same one."""
        return (self.boot_counter, bool(self.boot_id)) > (other.boot_counter, bool(other.boot_id))


UNKNOWN_START: Final = SledStart()
