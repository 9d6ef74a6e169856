"""A sled whose drive is SPDK's: commands of heads reach it, and data goes between network and drive without a copy."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from kit import host, spdk_drive
from kit.sled import Sled, running_sled

from sled_controller import drives
from sled_controller.config import SledSettings
from sled_controller.drives import CannotStart, is_drive, open_devices
from sled_controller.fabric.attachment import Attachment
from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.emulator import FileDevice
from spdk_bindings.spdk.device import SpdkDevice

NAMESPACE_BLOCKS = 256
LARGE_BLOCKS = 32  # comes by R2T


def play(scenario: Callable[[Sled, SpdkDevice, Attachment, int], Awaitable[None]]) -> None:
    """A sled on the fake SPDK, and a head that holds a volume with a namespace."""

    async def whole() -> None:
        environment, _ = spdk_drive.fake()
        device = await SpdkDevice.open(environment, spdk_drive.FAKE_ADDRESS, spdk_drive.QUICK)
        async with running_sled(device) as sled:
            head = sled.client()
            await head.open()
            volume = await head.attach(host.signed(), 1)
            nsid = await volume.create_namespace(0, NAMESPACE_BLOCKS)
            await scenario(sled, device, volume, nsid)
            await head.close()

    asyncio.run(asyncio.wait_for(whole(), 30))


def pattern(blocks: int, first: int = 0) -> bytes:
    return b"".join(bytes([number % 251]) * BLOCK_BYTES for number in range(first, first + blocks))


@pytest.mark.parametrize("blocks", [1, 4, LARGE_BLOCKS])
def test_what_is_written_is_read_back_without_a_copy(blocks: int) -> None:
    async def scenario(sled: Sled, device: SpdkDevice, volume: Attachment, nsid: int) -> None:
        before = device.counters
        await asyncio.gather(
            *(volume.write(nsid, at, [pattern(blocks, at)]) for at in range(0, NAMESPACE_BLOCKS - blocks, blocks))
        )
        await volume.flush(nsid)
        for at in range(0, NAMESPACE_BLOCKS - blocks, blocks):
            assert bytes(await volume.read(nsid, at, blocks)) == pattern(blocks, at)
        after = device.counters
        assert after.writes - before.writes >= (NAMESPACE_BLOCKS - blocks) // blocks
        assert after.bounced == before.bounced, "data was copied on its way"

    play(scenario)


def test_without_dma_memory_data_is_copied_and_nothing_is_lost() -> None:
    async def scenario(sled: Sled, device: SpdkDevice, volume: Attachment, nsid: int) -> None:
        hoard = list(blocks_of(device))
        before = device.counters
        await volume.write(nsid, 0, [pattern(LARGE_BLOCKS)])
        assert bytes(await volume.read(nsid, 0, LARGE_BLOCKS)) == pattern(LARGE_BLOCKS)
        assert device.counters.bounced > before.bounced
        assert hoard

    play(scenario)


def blocks_of(device: SpdkDevice) -> Iterator[memoryview]:
    """All DMA memory that is left."""
    with contextlib.suppress(MemoryError):
        while True:
            yield device.allocate(BLOCK_BYTES)


def settings(tmp_path: Path, *devices: str) -> SledSettings:
    return SledSettings(state_dir=tmp_path, devices=list(devices), root_public_key="00" * 32)


def test_devices_are_told_apart_by_how_they_are_written() -> None:
    names = ["0000:01:00.0", "trtype:TCP traddr:10.0.0.1", "/dev/shm/0000:01:00.0", "device", "0000:01:00.9"]
    assert [is_drive(name) for name in names] == [True, True, False, False, False]


def test_a_sled_that_needs_spdk_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spdk_bindings.spdk.environment.output", lambda: tmp_path / "_native.so")
    with pytest.raises(CannotStart, match=r"python -m spdk_bindings\.spdk\.build"):
        asyncio.run(open_devices(settings(tmp_path, "0000:01:00.0"), False))


def test_a_drive_that_cannot_be_had_is_left_out_and_a_sled_with_none_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment, levers = spdk_drive.fake()
    monkeypatch.setattr(drives, "start_spdk", lambda settings: environment)
    file = tmp_path / "device"

    async def opened(has_served: bool) -> list[str]:
        wanted = settings(tmp_path, spdk_drive.FAKE_ADDRESS, str(file))
        devices, created = await open_devices(wanted, has_served)
        assert not created
        for device in devices:
            device.close()
        return [device.serial for device in devices]

    assert asyncio.run(opened(True)) == ["FAKE0"]
    levers.set(dead=1)
    with pytest.raises(CannotStart, match="is there any more"):
        asyncio.run(opened(True))
    FileDevice.create(file, NAMESPACE_BLOCKS).close()
    assert len(asyncio.run(opened(True))) == 1
    assert f"event=device_unusable address='{spdk_drive.FAKE_ADDRESS}'" in caplog.text
