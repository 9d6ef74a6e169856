"""QEMU, U-Boot, Linux and Debian's Python start a board out of nothing, and it becomes a sled of a rack."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import firmware
from kit.applications import WELL, packed
from kit.console import values
from kit.peers import run
from peers.emulated_board import (
    DRIVE_BYTES,
    REPLY_SECONDS_MAX,
    SAID_SECONDS_MAX,
    PoweredOn,
    base_or_skip,
    built_image,
    provisioned,
)
from rackctl.board.base import BaseSystem
from rackctl.board.machine import Machine
from rackctl.cli import main
from rackctl.rack import Rack, RackSize, wait_until
from rackctl.status import status_of
from sled_board.errors import CommandNotDone
from sled_board.image import read_image
from sled_board.region import Region
from sled_board.slot_store import SlotStore
from sled_board.slots import Slot, Slots

SLEDS = 5
VOLUME_BYTES = 8 << 20
STRIPES_SECONDS_MAX = 60.0
WELL_IMAGE = firmware.signed(firmware.recipe(payloads={"application": packed(WELL)}))

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def base() -> BaseSystem:
    return base_or_skip()


@pytest.fixture
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Too few sleds for a stripe without the board."""
    size = RackSize(sleds=SLEDS, device_bytes=DRIVE_BYTES)
    with Rack.running(tmp_path_factory.mktemp("rack") / "of-the-board", size) as started:
        yield started


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, base: BaseSystem) -> Machine:
    """Off, with firmware that does nothing and is always well."""
    return provisioned(tmp_path_factory.mktemp("board") / "board", base, WELL_IMAGE)


def test_a_board_without_firmware_waits_at_its_recovery_prompt(tmp_path: Path, base: BaseSystem) -> None:
    machine = provisioned(tmp_path / "board", base, WELL_IMAGE)
    kept(machine, lambda slots: slots.reject(Slot.A))
    with PoweredOn(machine) as board:
        board.wait(
            "U-Boot 20", r"Found /extlinux/extlinux\.conf", "Starting kernel", "base: up",
            "base: name=board-0 network=dhcp", r'base: drives=\["/dev/drives/DRIVE0", "/dev/drives/DRIVE1"\]',
            "stage: event=recovery", "base: recovery: no slot can be started", "recovery> ",
        )  # fmt: skip
        status = values(board.ask("status"))
        assert (status["state"], status["slot_a"]) == ("recovery", "bad 1.4.0")
        found = values(board.ask("slots"))
        assert found["image_a"].startswith("verified 1.4.0 ")
        assert found["image_b"].startswith("unusable: ")
        with pytest.raises(CommandNotDone):
            board.ask("retry b")
        assert board.ask("retry a") == ["slot_a=test", "restarting=yes"]
        board.wait("base: the recovery prompt ended with status 85", "stage: event=healthy slot=a")


def test_a_bare_board_boots_nothing(tmp_path: Path) -> None:
    base_or_skip()
    with PoweredOn(Machine.create(tmp_path / "board", 1, DRIVE_BYTES)) as board:
        board.wait("U-Boot 20", "virtio", "=> ")
    assert "Starting kernel" not in board.said


