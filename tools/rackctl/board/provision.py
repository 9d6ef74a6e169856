"""What makes a blank board a certain one: the base system, whom it believes, its name, and its first firmware."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from sled_board.board import Board, Console
from sled_board.firmware_store import FirmwareStore
from sled_board.network import Network
from sled_board.region import Region
from sled_board.slots import Slot, Slots

from rackctl.board.base import INITRAMFS_FILE, KERNEL_FILE, BaseSystem
from rackctl.board.partitions import Content, is_blank, layout, write_partitions
from rackctl.errors import RackError
from rackctl.firmware.wheels import PYTHON_TAG
from sled_controller.environment import Environment
from sled_controller.state_dir import IDENTITY_FILE, KEY_FILE, StateDirectory

NVME_PORT: Final = 4420
"""Where the sled listens, on the board."""
MOUNTED: Final = "/sled"
EXTLINUX: Final = "extlinux/extlinux.conf"
START_SECONDS: Final = 240
CHECK_SECONDS: Final = 10
"""Of the stage: an emulated processor takes a minute for what a real one does in two seconds."""


@dataclass(frozen=True, slots=True)
class Provisioning:
    """What a board is told once.

    `root_public` signs sets of firmware keys; on a `locked` board development keys do not count. `rack_root_public`
    signs the keys that heads come with, None where the sled is given it on its console. `image` is the first firmware,
    None where that is flashed later. `management_hosts` is the TOML of those that may update it
    (docs/authentication.md).
    """

    name: str
    network: Network
    root_public: bytes
    locked: bool
    rack_root_public: bytes | None
    image: bytes | None = None
    management_hosts: bytes | None = None


def provision(storage: Path, board: Board, base: BaseSystem, wanted: Provisioning) -> dict[str, Any]:
    """Write a blank storage; the sled's `identity.json`, for a rack that it is to join.

    Raises RackError where it is not blank, and ImageError when the board would not start the image.
    """
    if not is_blank(storage):
        raise RackError(f"{storage}: is provisioned, and stays locked to its root key: make a new board instead")
    store = _store(storage, board, wanted)
    slots = Slots() if wanted.image is None else store.installed(Slot.A, wanted.image, Slots())
    own, identity = _own_files(store.described(lambda _: board.storage.linux), board.console.linux, wanted)
    store.state.renew(slots)
    write_partitions(storage, layout(board, _base_files(base, board.console), own))
    return identity


def _store(storage: Path, board: Board, wanted: Provisioning) -> FirmwareStore:
    first, second = sorted(board.storage.state.offsets)
    places = [board.place(slot) for slot in (Slot.A, Slot.B)]
    return FirmwareStore(
        board.name, board.architecture, PYTHON_TAG, wanted.root_public, wanted.locked,
        Region(storage, first, 2 * (second - first)),
        *(Region(storage, place.offset, place.size) for place in places),
    )  # fmt: skip


def _base_files(base: BaseSystem, console: Console) -> dict[str, Content]:
    # Stock U-Boots look for this file on bootable partitions (doc/develop/distro.rst).
    tty = f"{console.linux.removeprefix('/dev/')},{console.baud}"
    extlinux = f"""DEFAULT sled
LABEL sled
  LINUX /{KERNEL_FILE}
  INITRD /{INITRAMFS_FILE}
  APPEND console={tty} quiet panic=5
"""
    return {
        EXTLINUX: Content(extlinux.encode()),
        KERNEL_FILE: Content(base.kernel.read_bytes()),
        INITRAMFS_FILE: Content(base.initramfs.read_bytes()),
    }


def _own_files(firmware_toml: str, console: str, wanted: Provisioning) -> tuple[dict[str, Content], dict[str, Any]]:
    identity_files, identity = _identity(wanted)
    files = {f"state/{name}": content for name, content in identity_files.items()}
    files["board.sh"] = Content(
        "".join(
            f"{key}={shlex.quote(str(value))}\n"
            for key, value in {
                "name": wanted.name, "network": wanted.network, "console": console,
                "start_seconds": START_SECONDS, "check_seconds": CHECK_SECONDS,
            }.items()
        ).encode()
    )  # fmt: skip
    files["firmware.toml"] = Content(firmware_toml.encode())
    sled: dict[str, str | int | bool] = {
        "state_dir": f"{MOUNTED}/state", "name": wanted.name,
        "listen_host": wanted.network.all_addresses, "listen_port": NVME_PORT,
        "format_blank": True, "firmware_store": f"{MOUNTED}/firmware.toml",
        "console": console, "console_network": True,
    }  # fmt: skip
    if wanted.rack_root_public is not None:
        sled["root_public_key"] = wanted.rack_root_public.hex()
    if wanted.management_hosts is not None:
        files["management.toml"] = Content(wanted.management_hosts, secret=True)
        sled["management_hosts"] = f"{MOUNTED}/management.toml"
    files["sled.toml"] = Content("".join(f"{key} = {_toml(value)}\n" for key, value in sled.items()).encode())
    return files, identity


def _identity(wanted: Provisioning) -> tuple[dict[str, Content], dict[str, Any]]:
    """Made here, so that a rack can be told of the sled before it has ever run."""
    with TemporaryDirectory() as folder:
        state = StateDirectory(Path(folder))
        state.identity(wanted.name, wanted.rack_root_public or b"", Environment())
        files = {
            KEY_FILE: Content((state.path / KEY_FILE).read_bytes(), secret=True),
            IDENTITY_FILE: Content((state.path / IDENTITY_FILE).read_bytes()),
        }
    return files, json.loads(files[IDENTITY_FILE].data)


def _toml(value: str | int | bool) -> str:
    """JSON's texts, numbers and truth values are TOML's too."""
    return json.dumps(value)
