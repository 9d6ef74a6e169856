"""The append end of a table: groups, retries after a reset, checkpoints, and lies of the drive beneath it."""

import asyncio

import pytest
from kit.drive import (
    DEVICE_BLOCKS,
    SLED,
    TABLE_RECORDS,
    environment,
    fence,
    open_storage,
    read,
    run,
    status_of,
    unexpected,
    volume,
)

from sled_controller.storage import SledStorage, table
from sled_controller.storage.records import TableRecord, encode_record
from sled_controller.storage.superblock import Superblock, decode
from sled_controller.storage.table import GROUP_RECORDS_MAX, RETRIES_MAX
from spdk_bindings.device import Device
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.faults import Latency, Misdirected, Operation, Rule, StatusFault, TornWrite
from spdk_bindings.nvme import Status


def superblock_of(device: Device) -> Superblock:
    found = decode(read(device, 0))
    assert found is not None
    return found


def writes_of(device: MemoryDevice) -> int:
    return device.smart()["host_write_commands"]


def test_a_reset_under_a_table_write_only_delays_it() -> None:
    async def scenario() -> None:
        medium = MemoryDevice(DEVICE_BLOCKS)
        drive = Latency(medium, lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        drive.hold()
        raised = asyncio.ensure_future(status_of(lambda done: storage.raise_fence(volume(1), fence(1), done)))
        await asyncio.sleep(0)
        assert await status_of(drive.reset) == 0
        assert not raised.done()
        drive.release()
        assert await raised == 0
        assert (await open_storage([medium])).fence_of(volume(1)) == fence(1)

    run(scenario())


def test_a_device_that_aborts_again_and_again_goes_offline() -> None:
    drive = StatusFault(MemoryDevice(DEVICE_BLOCKS))
    storage = run(open_storage([drive], format=True))
    drive.rules = [Rule(Status.ABORT_REQUESTED, operations=(Operation.WRITE,), times=RETRIES_MAX)]
    assert storage.raise_fence(volume(1), fence(1), unexpected) == 0
    drive.rules = [Rule(Status.ABORT_REQUESTED, operations=(Operation.WRITE,), times=RETRIES_MAX + 1)]
    assert storage.raise_fence(volume(1), fence(2), unexpected) != 0
    assert not storage.online_devices()


def test_a_checkpoint_goes_to_the_other_region_and_its_head_last() -> None:
    written: list[int] = []

    class Watched(MemoryDevice):
        def write(self, lba: int, data: object, fua: bool, done: object) -> int:
            written.append(lba)
            return super().write(lba, data, fua, done)  # type: ignore[arg-type]

    device = Watched(DEVICE_BLOCKS)
    storage = run(open_storage([device], format=True))
    table = superblock_of(device)
    heads = [table.area(1, copy) for copy in (0, 1)]
    epoch = 0
    while heads[0] not in written:
        epoch += 1
        written.clear()
        assert storage.raise_fence(volume(1), fence(epoch), unexpected) == 0
    assert epoch > TABLE_RECORDS - 10
    assert written[-2:] == heads
    assert set(written[:-2]) == {heads[0] + 1, heads[1] + 1}
    assert run(open_storage([device])).fence_of(volume(1)) == fence(epoch)


def test_a_large_checkpoint_is_made_a_write_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are many megabytes and milliseconds of work; other commands have their turn in between."""
    made: list[int] = []
    between: list[int] = []

    class Watched(MemoryDevice):
        def write(self, lba: int, data: object, fua: bool, done: object) -> int:
            between.append(len(made))
            made.clear()
            return super().write(lba, data, fua, done)  # type: ignore[arg-type]

    def counting(device: bytes, record: TableRecord) -> bytes:
        made.append(record.index)
        return encode_record(device, record)

    monkeypatch.setattr(table, "encode_record", counting)
    device = Watched(1 << 14)
    storage = run(SledStorage.open([device], sled_id=SLED, env=environment(), format=True, table_records=600))
    for number in range(280):
        assert storage.raise_fence(volume(number), fence(1), unexpected) == 0
    for epoch in range(2, 600):
        assert storage.raise_fence(volume(1), fence(epoch), unexpected) == 0
    assert max(between) == table.GROUP_RECORDS_MAX


def test_a_herd_of_fences_takes_a_write_per_copy_and_group() -> None:
    async def scenario() -> None:
        medium = MemoryDevice(1 << 15)
        drive = Latency(medium, lambda operation: 0.0)
        storage = await SledStorage.open([drive], sled_id=volume(0), env=environment(), format=True, table_records=512)
        before = writes_of(medium)
        herd = [status_of(lambda done, n=n: storage.raise_fence(volume(n), fence(1), done)) for n in range(200)]
        assert set(await asyncio.gather(*herd)) == {0}
        groups = 1 + -(-199 // GROUP_RECORDS_MAX)
        assert writes_of(medium) - before == 2 * groups

    run(scenario())


@pytest.mark.parametrize("target", ["other copy", "other region", "earlier record", "superblock", "data"])
@pytest.mark.parametrize("copy", [0, 1])
def test_a_misdirected_table_write_costs_no_fence(target: str, copy: int) -> None:
    medium = MemoryDevice(DEVICE_BLOCKS)
    drive = Misdirected(medium)
    storage = run(open_storage([drive], format=True))
    for epoch in (1, 2, 3):
        storage.raise_fence(volume(1), fence(epoch), unexpected)
    table = superblock_of(medium)
    area = table.area(0, copy)
    index = next(at for at in range(TABLE_RECORDS) if area + at not in medium.blocks)
    to = {
        "other copy": table.area(0, 1 - copy) + index - 1,
        "other region": table.area(1, copy) + index,
        "earlier record": area + index - 1,
        "superblock": 0,
        "data": table.data_lba,
    }[target]
    drive.misdirect(area + index, to)
    assert storage.raise_fence(volume(1), fence(4), unexpected) == 0
    assert run(open_storage([medium])).fence_of(volume(1)) == fence(4)


@pytest.mark.parametrize("kept", [set(), {0}, {1}, {3, 5}])
def test_a_torn_group_write_that_claims_success_costs_no_fence(kept: set[int]) -> None:
    async def scenario() -> None:
        medium = MemoryDevice(DEVICE_BLOCKS)
        torn = TornWrite(medium)
        drive = Latency(torn, lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        torn.tear(kept)
        herd = [status_of(lambda done, n=n: storage.raise_fence(volume(n), fence(1), done)) for n in range(10)]
        assert set(await asyncio.gather(*herd)) == {0}
        again = await open_storage([medium])
        assert len(again.fences()) == 10
        assert again.counters["tables_healed"] == 1

    run(scenario())


def test_a_queue_that_is_full_sends_callers_away_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sled_controller.storage.table.QUEUE_RECORDS_MAX", GROUP_RECORDS_MAX + 1)

    async def scenario() -> None:
        drive = Latency(MemoryDevice(DEVICE_BLOCKS), lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        drive.hold()
        taken = []
        for number in range(10):
            taken.append(asyncio.ensure_future(status_of(
                lambda done, n=number: storage.raise_fence(volume(n), fence(1), done))))  # fmt: skip
            await asyncio.sleep(0)
        refused = [number for number in range(10) if storage.fence_of(volume(number)) is None]
        assert refused
        drive.release()
        statuses = await asyncio.gather(*taken)
        assert [n for n, status in enumerate(statuses) if status == Status.NAMESPACE_NOT_READY] == refused
        assert storage.raise_fence(volume(refused[0]), fence(1), lambda status: None) != Status.NAMESPACE_NOT_READY

    run(scenario())
