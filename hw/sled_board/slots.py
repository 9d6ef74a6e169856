"""Which of a board's two firmware slots is started: states, boot attempts, roll back. Pure: values in, values out.

A board has slots A and B. One of them holds the image that is in use; a new one goes to the other, is tried, and is
confirmed or rolled back. `TRANSITIONS` is the life of a slot; `Slots` are both of them and what they share. Nothing
here reads or writes: `slot_store` keeps `Slots`, the stage and the flasher act on them (docs/firmware-slots.md).
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from sled_board.errors import SlotRefused

ATTEMPTS: Final = 3
"""Starts that an image may fail in a row, by a failed health check or by never reporting, before it is given up."""


class Slot(Enum):
    """One of the two places for an image."""

    A = "a"
    B = "b"

    @property
    def other(self) -> "Slot":
        """The one that is not this one."""
        return Slot.B if self is Slot.A else Slot.A


class SlotState(Enum):
    """What is in a slot."""

    EMPTY = "empty"  # nothing, or a part of an image
    INACTIVE = "inactive"  # a whole image that is not asked for
    TEST = "test"  # to be started next, and not yet found healthy
    CONFIRMED = "confirmed"  # in use
    BAD = "bad"  # given up; only overwriting helps


class SlotEvent(Enum):
    """What happens to a slot."""

    ERASE = "erase"  # it is about to be overwritten
    STORE = "store"  # a whole image was written and read back
    ACTIVATE = "activate"  # start it next
    CONFIRM = "confirm"  # what was started from it is healthy
    RETIRE = "retire"  # the other one was confirmed
    REJECT = "reject"  # out of attempts, reset by the watchdog, or its image does not verify


TRANSITIONS: Final[dict[tuple[SlotState, SlotEvent], SlotState]] = {
    (SlotState.EMPTY, SlotEvent.ERASE): SlotState.EMPTY,
    (SlotState.EMPTY, SlotEvent.STORE): SlotState.INACTIVE,
    (SlotState.EMPTY, SlotEvent.RETIRE): SlotState.EMPTY,
    (SlotState.INACTIVE, SlotEvent.ERASE): SlotState.EMPTY,
    (SlotState.INACTIVE, SlotEvent.ACTIVATE): SlotState.TEST,
    (SlotState.INACTIVE, SlotEvent.RETIRE): SlotState.INACTIVE,
    (SlotState.INACTIVE, SlotEvent.REJECT): SlotState.BAD,
    (SlotState.TEST, SlotEvent.ERASE): SlotState.EMPTY,
    (SlotState.TEST, SlotEvent.ACTIVATE): SlotState.TEST,
    (SlotState.TEST, SlotEvent.CONFIRM): SlotState.CONFIRMED,
    (SlotState.TEST, SlotEvent.RETIRE): SlotState.INACTIVE,
    (SlotState.TEST, SlotEvent.REJECT): SlotState.BAD,
    (SlotState.CONFIRMED, SlotEvent.ACTIVATE): SlotState.CONFIRMED,
    (SlotState.CONFIRMED, SlotEvent.CONFIRM): SlotState.CONFIRMED,
    (SlotState.CONFIRMED, SlotEvent.RETIRE): SlotState.INACTIVE,
    (SlotState.CONFIRMED, SlotEvent.REJECT): SlotState.BAD,
    (SlotState.BAD, SlotEvent.ERASE): SlotState.EMPTY,
    (SlotState.BAD, SlotEvent.RETIRE): SlotState.BAD,
}


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What is known of one slot; `counter`, `image_id` and `version` are those of its image, unknown when empty."""

    state: SlotState = SlotState.EMPTY
    attempts_left: int = 0
    counter: int = 0
    """Rollback counter of the image, an unsigned 32-bit integer."""
    image_id: str = ""
    """SHA-256 of the signed part of the image, in hexadecimal."""
    version: str = ""
    """Semantic version of the image."""


EMPTY: Final = SlotRecord()


