"""The console of a board that has nothing left to start: what its slots hold, and another try with one of them."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sled_board.console.log_tail import LogTail
from sled_board.console.session import Command, ConsoleSession
from sled_board.console.slot_lines import slot_lines
from sled_board.errors import BoardError, CommandNotDone
from sled_board.firmware_store import FirmwareStore
from sled_board.slots import Slot, Slots, SlotState

PROMPT: Final = "recovery"
_SLOTS: Final = {slot.value: slot for slot in Slot}


class RecoveryConsole:
    """`restart` ends the program, so that the base system runs the stage again."""

    def __init__(self, store: FirmwareStore, restart: Callable[[], None]) -> None:
        self._store = store
        self._restart = restart
        self._started_s = time.monotonic()

    def session(self, tail: LogTail) -> ConsoleSession:
        """A console that has every command."""
        return ConsoleSession(PROMPT, [
            Command("status", "what it does", self._status),
            Command("identity", "what board it is, and whom it believes", self._who),
            tail.command,
            Command("slots", "read and verify the images in the slots", self._verify),
            Command("retry", "verify the image in a slot and start it, given up or not", self._retry, "a|b", 1),
            Command("restart", "look again for something to start", self._restarted),
        ])  # fmt: skip

    def _status(self, words: Sequence[str]) -> Iterable[str]:
        try:
            slots = slot_lines(self._store.load())
        except (BoardError, OSError) as error:
            slots = [f"slot_state=unreadable: {error}"]
        return ("state=recovery", *slots, f"uptime_s={int(time.monotonic() - self._started_s)}")

    def _who(self, words: Sequence[str]) -> Iterable[str]:
        return (
            f"hardware={self._store.hardware}",
            f"python={self._store.python}",
            f"firmware_root_key={self._store.root_public.hex()}",
            f"locked={'yes' if self._store.locked else 'no'}",
        )

    def _verify(self, words: Sequence[str]) -> Iterable[str]:
        slots = self._store.load()
        lines = slot_lines(slots)
        for slot in Slot:
            try:
                image = self._store.verified(slot, slots)
            except (BoardError, OSError) as error:
                lines.append(f"image_{slot.value}=unusable: {error}")
            else:
                lines.append(f"image_{slot.value}=verified {image.version} {image.id}")
        return lines

    def _retry(self, words: Sequence[str]) -> Iterable[str]:
        slot = _SLOTS.get(words[0]) if words else None
        if slot is None:
            raise CommandNotDone("name a slot: retry a|b")
        slots = self._store.change(lambda slots: self._again(slots, slot))
        self._restart()
        return (f"slot_{slot.value}={slots[slot].state.value}", "restarting=yes")

    def _again(self, slots: Slots, slot: Slot) -> Slots:
        """The slot is to be started next. One that was given up is taken for what its image is: freshly stored."""
        image = self._store.verified(slot, slots)
        if slots[slot].state in (SlotState.BAD, SlotState.EMPTY):
            slots = slots.erase(slot).store(
                slot, image_id=image.id, version=image.version, counter=image.counter
            )  # fmt: skip
        return slots.activate(slot)

    def _restarted(self, words: Sequence[str]) -> Iterable[str]:
        self._restart()
        return ("restarting=yes",)
