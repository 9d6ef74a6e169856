"""A sled controller and SPDK on PCIe NVMe drives: in a guest whose drives QEMU plays, behind its IOMMU, by VFIO."""

import asyncio
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import spdk_drive
from kit.real_sled import SocketHead
from peers.guest import packages, reset_load
from peers.guest.board import ROOT_SERIAL, Board, BoardSled, Drive

from spdk_bindings.nvme import Status, VendorIo

BLOCK = 4096
ONE = bytes([1]) * BLOCK
MANY = bytes(range(256)) * 16 * 64
SERVED, KEPT, PULLED, RESET, SMALL, FORMATTED = "SERVED", "KEPT", "PULLED", "RESET", "SMALL", "FORMATTED"
FORMAT = ("-m", "spdk_bindings.spdk", "format")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Blank drives that belong to vfio-pci; SMALL and FORMATTED have blocks of 512 bytes."""
    spdk_drive.built()
    directory = tmp_path_factory.mktemp("board")
    drives = [Drive(serial, directory / serial) for serial in (SERVED, KEPT, PULLED, RESET)]
    drives += [Drive(serial, directory / serial, block_bytes=512) for serial in (SMALL, FORMATTED)]
    try:
        booted = asyncio.run(Board.boot(directory, drives))
    except packages.Missing as missing:
        pytest.skip(str(missing))
    try:
        if missing := asyncio.run(booted.missing()):
            pytest.skip(missing)
        for drive in drives:
            asyncio.run(booted.give_to_vfio(drive.serial))
        yield booted
    finally:
        booted.guest.stop()


def test_probe_tells_the_drives_of_the_kernel_from_those_that_a_sled_can_have_or_could(board: Board) -> None:
    formatted = asyncio.run(board.python(*FORMAT, board.addresses[FORMATTED]))
    assert formatted.status == 0, formatted.stderr
    result = asyncio.run(board.sled_controller("probe", "--json-output"))
    assert result.status == 0, result.stderr
    by_address = {drive["address"]: drive for drive in json.loads(result.stdout)}
    found = {serial: by_address[address] for serial, address in board.addresses.items() if address in by_address}
    assert (found[ROOT_SERIAL]["driver"], found[ROOT_SERIAL]["usable"]) == ("nvme", False)
    for serial in (SERVED, KEPT, FORMATTED):
        drive = found[serial]
        assert (drive["driver"], drive["usable"], drive["serial"]) == ("vfio-pci", True, serial)
        assert drive["size_bytes"] == 64 << 20
        assert drive["note"].startswith("ok")
    assert not found[SMALL]["usable"]
    assert "blocks have 512 bytes" in found[SMALL]["note"]


def test_a_sled_serves_what_it_can_and_finds_data_and_fence_again_after_it_was_killed(board: Board) -> None:
    async def scenario() -> None:
        async with board.sled("killed", SERVED, SMALL, ROOT_SERIAL) as sled:
            said = await sled.log()
            assert f"python {shlex.join(FORMAT)} {board.addresses[SMALL]!r} erases the drive" in said
            assert f"{board.addresses[ROOT_SERIAL]}: the kernel has it (nvme): give it to vfio-pci" in said
            head = volume(sled)
            assert head.write(0, ONE).status == 0
            assert head.write(1, ONE * 2).status == 0
            cid = head.start_long_write(3, MANY)
            ((_, ttag, _),) = head.io.r2ts()
            head.send_data(cid, ttag, MANY)
            assert [answer.status for answer in head.io.answers()] == [0]
            assert head.io.ask(head.sqe(VendorIo.DEALLOCATE, 1)).status == 0
            await sled.kill()
        async with board.sled("killed", SERVED) as sled:
            head = sled.head()
            assert head.try_attach(4, 1).status != 0, "the fence is on the drive"
            head.attach(5, 2)
            head.nsid = 1
            assert head.read(0, 3).data == ONE + bytes(BLOCK) + ONE
            assert head.read(3, len(MANY) // BLOCK).data == MANY
            assert head.read(3 + len(MANY) // BLOCK).data == bytes(BLOCK)

    asyncio.run(scenario())


def test_a_reset_ends_every_command_and_loses_nothing_that_was_acknowledged(board: Board) -> None:
    program = Path(reset_load.__file__).read_text(encoding="utf-8")
    result = asyncio.run(board.python("-c", program, board.addresses[RESET]))
    assert result.status == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["wrong"] == []
    assert said["resets"] == reset_load.RESETS
    assert sum(said["statuses"].values()) == reset_load.RESETS * (reset_load.WRITES + 1)
    assert set(said["statuses"]) <= {str(int(Status.SUCCESS)), str(int(Status.ABORT_REQUESTED))}


def test_a_sled_lets_go_of_a_pulled_drive_and_serves_the_others(board: Board) -> None:
    async def scenario() -> None:
        async with board.sled("pulled", KEPT, PULLED) as sled:
            head = volume(sled)
            kept, pulled = head.nsid, head.create(column=1)
            head.nsid = pulled
            assert head.write(0, ONE).status == 0
            pulling = asyncio.create_task(board.pull(PULLED))
            while not pulling.done():
                await asyncio.sleep(0)
                written = head.write(0, ONE).status
            await pulling
            assert written == Status.HOST_PATHING_ERROR
            assert f"event=drive_gone address='{board.addresses[PULLED]}' serial={PULLED}" in await sled.log()
            head.nsid = kept
            assert head.write(0, ONE).status == 0
            assert head.read(0).data == ONE
            sled.head().attach(6, 1)
            assert f"event=device_offline serial={PULLED}" in await sled.log()

    asyncio.run(scenario())


def volume(sled: BoardSled) -> SocketHead:
    """A head with a volume and its first namespace."""
    head = sled.head()
    head.attach(5, 1)
    head.nsid = head.create()
    return head