@dataclass(frozen=True, slots=True)
class Slots:
    """Both slots. Every method gives the state that follows and raises SlotRefused where `TRANSITIONS` has none.

    `active` is the slot that was started last, None before the first start. `counter_min` is the lowest rollback
    counter that may still be started: that of the newest generation ever confirmed here. `key_set` is the newest
    signed set of firmware keys that came with a confirmed image, empty before the first one.
    """

    a: SlotRecord = EMPTY
    b: SlotRecord = EMPTY
    active: Slot | None = None
    counter_min: int = 0
    key_set: bytes = b""

    def __getitem__(self, slot: Slot) -> SlotRecord:
        return self.a if slot is Slot.A else self.b

    # --- what may be done

    @property
    def spare(self) -> Slot:
        """Where the next image goes: never over a confirmed one, and rather over one that is no use."""
        return min(Slot, key=lambda slot: (_LOSS[self[slot].state], slot is self.active, slot.value))

    @property
    def settled(self) -> bool:
        """Whether what runs was found healthy in this start: only then may the other slot be overwritten or activated,
        and nobody else is about to change the state."""
        if self.active is None:
            return False
        running = self[self.active]
        return running.state is SlotState.CONFIRMED and running.attempts_left == ATTEMPTS

    @property
    def next(self) -> Slot | None:
        """What the next start takes, before attempts are looked at: the one in test, else the confirmed one, else an
        inactive one; None when nothing is left: recovery."""
        for state in (SlotState.TEST, SlotState.CONFIRMED, SlotState.INACTIVE):
            for slot in Slot:
                if self[slot].state is state and (state is not SlotState.INACTIVE or self._may_start(slot)):
                    return slot
        return None

    def has_other(self, slot: Slot) -> bool:
        """Whether there is another image that may be started: only then is one given up that verifies."""
        state = self[slot.other].state
        return state is SlotState.CONFIRMED or (state is SlotState.INACTIVE and self._may_start(slot.other))

    @property
    def giving_way(self) -> Slot | None:
        """The slot that the next start takes because the other one is out of attempts: worth a look whether it holds
        anything, before the other one is given up for it."""
        slot = self.next
        if slot is None or self[slot].attempts_left or self[slot].state is SlotState.INACTIVE:
            return None
        return slot.other if self.has_other(slot) else None

    # --- what happens

    def erase(self, slot: Slot) -> "Slots":
        """The slot is about to be overwritten: keep this before its first byte is."""
        self._after(slot, SlotEvent.ERASE)
        return self._with(slot, EMPTY)

    def store(self, slot: Slot, *, image_id: str, version: str, counter: int) -> "Slots":
        """A whole image is in the slot, verified as it lies there; an older generation is refused."""
        if counter < self.counter_min:
            raise SlotRefused(f"rollback counter {counter} is below {self.counter_min}, which this board has confirmed")
        state = self._after(slot, SlotEvent.STORE)
        return self._with(slot, SlotRecord(state, 0, counter, image_id, version))

    def activate(self, slot: Slot) -> "Slots":
        """Start it next, up to `ATTEMPTS` times; another one in test is not tried any more, which is all that this does
        where it is the confirmed one."""
        state = self._after(slot, SlotEvent.ACTIVATE)
        if not self._may_start(slot):
            raise SlotRefused(f"slot {slot.value}: its rollback counter is below {self.counter_min}")
        attempts_left = ATTEMPTS if state is SlotState.TEST else self[slot].attempts_left
        slots = self._with(slot, replace(self[slot], state=state, attempts_left=attempts_left))
        return slots._retire(slot.other) if self[slot.other].state is SlotState.TEST else slots

    def start(self, *, watchdog: bool = False) -> "tuple[Slots, Slot | None]":
        """A start: the slot to take, with the attempt counted, or None: recovery. Keep the state before going on.

        After `watchdog`, which says that the watchdog ended the last start, an image in test is given up at once. One
        that has failed `ATTEMPTS` times is given up only for another one that may be started; it is tried on where
        there is none: drives that are away, or a power supply that flaps, are not the fault of an image.
        """
        slots = self
        active = self.active
        if watchdog and active is not None and self[active].state is SlotState.TEST and self.has_other(active):
            slots = slots.reject(active)
        slot = slots.next
        if slot is not None and slots[slot].attempts_left == 0:
            slots = slots._out_of_attempts(slot)
            slot = slots.next
        if slot is None:
            return slots, None
        if slots[slot].state is SlotState.INACTIVE:
            slots = slots.activate(slot)
        counted = replace(slots[slot], attempts_left=slots[slot].attempts_left - 1)
        return replace(slots._with(slot, counted), active=slot), slot

    def confirm(self, slot: Slot, key_set: bytes | None = None) -> "Slots":
        """What was started from it is healthy: it is in use from now on, and no older generation ever again.

        `key_set` is the newest that is known now; None leaves the one that there is.
        """
        state = self._after(slot, SlotEvent.CONFIRM)
        confirmed = replace(self[slot], state=state, attempts_left=ATTEMPTS)
        return replace(
            self._with(slot, confirmed)._retire(slot.other),
            counter_min=max(self.counter_min, confirmed.counter),
            key_set=self.key_set if key_set is None else key_set,
        )

    def end_in_order(self, slot: Slot) -> "Slots":
        """What was started from it has ended because it was told to: that is no failed attempt of a confirmed image."""
        record = self[slot]
        if record.state is not SlotState.CONFIRMED or record.attempts_left >= ATTEMPTS:
            return self
        return self._with(slot, replace(record, attempts_left=record.attempts_left + 1))

    def reject(self, slot: Slot) -> "Slots":
        """It is given up: its image does not verify, or what was started from it is beyond hope."""
        return self._with(slot, replace(self[slot], state=self._after(slot, SlotEvent.REJECT), attempts_left=0))

    def _retire(self, slot: Slot) -> "Slots":
        return self._with(slot, replace(self[slot], state=self._after(slot, SlotEvent.RETIRE), attempts_left=0))

    def _out_of_attempts(self, slot: Slot) -> "Slots":
        if self[slot].state is SlotState.INACTIVE:
            return self
        if self.has_other(slot):
            return self.reject(slot)
        return self._with(slot, replace(self[slot], attempts_left=ATTEMPTS))

    def _may_start(self, slot: Slot) -> bool:
        return self[slot].counter >= self.counter_min

    def _after(self, slot: Slot, event: SlotEvent) -> SlotState:
        state = TRANSITIONS.get((self[slot].state, event))
        if state is None:
            raise SlotRefused(f"slot {slot.value} is {self[slot].state.value}: it cannot be {_PAST[event]}")
        return state

    def _with(self, slot: Slot, record: SlotRecord) -> "Slots":
        return replace(self, a=record) if slot is Slot.A else replace(self, b=record)


_LOSS: Final = {
    SlotState.EMPTY: 0,
    SlotState.BAD: 0,
    SlotState.INACTIVE: 1,
    SlotState.TEST: 2,
    SlotState.CONFIRMED: 3,
}
"""How little one would like to overwrite it."""

_PAST: Final = {
    SlotEvent.ERASE: "overwritten",
    SlotEvent.STORE: "filled",
    SlotEvent.ACTIVATE: "activated",
    SlotEvent.CONFIRM: "confirmed",
    SlotEvent.RETIRE: "retired",
    SlotEvent.REJECT: "given up",
}
