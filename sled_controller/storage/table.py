"""Appending to the table of one device: group commit, two copies, checkpoints into the other region.

Entries queued while a write is under way share the next one. A write error is final for the device: its table no
longer takes fences, so it must not be served.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sled_controller.storage.content import TableContent
from sled_controller.storage.records import Entry, TableRecord, encode_record
from sled_controller.storage.recovery import Recovered
from sled_controller.storage.superblock import Superblock
from spdk_bindings.device import PENDING, Device, Done
from spdk_bindings.nvme import Status, status_name

log = logging.getLogger(__name__)

GROUP_RECORDS_MAX: Final = 64
"""256 KiB per FUA write."""
QUEUE_RECORDS_MAX: Final = 8192
"""Waiting entries per device; 32 MiB of blocks at the very most."""
RETRIES_MAX: Final = 3
"""A drain may reset the device under a table write; the same blocks are then written again."""
WRITE_TIMEOUT_S: Final = 5.0
"""A table write that takes longer ends the device's service: it would hold up every attach on the sled."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One write: `entries` as the records from position `first` of a region's copy, which lies at `lba`."""

    lba: int
    entries: Sequence[Entry]
    generation: int
    first: int


class TableLog:
    """The append end of a table. `content` is ahead of the medium: it has every entry that was ever queued."""

    def __init__(
        self,
        device: Device,
        superblock: Superblock,
        recovered: Recovered,
        on_failed: Callable[[str], None],
    ) -> None:
        """`on_failed(reason)` is called once, before the callbacks of the entries that fail with it."""
        self.content: TableContent = recovered.content
        self.checkpoints = 0
        self.group_writes = 0
        self.failed = False
        self._device = device
        self._superblock = superblock
        self._on_failed = on_failed
        self._region = recovered.region
        self._generation = recovered.generation
        self._generation_max = recovered.generation_max
        self._next_index = recovered.next_index
        self._checkpoint_due = not recovered.clean
        self._queue: deque[tuple[Sequence[Entry], Done]] = deque()
        self._queued = 0
        self._steps: deque[_Step] = deque()
        self._data = b""
        """The first step's blocks, made when its turn comes: a checkpoint of a large table is megabytes of them."""
        self._waiting: list[Done] = []
        self._busy = False
        self._retries = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """Whether so much waits for the medium that callers should be told to come back."""
        return self._queued + GROUP_RECORDS_MAX > QUEUE_RECORDS_MAX

    @classmethod
    def format(
        cls, device: Device, superblock: Superblock, content: TableContent, failed: Callable[[str], None]
    ) -> "TableLog":
        """The log of an all-zero table; its first append writes the first checkpoint."""
        empty = Recovered(content, region=1, generation=1, next_index=0, generation_max=1, damaged=0, clean=False)
        return cls(device, superblock, empty, failed)

    def append(self, entries: Sequence[Entry], done: Done) -> None:
        """Make `entries` durable in both copies, after all queued before; `done(status)` then, perhaps right here.

        Without entries it is a barrier (which writes the checkpoint that heals a table with missing twins). At most
        `GROUP_RECORDS_MAX` entries, which become durable all or none acknowledged; the caller has seen to it
        that there is room (`TableContent.records_reserved`).
        """
        assert len(entries) <= GROUP_RECORDS_MAX
        if self.failed:
            done(int(Status.INTERNAL_PATH_ERROR))
            return
        for entry in entries:
            self.content.apply(entry)
        self._queue.append((entries, done))
        self._queued += max(1, len(entries))
        if not self._busy:
            self._busy = True
            self._advance()

    def _advance(self) -> None:
        while True:
            while self._steps:
                step = self._steps[0]
                self._data = self._data or self._encode(step)
                status = self._device.write(step.lba, self._data, True, self._written)
                if status == PENDING:
                    self._timer = asyncio.get_running_loop().call_later(
                        WRITE_TIMEOUT_S, self._fail, int(Status.INTERNAL_PATH_ERROR)
                    )
                    return
                if not self._stepped(status):
                    return
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done(int(Status.SUCCESS))
            if self.failed:
                return
            if not self._queue:
                self._busy = False
                return
            self._begin_group()

    def _written(self, status: int) -> None:
        if self.failed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stepped(status):
            self._advance()

    def _stepped(self, status: int) -> bool:
        """Whether to go on: the step was done, or is to be done again because someone reset the device under it."""
        if status == Status.ABORT_REQUESTED and self._retries < RETRIES_MAX:
            self._retries += 1
            return True
        if status:
            self._fail(status)
            return False
        self._retries = 0
        self._steps.popleft()
        self._data = b""
        return True

    def _begin_group(self) -> None:
        group: list[Entry] = []
        while self._queue and len(group) + len(self._queue[0][0]) <= GROUP_RECORDS_MAX:
            entries, done = self._queue.popleft()
            group += entries
            self._waiting.append(done)
            self._queued -= max(1, len(entries))
        if self._checkpoint_due or self._next_index + len(group) > self._superblock.table_records:
            self._plan_checkpoint()
        elif group:
            for copy in (0, 1):
                self._plan(copy, group, self._next_index)
            self._next_index += len(group)
            self.group_writes += 1

    def _plan_checkpoint(self) -> None:
        """The whole content, the group's and the queue's entries included, to the other region; its head last."""
        region = 1 - self._region
        generation = self._generation_max + 1
        if generation % 2 != region:
            generation += 1
        head, *body = self.content.checkpoint()
        assert 1 + len(body) <= self._superblock.table_records, "room was reserved before the entries were taken"
        self._region, self._generation, self._generation_max = region, generation, generation
        for copy in (0, 1):
            for first in range(0, len(body), GROUP_RECORDS_MAX):
                self._plan(copy, body[first : first + GROUP_RECORDS_MAX], 1 + first)
        for copy in (0, 1):
            self._plan(copy, [head], 0)
        self._next_index = 1 + len(body)
        self._checkpoint_due = False
        self.checkpoints += 1

    def _plan(self, copy: int, entries: Sequence[Entry], first: int) -> None:
        lba = self._superblock.area(self._region, copy) + first
        self._steps.append(_Step(lba, entries, self._generation, first))

    def _encode(self, step: _Step) -> bytes:
        device = self._superblock.device
        count = len(step.entries)
        return b"".join(
            encode_record(device, TableRecord(step.generation, step.first + offset, step.first, count, entry))
            for offset, entry in enumerate(step.entries)
        )

    def abandon(self) -> None:
        """The device is offline for another reason: fail what waits, take nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.failed = True
        waiting = self._waiting + [done for _, done in self._queue]
        self._waiting = []
        self._queue.clear()
        self._queued = 0
        self._steps.clear()
        self._data = b""
        for done in waiting:
            done(int(Status.INTERNAL_PATH_ERROR))

    def _fail(self, status: int) -> None:
        name = status_name(status)
        step = self._steps[0]
        log.error(
            "event=table_write_failed serial=%s lba=%d blocks=%d status=%s",
            self._device.serial,
            step.lba,
            len(step.entries),
            name,
        )
        self.failed = True
        self._on_failed(f"its table could not be written: {name}")
        self.abandon()
