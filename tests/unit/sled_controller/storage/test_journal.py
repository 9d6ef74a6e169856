"""The journal in the state directory: a sled's fences outlive its devices (F2), at a bounded price, whatever rots."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from kit.drive import environment, fence, run, unexpected, volume
from kit.host import golden

from sled_controller.storage import journal as format_
from sled_controller.storage.completion import completed
from sled_controller.storage.errors import StorageUnusable
from sled_controller.storage.journal import SledJournal, encode, header, parse
from sled_controller.storage.records import BootEntry, Entry, FenceEntry, NamespaceEntry, StoredFence
from sled_controller.storage.sled_storage import SledStorage
from spdk_bindings.device import Device
from spdk_bindings.emulator import MemoryDevice

SLED = volume(0xA1)
BLOCKS, RECORDS = 1024, 64
Done = Callable[[BaseException | None], None]


class Disk:
    """Does what is submitted at once, or holds it; counts."""

    def __init__(self) -> None:
        self.count = 0
        self.held: list[tuple[Callable[[], None], Done]] | None = None

    def submit(self, work: Callable[[], None], done: Done) -> None:
        self.count += 1
        if self.held is not None:
            self.held.append((work, done))
            return
        try:
            work()
        except OSError as error:
            done(error)
        else:
            done(None)

    def release(self) -> None:
        held, self.held = self.held or [], None
        for work, done in held:
            self.submit(work, done)


def device(serial: str = "A") -> MemoryDevice:
    return MemoryDevice(BLOCKS, serial)


async def start(
    folder: Path,
    *devices: Device,
    format: bool = False,  # noqa: A002
    disk: Disk | None = None,
) -> SledStorage:
    """The sled, with its journal in `folder`."""
    journal = SledJournal(folder / "journal", SLED, (disk or Disk()).submit)
    journal.read()
    return await SledStorage.open(
        devices, sled_id=SLED, env=environment(), format=format, table_records=RECORDS, journal=journal
    )


async def raise_to(storage: SledStorage, epoch: int, holder: int = 1, number: int = 1) -> int:
    raised = StoredFence(epoch, bytes([holder]) * 32, b"c" * 160)
    return await completed(lambda done: storage.raise_fence(volume(number), raised, done))


def told(storage: SledStorage) -> tuple[int, int]:
    found = storage.fence_of(volume(1))
    assert found is not None
    return found.epoch, found.holder[0]


def story(scenario: Coroutine[Any, Any, None]) -> None:
    run(asyncio.wait_for(scenario, 20))


def test_f2_a_device_that_is_put_back_from_an_image_lowers_no_fence(tmp_path: Path) -> None:
    async def scenario() -> None:
        only = device()
        storage = await start(tmp_path, only, format=True)
        await raise_to(storage, 3, 1)
        image = only.clone()
        storage = await start(tmp_path, only)
        await raise_to(storage, 5, 2)
        boot_counter = storage.boot_counter
        storage = await start(tmp_path, image)
        assert told(storage) == (5, 2)
        assert storage.boot_counter > boot_counter
        assert storage.counters["devices_behind"] == 1
        assert await raise_to(storage, 5, 9) != 0, "an equal epoch of another holder"
        assert told(await start(tmp_path / "empty", image)) == (5, 2), "the device has it again"

    (tmp_path / "empty").mkdir()
    story(scenario())


def test_f2_devices_that_are_never_there_together_know_one_fence(tmp_path: Path) -> None:
    async def scenario() -> None:
        first, second = device("A"), device("B")
        storage = await start(tmp_path, first, second, format=True)
        await raise_to(storage, 3, 1)
        storage = await start(tmp_path, second)
        await raise_to(storage, 5, 2)
        storage = await start(tmp_path, first)
        assert told(storage) == (5, 2)
        assert await raise_to(storage, 5, 9) != 0
        storage = await start(tmp_path, first, second)
        assert told(storage) == (5, 2)
        assert len(storage.online_devices()) == 2

    story(scenario())


def test_f2_a_new_device_in_place_of_the_only_one_gets_fences_and_boot_counter(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = await start(tmp_path, device(), format=True)
        await raise_to(storage, 5, 2)
        boot_counter = storage.boot_counter
        storage = await start(tmp_path, device("NEW"), format=True)
        assert told(storage) == (5, 2)
        assert storage.boot_counter > boot_counter

    story(scenario())


def test_f2_a_fence_is_complete_when_device_and_journal_have_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk, only = Disk(), device()
        storage = await start(tmp_path, only, format=True, disk=disk)
        disk.held = []
        first = asyncio.ensure_future(raise_to(storage, 5))
        second = asyncio.ensure_future(raise_to(storage, 7, number=2))
        third = asyncio.ensure_future(raise_to(storage, 5))  # stands already, and is not durable yet
        for _ in range(5):
            await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        assert not third.done()
        before = disk.count
        disk.release()
        assert await asyncio.gather(first, second, third) == [0, 0, 0]
        assert disk.count <= before + 2, "what waits shares one write"

    story(scenario())


@pytest.mark.parametrize("ahead", ["devices", "journal"])
def test_f2_a_power_cut_between_both_writes_keeps_the_higher(tmp_path: Path, ahead: str) -> None:
    async def scenario() -> None:
        only = device()
        storage = await start(tmp_path, only, format=True)
        await raise_to(storage, 3)
        kept, medium = (tmp_path / "journal").read_bytes(), only.clone()
        await raise_to(storage, 4)
        if ahead == "devices":
            (tmp_path / "journal").write_bytes(kept)
        storage = await start(tmp_path, only if ahead == "devices" else medium)
        assert told(storage) == (4, 1)
        assert storage.counters["devices_behind"] == 0, "no start is missing"

    story(scenario())


def test_f2_a_retired_fence_stays_forgotten_and_key_set_and_time_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        only = device()
        storage = await start(tmp_path, only, format=True)
        image = only.clone()
        await raise_to(storage, 3)
        await completed(lambda done: storage.retire_fence(volume(1), 3, 1_700_000_000_000, done, key_id=4))
        await completed(lambda done: storage.store_key_set(6, b"keys", done))
        for found in (await start(tmp_path, only), await start(tmp_path, image)):
            assert found.fence_of(volume(1)) is None
            assert found.key_set == (6, b"keys")
            assert found.issued_ms == 1_700_000_000_000
            assert found.retired is not None
            assert found.retired.key_id == 4

    story(scenario())


def test_f2_a_journal_that_is_missing_rotten_or_old_lowers_nothing_and_is_written_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        only = device()
        await start(tmp_path, only, format=True)
        file = tmp_path / "journal"
        old = file.read_bytes()
        for content in (None, b"", b"\xff" * 300, old[:7], old):
            storage = await start(tmp_path, only)
            epoch = 1 if storage.fence_of(volume(1)) is None else told(storage)[0] + 1
            await raise_to(storage, epoch)
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            assert told(await start(tmp_path, only)) == (epoch, 1)
            owner, entries, damaged = parse(file.read_bytes())
            assert (owner, damaged) == (SLED.bytes, 0)
            assert any(isinstance(entry, FenceEntry) and entry.fence.epoch == epoch for entry in entries)

    story(scenario())


def test_another_sleds_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(header(volume(9).bytes))
    with pytest.raises(StorageUnusable, match="belongs to sled"):
        run(start(tmp_path, device(), format=True))
    assert (tmp_path / "journal").read_bytes() == header(volume(9).bytes)


@pytest.mark.parametrize("at", range(0, 700, 3))
def test_a_damaged_byte_costs_the_record_it_is_in_and_no_other(at: int) -> None:
    entries: list[Entry] = [FenceEntry(volume(number), fence(number + 1)) for number in range(6)]
    pieces = [header(SLED.bytes), *map(encode, entries)]
    data = bytearray(b"".join(pieces))
    at %= len(data)
    data[at] ^= 0x55
    _, found, _ = parse(bytes(data))
    assert len([entry for entry in entries if entry not in found]) <= 1
    assert all(entry in entries for entry in found)


def test_what_was_being_written_when_the_power_went_is_no_damage() -> None:
    first, second = encode(BootEntry(1)), encode(BootEntry(2))
    for cut in range(len(second)):
        assert parse(header(SLED.bytes) + first + second[:cut]) == (SLED.bytes, [BootEntry(1)], 0)


def test_a_fence_costs_one_short_write_and_the_file_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_, "GROWTH_BYTES_MAX", 20_000)

    async def scenario() -> None:
        disk, only = Disk(), device()
        storage = await start(tmp_path, only, format=True, disk=disk)
        before, largest = disk.count, 0
        for epoch in range(1, 400):
            await raise_to(storage, epoch)
            largest = max(largest, (tmp_path / "journal").stat().st_size)
        assert disk.count == before + 399
        assert largest < 22_000
        assert told(await start(tmp_path, only)) == (399, 1)

    story(scenario())


def test_a_journal_that_cannot_be_written_is_given_up_and_the_devices_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk, only = Disk(), device()
        storage = await start(tmp_path, only, format=True, disk=disk)
        (tmp_path / "journal").unlink()
        (tmp_path / "journal").mkdir()
        assert await raise_to(storage, 5) == 0
        assert storage.journal is not None
        assert "Is a directory" in storage.journal.failure
        assert await raise_to(storage, 6) == 0
        assert told(storage) == (6, 1)

    story(scenario())


def test_a_journal_whose_disk_hangs_is_given_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_, "WRITE_TIMEOUT_S", 0.01)

    async def scenario() -> None:
        disk, only = Disk(), device()
        storage = await start(tmp_path, only, format=True, disk=disk)
        disk.held = []
        assert await raise_to(storage, 5) == 0
        assert storage.journal is not None
        assert "does not answer" in storage.journal.failure
        disk.release()
        assert told(await start(tmp_path, only)) == (5, 1)

    story(scenario())


def test_a_device_of_another_holder_than_the_journal_is_not_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        only = device()
        storage = await start(tmp_path, only, format=True)
        await raise_to(storage, 3, 1)
        (tmp_path / "other").mkdir()
        image = only.clone()
        await raise_to(storage, 5, 2)
        await raise_to(await start(tmp_path / "other", image), 5, 9)
        with pytest.raises(StorageUnusable, match="for another holder"):
            await start(tmp_path, image)

    story(scenario())


def test_a_journal_is_the_golden_one() -> None:
    entries: Sequence[Entry] = [BootEntry(7), FenceEntry(volume(1), StoredFence(5, bytes(range(32)), b"credential"))]
    data = header(SLED.bytes) + b"".join(map(encode, entries))
    assert data == golden("sled_journal")
    assert parse(data) == (SLED.bytes, entries, 0)
    fields = format_.HEADER_LAYOUT.parse(data)
    assert format_.HEADER_LAYOUT.build(fields) == data[: format_.HEADER_BYTES]
    record = format_.RECORD_LAYOUT.parse(data[format_.HEADER_BYTES :])
    assert (record.kind, record.payload_bytes) == (BootEntry.KIND, 8)


def test_namespaces_are_the_devices_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        storage = await start(tmp_path, device(), format=True)
        assert await raise_to(storage, 1) == 0
        assert storage.create_namespace(volume(1), 0, 10, unexpected) == 0
        _, entries, _ = parse((tmp_path / "journal").read_bytes())
        assert not any(isinstance(entry, NamespaceEntry) for entry in entries)

    story(scenario())
