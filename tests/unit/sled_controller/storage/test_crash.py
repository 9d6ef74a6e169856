"""Power cuts and rot at any point: the acknowledged stays, a fence is never lowered, distrust is the last resort."""

from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.drive import (
    DEVICE_BLOCKS,
    SLED,
    CuttingDevice,
    PowerCut,
    block,
    environment,
    fence,
    open_storage,
    read,
    run,
    unexpected,
    volume,
)

from sled_controller.storage import DeviceState, SledStorage, StorageUnusable
from sled_controller.storage.superblock import Superblock, decode
from spdk_bindings.emulator import MemoryDevice
from spdk_bindings.faults import BitRot, Rule, StatusFault
from spdk_bindings.nvme import Status
from spdk_bindings.volatile_cache import VolatileCache

SMALL_TABLE = 32
"""So small that checkpoints are frequent."""

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["fence", "fence", "fence", "create", "delete", "keys", "time", "retire"]), st.integers(0, 3)
    ),
    min_size=1,
    max_size=40,
)


@dataclass
class Acknowledged:
    """What the sled has promised, and the highest that it was asked for."""

    fences: dict[UUID, int] = field(default_factory=dict)
    asked: dict[UUID, int] = field(default_factory=dict)
    namespaces: dict[tuple[UUID, int], tuple[int, int]] = field(default_factory=dict)
    uncertain: set[tuple[UUID, int]] = field(default_factory=set)
    retired: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    """(epoch, time): the fence stands, or sled time is not before that time."""
    key_set: int = 0
    boot_counter: int = 0


async def open_small(devices: list[CuttingDevice], *, format: bool = False) -> SledStorage:  # noqa: A002
    return await SledStorage.open(devices, sled_id=SLED, env=environment(), format=format, table_records=SMALL_TABLE)


def act(storage: SledStorage, action: str, number: int, promised: Acknowledged) -> None:
    """One operation; `promised` is changed only after it was acknowledged."""
    volume_id, column = volume(number), number
    key = (volume_id, column)
    if action == "fence":
        epoch = promised.asked.get(volume_id, 0) + 1
        promised.asked[volume_id] = epoch
        assert storage.raise_fence(volume_id, fence(epoch), unexpected) == 0
        promised.fences[volume_id] = epoch
    elif action == "create" and volume_id in promised.fences and key not in promised.namespaces:
        promised.uncertain.add(key)
        assert storage.create_namespace(volume_id, column, 5 + number, unexpected) == 0
        promised.uncertain.discard(key)
        made = storage.namespace_of(volume_id, column)
        assert made is not None
        promised.namespaces[key] = (made.nsid, made.first_lba)
    elif action == "delete" and key in promised.namespaces:
        nsid, _ = promised.namespaces.pop(key)
        promised.uncertain.add(key)
        assert storage.delete_namespace(nsid, unexpected) == 0
        promised.uncertain.discard(key)
    elif action == "keys":
        version = promised.key_set + 1
        assert storage.store_key_set(version, b"k%d" % version, unexpected) == 0
        promised.key_set = version
    elif action == "retire" and volume_id in promised.fences and not storage.has_namespace_of(volume_id):
        over_ms = storage.issued_ms + 1000
        epoch = promised.fences.pop(volume_id)
        promised.retired[volume_id] = (epoch, over_ms)
        assert storage.retire_fence(volume_id, epoch, over_ms, unexpected) == 0
        assert storage.fence_of(volume_id) is None
    elif action == "time":
        storage.note_issued(storage.issued_ms + 100_000)


def check(storage: SledStorage, promised: Acknowledged) -> None:
    """All that was promised is there, and nothing that nobody asked for."""
    assert storage.boot_counter > promised.boot_counter
    for volume_id, epoch in promised.fences.items():
        found = storage.fence_of(volume_id)
        assert found is not None
        assert epoch <= found.epoch <= promised.asked[volume_id]
    assert set(storage.fences()) <= set(promised.asked)
    for volume_id, (epoch, over_ms) in promised.retired.items():
        found = storage.fence_of(volume_id)
        assert storage.issued_ms >= over_ms or (found is not None and found.epoch >= epoch)
    found_namespaces = {
        (namespace.volume, namespace.column): (namespace.nsid, namespace.first_lba)
        for namespace in storage.namespaces.values()
    }
    for key, place in promised.namespaces.items():
        assert found_namespaces[key] == place
    assert set(found_namespaces) - set(promised.namespaces) <= promised.uncertain
    if promised.key_set:
        assert storage.key_set is not None
        assert promised.key_set <= storage.key_set[0] <= promised.key_set + 1
        promised.key_set = storage.key_set[0]


