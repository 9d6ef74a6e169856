"""QEMU, U-Boot, Linux and Debian's Python start a board out of nothing, and it becomes a sled of a rack."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import firmware
from kit.applications import WELL, packed
from kit.peers import run
from peers.emulated_board import DRIVE_BYTES, PoweredOn, base_or_skip, built_image, provisioned
from rackctl.board.base import BaseSystem
from rackctl.board.machine import Machine
from rackctl.cli import main
from rackctl.rack import Rack, RackSize, wait_until
from sled_board.image import read_image
from sled_board.region import Region
from sled_board.slot_store import SlotStore
from sled_board.slots import Slot

SLEDS = 5
VOLUME_BYTES = 8 << 20
STRIPES_SECONDS_MAX = 60.0

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def base() -> BaseSystem:
    return base_or_skip()


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Too few sleds for a stripe without the board."""
    size = RackSize(sleds=SLEDS, device_bytes=DRIVE_BYTES)
    with Rack.running(tmp_path_factory.mktemp("rack") / "of-the-board", size) as started:
        yield started


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, base: BaseSystem, rack: Rack) -> Machine:
    """Provisioned for the rack, with firmware of this checkout, and off."""
    image = built_image(tmp_path_factory.mktemp("firmware"))
    root = bytes.fromhex(rack.state.root_public_key)
    return provisioned(tmp_path_factory.mktemp("board") / "board", base, root, image)


def test_a_board_starts_from_nothing_and_says_that_it_has_no_firmware(tmp_path: Path, base: BaseSystem) -> None:
    machine = provisioned(tmp_path / "board", base, bytes(32), None)
    with PoweredOn(machine) as board:
        board.wait(
            "U-Boot 20", r"Found /extlinux/extlinux\.conf", "Starting kernel", "base: up",
            r'base: name=board-0 address=10\.0\.2\.15/24 drives=\["/dev/drives/DRIVE0", "/dev/drives/DRIVE1"\]',
            "stage: event=recovery", "base: recovery: no slot can be started",
        )  # fmt: skip


def test_a_bare_board_boots_nothing(tmp_path: Path) -> None:
    base_or_skip()
    with PoweredOn(Machine.create(tmp_path / "board", 1, DRIVE_BYTES)) as board:
        board.wait("U-Boot 20", "virtio", "=> ")
    assert "Starting kernel" not in board.said


def test_firmware_that_is_flashed_over_the_console_is_tried_and_confirmed(
    tmp_path: Path, base: BaseSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = provisioned(tmp_path / "board", base, bytes(32), None)
    image, root = tmp_path / "image", tmp_path / "root.pub"
    image.write_bytes(firmware.signed(firmware.recipe(payloads={"application": packed(WELL)})))
    root.write_text(firmware.ROOT.public.hex())
    try:
        assert main(("board", "flash", str(image), "--root", str(root), "--board-dir", str(machine.folder))) == 0
        assert "slot a: healthy and confirmed" in capsys.readouterr().out
    finally:
        machine.power_off()


def test_a_volumes_stripes_land_on_the_board(machine: Machine, rack: Rack, tmp_path: Path) -> None:
    written, read = tmp_path / "written", tmp_path / "read"
    written.write_bytes(os.urandom(VOLUME_BYTES))
    with PoweredOn(machine) as board:
        board.wait("stage: event=starting slot=a .*state=test", "event=serving", "stage: event=healthy slot=a")
        assert machine.identity is not None
        rack.api.enrol_sled(machine.identity, *machine.nvme_address, machine.capacity_blocks)
        rack.create_volume("on-the-board", VOLUME_BYTES)
        primary = rack.wait_members("on-the-board", 2).primary
        assert primary is not None
        uri = rack.nbd_uri("on-the-board", primary)
        run("nbdcopy", written, uri)
        wait_until(
            lambda: blocks_on_drives(machine, written.read_bytes()) >= VOLUME_BYTES // 4096 // 16,
            "a column of the volume to be on the board's drives", STRIPES_SECONDS_MAX,
        )  # fmt: skip
        for name in ("sled-0", "sled-1"):
            rack.kill(name)
        run("nbdcopy", uri, read)
        for name in ("sled-0", "sled-1"):
            rack.restart(name)
    assert read.read_bytes() == written.read_bytes()


def test_firmware_that_does_not_start_is_rolled_back(machine: Machine) -> None:
    bad = firmware.signed(firmware.recipe(version="9.9.9", payloads={"application": packed("raise SystemExit(3)")}))
    put_to_the_test(machine, bad)
    with PoweredOn(machine) as board:
        board.wait(
            "stage: event=starting slot=b version=9.9.9 .*attempts_left=2", "stage: event=ended slot=b .*status=3",
            "stage: event=starting slot=b version=9.9.9 .*attempts_left=1",
            "stage: event=starting slot=b version=9.9.9 .*attempts_left=0",
            "stage: event=starting slot=a .*state=confirmed", "event=serving", "stage: event=healthy slot=a",
        )  # fmt: skip


def test_an_image_that_was_damaged_in_its_slot_is_never_started(machine: Machine) -> None:
    data = bytearray(firmware.signed(firmware.recipe(version="9.9.8", payloads={"application": packed("")})))
    data[-100] ^= 1
    put_to_the_test(machine, bytes(data), known_as=firmware.signed())
    with PoweredOn(machine) as board:
        board.wait("event=rejected slot=b", "stage: event=starting slot=a .*state=confirmed", "event=serving")
    assert "event=starting slot=b" not in board.said


def blocks_on_drives(machine: Machine, data: bytes) -> int:
    """How many blocks of the client's are on the board's drives as they are."""
    kept: set[bytes] = set()
    for path in machine.folder.glob("drive-*.img"):
        kept |= starts(path.read_bytes())
    return len(starts(data) & kept)


def starts(data: bytes) -> set[bytes]:
    """What tells random blocks apart."""
    return {data[offset : offset + 64] for offset in range(0, len(data), 4096)}


def put_to_the_test(machine: Machine, data: bytes, known_as: bytes | None = None) -> None:
    """Write an image into slot B of a board that is off, as a flasher does; what is in slot A is in use by then."""
    image = read_image(known_as or data)
    place, (first, second) = machine.board.place(Slot.B), machine.board.storage.state.offsets
    Region(machine.storage, place.offset, place.size).write(0, data)
    store = SlotStore(Region(machine.storage, 0, machine.board.storage.size), (first, second))
    store.change(
        lambda slots: (
            slots.confirm(Slot.A)
            .erase(Slot.B)
            .store(Slot.B, image_id=image.id, version=image.version, counter=image.counter)
            .activate(Slot.B)
        )
    )
