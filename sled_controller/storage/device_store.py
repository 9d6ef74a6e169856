"""One device of a sled: opening and formatting it, the space on it, its table's append end."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import IntEnum
from functools import partial
from typing import Final
from uuid import UUID

from sled_controller.storage.completion import completed
from sled_controller.storage.content import LOCAL_NSID_MAX, TableContent
from sled_controller.storage.errors import DeviceUntrusted, RecordMalformed
from sled_controller.storage.records import Cell, decode_record
from sled_controller.storage.recovery import CellOrRecord, Recovered, recover
from sled_controller.storage.superblock import (
    TABLE_COPIES,
    ZERO_BLOCK,
    FormatState,
    Superblock,
    decode,
    judge,
)
from sled_controller.storage.table import TableLog
from spdk_bindings.device import BLOCK_BYTES, PENDING, Device, Done
from spdk_bindings.nvme import status_name

log = logging.getLogger(__name__)

SCAN_BLOCKS: Final = 256
BLANK_SAMPLES: Final = 64
"""Beside the metadata area, so many blocks spread over the device must be zero before it counts as blank."""


class DeviceState(IntEnum):
    """The life of a device in a sled: JOINING -> ONLINE -> OFFLINE, or straight to OFFLINE; MISSING is not there."""

    ONLINE = 0
    OFFLINE = 1
    JOINING = 2
    MISSING = 3


class DeviceStore:
    """A device with a trusted table. `on_failed(store, reason)` is called when the table can't be written any more."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        recovered: Recovered | None,
        on_failed: Callable[["DeviceStore", str], None],
    ) -> None:
        """`recovered` is None for a device that has just been formatted."""
        self.device = device
        self.superblock = superblock
        self.index = superblock.device_index
        self.state = DeviceState.JOINING
        self.damaged_records = recovered.damaged if recovered is not None else 0
        self.needs_healing = recovered is not None and not recovered.clean
        if recovered is None:
            content = TableContent(members={superblock.device_index: superblock.device})
            self.log = TableLog.format(device, superblock, content, partial(on_failed, self))
        else:
            self.log = TableLog(device, superblock, recovered, partial(on_failed, self))
        self._extents = {nsid: (entry.first_lba, entry.blocks) for nsid, entry in self.content.namespaces.items()}

    @property
    def content(self) -> TableContent:
        """What the table says, queued entries included."""
        return self.log.content

    def has_room(self, volume: UUID, namespaces: int = 0) -> bool:
        """Whether the table can take `volume` in (if it's new), so many more namespaces, and all fences once more."""
        return self.has_room_for((volume,), namespaces)

    def has_room_for(self, volumes: Iterable[UUID], namespaces: int = 0) -> bool:
        """The same for several volumes. Namespaces being made count already."""
        under_way = len(self._extents.keys() - self.content.namespaces.keys())
        return self.content.records_reserved(volumes, namespaces + under_way) <= self.superblock.table_records

    def free_blocks(self) -> int:
        """Blocks of the data area that no namespace has."""
        return self.superblock.data_blocks - sum(blocks for _, blocks in self._extents.values())

    def find_extent(self, blocks: int) -> int | None:
        """First lba of the lowest hole of at least `blocks` blocks, None when there is none."""
        first = self.superblock.data_lba
        for used_first, used_blocks in sorted(self._extents.values()):
            if used_first - first >= blocks:
                return first
            first = used_first + used_blocks
        return first if self.superblock.data_lba + self.superblock.data_blocks - first >= blocks else None

    def take_extent(self, first_lba: int, blocks: int) -> int | None:
        """Reserve an extent and return the namespace id it goes by, None when ids have run out.

        An id is the device index in the high half, so that sleds need no agreement between devices, and a number
        from 1 that isn't used twice before all have been.
        """
        content = self.content
        base = self.index << 16
        for local in range(content.nsid_next, LOCAL_NSID_MAX + 1):
            content.nsid_next = local + 1
            self._extents[base | local] = (first_lba, blocks)
            return base | local
        for local in range(1, LOCAL_NSID_MAX + 1):
            if base | local not in self._extents:
                self._extents[base | local] = (first_lba, blocks)
                return base | local
        return None

    def give_extent(self, nsid: int) -> None:
        """Free the extent of a namespace that was deleted or never made."""
        self._extents.pop(nsid, None)


async def read_block(device: Device, lba: int) -> bytes | None:
    """One block, None when it can't be read."""
    block = bytearray(BLOCK_BYTES)
    status = await completed(lambda done: device.read(lba, block, done))
    if status:
        log.warning("event=metadata_unreadable serial=%s lba=%d status=%s", device.serial, lba, status_name(status))
        return None
    return bytes(block)


async def write_block(device: Device, lba: int, block: bytes) -> None:
    """One block FUA; raises DeviceUntrusted when it can't be written."""
    status = await completed(lambda done: device.write(lba, block, True, done))
    if status:
        raise DeviceUntrusted(f"block {lba} can't be written: {status_name(status)}")


