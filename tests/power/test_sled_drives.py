"""A sled's emulated drives (spdk_bindings/emulator.py) and what it keeps on them, after a power cut at any step."""

import asyncio
from pathlib import Path
from random import Random

import pytest
from kit.drive import SLED, environment, fence, read, volume
from kit.power_cuts import Claims, cuts, kills
from kit.power_fuse import Disk, Shelf
from kit.power_model import Kept
from kit.volume import run

from sled_controller.drives import _files
from sled_controller.storage import SledStorage
from sled_controller.storage.completion import completed
from spdk_bindings.device import BLOCK_BYTES, Device
from spdk_bindings.emulator import FileDevice

BLOCKS = 1024
DRIVES = ("drives/a", "drives/b")
SMALL_TABLE = 32
"""So small that checkpoints are frequent."""


def opened(path: Path, made: bool) -> list[Device]:
    """The sled's drives as its program opens them at a start; made when missing."""
    devices: list[Device] = []
    _files([path / name for name in DRIVES], BLOCKS * BLOCK_BYTES if made else None, devices)
    assert len(devices) == len(DRIVES), "a drive cannot be used"
    return devices


async def storage_on(devices: list[Device], format: bool = False) -> SledStorage:  # noqa: A002
    return await SledStorage.open(devices, sled_id=SLED, env=environment(), format=format, table_records=SMALL_TABLE)


class Story:
    """A sled at work, each step with its claim."""

    def __init__(self, disk: Disk, seed: int) -> None:
        self.disk = disk
        self.claims = Claims(disk)
        self._chance = Random(seed)
        self._written = 0

    async def run(self, steps: int) -> None:
        self.devices = opened(self.disk.path, made=True)
        self.storage = await storage_on(self.devices, format=True)
        self.boot()
        deeds = [self.fence, self.fence, self.create, self.keys, self.data, self.data, self.both, self.zero]
        for _ in range(steps):
            await self._chance.choice(deeds)()
        for device in self.devices:
            device.close()

    def boot(self) -> None:
        self.claims.begin("boot", self.storage.boot_counter).acknowledge()

    async def fence(self) -> None:
        number = self._chance.randrange(3)
        before = self.storage.fence_of(volume(number))
        epoch = 1 if before is None else before.epoch + 1
        change = self.claims.begin(("fence", number), epoch)
        assert await completed(lambda done: self.storage.raise_fence(volume(number), fence(epoch), done)) == 0
        change.acknowledge()

    async def create(self) -> None:
        number = self._chance.randrange(3)
        key = volume(number), number
        if self.storage.fence_of(key[0]) is None or self.storage.namespace_of(*key) is not None:
            return
        change = self.claims.begin(("namespace", number), True)
        assert await completed(lambda done: self.storage.create_namespace(*key, 8, done)) == 0
        change.acknowledge()

    async def keys(self) -> None:
        version = 1 if self.storage.key_set is None else self.storage.key_set[0] + 1
        change = self.claims.begin("keys", version)
        assert await completed(lambda done: self.storage.store_key_set(version, b"k%d" % version, done)) == 0
        change.acknowledge()

    async def data(self) -> None:
        """A write with FUA, or without and a flush after it."""
        found = self._namespace()
        if found is None:
            return
        number, device, lba = found
        data, fua = self._chance.randbytes(BLOCK_BYTES), self._chance.random() < 0.5
        change = self.claims.begin(("block", number, lba), data)
        assert await completed(lambda done: device.write(lba, data, fua, done)) == 0
        if not fua:
            assert await completed(device.flush) == 0
        change.acknowledge()

    async def both(self) -> None:
        """The second write comes while the sync of the first one runs."""
        await asyncio.gather(self.data(), self.data(), self.data())

    async def zero(self) -> None:
        found = self._namespace()
        if found is None:
            return
        number, device, lba = found
        change = self.claims.begin(("block", number, lba), bytes(BLOCK_BYTES))
        assert await completed(lambda done: device.write_zeroes(lba, 1, True, done)) == 0
        change.acknowledge()

    def _namespace(self) -> tuple[int, Device, int] | None:
        numbers = [number for number in range(3) if self.storage.namespace_of(volume(number), number) is not None]
        if not numbers:
            return None
        number = self._chance.choice(numbers)
        namespace = self.storage.namespace_of(volume(number), number)
        assert namespace is not None
        self._written = (self._written + 1) % 8
        return number, namespace.device, namespace.first_lba + self._written

    async def judge(self, storage: SledStorage, at: int, where: str) -> None:
        allowed = self.claims.allowed
        assert storage.boot_counter > max(value or 0 for value in allowed("boot", at)), where
        assert (storage.key_set and storage.key_set[0]) in allowed("keys", at), where
        for number in range(3):
            found = storage.fence_of(volume(number))
            assert (found and found.epoch) in allowed(("fence", number), at), f"{where}: fence {number}"
            namespace = storage.namespace_of(volume(number), number)
            assert (namespace is not None or None) in allowed(("namespace", number), at), f"{where}: namespace {number}"
        for key in [key for key in self.claims.changes if isinstance(key, tuple) and key[0] == "block"]:
            _, number, lba = key
            namespace = storage.namespace_of(volume(number), number)
            if namespace is not None:
                assert read(namespace.device, lba) in allowed(key, at, bytes(BLOCK_BYTES)), (
                    f"{where}: block {lba} is lost"
                )


@pytest.mark.parametrize("seed", range(2))
def test_f2_d1_what_a_sled_acknowledged_survives_a_cut_at_any_step(power: Shelf, seed: int) -> None:
    async def scenario() -> None:
        story = Story(power.disk(), seed)
        await story.run(40)
        for cut in cuts(power, story.disk, 25, seed):
            devices = opened(cut.found.path, made=True)
            await story.judge(await storage_on(devices, format=True), cut.at, str(cut))
            for device in devices:
                device.close()

    run(scenario())


def test_f2_what_a_restarted_sled_finds_unsynced_is_durable_before_it_counts(power: Shelf) -> None:
    async def scenario() -> None:
        story = Story(power.disk(), 5)
        await story.run(30)
        for at, disk in kills(power, story.disk, 50):
            devices = opened(disk.path, made=True)
            storage = await storage_on(devices, format=True)
            before = storage.fences(), storage.boot_counter, storage.key_set, set(storage.namespaces)
            for device in devices:
                device.close()
            disk.cut(Kept.NOTHING, Random(0))
            devices = opened(disk.path, made=False)
            again = await storage_on(devices)
            after = again.fences(), again.boot_counter - 1, again.key_set, set(again.namespaces)
            assert after == before, f"killed at step {at}, then cut"
            for device in devices:
                device.close()

    run(scenario())


def test_a_drive_is_whole_or_absent_after_a_cut_while_it_is_made(power: Shelf) -> None:
    disk = power.disk()
    opened(disk.path, made=True)[0].close()
    for cut in cuts(power, disk, 100):
        for name in DRIVES:
            path = cut.found.path / name
            if path.exists():
                FileDevice(path).close()
        assert cut.at < disk.steps or all((cut.found.path / name).exists() for name in DRIVES), str(cut)
