"""Disks that lie, rot, vanish and fill up, below real heads and sleds, while a verified writer goes on."""

import asyncio
import resource
import struct
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from kit import real_sled
from kit.volumes import Volume
from kit.writing import assert_nothing_lost, writing
from rackctl.rack import Rack, wait_until

from spdk_bindings.nvme import Status

Tell = Callable[[Coroutine[Any, Any, None]], None]
BLOCK = 4096
LOG_BYTES_MAX = 2 << 20  # what a head prints stays below; a few hundred writes do not
MARK = b"PALBATCH"
VOLUME = UUID(int=77)


# --- heads


def log_directory(volume: Volume, head: str) -> Path:
    return (
        volume.rack.layout.state_dir(volume.rack.node(head)) / "volumes" / volume.rack.api.volume(volume.name)["volume"]
    )


def log_of(rack: Rack, node: str) -> str:
    return rack.layout.log(rack.node(node)).read_text(encoding="utf-8", errors="replace")


def batches(directory: Path) -> list[tuple[int, Path, int, int]]:
    """(number, file, offset, bytes) of every batch in a log, oldest first."""
    found = []
    for file in directory.glob("segment-*"):
        data = file.read_bytes()
        sequence = struct.unpack_from("<Q", data, 32)[0]
        for at in range(BLOCK, len(data), BLOCK):
            if data[at : at + 8] == MARK and struct.unpack_from("<Q", data, at + 24)[0] == sequence:
                found.append(
                    (struct.unpack_from("<Q", data, at + 16)[0], file, at, struct.unpack_from("<I", data, at + 40)[0])
                )
    return sorted(found)


def corrupt(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def wait_removed(volume: Volume) -> None:
    """Wait until the primary counts on nobody else."""
    wait_until(lambda: not volume.rack.roles(volume.name).secondaries, "the dead head to be removed", 10.0)


def tear_tail(directory: Path) -> None:
    _, file, at, size = batches(directory)[-1]
    corrupt(file, at + 48 + size // 2, b"\xee" * (size - size // 2))


def rot_middle(directory: Path) -> None:
    found = batches(directory)
    _, file, at, _ = found[-len(found) // 4]
    corrupt(file, at + 60, b"\xee" * 8)


def wipe(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def rot_promise(directory: Path) -> None:
    corrupt(directory / "promise", 0, b"\xee" * 8192)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (tear_tail, ""),
        (rot_middle, "log_set_aside"),
        (wipe, ""),
        (rot_promise, "log_set_aside"),
    ],
)
def test_a_secondary_with_a_damaged_log_rejoins_and_can_take_over(
    volume: Volume, tell: Tell, damage: Callable[[Path], None], said: str
) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        (secondary,) = before.secondaries
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, secondary)
            await asyncio.to_thread(wait_removed, volume)
            said_before = log_of(rack, secondary).count(said)
            await asyncio.to_thread(damage, log_directory(volume, secondary))
            await asyncio.to_thread(rack.restart, secondary)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            assert not said or log_of(rack, secondary).count(said) > said_before
            assert "Traceback" not in log_of(rack, secondary)
            await asyncio.to_thread(rack.kill, before.primary)
            await asyncio.to_thread(rack.wait_epoch_above, volume.name, before.epoch)
            await writer.wait_acknowledged(200)
            await assert_nothing_lost(writer)

    tell(story())


def test_swapped_log_directories_are_recognised(volume: Volume, tell: Tell) -> None:
    rack = volume.rack
    (secondary,) = volume.roles.secondaries
    rack.create_volume("other", 32 << 20)
    rack.wait_members("other", 2)
    other = Volume(rack, "other", 32 << 20, rack.roles("other"))

    async def story() -> None:
        async with writing(volume) as writer:
            await asyncio.to_thread(rack.kill, secondary)
            await asyncio.to_thread(wait_removed, volume)
            await asyncio.to_thread(wait_removed, other)
            one, two = log_directory(volume, secondary), log_directory(other, secondary)
            spare = one.with_name("spare")
            one.rename(spare)
            two.rename(one)
            spare.rename(two)
            await asyncio.to_thread(rack.restart, secondary)
            for name in (volume.name, "other"):
                await asyncio.to_thread(rack.wait_members, name, 2)
            assert log_of(rack, secondary).count("event=log_unusable") >= 2
            await writer.wait_acknowledged(200)
            await assert_nothing_lost(writer)

    tell(story())
    rack.delete_volume("other")


@pytest.mark.parametrize("whose", ["primary", "secondary"])
def test_a_full_disk_of_a_head_costs_its_membership_and_no_write(volume: Volume, tell: Tell, whose: str) -> None:
    async def story() -> None:
        rack, before = volume.rack, volume.roles
        victim = str(before.primary) if whose == "primary" else before.secondaries[0]
        survivor = before.secondaries[0] if whose == "primary" else str(before.primary)
        process = rack.node(victim).process
        assert process is not None
        async with writing(volume) as writer:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LOG_BYTES_MAX, LOG_BYTES_MAX))
            await asyncio.to_thread(
                wait_until,
                lambda: (rack.roles(volume.name).primary, rack.roles(volume.name).secondaries) == (survivor, ()),
                "the full head to lose its membership",
                20.0,
            )
            await writer.wait_acknowledged(500)
            assert "Traceback" not in log_of(rack, victim)
            assert "level=ERROR" in log_of(rack, victim)
            await asyncio.to_thread(rack.kill, victim)
            await asyncio.to_thread(rack.restart, victim)
            await asyncio.to_thread(rack.wait_members, volume.name, 2)
            await assert_nothing_lost(writer)

    tell(story())


