"""Which image is started: the slot that the state names, if its image verifies, with the attempt counted before.

Nothing that goes wrong with the storage ends this: what can still be started is, and the rest is recovery.
"""

import logging
from dataclasses import replace
from typing import Final, NamedTuple

from sled_board.errors import ImageError, SlotStateLost
from sled_board.firmware_store import FirmwareStore
from sled_board.image import Image, KeySet
from sled_board.slots import Slot, SlotRecord, Slots, SlotState

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """What is to be started, verified."""

    slot: Slot
    image: Image


READS_MAX: Final = 3
"""Of the slot state before it counts as unreadable: a medium may fail once."""


class Choice:
    """The slot state as the stage knows it.

    What cannot be kept is known until the stage ends, and said; where the state cannot be read, nothing is written over
    it.
    """

    def __init__(self, store: FirmwareStore) -> None:
        self._store = store
        self._known: Slots | None = None
        """The state where the storage does not have it, or does not give it."""
        self._unreadable = False

    def next(self, *, watchdog: bool) -> Chosen | None:
        """What to start now, or None: recovery. `watchdog`: a watchdog ended what was started last."""
        slots = self._load()
        while True:
            if (other := slots.giving_way) is not None:
                slots = self._looked_at(slots, other)
            slots, slot = slots.start(watchdog=watchdog)
            watchdog = False
            kept = self._keep(slots)
            if slot is None:
                return None
            if not kept and slots[slot].state is SlotState.TEST and slots[slot.other].state is SlotState.CONFIRMED:
                # Forgotten attempts would have it tried for ever, and there is one that is known to do.
                slots = self._reject(slots, slot, "its attempt cannot be counted")
                continue
            try:
                return Chosen(slot, self._store.loaded(slot, slots))
            except (ImageError, OSError) as error:
                slots = self._reject(slots, slot, str(error))

    def healthy(self, chosen: Chosen) -> None:
        """What was started is well: it is in use from now on."""
        slots = self._load()
        newest = self._store.trust(slots).newest_key_set(chosen.image)
        self._keep(slots.confirm(chosen.slot, newest))
        log.info("event=confirmed slot=%s version=%s", chosen.slot.value, chosen.image.version)

    def unhealthy(self, chosen: Chosen, reason: str) -> None:
        """What was started is not well. An image in test is given up if there is another one; otherwise its attempt is
        counted already."""
        slots = self._load()
        if slots[chosen.slot].state is SlotState.TEST and slots.has_other(chosen.slot):
            self._reject(slots, chosen.slot, reason)

    def ended_in_order(self, chosen: Chosen) -> None:
        """What was started has ended because it was told to, or asked to be started anew."""
        self._keep(self._load().end_in_order(chosen.slot))

    @property
    def slots(self) -> Slots:
        """The state, for reports."""
        return self._load()

    def _reject(self, slots: Slots, slot: Slot, reason: str) -> Slots:
        log.error("event=rejected slot=%s version=%s reason=%s", slot.value, slots[slot].version, reason)
        rejected = slots.reject(slot)
        self._keep(rejected)
        return rejected

    def _looked_at(self, slots: Slots, slot: Slot) -> Slots:
        """The state without this slot if its image does not verify."""
        try:
            self._store.verified(slot, slots)
        except (ImageError, OSError) as error:
            return self._reject(slots, slot, str(error))
        return slots

    def _load(self) -> Slots:
        if self._known is not None and not self._unreadable:
            return self._known
        try:
            slots = self._read()
        except SlotStateLost as error:
            log.error("event=slot_state_lost reason=%s", error)
            self._unreadable = False
            return self._anew(rebuilt(self._store))
        except OSError as error:
            log.error("event=slot_state_unreadable reason=%s", error)
            if self._known is None:
                self._known = rebuilt(self._store)
            self._unreadable = True
            return self._known
        self._unreadable, self._known = False, None
        if slots == Slots() and (found := rebuilt(self._store)) != slots:
            log.warning("event=slot_state_absent")  # a first state that a power loss cut off looks like a new board's
            return self._anew(found)
        return slots

    def _read(self) -> Slots:
        for _ in range(READS_MAX - 1):
            try:
                return self._store.load()
            except OSError as error:
                log.warning("event=slot_state_unreadable reason=%s", error)
        return self._store.load()

    def _anew(self, slots: Slots) -> Slots:
        self._known = slots
        try:
            self._store.state.renew(slots)
            self._known = None if self._store.load() == slots else slots
        except (OSError, SlotStateLost) as error:
            log.error("event=slot_state_not_kept reason=%s", error)
        return slots

    def _keep(self, slots: Slots) -> bool:
        if self._unreadable:
            self._known = slots  # a guess: what the storage has is worth more, and may be readable again
            return False
        try:
            self._store.state.keep(slots)
        except (OSError, SlotStateLost) as error:
            log.error("event=slot_state_not_kept reason=%s", error)
            self._known = slots
            return False
        self._known = None
        return True


def rebuilt(store: FirmwareStore) -> Slots:
    """A state for slots whose own is lost, from the images that verify: none is confirmed, the one built last is tried.

    The highest counter and the newest key set among them count as seen, so that nothing older than these comes back.
    """
    sets = [image.key_set for image in _verified(store, Slots()).values() if image.key_set is not None]
    newest = max(sets, key=lambda data: KeySet.open(data, store.root_public).version, default=b"")
    # Again under the newest set: an image whose keys were taken out since says nothing of generations, either.
    images = _verified(store, Slots(key_set=newest))
    slots = Slots()
    for slot, image in images.items():
        record = SlotRecord(SlotState.INACTIVE, 0, image.counter, image.id, image.version)
        slots = replace(slots, a=record) if slot is Slot.A else replace(slots, b=record)
    if not images:
        return slots
    slots = replace(slots, counter_min=max(image.counter for image in images.values()), key_set=newest)
    eligible = [slot for slot in images if images[slot].counter >= slots.counter_min]
    return slots.activate(max(eligible, key=lambda slot: images[slot].built_s))


def _verified(store: FirmwareStore, slots: Slots) -> dict[Slot, Image]:
    images: dict[Slot, Image] = {}
    for slot in Slot:
        try:
            images[slot] = store.verified(slot, slots)
        except (ImageError, OSError) as error:
            log.warning("event=slot_not_usable slot=%s reason=%s", slot.value, error)
    return images
