"""A board's firmware as a whole: the slot state, both slots, and whom the board believes.

The stage and the sled controller open the same one, by a TOML file that whoever sets the board up has written
(docs/firmware-slots.md).
"""

import json
import platform
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from sled_board.errors import DamagedImage, FirmwareStoreUnusable
from sled_board.image import IMAGE_START_BYTES, Image, Trust, image_bytes, read_image
from sled_board.image.fit import Buffer
from sled_board.region import Region
from sled_board.slot_store import COPY_BYTES, SlotStore
from sled_board.slots import Slot, Slots

PUBLIC_BYTES: Final = 32
THIS_PYTHON: Final = f"cp{sys.version_info.major}{sys.version_info.minor}"
"""The tag of the running interpreter (PEP 425)."""
MACHINES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}
"""What Linux, and wheels, call what U-Boot calls an architecture: those that images are built for."""
THIS_ARCHITECTURE: Final = next(
    (name for name, machine in MACHINES.items() if machine == platform.machine()), platform.machine()
)
"""Of this machine, as U-Boot calls it."""


@dataclass(frozen=True, slots=True)
class FirmwareStore:
    """`root_public` (32 raw bytes) signs the sets of firmware keys; on a `locked` board development keys do not count;
    `architecture` (as U-Boot calls it) and `python` (its tag, PEP 425) are what applications are run by.

    Everything here reads and writes the board's storage, waits for it, and raises OSError when that fails.
    """

    hardware: str
    architecture: str
    python: str
    root_public: bytes
    locked: bool
    state_area: Region
    slot_a: Region
    slot_b: Region
    state: SlotStore = field(init=False)
    """Two copies, at the start and in the middle of their area."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", SlotStore(self.state_area, (0, self.state_area.size // 2)))

    @classmethod
    def open(cls, path: Path) -> "FirmwareStore":
        """The store that a TOML file describes; raises FirmwareStoreUnusable. Nothing of the store is read yet."""
        try:
            described = _Description(path, tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise FirmwareStoreUnusable(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise FirmwareStoreUnusable(f"{path}: is not TOML: {error}") from None
        root_public = described.value("root_public_key", str)
        try:
            root = bytes.fromhex(root_public)
        except ValueError:
            root = b""
        if len(root) != PUBLIC_BYTES:
            raise FirmwareStoreUnusable(f"{path}: root_public_key: is not 64 hexadecimal digits")
        state = described.region("state")
        if state.size // 2 < COPY_BYTES:
            raise FirmwareStoreUnusable(f"{path}: state: size: two copies need {2 * COPY_BYTES} bytes at least")
        regions = {"state": state, "slot_a": described.region("slot_a"), "slot_b": described.region("slot_b")}
        for (one, first), (other, second) in combinations(regions.items(), 2):
            if first.overlaps(second):
                raise FirmwareStoreUnusable(f"{path}: {other}: overlaps {one}")
        return cls(
            described.value("hardware", str),
            described.value("architecture", str, THIS_ARCHITECTURE),
            described.value("python", str, THIS_PYTHON),
            root,
            described.value("locked", bool),
            *regions.values(),
        )

    def described(self, path: Callable[[Path], str]) -> str:
        """The TOML that `open` reads; `path` gives the name by which the reader finds the file of a region."""
        values: dict[str, str | bool] = {
            "hardware": self.hardware, "architecture": self.architecture, "python": self.python,
            "root_public_key": self.root_public.hex(), "locked": self.locked,
        }  # fmt: skip
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]  # TOML has JSON's texts
        for key, region in (("state", self.state_area), ("slot_a", self.slot_a), ("slot_b", self.slot_b)):
            place = f"path = {json.dumps(path(region.path))}, offset = {region.offset}, size = {region.size}"
            lines.append(f"{key} = {{ {place} }}")
        return "\n".join(lines) + "\n"

    @property
    def slot_bytes(self) -> int:
        """The longest image that either slot takes."""
        return min(self.slot_a.size, self.slot_b.size)

    def region(self, slot: Slot) -> Region:
        """Where the image of a slot lies, from its first byte."""
        return self.slot_a if slot is Slot.A else self.slot_b

    def load(self) -> Slots:
        """The slot state; raises SlotStateLost."""
        return self.state.load()

    def change(self, change: Callable[[Slots], Slots]) -> Slots:
        """Keep what `change` makes of the slot state; raises SlotStateLost, and what `change` raises."""
        return self.state.change(change)

    def trust(self, slots: Slots) -> Trust:
        """Whom the board believes in this state."""
        return Trust(self.root_public, slots.key_set or None, self.locked)

    def image_bytes(self, slot: Slot) -> int:
        """How long the image is that begins in the slot; raises DamagedImage."""
        told = image_bytes(self.region(slot).read(0, IMAGE_START_BYTES))
        if told > self.region(slot).size:
            raise DamagedImage(f"it announces {told} bytes, the slot has {self.region(slot).size}")
        return told

    def verified(self, slot: Slot, slots: Slots) -> Image:
        """The image in a slot, whole, signed, for this board, its processor and its Python, and not too old.
        This is where trust is decided: nothing is started, stored or activated without it. Raises ImageError.

        The slot is read where it lies and not held in memory; the image is a view of it.
        """
        return self._checked(self.region(slot).mapped(self.image_bytes(slot)), slots)

    def loaded(self, slot: Slot, slots: Slots) -> Image:
        """The same, of bytes that were read once into memory: what is checked is what is started, whatever becomes of
        the slot meanwhile."""
        return self._checked(self.region(slot).read(0, self.image_bytes(slot)), slots)

    def installed(self, slot: Slot, data: Buffer, slots: Slots) -> Slots:
        """`slots`, in which the slot is empty, with this image in it and to be started next; it is for the caller to
        keep them. Raises ImageError, with nothing lost but what was in the slot."""
        if len(data) > self.region(slot).size:
            raise DamagedImage(f"it has {len(data)} bytes, the slot {self.region(slot).size}")
        self.region(slot).write(0, data)
        image = self.verified(slot, slots)
        stored = slots.store(slot, image_id=image.id, version=image.version, counter=image.counter)
        return stored.activate(slot)

    def _checked(self, data: Buffer, slots: Slots) -> Image:
        image = read_image(data)
        self.trust(slots).check(image, hardware=self.hardware, counter_min=slots.counter_min)
        image.check_startable(architecture=self.architecture, python=self.python)
        return image


class _Description:
    """A parsed TOML file; what is wrong in it is said with its key."""

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self._path = path
        self._values = values
        self._prefix = prefix

    def value(self, key: str, kind: type[Any], otherwise: Any = None) -> Any:
        found = self._values.get(key, otherwise)
        if type(found) is not kind:
            raise FirmwareStoreUnusable(f"{self._path}: {self._prefix}{key}: is missing, or no {kind.__name__}")
        return found

    def region(self, key: str) -> Region:
        table = _Description(self._path, self.value(key, dict), f"{key}.")
        offset, size = table.value("offset", int), table.value("size", int)
        if offset < 0 or size <= 0:
            raise FirmwareStoreUnusable(f"{self._path}: {key}: offset or size is no length in bytes")
        return Region(self._path.parent / table.value("path", str), offset, size)
