"""A sled controller and SPDK on PCIe NVMe drives: in a guest whose drives QEMU plays, behind its IOMMU, by VFIO."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator

import pytest
from kit import spdk_drive
from kit.real_sled import SocketHead
from peers.guest import packages
from peers.guest.board import ROOT_SERIAL, Board, BoardSled, Drive

from spdk_bindings.nvme import Status, VendorIo

BLOCK = 4096
ONE = bytes([1]) * BLOCK
MANY = bytes(range(256)) * 16 * 64
SERVED, KEPT, PULLED, SMALL = "SERVED", "KEPT", "PULLED", "SMALL"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Blank drives that belong to vfio-pci; SMALL has blocks of 512 bytes."""
    spdk_drive.built()
    directory = tmp_path_factory.mktemp("board")
    drives = [Drive(serial, directory / serial) for serial in (SERVED, KEPT, PULLED)]
    drives.append(Drive(SMALL, directory / SMALL, block_bytes=512))
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


def test_probe_lists_the_drives_of_the_kernel_and_those_that_a_sled_can_have(board: Board) -> None:
    result = asyncio.run(board.sled_controller("probe", "--json-output"))
    assert result.status == 0, result.stderr
    found = {drive["address"]: drive for drive in json.loads(result.stdout)}
    by_serial = {serial: found[address] for serial, address in board.addresses.items()}
    assert by_serial[ROOT_SERIAL]["driver"] == "nvme"
    assert not by_serial[ROOT_SERIAL]["usable"]
    assert by_serial[ROOT_SERIAL]["serial"] == ROOT_SERIAL
    for serial in (SERVED, KEPT, PULLED):
        assert by_serial[serial]["driver"] == "vfio-pci"
        assert by_serial[serial]["serial"] == serial
        assert by_serial[serial]["size_bytes"] == 64 << 20
        assert by_serial[serial]["usable"]
        assert by_serial[serial]["note"].startswith("ok")


def test_a_sled_finds_its_data_and_its_fence_again_after_it_was_killed(board: Board) -> None:
    async def scenario() -> None:
        async with board.sled("killed", SERVED) as sled:
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


def test_what_keeps_a_drive_from_being_served_is_said_with_the_remedy_which_works(board: Board) -> None:
    async def scenario() -> None:
        await board.prepare("small")
        refused = await board.sled_controller(*board.settings("small", SMALL, ROOT_SERIAL))
        assert refused.status == 1
        assert "can be opened: see above why" in refused.stderr
        assert f"{board.addresses[ROOT_SERIAL]}: the kernel has it (nvme): give it to vfio-pci" in refused.stderr
        remedy = re.search(r"python -m (spdk_bindings.spdk format \S+) erases the drive", refused.stderr)
        assert remedy is not None, refused.stderr
        formatted = await board.python("-m", *shlex.split(remedy[1]))
        assert formatted.status == 0, formatted.stderr
        async with board.sled("small", SMALL) as sled:
            head = volume(sled)
            assert head.write(7, ONE).status == 0
            assert head.read(7).data == ONE

    asyncio.run(scenario())


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