def test_a_bare_board_becomes_a_sled_over_its_serial_line_alone(
    tmp_path: Path, base: BaseSystem, rack: Rack, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = provisioned(tmp_path / "board", base, None)
    try:
        assert flash(machine, built_image(tmp_path), tmp_path) == 0
        assert "slot a: healthy and confirmed" in capsys.readouterr().out

        console = ("console", machine.console_url, "--patience", f"{REPLY_SECONDS_MAX:g}")

        def ask(*words: str) -> dict[str, str]:
            assert main((*console, "--json", *words)) == 0
            return dict(json.loads(capsys.readouterr().out)["values"])

        assert (ask("status")["state"], ask("identity")["locked"]) == ("unprovisioned", "no")
        told = ("name=board-0", f"root={rack.state.root_public_key}", "network=10.0.2.15/24,10.0.2.2")
        assert ask("provision", *told)["restarting"] == "yes"
        said = wait_until_said(machine, "event=serving")
        assert "base: name=board-0 network=10.0.2.15/24,10.0.2.2" in said
        assert (ask("status")["state"], ask("identity")["root_key"]) == ("serving", rack.state.root_public_key)
        assert main((*console, "provision", *told[::2], f"root={'cd' * 32}")) == 2
        assert "this sled is locked to" in capsys.readouterr().err
        join(rack, machine, tmp_path)
    finally:
        machine.power_off()


def join(rack: Rack, machine: Machine, folder: Path) -> None:
    """Make the board a sled of the rack; a volume's stripes have to land on it, and to be read from it."""
    written, read = folder / "written", folder / "read"
    written.write_bytes(os.urandom(VOLUME_BYTES))
    assert main(("board", "join", "--board-dir", str(machine.folder), "--dir", str(rack.directory))) == 0
    rack.create_volume("on-the-board", VOLUME_BYTES)
    primary = rack.wait_members("on-the-board", 2).primary
    assert primary is not None
    uri = rack.nbd_uri("on-the-board", primary)
    run("nbdcopy", written, uri)
    wait_until(
        lambda: blocks_on_drives(machine, written.read_bytes()) >= VOLUME_BYTES // 4096 // 16,
        "a column of the volume to be on the board's drives", STRIPES_SECONDS_MAX,
    )  # fmt: skip
    (shown,) = [node for node in status_of(rack).data["nodes"] if node["name"] == "board-0"]
    assert (shown["state"], shown["ports"]) == ("reachable", {"nvme": machine.nvme_address[1]})
    assert "board-0" in status_of(rack).data["volumes"][0]["sleds"]
    for name in ("sled-0", "sled-1"):
        rack.kill(name)
    run("nbdcopy", uri, read)
    assert read.read_bytes() == written.read_bytes()


def test_bad_firmware_that_was_flashed_is_rolled_back(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = firmware.signed(firmware.recipe(version="9.9.9", payloads={"application": packed("raise SystemExit(3)")}))
    kept(machine, lambda slots: slots.confirm(Slot.A))
    try:
        assert flash(machine, bad, tmp_path) == 2
        told = capsys.readouterr()
        assert re.findall(r"board: (\w+ slot=\w)", told.out) == ["starting slot=b", "ended slot=b"] * 3
        assert "the board gave the new firmware up and started another one" in told.err
        wait_until_said(machine, r"starting slot=b version=9\.9\.9.*event=healthy slot=a")
    finally:
        machine.power_off()


def test_an_image_that_was_damaged_in_its_slot_is_never_started(machine: Machine) -> None:
    data = bytearray(firmware.signed(firmware.recipe(version="9.9.8", payloads={"application": packed("")})))
    data[-100] ^= 1
    put_to_the_test(machine, bytes(data), known_as=firmware.signed())
    with PoweredOn(machine) as board:
        board.wait("event=rejected slot=b", "stage: event=starting slot=a .*state=confirmed", "event=healthy slot=a")
    assert "event=starting slot=b" not in board.said


def flash(machine: Machine, image: bytes, folder: Path) -> int:
    """The status of `rackctl board flash`."""
    file, root = folder / "flashed", folder / "root.pub"
    file.write_bytes(image)
    root.write_text(firmware.ROOT.public.hex())
    return main(("board", "flash", str(file), "--root", str(root), "--board-dir", str(machine.folder)))


def wait_until_said(machine: Machine, pattern: str) -> str:
    """All that the board has said, since it was made, once something like that is in it."""

    def said() -> str | None:
        text = machine.console_log.read_text("utf-8", "replace")
        return text if re.search(pattern, text, re.DOTALL) else None

    return wait_until(said, f"the board to say {pattern!r}", SAID_SECONDS_MAX)


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
    place = machine.board.place(Slot.B)
    Region(machine.storage, place.offset, place.size).write(0, data)
    kept(
        machine,
        lambda slots: (
            slots.confirm(Slot.A)
            .erase(Slot.B)
            .store(Slot.B, image_id=image.id, version=image.version, counter=image.counter)
            .activate(Slot.B)
        ),
    )


def kept(machine: Machine, change: Callable[[Slots], Slots]) -> None:
    """Change the slot state of a board that is off."""
    whole = Region(machine.storage, 0, machine.board.storage.size)
    SlotStore(whole, machine.board.storage.state.offsets).change(change)
