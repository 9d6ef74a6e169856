"""A board's firmware store in a directory: a small state area and two slots, empty or with an image in use."""

from dataclasses import dataclass
from pathlib import Path

from kit import firmware
from sled_board.firmware_store import FirmwareStore
from sled_board.region import Region
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
        self.store.change(lambda slots: self.store.installed(slot, data, slots))

    def use(self, data: bytes) -> None:
        """Slot A runs this image, and it was found healthy."""
        self.install(Slot.A, data)
        self.store.change(lambda slots: slots.start()[0].confirm(Slot.A))


def board(folder: Path, *, locked: bool = True, slot_bytes: int = SLOT_BYTES) -> Board:
    """An empty store in `folder`."""
    sizes = {"state": 2 * COPY_BYTES, "slot-a": slot_bytes, "slot-b": slot_bytes}
    regions = [Region(folder / name, 0, size) for name, size in sizes.items()]
    for region in regions:
        with region.path.open("wb") as file:
            file.truncate(region.size)
    path = folder / "firmware.toml"
    store = FirmwareStore(firmware.HARDWARE, firmware.ARCHITECTURE, "cp311", firmware.ROOT.public, locked, *regions)
    path.write_text(store.described(lambda file: file.name), encoding="utf-8")
    return Board(path, FirmwareStore.open(path))
