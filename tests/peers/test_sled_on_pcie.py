"""A sled controller and SPDK on PCIe NVMe drives: in a guest whose drives QEMU plays, behind its IOMMU, by VFIO."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from kit import spdk_drive
from peers.guest import packages
from peers.guest.board import Board, Drive

BLOCK = 4096
ONE = bytes([1]) * BLOCK
SERVED, PULLED, SMALL = "SERVED", "PULLED", "SMALL"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Three blank drives that belong to vfio-pci; SMALL has blocks of 512 bytes."""
    spdk_drive.built()
    directory = tmp_path_factory.mktemp("board")
    drives = [Drive(serial, directory / serial) for serial in (SERVED, PULLED)]
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
    assert by_serial["ROOT"]["driver"] == "nvme"
    assert not by_serial["ROOT"]["usable"]
    assert by_serial["ROOT"]["serial"] == "ROOT"
    for serial in (SERVED, PULLED):
        assert by_serial[serial]["driver"] == "vfio-pci"
        assert by_serial[serial]["serial"] == serial
        assert by_serial[serial]["size_bytes"] == 64 << 20
        assert by_serial[serial]["usable"]
        assert by_serial[serial]["note"].startswith("ok")
    assert not by_serial[SMALL]["usable"]
    assert "blocks have 512 bytes" in by_serial[SMALL]["note"]


def test_a_sled_serves_the_drive_and_knows_it_again(board: Board) -> None:
    async def scenario() -> None:
        async with board.sled(SERVED) as sled:
            head = sled.head()
            head.attach(5, 1)
            head.nsid = head.create()
            assert head.write(0, ONE).status == 0
            assert head.write(1, ONE * 3).status == 0
            assert head.read(0, 4).data == ONE * 4
        async with board.sled(SERVED) as sled:
            head = sled.head()
            assert head.try_attach(4, 1).status != 0, "the fence is on the drive"
            head.attach(5, 2)
            head.nsid = 1
            assert head.read(0, 4).data == ONE * 4
            assert head.read(4).data == bytes(BLOCK)

    asyncio.run(scenario())
