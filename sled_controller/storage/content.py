"""What the table of one device says, taken together: the state that its records build up."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.records import (
    BootEntry,
    CheckpointEntry,
    Entry,
    FenceEntry,
    FenceRetiredEntry,
    IssuedEntry,
    KeySetEntry,
    MembersEntry,
    NamespaceDeletedEntry,
    NamespaceEntry,
    RetiredEntry,
    StoredFence,
    TimeEntry,
)
from sled_controller.storage.superblock import Superblock

SINGLETON_RECORDS: Final = 7
"""Checkpoint head, boot counter, key set, time statement, time kept, forgotten fences, members."""
SPARE_RECORDS: Final = 8
"""What must stay free after a checkpoint beside one fence per volume: a start's records, a key set, a deletion."""
LOCAL_NSID_MAX: Final = 0xFFFF


@dataclass(slots=True)
class TableContent:
    """The entries in force. `time` is the last statement of time, `issued_ms` what was kept since; `members` maps a
    device index to its UUID; `nsid_next` is a local namespace number."""

    boot_counter: int = 0
    key_set: KeySetEntry | None = None
    issued_ms: int = 0
    time: TimeEntry | None = None
    retired: RetiredEntry | None = None
    members: dict[int, bytes] = field(default_factory=dict)
    fences: dict[UUID, StoredFence] = field(default_factory=dict)
    namespaces: dict[int, NamespaceEntry] = field(default_factory=dict)
    nsid_next: int = 1

    def apply(self, entry: Entry) -> None:
        """Take an entry in. What only rises (fence, boot counter, key set) is never lowered here, nor is the time kept
        but by a newer statement of time; a fence that is forgotten leaves `retired` in its place."""
        match entry:
            case FenceEntry(volume, fence):
                known = self.fences.get(volume)
                if known is None or fence.epoch > known.epoch:
                    self.fences[volume] = fence
            case FenceRetiredEntry(volume, epoch, over_ms, key_id):
                known = self.fences.get(volume)
                self.issued_ms = max(self.issued_ms, over_ms)
                self.retired = highest_of(self.retired, RetiredEntry(over_ms, key_id))
                if known is not None and known.epoch <= epoch:
                    del self.fences[volume]
            case NamespaceEntry(nsid):
                self.namespaces[nsid] = entry
                self.nsid_next = max(self.nsid_next, (nsid & LOCAL_NSID_MAX) + 1)
            case NamespaceDeletedEntry(nsid):
                self.namespaces.pop(nsid, None)
            case BootEntry(counter):
                self.boot_counter = max(self.boot_counter, counter)
            case KeySetEntry(version):
                if self.key_set is None or version > self.key_set.version:
                    self.key_set = entry
            case IssuedEntry(issued_ms):
                self.issued_ms = max(self.issued_ms, issued_ms)
            case TimeEntry(serial, time_ms):
                if self.time is None or serial > self.time.serial:
                    self.time, self.issued_ms = entry, time_ms
            case RetiredEntry():
                self.retired = highest_of(self.retired, entry)
            case MembersEntry(members):
                self.members.update(members)
            case CheckpointEntry(_, nsid_next):
                self.nsid_next = max(self.nsid_next, nsid_next)

    def lacks(self, other: "TableContent") -> list[Entry]:
        """What would make this as high as `other` in all that is sled-wide, but for the boot counter."""
        lacking: list[Entry] = [
            FenceEntry(volume, fence)
            for volume, fence in other.fences.items()
            if volume not in self.fences or self.fences[volume].epoch < fence.epoch
        ]
        if other.key_set is not None and (self.key_set is None or self.key_set.version < other.key_set.version):
            lacking.append(other.key_set)
        here, there = (0 if content.time is None else content.time.serial for content in (self, other))
        if other.time is not None and there > here:
            lacking.append(other.time)
        if other.issued_ms and (there > here or (there == here and other.issued_ms > self.issued_ms)):
            lacking.append(IssuedEntry(other.issued_ms))
        if other.retired is not None and highest_of(self.retired, other.retired) != self.retired:
            lacking.append(other.retired)
        return lacking

    def checkpoint(self) -> list[Entry]:
        """The fewest entries that build this state, the checkpoint head first."""
        body: list[Entry] = [BootEntry(self.boot_counter), MembersEntry(tuple(sorted(self.members.items())))]
        if self.key_set is not None:
            body.append(self.key_set)
        if self.time is not None:
            body.append(self.time)
        if self.issued_ms:
            body.append(IssuedEntry(self.issued_ms))
        if self.retired is not None:
            body.append(self.retired)
        body += [FenceEntry(volume, fence) for volume, fence in self.fences.items()]
        body += self.namespaces.values()
        return [CheckpointEntry(len(body) + 1, self.nsid_next), *body]

    def records_reserved(self, volumes: Iterable[UUID] = (), namespaces: int = 0) -> int:
        """Records of a region that are spoken for, with these volumes and so many more namespaces.

        A checkpoint holds one record per fence and per namespace; beside it, one more fence per volume must always
        fit, so that raising the fence of a known volume can't fail for want of room.
        """
        known = set(self.fences)
        known.update(entry.volume for entry in self.namespaces.values())
        known.update(volumes)
        return SINGLETON_RECORDS + SPARE_RECORDS + 2 * len(known) + len(self.namespaces) + namespaces

    def check(self, superblock: Superblock) -> None:
        """Raise DeviceUntrusted when namespaces leave the data area or overlap: no such table was ever written."""
        end = superblock.data_lba
        for entry in sorted(self.namespaces.values(), key=lambda entry: entry.first_lba):
            if entry.first_lba < end or not entry.blocks:
                raise DeviceUntrusted(f"namespace {entry.nsid} overlaps another one or the table")
            end = entry.first_lba + entry.blocks
        if end > superblock.data_lba + superblock.data_blocks:
            raise DeviceUntrusted("a namespace reaches past the data area")


def highest_of(first: RetiredEntry | None, second: RetiredEntry) -> RetiredEntry:
    """What stands in for the fences of both."""
    if first is None:
        return second
    return RetiredEntry(max(first.over_ms, second.over_ms), max(first.key_id, second.key_id))
