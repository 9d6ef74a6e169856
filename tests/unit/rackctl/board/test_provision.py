"""Provisioning makes a blank storage a board that is locked to its root key, or leaves it blank."""

from pathlib import Path

import pytest
from kit import firmware
from kit.peers import require, run
from rackctl.board.base import BaseSystem
from rackctl.board.partitions import OWN_BYTES, is_blank
from rackctl.board.provision import Provisioning, provision
from rackctl.errors import RackError
from sled_board.board import load_board
from sled_board.errors import ImageError
from sled_board.firmware_store import FirmwareStore
from sled_board.network import Network
from sled_board.slots import Slot, SlotState

from sled_controller.config import SledSettings
from sled_controller.settings import load

BOARD = load_board("qemu-virt-arm64")
RACK_ROOT = bytes(range(32))


def wanted(image: bytes | None = None, *, rack_root: bytes | None = RACK_ROOT) -> Provisioning:
    return Provisioning(
        "sled-7", Network.parse("10.0.2.15/24,10.0.2.2"), firmware.ROOT.public, True, rack_root, image, b"[[host]]\n"
    )  # fmt: skip


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    require("mkfs.ext4")
    path = tmp_path / "storage.img"
    with path.open("wb") as file:
        file.truncate(BOARD.storage.size)
    return path


@pytest.fixture
def base(tmp_path: Path) -> BaseSystem:
    for name in ("kernel", "initramfs"):
        (tmp_path / name).write_bytes(name.encode())
    return BaseSystem(tmp_path / "kernel", tmp_path / "initramfs")


def on_board(storage: Path, name: str, folder: Path) -> bytes:
    """A file of the partition that is the board's own."""
    image, copy = folder / "own", folder / "copy"
    with storage.open("rb") as file:
        file.seek(BOARD.storage.base.end - OWN_BYTES)
        image.write_bytes(file.read(OWN_BYTES))
    run("debugfs", "-R", f"dump /{name} {copy}", image)
    return copy.read_bytes()


def store_of(storage: Path, folder: Path) -> FirmwareStore:
    """The firmware store as the board opens it, with its storage's file in the place of its device."""
    text = on_board(storage, "firmware.toml", folder).decode()
    (folder / "firmware.toml").write_text(text.replace(BOARD.storage.linux, str(storage)))
    return FirmwareStore.open(folder / "firmware.toml")


def settings_of(storage: Path, folder: Path) -> SledSettings:
    (folder / "sled.toml").write_bytes(on_board(storage, "sled.toml", folder))
    return load(SledSettings, "sled-controller", ["--config", str(folder / "sled.toml"), "--devices", '["x"]'])


def test_a_board_that_is_not_told_its_rack_is_to_be_told_on_its_console(
    storage: Path, base: BaseSystem, tmp_path: Path
) -> None:
    provision(storage, BOARD, base, wanted(rack_root=None))
    assert settings_of(storage, tmp_path).root_public_key is None


def test_a_board_gets_its_identity_settings_and_an_empty_store(storage: Path, base: BaseSystem, tmp_path: Path) -> None:
    identity = provision(storage, BOARD, base, wanted())
    assert identity["name"] == "sled-7"
    assert identity["id"] in on_board(storage, "state/identity.key", tmp_path).decode()
    settings = settings_of(storage, tmp_path)
    assert settings.root_public_key == RACK_ROOT.hex()
    assert (settings.console, settings.console_network) == ("/dev/ttyAMA0", True)
    assert settings.firmware_store == Path("/sled/firmware.toml")
    assert on_board(storage, "management.toml", tmp_path) == b"[[host]]\n"
    assert b"network=10.0.2.15/24,10.0.2.2\n" in on_board(storage, "board.sh", tmp_path)
    store = store_of(storage, tmp_path)
    assert (store.root_public, store.locked, store.hardware) == (firmware.ROOT.public, True, BOARD.name)
    assert store.load().next is None


def test_a_first_image_is_tried_at_the_first_start(storage: Path, base: BaseSystem, tmp_path: Path) -> None:
    data = firmware.signed()
    provision(storage, BOARD, base, wanted(data))
    store = store_of(storage, tmp_path)
    slots = store.load()
    assert slots.next is Slot.A
    assert slots.a.state is SlotState.TEST
    assert store.verified(Slot.A, slots).id == slots.a.image_id


@pytest.mark.parametrize(
    "image",
    [b"no image", firmware.signed(keys=(firmware.FIRST,)), firmware.signed(firmware.recipe(hardware=("other",)))],
    ids=["damaged", "too-few-signatures", "another-board"],
)
def test_an_image_that_the_board_would_not_start_leaves_it_blank(storage: Path, base: BaseSystem, image: bytes) -> None:
    with pytest.raises(ImageError):
        provision(storage, BOARD, base, wanted(image))
    assert is_blank(storage)


def test_a_board_is_provisioned_once(storage: Path, base: BaseSystem) -> None:
    provision(storage, BOARD, base, wanted())
    with pytest.raises(RackError, match="stays locked to its root key"):
        provision(storage, BOARD, base, wanted())