async def read_superblock(device: Device) -> Superblock | None:
    """The superblock, its copies repaired from each other; None when both copies are all zero.

    Raises DeviceUntrusted. One whose formatting was cut off has state FORMATTING.
    """
    first = await read_block(device, 0)
    first_found = decode(first) if first is not None else None
    last_lba = first_found.block_count - 1 if first_found is not None else device.block_count - 1
    last = await read_block(device, last_lba) if last_lba < device.block_count else None
    if first == ZERO_BLOCK and last == ZERO_BLOCK:
        return None
    verdict = judge(first_found, decode(last) if last is not None else None, device.block_count)
    found = verdict.superblock
    if found.state == FormatState.FORMATTING:
        if last != ZERO_BLOCK:
            raise DeviceUntrusted("its formatting was cut off and the second superblock copy is damaged")
        return found
    for copy in verdict.repair:
        log.warning("event=superblock_repaired serial=%s copy=%d", device.serial, copy)
        await write_block(device, found.copies()[copy], found.encode())
    return found


async def read_table(device: Device, superblock: Superblock) -> Recovered:
    """Read and judge the whole table; raises DeviceUntrusted."""
    regions: list[tuple[list[CellOrRecord], list[CellOrRecord]]] = []
    try:
        for region in (0, 1):
            first = await _read_area(device, superblock, region, 0)
            second = await _read_area(device, superblock, region, 1)
            regions.append((first, second))
        recovered = recover(regions)
    except RecordMalformed as error:
        raise DeviceUntrusted(str(error)) from error
    recovered.content.check(superblock)
    return recovered


async def _read_area(device: Device, superblock: Superblock, region: int, copy: int) -> list[CellOrRecord]:
    area = superblock.area(region, copy)
    cells: list[CellOrRecord] = []
    buffer = bytearray(SCAN_BLOCKS * BLOCK_BYTES)
    zeroes = bytes(len(buffer))
    for first in range(0, superblock.table_records, SCAN_BLOCKS):
        count = min(SCAN_BLOCKS, superblock.table_records - first)
        view = memoryview(buffer)[: count * BLOCK_BYTES]
        status = await completed(partial(device.read, area + first, view))
        if not status and view == zeroes[: len(view)]:
            cells += [Cell.ABSENT] * count
            continue
        for offset in range(count):
            block: bytes | None = bytes(view[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES])
            if status:
                block = await read_block(device, area + first + offset)
            if block is None:
                cells.append(Cell.DAMAGED)
            else:
                cells.append(decode_record(block, superblock.device, region, first + offset))
    return cells


async def require_blank(device: Device, data_lba: int) -> None:
    """Raise DeviceUntrusted unless the metadata area, the last block and samples of the rest are all zero."""
    buffer = bytearray(SCAN_BLOCKS * BLOCK_BYTES)
    zeroes = bytes(len(buffer))
    for first in range(0, data_lba, SCAN_BLOCKS):
        view = memoryview(buffer)[: min(SCAN_BLOCKS, data_lba - first) * BLOCK_BYTES]
        status = await completed(partial(device.read, first, view))
        if status or view != zeroes[: len(view)]:
            raise DeviceUntrusted("it is not blank: only an all-zero device is formatted; erase it first")
    step = max(1, (device.block_count - data_lba) // BLANK_SAMPLES)
    for lba in (*range(data_lba, device.block_count, step), device.block_count - 1):
        if await read_block(device, lba) != ZERO_BLOCK:
            raise DeviceUntrusted("it is not blank: only an all-zero device is formatted; erase it first")


async def format_device(
    device: Device, superblock: Superblock, on_failed: Callable[[DeviceStore, str], None]
) -> DeviceStore:
    """Format a device that is known to be blank, or whose formatting was cut off; raises DeviceUntrusted.

    The first superblock copy says FORMATTING until the table is durable, so a crash leaves nothing that looks like
    a device which lost its table.
    """
    await write_block(device, superblock.copies()[0], replace(superblock, state=FormatState.FORMATTING).encode())
    table_blocks = TABLE_COPIES * superblock.table_records
    status = await completed(partial(device.write_zeroes, superblock.table_lba, table_blocks, True))
    if status:
        raise DeviceUntrusted(f"its table can't be zeroed: {status_name(status)}")
    store = DeviceStore(device, superblock, None, on_failed)
    status = await completed(partial(durable, store.log))
    if status:
        raise DeviceUntrusted(f"its table can't be written: {status_name(status)}")
    for copy in (1, 0):
        await write_block(device, superblock.copies()[copy], superblock.encode())
    return store


def durable(table: TableLog, done: Done) -> int:
    """Complete when everything queued is on the medium; to be awaited by `completed`."""
    table.append((), done)
    return PENDING
