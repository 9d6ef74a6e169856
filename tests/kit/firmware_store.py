"""A board's firmware store in a directory: a small state area and two slots, empty or with an image in use."""

from dataclasses import dataclass
from pathlib import Path

from kit import firmware
from sled_board.firmware_store import FirmwareStore
from sled_board.slot_store import COPY_BYTES
from sled_board.slots import Slot, Slots

SLOT_BYTES = 1 << 20


@dataclass(frozen=True)
class Board:
    """The store, and the file that describes it."""

    path: Path
    store: FirmwareStore

    @property
    def slots(self) -> Slots:
        return self.store.load()

    def write(self, slot: Slot, data: bytes) -> None:
        """Put bytes into a slot, and nothing into the state."""
        self.store.region(slot).write(0, data)

    def install(self, slot: Slot, data: bytes) -> None:
        """Put an image into a slot, to be started next."""
        self.store.change(lambda slots: slots.erase(slot))
        self.write(slot, data)
        slots = self.slots
        image = self.store.verified(slot, slots)
        self.store.change(
            lambda slots: slots.store(
                slot, image_id=image.id, version=image.version, counter=image.counter
            ).activate(slot)
        )  # fmt: skip

    def use(self, data: bytes) -> None:
        """Slot A runs this image, and it was found healthy."""
        self.install(Slot.A, data)
        self.store.change(lambda slots: slots.start()[0].confirm(Slot.A))


def board(folder: Path, *, locked: bool = True, slot_bytes: int = SLOT_BYTES) -> Board:
    """An empty store in `folder`."""
    for name, size in (("state", 2 * COPY_BYTES), ("slot-a", slot_bytes), ("slot-b", slot_bytes)):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    path = folder / "firmware.toml"
    path.write_text(described(locked=locked, slot_bytes=slot_bytes), encoding="utf-8")
    return Board(path, FirmwareStore.open(path))


def described(*, locked: bool = True, slot_bytes: int = SLOT_BYTES) -> str:
    """The TOML of such a store."""
    return f"""hardware = "{firmware.HARDWARE}"
python = "cp311"
root_public_key = "{firmware.ROOT.public.hex()}"
locked = {str(locked).lower()}
state = {{ path = "state", offset = 0, size = {2 * COPY_BYTES} }}
slot_a = {{ path = "slot-a", offset = 0, size = {slot_bytes} }}
slot_b = {{ path = "slot-b", offset = 0, size = {slot_bytes} }}
"""
