"""A sled's storage as its target uses it: start, fences, namespaces, key set, devices that come and go."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from kit.drive import (
    DEVICE_BLOCKS,
    TABLE_RECORDS,
    block,
    environment,
    fence,
    memory_devices,
    open_storage,
    read,
    run,
    status_of,
    unexpected,
    volume,
)

from sled_controller.storage import DeviceState, DeviceUntrusted, SledStorage, StorageUnusable, StoredFence
from spdk_bindings.device import Device
from spdk_bindings.emulator import FileDevice, MemoryDevice
from spdk_bindings.faults import DeadDevice, Latency, Operation, Rule, StatusFault
from spdk_bindings.nvme import Status

ONLINE, OFFLINE, MISSING = DeviceState.ONLINE, DeviceState.OFFLINE, DeviceState.MISSING


def test_blank_devices_are_formatted_only_on_command() -> None:
    devices = memory_devices(2)
    with pytest.raises(StorageUnusable, match="formatting was not asked for"):
        run(open_storage(devices))
    assert not devices[0].blocks
    storage = run(open_storage(devices, format=True))
    assert storage.device_states() == ((0, ONLINE), (1, ONLINE))
    assert storage.boot_counter == 1


def test_each_start_has_a_higher_boot_counter_on_every_device() -> None:
    devices = memory_devices(2)
    run(open_storage(devices, format=True))
    assert run(open_storage(devices)).boot_counter == 2
    assert run(open_storage(devices[:1])).boot_counter == 3
    assert run(open_storage(devices)).boot_counter == 4
    assert run(open_storage(devices[1:])).boot_counter == 5


def test_everything_kept_survives_a_restart() -> None:
    devices = memory_devices(2)

    async def first() -> None:
        storage = await open_storage(devices, format=True)
        assert storage.raise_fence(volume(1), fence(3), unexpected) == 0
        assert storage.create_namespace(volume(1), 2, 10, unexpected) == 0
        assert storage.store_key_set(4, b"keys", unexpected) == 0
        storage.note_issued(1_700_000_000_000)

    run(first())
    storage = run(open_storage(devices))
    assert storage.fence_of(volume(1)) == fence(3)
    assert storage.fences() == {volume(1): fence(3)}
    assert storage.key_set == (4, b"keys")
    assert storage.issued_ms == 1_700_000_000_000
    (namespace,) = storage.namespaces.values()
    assert (namespace.volume, namespace.column, namespace.blocks, namespace.online) == (volume(1), 2, 10, True)
    assert storage.namespace_of(volume(1), 2) is namespace
    assert storage.fence_of(volume(2)) is None


def test_a_fence_is_never_lowered_and_never_changes_hands() -> None:
    storage = run(open_storage(memory_devices(2), format=True))
    assert storage.raise_fence(volume(1), fence(5), unexpected) == 0
    assert storage.raise_fence(volume(1), fence(4), unexpected) == Status.FENCED_OFF
    assert storage.raise_fence(volume(1), fence(5, holder=2), unexpected) == Status.REFUSED
    assert storage.raise_fence(volume(1), fence(5), unexpected) == 0
    assert storage.fence_of(volume(1)) == fence(5)
    assert storage.raise_fence(volume(1), fence(6, holder=2), unexpected) == 0
    assert storage.fence_of(volume(1)) == fence(6, holder=2)


@pytest.mark.parametrize(
    "bad", [fence(0), fence(2**64), StoredFence(1, b"short", b""), StoredFence(1, b"h" * 32, bytes(1025))]
)
def test_fences_that_cannot_be_stored_are_refused(bad: StoredFence) -> None:
    storage = run(open_storage(memory_devices(1), format=True))
    assert storage.raise_fence(volume(1), bad, unexpected) == Status.INVALID_FIELD
    assert storage.fence_of(volume(1)) is None


def test_a_fence_is_written_twice_in_separate_fua_writes_on_every_device() -> None:
    writes: list[tuple[str, int, bool]] = []

    class Watched(MemoryDevice):
        def write(self, lba: int, data: object, fua: bool, done: object) -> int:
            writes.append((self.serial, lba, fua))
            return super().write(lba, data, fua, done)  # type: ignore[arg-type]

    storage = run(open_storage([Watched(DEVICE_BLOCKS, "A"), Watched(DEVICE_BLOCKS, "B")], format=True))
    writes.clear()
    assert storage.raise_fence(volume(1), fence(1), unexpected) == 0
    assert [serial for serial, _, _ in writes] == ["A", "A", "B", "B"]
    assert all(fua for _, _, fua in writes)
    assert len({lba for serial, lba, _ in writes if serial == "A"}) == 2


def test_concurrent_fences_share_one_fua_write_per_copy() -> None:
    async def scenario() -> None:
        medium = MemoryDevice(DEVICE_BLOCKS)
        drive = Latency(medium, lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        before = medium.smart()["host_write_commands"]
        raised = [
            asyncio.ensure_future(status_of(lambda done, n=n: storage.raise_fence(volume(n), fence(1), done)))
            for n in range(15)
        ]
        assert await asyncio.gather(*raised) == [0] * 15
        assert medium.smart()["host_write_commands"] - before == 4
        assert len((await open_storage([medium.clone()])).fences()) == 15

    run(scenario())


def test_a_fence_stands_in_memory_before_it_is_durable_and_a_second_raise_waits_for_it() -> None:
    async def scenario() -> None:
        medium = MemoryDevice(DEVICE_BLOCKS)
        drive = Latency(medium, lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        drive.hold()
        first = asyncio.ensure_future(status_of(lambda done: storage.raise_fence(volume(1), fence(2), done)))
        second = asyncio.ensure_future(status_of(lambda done: storage.raise_fence(volume(1), fence(2), done)))
        await asyncio.sleep(0)
        assert storage.fence_of(volume(1)) == fence(2)
        assert (await open_storage([medium.clone()])).fence_of(volume(1)) is None
        assert not first.done()
        assert not second.done()
        drive.release()
        assert await asyncio.gather(first, second) == [0, 0]

    run(scenario())


def test_older_key_sets_and_issue_times_change_nothing() -> None:
    storage = run(open_storage(memory_devices(1), format=True))
    assert storage.store_key_set(2, b"two", unexpected) == 0
    assert storage.store_key_set(1, b"one", unexpected) == 0
    assert storage.key_set == (2, b"two")
    assert storage.store_key_set(3, bytes(5000), unexpected) == Status.INVALID_FIELD
    storage.note_issued(100)
    storage.note_issued(50)
    assert storage.issued_ms == 100


def test_the_issue_time_is_written_in_steps() -> None:
    devices = memory_devices(1)
    storage = run(open_storage(devices, format=True))
    writes = devices[0].smart()["host_write_commands"]
    storage.note_issued(1_000_000)
    after = devices[0].smart()["host_write_commands"]
    assert after == writes + 2
    storage.note_issued(1_030_000)
    assert devices[0].smart()["host_write_commands"] == after
    assert storage.issued_ms == 1_030_000


def test_namespaces_go_where_there_is_room_and_are_idempotent() -> None:
    storage = run(open_storage(memory_devices(2), format=True))
    storage.raise_fence(volume(1), fence(1), unexpected)
    assert storage.create_namespace(volume(1), 0, 100, unexpected) == 0
    assert storage.create_namespace(volume(1), 1, 100, unexpected) == 0
    assert storage.create_namespace(volume(1), 0, 100, unexpected) == 0
    assert storage.create_namespace(volume(1), 0, 101, unexpected) == Status.INVALID_FIELD
    assert storage.create_namespace(volume(1), 2, 0, unexpected) == Status.INVALID_FIELD
    assert storage.create_namespace(volume(1), 70000, 1, unexpected) == Status.INVALID_FIELD
    assert storage.create_namespace(volume(1), 3, 10**6, unexpected) == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert {namespace.device_index for namespace in storage.namespaces.values()} == {0, 1}
    assert sorted(storage.namespaces) == [1, 0x10001]


def test_a_volume_without_a_fence_gets_no_namespace() -> None:
    storage = run(open_storage(memory_devices(1), format=True))
    assert storage.create_namespace(volume(1), 0, 1, unexpected) == Status.NOT_ATTACHED


def test_a_concurrent_second_creation_waits_for_the_first() -> None:
    async def scenario() -> None:
        drive = Latency(MemoryDevice(DEVICE_BLOCKS), lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        assert await status_of(lambda done: storage.raise_fence(volume(1), fence(1), done)) == 0
        first, second = (
            asyncio.ensure_future(status_of(lambda done: storage.create_namespace(volume(1), 0, 5, done)))
            for _ in range(2)
        )
        await asyncio.sleep(0)
        assert storage.create_namespace(volume(1), 0, 6, unexpected) == Status.INVALID_FIELD
        assert not storage.namespaces
        assert await asyncio.gather(first, second) == [0, 0]
        assert len(storage.namespaces) == 1

    run(scenario())


def test_a_new_namespace_reads_zero_where_another_volume_wrote() -> None:
    devices = memory_devices(1)
    storage = run(open_storage(devices, format=True))
    for number in (1, 2):
        storage.raise_fence(volume(number), fence(1), unexpected)
    storage.create_namespace(volume(1), 0, 500, unexpected)
    former = storage.namespaces[1]
    former.device.write(former.first_lba, block(0xAA, 500), True, unexpected)
    assert storage.delete_namespace(1, unexpected) == 0
    assert storage.delete_namespace(1, unexpected) == Status.INVALID_NAMESPACE
    devices[0].write(former.first_lba, block(0xAA, 500), True, unexpected)  # as if it had never been given back
    assert storage.create_namespace(volume(2), 0, 500, unexpected) == 0
    (namespace,) = storage.namespaces.values()
    assert namespace.first_lba == former.first_lba
    assert namespace.nsid == 2
    assert read(namespace.device, namespace.first_lba, 500) == block(0, 500)
    assert set(run(open_storage(devices)).namespaces) == {2}


def test_holes_are_filled_and_ids_of_deleted_namespaces_not_used_again_after_a_restart() -> None:
    devices = memory_devices(1)
    storage = run(open_storage(devices, format=True))
    storage.raise_fence(volume(1), fence(1), unexpected)
    for column in range(3):
        storage.create_namespace(volume(1), column, 100, unexpected)
    hole = storage.namespaces[2].first_lba
    storage.delete_namespace(2, unexpected)
    storage = run(open_storage(devices))
    storage.create_namespace(volume(1), 7, 100, unexpected)
    assert storage.namespaces[4].first_lba == hole


def fill_with_volumes(storage: SledStorage) -> int:
    """Raise fences of new volumes until the table refuses; how many it took."""
    number = 0
    while storage.raise_fence(volume(number), fence(1), unexpected) == 0:
        number += 1
    return number


def test_a_full_table_refuses_new_volumes_and_namespaces_but_never_a_known_fence() -> None:
    devices = memory_devices(2)
    storage = run(open_storage(devices, format=True))
    storage.raise_fence(volume(0), fence(1), unexpected)
    known = fill_with_volumes(storage)
    assert known > 20
    assert storage.raise_fence(volume(known), fence(1), unexpected) == Status.NAMESPACE_INSUFFICIENT_CAPACITY
    assert storage.fence_of(volume(known)) is None
    column = 0
    while storage.create_namespace(volume(0), column, 1, unexpected) == 0:
        column += 1
        assert column < TABLE_RECORDS
    for epoch in range(2, 12):
        for number in range(known):
            assert storage.raise_fence(volume(number), fence(epoch), unexpected) == 0
    assert storage.store_key_set(1, b"k", unexpected) == 0
    again = run(open_storage(devices))
    assert again.fences() == {volume(number): fence(11) for number in range(known)}
    assert len(again.namespaces) == column
    assert storage.counters["refused_for_room"] >= 2


def test_f2_a_fence_is_forgotten_only_together_with_the_time_that_stands_in_for_it() -> None:
    devices = memory_devices(2)

    async def first() -> None:
        storage = await open_storage(devices, format=True)
        assert storage.raise_fence(volume(1), fence(3), unexpected) == 0
        assert storage.raise_fence(volume(2), fence(4), unexpected) == 0
        assert storage.retire_fence(volume(1), 3, 1_700_000_000_000, unexpected) == 0
        assert storage.fences() == {volume(2): fence(4)}
        assert storage.counters["fences_retired"] == 1

    run(first())
    for some in (devices, devices[:1], devices[1:]):
        storage = run(open_storage(some))
        assert storage.fences() == {volume(2): fence(4)}
        assert storage.issued_ms == 1_700_000_000_000


def test_f2_a_fence_stays_while_a_namespace_or_a_newer_epoch_is_there() -> None:
    storage = run(open_storage(memory_devices(1), format=True))
    assert storage.raise_fence(volume(1), fence(3), unexpected) == 0
    assert storage.retire_fence(volume(1), 2, 1000, unexpected) == 0
    assert storage.fence_of(volume(1)) == fence(3)
    assert storage.create_namespace(volume(1), 0, 10, unexpected) == 0
    assert storage.retire_fence(volume(1), 3, 1000, unexpected) == Status.INVALID_NAMESPACE
    assert storage.fence_of(volume(1)) == fence(3)
    (nsid,) = storage.namespaces
    storage.take_offline(0, "a test")
    assert storage.retire_fence(volume(1), 3, 1000, unexpected) == Status.INVALID_NAMESPACE
    assert nsid in storage.namespaces


def test_f2_a_device_that_was_away_brings_a_forgotten_fence_back() -> None:
    devices = memory_devices(2)

    async def scenario() -> None:
        storage = await open_storage(devices, format=True)
        assert storage.raise_fence(volume(1), fence(3), unexpected) == 0
        storage.close()
        storage = await open_storage(devices[:1])
        assert storage.retire_fence(volume(1), 3, 5000, unexpected) == 0
        assert storage.fence_of(volume(1)) is None
        await storage.join(devices[1])
        assert storage.fence_of(volume(1)) == fence(3)
        storage.close()
        storage = await open_storage(devices[1:])  # what joined has the time as well
        assert storage.issued_ms == 5000
        assert storage.fence_of(volume(1)) == fence(3)

    run(scenario())


def test_a_sled_takes_any_number_of_volumes_one_after_the_other() -> None:
    device = MemoryDevice(DEVICE_BLOCKS)

    async def scenario() -> None:
        storage = await open_storage([device], format=True)
        for number in range(1, 20 * TABLE_RECORDS):
            assert storage.raise_fence(volume(number), fence(1), unexpected) == 0
            assert storage.create_namespace(volume(number), 0, 10, unexpected) == 0
            (nsid,) = storage.namespaces
            assert storage.delete_namespace(nsid, unexpected) == 0
            assert storage.retire_fence(volume(number), 1, 1000 + number, unexpected) == 0
        assert storage.counters["refused_for_room"] == 0
        again = await open_storage([device])
        assert again.fences() == {}
        assert again.issued_ms == 999 + 20 * TABLE_RECORDS

    run(scenario())


def test_a_device_that_fails_a_table_write_goes_offline_and_the_others_go_on() -> None:
    failing = StatusFault(MemoryDevice(DEVICE_BLOCKS, "BAD"))
    devices: list[Device] = [failing, MemoryDevice(DEVICE_BLOCKS, "GOOD")]
    storage = run(open_storage(devices, format=True))
    storage.raise_fence(volume(1), fence(1), unexpected)
    storage.create_namespace(volume(1), 0, 10, unexpected)
    namespace = storage.namespaces[1]
    seen: list[tuple[int, str]] = []
    storage.on_device_offline = lambda index, reason: seen.append((index, reason))
    failing.rules = [Rule(Status.WRITE_FAULT, operations=(Operation.WRITE,))]
    assert storage.raise_fence(volume(1), fence(2), unexpected) == 0
    assert storage.device_states() == ((0, OFFLINE), (1, ONLINE))
    assert seen == [(0, "its table could not be written: WRITE_FAULT")]
    assert not namespace.online
    assert namespace.device.write(0, block(1), False, unexpected) == Status.INTERNAL_PATH_ERROR
    assert storage.delete_namespace(1, unexpected) == Status.INTERNAL_PATH_ERROR
    assert [index for index, _ in storage.online_devices()] == [1]
    assert run(open_storage(devices[1:])).fence_of(volume(1)) == fence(2)


def test_without_any_device_a_fence_is_not_durable_and_says_so() -> None:
    failing = StatusFault(MemoryDevice(DEVICE_BLOCKS))
    storage = run(open_storage([failing], format=True))
    failing.rules = [Rule(Status.WRITE_FAULT)]
    assert storage.raise_fence(volume(1), fence(1), unexpected) == Status.INTERNAL_PATH_ERROR
    assert storage.raise_fence(volume(1), fence(1), unexpected) == Status.INTERNAL_ERROR


def test_a_device_that_swallows_table_writes_does_not_hold_up_the_fence_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sled_controller.storage.table.WRITE_TIMEOUT_S", 0.0)

    async def scenario() -> None:
        silent = DeadDevice(MemoryDevice(DEVICE_BLOCKS, "SILENT"))
        storage = await open_storage([silent, MemoryDevice(DEVICE_BLOCKS)], format=True)
        silent.die(silent=True)
        assert await status_of(lambda done: storage.raise_fence(volume(1), fence(1), done)) == 0
        assert storage.device_states()[0] == (0, OFFLINE)

    run(scenario())


def test_a_device_that_is_silent_at_start_does_not_keep_the_sled_from_serving_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sled_controller.storage.completion.ANSWER_SECONDS_MAX", 0.01)

    async def scenario() -> None:
        silent = DeadDevice(MemoryDevice(DEVICE_BLOCKS, "SILENT"))
        silent.die(silent=True)
        storage = await open_storage([silent, MemoryDevice(DEVICE_BLOCKS)], format=True)
        states = {report.serial: (report.state, report.reason) for report in storage.reports()}
        assert states["MEM0"][0] is ONLINE
        assert "does not answer" in states["SILENT"][1]

    run(scenario())


def test_a_device_taken_offline_fails_what_waits_for_its_table() -> None:
    async def scenario() -> None:
        drive = Latency(MemoryDevice(DEVICE_BLOCKS), lambda operation: 0.0)
        storage = await open_storage([drive], format=True)
        drive.hold()
        raised = asyncio.ensure_future(status_of(lambda done: storage.raise_fence(volume(1), fence(1), done)))
        await asyncio.sleep(0)
        storage.take_offline(0, "drain timed out")
        storage.take_offline(0, "again")
        assert await raised == Status.INTERNAL_PATH_ERROR
        assert storage.counters["devices_failed"] == 1
        assert [report.reason for report in storage.reports()] == ["drain timed out"]

    run(scenario())


def test_a_namespace_whose_blocks_cannot_be_zeroed_is_not_made() -> None:
    drive = StatusFault(MemoryDevice(DEVICE_BLOCKS))
    storage = run(open_storage([drive], format=True))
    storage.raise_fence(volume(1), fence(1), unexpected)
    drive.rules = [Rule(Status.WRITE_FAULT, operations=(Operation.DEALLOCATE,), times=1)]
    assert storage.create_namespace(volume(1), 0, 400, unexpected) == Status.WRITE_FAULT
    drive.rules = [Rule(Status.INTERNAL_ERROR, operations=(Operation.FLUSH,), times=1)]
    assert storage.create_namespace(volume(1), 0, 400, unexpected) == Status.INTERNAL_ERROR
    assert not storage.namespaces
    assert storage.create_namespace(volume(1), 0, 400, unexpected) == 0


def reasons(storage: SledStorage) -> list[str]:
    return [report.reason for report in storage.reports() if report.reason]


def test_devices_of_other_sleds_and_twins_are_offline_and_untouched() -> None:
    own = memory_devices(1)
    run(open_storage(own, format=True))
    foreign = MemoryDevice(DEVICE_BLOCKS, "FOREIGN")
    run(SledStorage.open([foreign], sled_id=volume(9), env=environment(5), format=True, table_records=TABLE_RECORDS))
    before = dict(foreign.blocks)
    twin = own[0].clone()
    storage = run(open_storage([own[0], foreign, twin], format=True))
    assert sorted(reasons(storage)) == [
        f"device index 0 is taken by {own[0].serial}",
        f"it belongs to sled {volume(9)}",
    ]
    assert foreign.blocks == before
    assert storage.device_states() == ((0, ONLINE),)
    assert storage.counters["devices_untrusted"] == 2


def test_a_device_that_is_not_blank_is_not_formatted() -> None:
    used: Sequence[MemoryDevice] = memory_devices(3)
    used[0].write(100, block(1), True, unexpected)
    used[1].write(DEVICE_BLOCKS - 1, block(1), True, unexpected)
    used[2].write(600, block(1), True, unexpected)
    for device in used:
        with pytest.raises(StorageUnusable, match=r"not blank|neither superblock"):
            run(open_storage([device], format=True))
        assert len(device.blocks) == 1


def test_a_device_too_small_is_refused() -> None:
    with pytest.raises(StorageUnusable, match="too small"):
        run(open_storage([MemoryDevice(100)], format=True))


def test_a_missing_device_is_missed() -> None:
    devices = memory_devices(3)
    run(open_storage(devices, format=True))
    storage = run(open_storage([devices[0], devices[2]]))
    assert storage.device_states() == ((0, ONLINE), (1, MISSING), (2, ONLINE))
    assert any(report.state is MISSING and report.index == 1 for report in storage.reports())


def test_a_new_device_does_not_take_a_missing_ones_index() -> None:
    devices = memory_devices(2)
    run(open_storage(devices, format=True))
    fresh = MemoryDevice(DEVICE_BLOCKS, "FRESH")
    storage = run(open_storage([devices[0], fresh], format=True))
    assert storage.device_states() == ((0, ONLINE), (1, MISSING), (2, ONLINE))


def test_files_work_like_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = [FileDevice.create(tmp_path / f"{n}", DEVICE_BLOCKS) for n in range(2)]
        storage = await open_storage(files, format=True)
        raised = [status_of(lambda done, n=n: storage.raise_fence(volume(n), fence(7), done)) for n in range(10)]
        assert await asyncio.gather(*raised) == [0] * 10
        assert await status_of(lambda done: storage.create_namespace(volume(1), 0, 10, done)) == 0
        storage.close()
        storage.close()
        again = await open_storage([FileDevice(tmp_path / f"{n}") for n in range(2)])
        assert len(again.fences()) == 10
        assert len(again.namespaces) == 1
        again.close()

    run(scenario())


def test_a_device_that_comes_back_gets_the_fences_before_it_is_served() -> None:
    """[re-added device]"""

    async def scenario() -> None:
        devices = memory_devices(2)
        storage = await open_storage(devices, format=True)
        storage.raise_fence(volume(1), fence(1), unexpected)
        storage.create_namespace(volume(1), 0, 10, unexpected)
        storage.take_offline(0, "pulled")
        storage.raise_fence(volume(1), fence(2), unexpected)
        storage.release(0)
        ended: list[int] = []
        storage.on_rejoin = ended.append
        drive = Latency(devices[0], lambda operation: 0.0)
        joining = asyncio.ensure_future(storage.join(drive))
        while storage.device_states()[0][1] is not DeviceState.JOINING:
            assert not storage.namespaces[1].online
            await asyncio.sleep(0)
        raised = await status_of(lambda done: storage.raise_fence(volume(2), fence(9), done))
        assert raised == 0
        assert await joining == 0
        assert storage.namespaces[1].device is drive
        assert ended == [0]
        alone = await open_storage([devices[0].clone()])
        assert alone.fences() == {volume(1): fence(2), volume(2): fence(9)}

    run(scenario())


def test_a_device_served_before_in_this_start_needs_someone_to_end_what_used_it() -> None:
    """Its unflushed writes may be lost, and a flush after it came back would vouch for them (D1)."""

    async def scenario() -> None:
        devices = memory_devices(2)
        storage = await open_storage(devices, format=True)
        storage.take_offline(0, "pulled")
        with pytest.raises(DeviceUntrusted, match="restart the sled"):
            await storage.join(devices[0])
        assert storage.device_states() == ((0, OFFLINE), (1, ONLINE))
        assert (await open_storage(devices)).device_states() == ((0, ONLINE), (1, ONLINE))

    run(scenario())


def test_a_joining_device_raises_a_lower_fence_of_the_sled() -> None:
    async def scenario() -> None:
        devices = memory_devices(2)
        storage = await open_storage(devices, format=True)
        storage.raise_fence(volume(1), fence(1), unexpected)
        ahead = await open_storage([devices[1]])
        ahead.raise_fence(volume(1), fence(8), unexpected)
        ahead.store_key_set(3, b"three", unexpected)
        storage = await open_storage([devices[0]])
        seen: list[int] = []
        storage.on_fence_raised = lambda volume_id, raised: seen.append(raised.epoch)
        assert await storage.join(devices[1]) == 1
        assert seen == [8]
        assert storage.fence_of(volume(1)) == fence(8)
        assert storage.key_set == (3, b"three")
        assert (await open_storage([devices[0]])).fence_of(volume(1)) == fence(8)

    run(scenario())


def test_a_joining_device_with_another_holder_of_the_same_epoch_is_offline() -> None:
    """[test_f2_equal_epoch_other_holder, between devices]"""

    async def scenario() -> None:
        devices = memory_devices(2)
        await open_storage(devices, format=True)
        (await open_storage([devices[1]])).raise_fence(volume(1), fence(4, holder=2), unexpected)
        storage = await open_storage([devices[0]])
        storage.raise_fence(volume(1), fence(4, holder=1), unexpected)
        before = dict(devices[1].blocks)
        with pytest.raises(DeviceUntrusted, match="another holder"):
            await storage.join(devices[1])
        assert devices[1].blocks == before
        assert storage.fence_of(volume(1)) == fence(4, holder=1)
        assert storage.device_states()[1] == (1, OFFLINE)

    run(scenario())


def test_a_blank_device_joins_on_command_only() -> None:
    async def scenario() -> None:
        storage = await open_storage(memory_devices(1), format=True)
        storage.raise_fence(volume(1), fence(1), unexpected)
        fresh = MemoryDevice(DEVICE_BLOCKS, "FRESH")
        with pytest.raises(DeviceUntrusted, match="not asked for"):
            await storage.join(fresh)
        assert await storage.join(fresh, format=True, table_records=TABLE_RECORDS) == 1
        assert (await open_storage([fresh])).fences() == {volume(1): fence(1)}

    run(scenario())


def test_a_joining_device_whose_table_is_too_small_is_offline() -> None:
    async def scenario() -> None:
        storage = await open_storage(memory_devices(1), format=True)
        fill_with_volumes(storage)
        small = MemoryDevice(DEVICE_BLOCKS, "SMALL")
        with pytest.raises(DeviceUntrusted, match="too small"):
            await storage.join(small, format=True, table_records=32)

    run(scenario())