def settle(storage: SledStorage, promised: Acknowledged) -> None:
    """After a restart what was uncertain is known."""
    promised.boot_counter = storage.boot_counter
    for namespace in storage.namespaces.values():
        promised.namespaces[(namespace.volume, namespace.column)] = (namespace.nsid, namespace.first_lba)
    promised.uncertain.clear()
    for volume_id, kept in storage.fences().items():
        promised.fences[volume_id] = kept.epoch


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 2), st.integers(0, 2**32))
def test_a_crash_at_any_write_loses_nothing_acknowledged(
    actions: list[tuple[str, int]], cuts: list[int], device_count: int, seed: int
) -> None:
    """Actions, a power cut at some write (of a start's too), restart, again."""
    random = Random(seed)
    devices = [CuttingDevice(DEVICE_BLOCKS, f"D{number}") for number in range(device_count)]
    promised = Acknowledged()

    async def scenario() -> None:
        storage = await open_small(devices, format=True)
        settle(storage, promised)
        for cut in cuts:
            victim = random.choice(devices)
            victim.cut_after(cut, random)
            try:
                for action, number in actions:
                    act(storage, action, number, promised)
                storage = await open_small(devices)
            except PowerCut:
                pass
            victim.writes_left = None
            storage = await open_small(devices)
            check(storage, promised)
            settle(storage, promised)
            assert all(state is DeviceState.ONLINE for _, state in storage.device_states())

    run(scenario())


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.integers(0, 4 * SMALL_TABLE + 1), st.integers(0, 4095), st.booleans())
def test_any_one_rotten_or_lost_block_of_the_metadata_is_survived(
    actions: list[tuple[str, int]], lba: int, byte: int, vanish: bool
) -> None:
    promised = Acknowledged()

    async def scenario() -> None:
        device = CuttingDevice(DEVICE_BLOCKS)
        storage = await open_small([device], format=True)
        settle(storage, promised)
        for action, number in actions:
            act(storage, action, number, promised)
        at = lba if lba <= 4 * SMALL_TABLE else DEVICE_BLOCKS - 1
        rotten = bytearray(device.blocks.get(at, bytes(4096)))
        rotten[byte] ^= 0x40
        if vanish:
            device.blocks.pop(at, None)
        else:
            device.blocks[at] = bytes(rotten)
        again = await open_small([device])
        check(again, promised)
        settled = await open_small([device])
        assert settled.boot_counter == promised.boot_counter + 2
        assert settled.fences() == again.fences()

    run(scenario())


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.integers(0, 60), st.integers(0, 2**32), st.integers(1, 6))
def test_whatever_rots_after_a_crash_a_fence_is_never_lowered(
    actions: list[tuple[str, int]], cut: int, seed: int, rotten_blocks: int
) -> None:
    """A crash and several rotten blocks: everything promised is there, or the device is offline and untouched."""
    random = Random(seed)
    device = CuttingDevice(DEVICE_BLOCKS)
    promised = Acknowledged()

    async def scenario() -> None:
        storage = await open_small([device], format=True)
        settle(storage, promised)
        device.cut_after(cut, random)
        try:
            for action, number in actions:
                act(storage, action, number, promised)
        except PowerCut:
            pass
        device.writes_left = None
        written = [lba for lba in device.blocks if lba <= 4 * SMALL_TABLE]
        for lba in random.sample(written, min(rotten_blocks, len(written))):
            device.blocks[lba] = random.randbytes(4096)
        before = dict(device.blocks)
        try:
            storage = await open_small([device], format=True)
        except StorageUnusable:
            assert {lba: data for lba, data in device.blocks.items() if lba} == {
                lba: data for lba, data in before.items() if lba
            }
            return
        check(storage, promised)

    run(scenario())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**32))
def test_a_crash_while_formatting_is_formatted_again_on_command(cut: int, seed: int) -> None:
    device = CuttingDevice(DEVICE_BLOCKS)
    device.cut_after(cut, Random(seed))

    async def scenario() -> None:
        try:
            await open_small([device], format=True)
        except PowerCut:
            pass
        device.writes_left = None
        storage = await open_small([device], format=True)
        assert storage.raise_fence(volume(1), fence(1), unexpected) == 0
        assert (await open_small([device])).fence_of(volume(1)) == fence(1)

    run(scenario())


def superblock_of(device: MemoryDevice) -> Superblock:
    found = decode(read(device, 0))
    assert found is not None
    return found


def records_of(device: MemoryDevice, copy: int) -> list[int]:
    """Blocks of one copy of the first region that were ever written, in order."""
    found = superblock_of(device)
    area = found.area(0, copy)
    return [lba for lba in range(area, area + found.table_records) if lba in device.blocks]


