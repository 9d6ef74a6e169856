"""The firmware of a sled as NVMe shows it: slots 1 and 2, a download into the one that is not in use, commit.

Source: NVM Express Base 2.0, 3.11 (the process), 5.12 (Firmware Commit), 5.13 (Firmware Image Download) and 5.16.1.4
(the log). Pieces go to the slot as they come; the image is verified where it lies, at commit, as at every start.
"""

import logging
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from sled_board.errors import BoardError, ImageError, RolledBack, SlotRefused
from sled_board.firmware_store import FirmwareStore
from sled_board.flash_thread import Submit
from sled_board.slot_store import encode
from sled_board.slots import Slot, Slots, SlotState

from sled_controller.firmware.ranges import Ranges
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import Status

log = logging.getLogger(__name__)

REVISION_CHARS: Final = 8  # of a version in Identify Controller and in the log
SLOT_NUMBERS: Final = {1: Slot.A, 2: Slot.B}
_NUMBERS: Final = {slot: number for number, slot in SLOT_NUMBERS.items()}
_SHOWN: Final = (SlotState.INACTIVE, SlotState.TEST, SlotState.CONFIRMED)

Done = Callable[[Status], None]
"""How a command ended."""


class CommitAction(IntEnum):
    """The action of Firmware Commit; those for boot partitions, which a sled has not, are left out."""

    REPLACE = 0
    REPLACE_AND_ACTIVATE = 1
    ACTIVATE = 2
    ACTIVATE_NOW = 3  # with what was downloaded, where something was


