"""How a flash is shown: a line that moves on a terminal, plain lines elsewhere, JSON lines for programs."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from enum import Enum
from typing import Any, Final, TextIO

from sled_board.errors import BoardError
from sled_board.flash_events import (
    Activated,
    AtPrompt,
    Chosen,
    Confirmed,
    Event,
    NothingToDo,
    Reported,
    Restarted,
    Sent,
    Verified,
)
from sled_board.printable import escaped
from sled_board.slots import Slot, Slots

from rackctl.errors import RackError, reason_of
from rackctl.output import bare, say

PLAIN_STEP: Final = 0.1
"""A plain line for each tenth of the image."""
JSON_STEP_S: Final = 0.5
BAR_COLUMNS: Final = 24


class Progress:
    """Shows events on `out` as they come; `clock` gives seconds."""

    def __init__(self, out: TextIO, clock: Callable[[], float], *, as_json: bool) -> None:
        self._out = out
        self._clock = clock
        self._json = as_json
        self._moving = out.isatty() and not as_json
        self._began_s: float | None = None
        self._shown = 0.0
        self._last: Sent | None = None
        self._open = False

    def show(self, event: Event) -> None:
        """Show one."""
        if isinstance(event, Sent):
            self._sent(event)
        elif self._json:
            self._print(json.dumps(as_facts(event)))
        else:
            self._print(escaped(_text(event)))

    def close(self) -> None:
        """End a line that is still moving."""
        if self._open:
            self._out.write("\n")
            self._out.flush()
            self._open = False

    def _sent(self, event: Sent) -> None:
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        whole = event.done_bytes == event.total_bytes
        if self._json:
            if event != self._last and (whole or now_s - self._shown >= JSON_STEP_S):
                self._shown, self._last = now_s, event
                self._print(json.dumps(as_facts(event)))
            return
        part = event.done_bytes / event.total_bytes
        line = f"{part:4.0%} {_rate(event, now_s - self._began_s)}"
        if self._moving:
            bar = "#" * int(part * BAR_COLUMNS)
            bare(self._out).write(f"\r[{bar:{BAR_COLUMNS}}] {line}\x1b[K")
            self._out.flush()
            self._open = True
        elif part >= self._shown + PLAIN_STEP or (whole and self._shown < 1.0):
            self._shown = 1.0 if whole else part
            self._print(line.strip())

    def _print(self, line: str) -> None:
        self.close()
        print(line, file=self._out, flush=True)


@contextlib.contextmanager
def failure_shown(*, as_json: bool) -> Iterator[None]:
    """For programs a failure is an event too, the last one; it is raised all the same."""
    try:
        yield
    except (BoardError, RackError, OSError) as error:
        if as_json:
            say(json.dumps({"event": "failed", "reason": reason_of(error), "why": str(error)}))
        raise


def as_facts(event: Event) -> dict[str, Any]:
    """An event as JSON has it: its kind and its fields."""
    if isinstance(event, Reported):
        return {"event": "reported", "stage": event.event, "fields": dict(event.fields)}
    kind = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__).lstrip("-")
    return {"event": kind} | {field.name: _plain(getattr(event, field.name)) for field in fields(event)}


def _plain(value: Any) -> Any:
    if isinstance(value, Slots):
        return {slot.value: value[slot].state.value for slot in Slot}
    return value.value if isinstance(value, Enum) else value


def _rate(event: Sent, seconds: float) -> str:
    """Rate and time left, of what was really sent."""
    sent = event.done_bytes - event.skipped_bytes
    kept = f", {event.skipped_bytes / 1024:.0f} KiB were there" if event.skipped_bytes else ""
    done = f"{event.done_bytes / 1024:.0f} of {event.total_bytes / 1024:.0f} KiB"
    if sent <= 0 or seconds <= 0:
        return done + kept
    rate = sent / seconds
    left_s = round((event.total_bytes - event.done_bytes) / rate)
    return f"{done}, {rate / 1024:.1f} KiB/s, {left_s // 60}:{left_s % 60:02} left{kept}"


def _text(event: Event) -> str:
    match event:
        case AtPrompt(release, baud):
            return f"U-Boot {release} at {baud} baud"
        case Chosen(slot, before):
            states = ", ".join(f"{each.value} {before[each].state.value}" for each in Slot)
            return f"slots: {states}; the image goes to {slot.value}"
        case Verified(slot, crc32):
            return f"slot {slot.value}: read back and verified, CRC-32 {crc32:08x}"
        case Activated(slot):
            return f"slot {slot.value}: to be started next"
        case NothingToDo(slot):
            return f"slot {slot.value}: has this image already, confirmed"
        case Restarted():
            return "the board starts"
        case Reported(name, pairs):
            return f"board: {name} " + " ".join(f"{key}={value}" for key, value in pairs)
        case Confirmed(slot):
            return f"slot {slot.value}: healthy and confirmed"
        case Sent():
            raise AssertionError("shown as progress")