@pytest.mark.parametrize("which", ["last", "middle", "head"])
@pytest.mark.parametrize("copy", [0, 1])
def test_f2_fence_record_rotten(which: str, copy: int) -> None:
    """[last journal record rotten] A fence whose record rots is still there, from its twin, and gets a new twin."""
    medium = MemoryDevice(DEVICE_BLOCKS)
    drive = BitRot(medium)
    storage = run(open_storage([drive], format=True))
    for epoch in (1, 2, 3):
        storage.raise_fence(volume(1), fence(epoch), unexpected)
    blocks = records_of(medium, copy)
    drive.rot({"last": blocks[-1], "middle": blocks[-2], "head": blocks[0]}[which], byte=50)
    again = run(open_storage([drive]))
    assert again.fence_of(volume(1)) == fence(3)
    assert again.counters["records_damaged"] == 1
    assert again.counters["tables_healed"] == 1
    drive.rot(records_of(medium, 1 - copy)[-1], byte=50)  # the twin, once it is no longer needed
    assert run(open_storage([drive])).fence_of(volume(1)) == fence(3)


@pytest.mark.parametrize("which", [-1, -2, 0])
def test_f2_fence_record_rotten_in_both_copies_takes_the_device_offline(which: int) -> None:
    """What two faults took away can't be known: the device is offline, and untouched, and another one has the fence."""
    devices = [MemoryDevice(DEVICE_BLOCKS, name) for name in "AB"]
    storage = run(open_storage(devices, format=True))
    for epoch in (1, 2, 3):
        storage.raise_fence(volume(1), fence(epoch), unexpected)
    for copy in (0, 1):
        devices[0].blocks[records_of(devices[0], copy)[which]] = block(0x5A)
    before = dict(devices[0].blocks)
    with pytest.raises(StorageUnusable):
        run(open_storage(devices[:1], format=True))
    again = run(open_storage(devices, format=True))
    assert again.device_states() == ((0, DeviceState.OFFLINE), (1, DeviceState.ONLINE))
    assert again.fence_of(volume(1)) == fence(3)
    assert devices[0].blocks == before


def test_f2_unreadable_record_is_like_a_rotten_one() -> None:
    medium = MemoryDevice(DEVICE_BLOCKS)
    storage = run(open_storage([medium], format=True))
    storage.raise_fence(volume(1), fence(3), unexpected)
    first, second = records_of(medium, 0)[-1], records_of(medium, 1)[-1]
    drive = StatusFault(medium, Rule(Status.UNRECOVERED_READ_ERROR, first, 1))
    assert run(open_storage([drive])).fence_of(volume(1)) == fence(3)
    drive = StatusFault(
        medium.clone(),
        Rule(Status.UNRECOVERED_READ_ERROR, superblock_of(medium).table_lba, 4 * 64),
    )
    with pytest.raises(StorageUnusable):
        run(open_storage([drive]))
    assert first != second


def test_d1_flush_after_power_cycle() -> None:
    """A write that was not flushed before the power cycle is gone although a flush after it succeeds; the boot
    counter, which every receipt shows, is how a head knows not to count that flush."""
    drive = VolatileCache(MemoryDevice(DEVICE_BLOCKS))
    storage = run(open_storage([drive], format=True))
    storage.raise_fence(volume(1), fence(1), unexpected)
    storage.create_namespace(volume(1), 0, 8, unexpected)
    namespace = storage.namespaces[1]
    lost = False
    for seed in range(8):
        before = storage.boot_counter
        assert namespace.device.write(namespace.first_lba, block(seed + 1), False, unexpected) == 0
        drive.power_cut(Random(seed))
        drive.power_on()
        storage = run(open_storage([drive]))
        namespace = storage.namespaces[1]
        assert namespace.device.flush(unexpected) == 0
        lost = lost or read(namespace.device, namespace.first_lba) != block(seed + 1)
        assert storage.boot_counter == before + 1
        assert storage.fence_of(volume(1)) == fence(1)
    assert lost


@pytest.mark.parametrize("copy", [0, 1])
def test_a_damaged_superblock_copy_is_repaired_from_the_other(copy: int) -> None:
    device = MemoryDevice(DEVICE_BLOCKS)
    run(open_storage([device], format=True)).raise_fence(volume(1), fence(1), unexpected)
    lba = superblock_of(device).copies()[copy]
    good = device.blocks[lba]
    device.blocks[lba] = block(0xEE)
    assert run(open_storage([device])).fence_of(volume(1)) == fence(1)
    assert device.blocks[lba] == good


def test_two_damaged_superblock_copies_are_distrusted_and_never_reformatted() -> None:
    device = MemoryDevice(DEVICE_BLOCKS)
    run(open_storage([device], format=True))
    for lba in superblock_of(device).copies():
        device.blocks.pop(lba)
    before = dict(device.blocks)
    with pytest.raises(StorageUnusable, match="not blank"):
        run(open_storage([device], format=True))
    assert device.blocks == before