def test_a_full_disk_of_a_sled_costs_shards_and_no_write(volume: Volume, tell: Tell) -> None:
    async def story() -> None:
        rack = volume.rack
        process = rack.node("sled-2").process
        assert process is not None
        async with writing(volume) as writer:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            await writer.wait_acknowledged(3000)
            await assert_nothing_lost(writer)
            assert "Traceback" not in log_of(rack, "sled-2")
        await asyncio.to_thread(rack.kill, "sled-2")
        await asyncio.to_thread(rack.restart, "sled-2")

    tell(story())


# --- sleds


def records(device: bytes) -> list[tuple[int, int, int]]:
    """(block, kind, index) of every table record."""
    found = []
    for block in range(1, 1 + 4 * 256):
        head = device[block * BLOCK : block * BLOCK + 36]
        if head[:4] == b"PTBL":
            found.append((block, head[4], struct.unpack_from("<I", head, 32)[0]))
    return found


def superblock(*places: int) -> Callable[[bytearray], None]:
    def damage(device: bytearray) -> None:
        for place in places:
            start = place if place >= 0 else len(device) - BLOCK
            device[start + 20 : start + 60] = b"\xee" * 40

    return damage


def fence_record(copies: int) -> Callable[[bytearray], None]:
    def damage(device: bytearray) -> None:
        fences = [record for record in records(device) if record[1] == 3]
        chosen = [block for block, _, index in fences if index == fences[1][2]]
        assert len(chosen) == 2
        for block in chosen[:copies]:
            device[block * BLOCK + 70] ^= 1

    return damage


def blank(device: bytearray) -> None:
    device[:] = bytes(len(device))


@pytest.fixture(scope="module")
def used_device(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A device with three fences of one volume and a block written."""
    state_dir = tmp_path_factory.mktemp("used")
    with real_sled.running(state_dir) as sled:
        head = sled.head()
        for epoch in (6, 7, 8):
            head.attach(epoch, 1, volume=VOLUME)
        head.nsid = head.create()
        assert head.write(3, b"\x42" * BLOCK).status == 0
    return (state_dir / "device-0").read_bytes()


def damaged(state_dir: Path, device: bytes, damage: Callable[[bytearray], None]) -> bytes:
    content = bytearray(device)
    damage(content)
    real_sled.prepare(state_dir)
    (state_dir / "served.json").write_text("{}", encoding="ascii")
    (state_dir / "device-0").write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("damage", [superblock(0), superblock(-1), fence_record(1)])
def test_one_damaged_copy_is_healed_and_the_fence_stands(
    used_device: bytes, tmp_path: Path, damage: Callable[[bytearray], None]
) -> None:
    damaged(tmp_path, used_device, damage)
    with real_sled.running(tmp_path) as sled:
        assert "event=superblock_repaired" in sled.log() or "event=table_damaged" in sled.log()
        head = sled.head()
        lower = head.try_attach(7, 9, volume=VOLUME)
        assert (lower.status, lower.epoch) == (Status.FENCED_OFF, 8)
        head.attach(9, 1, volume=VOLUME)
        head.nsid = 1
        assert head.read(3).data == b"\x42" * BLOCK
    healed = (tmp_path / "device-0").read_bytes()
    assert healed[:60] == used_device[:60] == healed[-BLOCK : 60 - BLOCK]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (superblock(0, -1), "neither superblock copy is valid"),
        (fence_record(2), "damaged in both copies"),
        (blank, "blank"),
    ],
)
def test_a_device_that_cannot_be_trusted_is_neither_served_nor_touched(
    used_device: bytes, tmp_path: Path, damage: Callable[[bytearray], None], said: str
) -> None:
    content = damaged(tmp_path, used_device, damage)
    ended = subprocess.run(real_sled.command(tmp_path), capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert said in ended.stderr.splitlines()[-1]
    assert str(tmp_path / "device-0") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "device-0").read_bytes() == content


def test_a_full_disk_below_a_sled_fails_the_write_and_nothing_else(tmp_path: Path) -> None:
    with real_sled.running(tmp_path, file_bytes_max=32 << 20) as sled:
        head = sled.head()
        head.attach(5, 1, volume=VOLUME)
        head.nsid = head.create(blocks=8192)
        assert head.write(0, b"\x01" * BLOCK).status == 0
        refused = head.write(8000, b"\x02" * BLOCK)
        assert refused.status in (Status.WRITE_FAULT, Status.CAPACITY_EXCEEDED)
        assert head.read(8000).data == bytes(BLOCK)
        assert head.write(1, b"\x03" * BLOCK).status == 0
        assert head.read(0, 2).data == b"\x01" * BLOCK + b"\x03" * BLOCK
        assert sled.counters()["device_errors"] == 1