class _Refused(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Download:
    """Pieces of one image from one host. `slot` is set by the storage's thread before any piece is written there."""

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.ranges = Ranges()
        self.slot: Slot | None = None
        self.failed = False


class FirmwareUpdate:
    """One sled's. `restart` asks for an orderly restart of the sled. But for the state once at the start, storage is
    waited for by `submit`'s thread only.

    One host at a time downloads; others are told to try again. A host that leaves takes its download along.
    """

    def __init__(self, store: FirmwareStore, submit: Submit, restart: Callable[[], None]) -> None:
        self._store = store
        self._submit = submit
        self._slots = Slots()  # and what cannot be read is not settled: nothing is taken then
        self._reading = False
        self._download: _Download | None = None
        self._restart = restart
        self._restarting = False
        self.unreadable = ""
        """Why the slot state cannot be read, if so; `slots` are then empty."""
        try:
            self._slots = store.load()
        except (OSError, BoardError) as error:
            self._cannot_read(error)

    # --- what is shown

    @property
    def hardware(self) -> str:
        """The board that images have to be for."""
        return self._store.hardware

    @property
    def revision(self) -> str:
        """Of what runs, as Identify Controller shows it; empty before a first start by the stage."""
        active = self.slots.active
        return "" if active is None else self._slots[active].version[:REVISION_CHARS]

    @property
    def active_slots(self) -> int:
        """AFI: the number of the slot that runs in bits 2:0, of the one that the next start takes in bits 6:4."""
        slots = self.slots
        running = 0 if slots.active is None else _NUMBERS[slots.active]
        following = slots.next
        return running | (0 if following in (None, slots.active) else _NUMBERS[following] << 4)

    @property
    def revisions(self) -> dict[int, str]:
        """By slot number, of the images that may be started."""
        slots = self.slots
        return {
            number: slots[slot].version[:REVISION_CHARS]
            for number, slot in SLOT_NUMBERS.items()
            if slots[slot].state in _SHOWN
        }

    @property
    def page(self) -> bytes:
        """Log page C3h: the whole slot state as it is kept, under sequence 0."""
        return encode(self.slots, 0)

    @property
    def slots(self) -> Slots:
        """As they were read last. Until they are settled the stage may change them, so that they are read again for
        whoever asks next; afterwards nobody else changes them."""
        if not self._slots.settled and not self._reading:
            self._reading = True
            found: list[Slots] = []

            def read(error: BaseException | None) -> None:
                self._reading = False
                if error is None:
                    (self._slots,) = found
                    self.unreadable = ""
                else:
                    self._cannot_read(error)

            self._submit(lambda: found.append(self._store.load()), read)
        return self._slots

    def _cannot_read(self, error: BaseException) -> None:
        if str(error) != self.unreadable:
            log.error("event=slot_state_unreadable reason=%s", error)
        self.unreadable = str(error)

    # --- commands

    def download(self, owner: object, offset: int, data: Buffer, done: Done) -> None:
        """Firmware Image Download: bytes from `offset` on; `data` belongs to this until `done`.

        Pieces may come in any order. One that overlaps is refused, but for the first: a host that sends that again
        begins anew.
        """
        end = offset + len(data)
        if not len(data) or end > self._store.slot_bytes:
            done(Status.INVALID_FIELD)
            return
        download = self._download
        if self._restarting or (download is not None and download.owner is not owner):
            done(Status.COMMAND_INTERRUPTED)
            return
        if download is None or (offset == 0 and download.ranges.overlaps(0, end)):
            download = self._download = _Download(owner)
            self._submit(lambda: self._begin(download), lambda error: self._begun(download, error))
        elif download.ranges.overlaps(offset, end):
            done(Status.OVERLAPPING_RANGE)
            return
        if not download.ranges.add(offset, end):
            done(Status.INVALID_FIELD)
            return
        self._submit(lambda: self._write(download, offset, data), lambda error: done(self._ended(download, error)))

    def commit(self, owner: object, number: int, action: int, done: Done) -> None:
        """Firmware Commit of slot `number` (0: the one that was downloaded to)."""
        download = self._download
        if self._restarting or (download is not None and download.owner is not owner):
            done(Status.COMMAND_INTERRUPTED)
            return
        if action not in set(CommitAction):
            done(Status.INVALID_FIELD)
            return
        self._download = None
        self._restarting = action == CommitAction.ACTIVATE_NOW  # what came in between could take its slot away
        outcome: list[Slots] = []

        def ended(error: BaseException | None) -> None:
            status = self._ended(download, error)
            if status is Status.SUCCESS:
                self._slots = outcome[0]
                log.info("event=firmware_committed action=%d slots=%s", action, _described(self._slots))
                if action in (CommitAction.REPLACE_AND_ACTIVATE, CommitAction.ACTIVATE):
                    status = Status.FIRMWARE_NEEDS_SUBSYSTEM_RESET
            done(status)
            self._restarting = self._restarting and status is Status.SUCCESS
            if self._restarting:
                self._restart()

        self._submit(lambda: outcome.append(self._commit(download, number, CommitAction(action))), ended)

    def reset(self, done: Done) -> None:
        """NVM Subsystem Reset: a restart, once what runs was found healthy. Before, each would be a failed attempt."""

        def ended(error: BaseException | None) -> None:
            done(self._ended(None, error))
            if error is None:
                self._restarting = True
                self._restart()

        self._submit(lambda: _require_settled(self._store.load()), ended)

    def forget(self, owner: object) -> None:
        """A host has left, or reset its controller: what it has downloaded is dropped."""
        if self._download is not None and self._download.owner is owner:
            log.warning("event=firmware_download_dropped")
            self._download = None

    # --- in the storage's thread

    def _begin(self, download: _Download) -> None:
        def erase(slots: Slots) -> Slots:
            _require_settled(slots)
            return slots.erase(slots.spare)

        slot = self._store.load().spare
        self._store.change(erase)
        download.slot = slot

    def _write(self, download: _Download, offset: int, data: Buffer) -> None:
        if download.slot is None:
            raise _Refused(Status.COMMAND_INTERRUPTED, "the slot could not be emptied")
        self._store.region(download.slot).write(offset, data)

    def _commit(self, download: _Download | None, number: int, action: CommitAction) -> Slots:
        slots = self._store.load()
        _require_settled(slots)
        if number and number not in SLOT_NUMBERS:
            raise _Refused(Status.FIRMWARE_SLOT_INVALID, f"there is no slot {number}")
        slot = SLOT_NUMBERS.get(number)
        if action in (CommitAction.REPLACE, CommitAction.REPLACE_AND_ACTIVATE) or (
            download is not None and action is CommitAction.ACTIVATE_NOW
        ):
            slots, slot = self._replaced(slots, download, slot)
        if slot is None:
            raise _Refused(Status.FIRMWARE_SLOT_INVALID, "no slot is named")
        if action is not CommitAction.REPLACE:
            self._verify_stored(slots, slot)
            slots = slots.activate(slot)
        self._store.state.keep(slots)
        return slots

    def _replaced(self, slots: Slots, download: _Download | None, wanted: Slot | None) -> tuple[Slots, Slot]:
        if download is None or download.slot is None or download.failed:
            raise _Refused(Status.FIRMWARE_IMAGE_INVALID, "nothing was downloaded")
        slot = download.slot
        if wanted not in (None, slot):
            raise _Refused(Status.FIRMWARE_SLOT_INVALID, f"slot {_NUMBERS[slot]} is the one that may be replaced")
        needed = self._store.image_bytes(slot)
        if not download.ranges.whole(needed):
            reason = f"bytes {download.ranges} were downloaded, of an image of {needed}"
            raise _Refused(Status.FIRMWARE_IMAGE_INVALID, reason)
        self._store.region(slot).sync()
        image = self._store.verified(slot, slots)
        return slots.store(slot, image_id=image.id, version=image.version, counter=image.counter), slot

    def _verify_stored(self, slots: Slots, slot: Slot) -> None:
        """Nothing is activated that would not start, however long ago it was stored."""
        if slots[slot].state is not SlotState.EMPTY:
            self._store.verified(slot, slots)

    # --- in the event loop

    def _begun(self, download: _Download, error: BaseException | None) -> None:
        if error is None:
            log.info("event=firmware_download slot=%s", download.slot and download.slot.value)
        else:
            status = self._ended(download, error)
            log.warning("event=firmware_download_refused status=%s", status.name)

    def _ended(self, download: _Download | None, error: BaseException | None) -> Status:
        if error is None:
            return Status.SUCCESS
        if download is not None:
            download.failed = True
            if download is self._download:
                self._download = None
        log.warning("event=firmware_refused reason=%s", error)
        if isinstance(error, _Refused):
            return error.status
        if isinstance(error, RolledBack):
            return Status.FIRMWARE_PROHIBITED
        if isinstance(error, ImageError | SlotRefused):
            return Status.FIRMWARE_IMAGE_INVALID
        return Status.INTERNAL_ERROR


def _require_settled(slots: Slots) -> None:
    """Until the stage has confirmed what runs, the other slot is the way back, and the state the stage's to change."""
    if not slots.settled:
        raise _Refused(Status.COMMAND_INTERRUPTED, "what runs is not confirmed yet; try again when it is")


def _described(slots: Slots) -> str:
    return " ".join(f"{slot.value}={slots[slot].state.value}:{slots[slot].version}" for slot in Slot)
