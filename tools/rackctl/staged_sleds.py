"""Emulated sleds that run from firmware slots, as boards do: a store of files for each, and who may update them."""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sled_board.durable import open_new
from sled_board.errors import ImageError
from sled_board.firmware_store import THIS_ARCHITECTURE, THIS_PYTHON, FirmwareStore
from sled_board.image import Trust, read_image
from sled_board.region import Region
from sled_board.slot_store import COPY_BYTES
from sled_board.slots import Slot

from rackctl.errors import RackError
from rackctl.files import create_file
from sled_controller.environment import SystemEntropy
from sled_controller.fabric.dhchap.secret import Secret
from sled_controller.firmware.host import ManagementHost
from sled_controller.firmware.management import ManagementHosts

HARDWARE: Final = "emulated-sled"
"""The board that an image for emulated sleds is for."""
SLOT_BYTES: Final = 128 << 20  # sparse
START_SECONDS: Final = 20.0
CHECK_SECONDS: Final = 0.5
"""Short ones: an emulated sled is up in a second."""
_MANAGERS: Final = "managers.toml"
_STORE: Final = "firmware.toml"


@dataclass(frozen=True, slots=True)
class SledFirmware:
    """What new sleds are given: a signed image, and the public half of the key that signs sets of firmware keys."""

    image: bytes
    root_public: bytes

    def check(self) -> None:
        """Raises RackError when no sled would start it."""
        try:
            image = read_image(self.image)
            image.check_startable(architecture=image.architecture)
            Trust(self.root_public, locked=False).check(image, hardware=image.hardware[0])
        except ImageError as error:
            raise RackError(f"the sleds' firmware: {error}") from None
        if HARDWARE not in image.hardware:
            raise RackError(f"the sleds' firmware is for {', '.join(image.hardware)}: build it for {HARDWARE}")
        if image.architecture != THIS_ARCHITECTURE:
            raise RackError(f"the sleds' firmware is for {image.architecture}: build it for {THIS_ARCHITECTURE}")


def managers_file(directory: Path) -> Path:
    """The file of management hosts of the rack in `directory`; it is there if its sleds run from slots."""
    return directory / _MANAGERS


def make_manager(directory: Path) -> None:
    """Make up a management host for a new rack; raises RackError."""
    host, controller = (Secret.generate(SystemEntropy()).text() for _ in range(2))
    nqn = f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"
    text = f'[[host]]\nnqn = "{nqn}"\nsecret = "{host}"\ncontroller_secret = "{controller}"\n'
    create_file(managers_file(directory), text.encode(), mode=0o600)


def manager_of(path: Path) -> ManagementHost:
    """The first host in a file of management hosts; raises ManagementHostsUnusable."""
    hosts = ManagementHosts.read(path)
    nqn = hosts.nqns[0]
    terms = hosts.terms(nqn)
    assert terms is not None
    return ManagementHost(nqn, uuid.uuid5(uuid.NAMESPACE_URL, nqn), terms)


def store_of(state_dir: Path) -> Path:
    """The description of a sled's firmware store."""
    return state_dir / "firmware" / _STORE


def equip(state_dir: Path, firmware: SledFirmware) -> None:
    """Make a new sled's store, with the image to be started; raises RackError and ImageError."""
    path = store_of(state_dir)
    path.parent.mkdir(mode=0o700, parents=True)
    sizes = {"state": 2 * COPY_BYTES, "slot_a": SLOT_BYTES, "slot_b": SLOT_BYTES}
    regions = [Region(path.parent / name, 0, size) for name, size in sizes.items()]
    for region in regions:
        with os.fdopen(open_new(region.path), "wb") as file:
            file.truncate(region.size)
    store = FirmwareStore(HARDWARE, THIS_ARCHITECTURE, THIS_PYTHON, firmware.root_public, False, *regions)
    store.change(lambda slots: store.installed(Slot.A, firmware.image, slots))
    create_file(path, store.described(lambda file: file.name).encode())


def stage_arguments(state_dir: Path) -> list[str]:
    """What `python -m` is given to run the stage of a sled; the sled's own options follow."""
    return [
        *("sled_board.stage", "--store", str(store_of(state_dir)), "--run", str(state_dir / "firmware" / "run")),
        *("--start-seconds", f"{START_SECONDS:g}", "--check-seconds", f"{CHECK_SECONDS:g}", "--"),
    ]
