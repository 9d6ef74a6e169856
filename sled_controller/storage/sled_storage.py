"""All that a sled keeps: fences, namespaces, boot counter, key set and time, over all of its devices (F2).

Fences, boot counter, key set and time are sled-wide and on every present device; a namespace is on one device.
Start takes the maximum over the devices and brings each up to it before it is served.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from sled_controller.environment import Environment
from sled_controller.storage.completion import Both, Gather, completed
from sled_controller.storage.content import TableContent
from sled_controller.storage.creation import NamespaceCreation
from sled_controller.storage.device_store import (
    DeviceState,
    DeviceStore,
    durable,
    format_device,
    read_superblock,
    read_table,
    require_blank,
)
from sled_controller.storage.errors import DeviceUntrusted, StorageUnusable
from sled_controller.storage.journal import SledJournal
from sled_controller.storage.namespace import OFFLINE, Namespace
from sled_controller.storage.records import (
    CREDENTIAL_BYTES_MAX,
    KEY_ID_MAX,
    KEY_SET_BYTES_MAX,
    BootEntry,
    Entry,
    FenceEntry,
    FenceRetiredEntry,
    IssuedEntry,
    KeySetEntry,
    NamespaceDeletedEntry,
    NamespaceEntry,
    StoredFence,
    TimeEntry,
)
from sled_controller.storage.roster import DeviceReport, DeviceRoster
from sled_controller.storage.sled_wide import SledWide, behind
from sled_controller.storage.superblock import FormatState, Superblock, plan
from sled_controller.storage.table import GROUP_RECORDS_MAX
from spdk_bindings.device import PENDING, Device, Done
from spdk_bindings.nvme import Status, status_name

log = logging.getLogger(__name__)

ISSUED_STEP_MS: Final = 60_000
"""Sled time becomes durable in steps of a minute: it is hygiene, not worth two writes more per attach."""
COLUMN_MAX: Final = 0xFFFF
EPOCH_MAX: Final = 2**64 - 1

_SUCCESS: Final = int(Status.SUCCESS)


class SledStorage(SledWide):
    """The durable state of one sled. Everything runs on the event loop's thread; nothing here makes tasks.

    Operations are started like device commands: they return a status (0 = success) when done at once, or `PENDING`
    and call `done(status)` later, exactly once. Open it with `SledStorage.open`.

    Read by the target, never changed by it:

    - `namespaces`: nsid -> `Namespace`, those whose creation is durable;
    - `boot_counter`, durable on every online device before `open` returns, `key_set`, `issued_ms`, `time`, `retired`;
    - `counters`: how often something worth a graph happened.

    Hooks the target may set: `on_device_offline(index, reason)`, called when a device stops being served (its
    namespaces' `device` is `OFFLINE` by then and a reset of the real one is under way, so commands admitted
    before still complete or never take effect); `on_fence_raised(volume, fence)`, called when a *joining* device
    brought a higher fence than the sled's; `on_rejoin(index)`, called when a device that this start served before
    is about to be served again: it may have lost unflushed writes in between, so every association that had
    commands on it must be ended here, or a later flush would vouch for them (D1). Without it such a device is
    refused until a restart, whose boot counter tells the heads.
    """

    def __init__(self, sled_id: UUID, env: Environment, journal: SledJournal | None = None) -> None:
        """Use `open`."""
        super().__init__(TableContent() if journal is None else journal.content)
        self.sled_id = sled_id
        self.namespaces: dict[int, Namespace] = {}
        self.counters = {
            "devices_untrusted": 0,
            "devices_failed": 0,
            "devices_behind": 0,
            "records_damaged": 0,
            "tables_healed": 0,
            "fences_raised": 0,
            "fences_retired": 0,
            "namespaces_created": 0,
            "namespaces_deleted": 0,
            "refused_for_room": 0,
        }
        self.on_device_offline: Callable[[int, str], None] | None = None
        self.on_fence_raised: Callable[[UUID, StoredFence], None] | None = None
        self.on_rejoin: Callable[[int], None] | None = None
        self._env = env
        self.journal = journal
        self._served: set[int] = set()
        self._roster = DeviceRoster()
        self._creating: dict[tuple[UUID, int], tuple[int, list[Done]]] = {}
        self._deleting: dict[int, Namespace] = {}
        """Those whose blocks are not given back yet."""
        self._issued_durable_ms = 0
        self._closed = False

    # -- start and end --------------------------------------------------------------------------------------------

    @classmethod
    async def open(
        cls,
        devices: Sequence[Device],
        *,
        sled_id: UUID,
        env: Environment,
        format: bool = False,  # noqa: A002
        table_records: int | None = None,
        journal: SledJournal | None = None,
    ) -> "SledStorage":
        """Start on `devices`, which belong to the storage from here on (`close` closes them).

        A device whose superblock or table can't be trusted, or that is another sled's, is offline and untouched;
        `reports()` says why. With `format` all-zero devices are formatted and join (`table_records` per region and
        copy: by size when None); without, they stay offline. The fence of a volume is the highest on any device; when
        this returns, every online device has all fences, the key set and the new boot counter durably. So has the
        `journal`, which was read before and counts as a device does: for the state directory it is in.

        Raises StorageUnusable when no device is online in the end.
        """
        storage = cls(sled_id, env, journal)
        loaded: list[DeviceStore] = []
        blank: list[tuple[Device, Superblock | None]] = []
        for device in devices:
            storage._roster.add(device)
            try:
                store = await storage._load(device)
            except DeviceUntrusted as error:
                storage._distrust(device, error)
                continue
            if isinstance(store, DeviceStore):
                loaded.append(store)
            else:
                blank.append((device, store))
        for store in sorted(loaded, key=lambda store: store.content.boot_counter, reverse=True):
            try:
                storage._adopt(store)
            except DeviceUntrusted as error:
                storage._distrust(store.device, error)
        for device, unfinished in blank:
            try:
                if not format:
                    raise DeviceUntrusted("it is blank and formatting was not asked for")
                storage._adopt(await storage._format(device, unfinished, table_records))
            except DeviceUntrusted as error:
                storage._distrust(device, error)
        if behind(loaded, storage._wide):
            storage.counters["devices_behind"] += len(loaded)
        storage._wide.apply(BootEntry(storage.boot_counter + 1))
        for store in storage._roster.present():
            await storage._bring_online(store)
        if not storage._roster.online():
            reasons = "; ".join(f"{report.serial}: {report.reason}" for report in storage.reports()) or "none given"
            storage.close()
            raise StorageUnusable(f"no device can be served: {reasons}")
        if journal is not None:
            await completed(partial(journal.begin, storage._wide))
        return storage

    async def join(self, device: Device, *, format: bool = False, table_records: int | None = None) -> int:  # noqa: A002
        """Take a device in while serving (new, or one that was away); return its index.

        It gets every fence before it is served, and any fence that is higher on it is raised here and on all other
        devices first. The caller then takes over what is new in `namespaces`. Raises DeviceUntrusted, and then the
        device is left offline and untouched; the storage owns and closes it in either case.
        """
        self._roster.add(device)
        try:
            loaded = await self._load(device)
            if not isinstance(loaded, DeviceStore):
                if not format:
                    raise DeviceUntrusted("it is blank and formatting was not asked for")
                loaded = await self._format(device, loaded, table_records)
            if loaded.index in self._served and self.on_rejoin is None:
                raise DeviceUntrusted(
                    "it was served before in this start; restart the sled to take it in", loaded.index
                )
            raised = self._adopt(loaded)
            await self._spread(raised)
        except DeviceUntrusted as error:
            self._distrust(device, error)
            raise
        await self._bring_online(loaded)
        if loaded.state is not DeviceState.ONLINE:
            raise DeviceUntrusted(self._roster.reason(device), loaded.index)
        return loaded.index

    def close(self) -> None:
        """Release the devices. Whatever was not acknowledged may or may not be durable. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for store in self._roster.present():
            store.state = DeviceState.OFFLINE
            store.log.abandon()
        for device in self._roster.devices:
            device.close()

    # -- fences (F2) ----------------------------------------------------------------------------------------------

    def raise_fence(self, volume: UUID, fence: StoredFence, done: Done) -> int:
        """Raise a volume's fence: in memory before this returns, complete when in two FUA records on every device.

        Concurrent calls share the writes. The fence that stands already is success once it is durable (a renewal or
        reconnection: its first credential stays). Statuses: FENCED_OFF when a higher epoch stands, REFUSED when
        the same epoch stands for another holder, INVALID_FIELD for what can't be stored,
        NAMESPACE_INSUFFICIENT_CAPACITY when this is a volume new to the sled and a table is full,
        NAMESPACE_NOT_READY when too much is queued (come back); none of these changes anything. INTERNAL_ERROR
        when no device could take it: then it stands in memory only and must not be receipted. A device that
        fails in this goes offline and no longer counts.
        """
        if not 0 < fence.epoch <= EPOCH_MAX or len(fence.holder) != 32 or len(fence.credential) > CREDENTIAL_BYTES_MAX:
            return int(Status.INVALID_FIELD)
        known = self._wide.fences.get(volume)
        if known is not None:
            if fence.epoch < known.epoch:
                return int(Status.FENCED_OFF)
            if fence.epoch == known.epoch:
                if fence.holder != known.holder:
                    return int(Status.REFUSED)
                return self._append_everywhere((), done)
        elif not all(store.has_room(volume) for store in self._roster.present()):
            self.counters["refused_for_room"] += 1
            log.error("event=table_full volume=%s fences=%d", volume, len(self._wide.fences))
            return int(Status.NAMESPACE_INSUFFICIENT_CAPACITY)
        if self._any_full():
            return int(Status.NAMESPACE_NOT_READY)
        self.counters["fences_raised"] += 1
        return self._put(FenceEntry(volume, fence), done)

    def retire_fence(
        self, volume: UUID, epoch: int, over_ms: int, done: Done, *, key_id: int = KEY_ID_MAX
    ) -> int:  # fmt: skip
        """Forget the fence of a deleted volume, if it is of at most `epoch`; sled time is never before `over_ms` again,
        until a statement of time.

        Forgotten in memory before this returns; complete when that is durable on every device, so that no start finds
        the fence gone and the time before `over_ms`. The caller has seen to it that no credential for the volume
        expires later, nor is signed by a key above `key_id`. INVALID_NAMESPACE when a namespace of the volume exists,
        or is being made: nothing changes. NAMESPACE_NOT_READY when too much is queued (come back). A device that is
        away keeps the fence, and brings it back when it joins.
        """
        if self.has_namespace_of(volume):
            return int(Status.INVALID_NAMESPACE)
        if self._any_full():
            return int(Status.NAMESPACE_NOT_READY)
        known = self._wide.fences.get(volume)
        if known is None or known.epoch > epoch:
            return self._append_everywhere((), done)
        self.counters["fences_retired"] += 1
        return self._put(FenceRetiredEntry(volume, epoch, over_ms, key_id), done)

    # -- key set and time -----------------------------------------------------------------------------------------

    def store_key_set(self, version: int, raw: bytes, done: Done) -> int:
        """Keep a key set (already verified) on every device; one that isn't newer is success and changes nothing."""
        if not 0 < version <= EPOCH_MAX or len(raw) > KEY_SET_BYTES_MAX:
            return int(Status.INVALID_FIELD)
        if self.key_set is not None and version <= self.key_set[0]:
            return self._append_everywhere((), done)
        if self._any_full():
            return int(Status.NAMESPACE_NOT_READY)
        return self._put(KeySetEntry(version, raw), done)

    def state_time(self, entry: TimeEntry, done: Done) -> int:
        """Keep the time of a statement (already verified) in place of what was kept; one of no higher serial is success
        and changes nothing."""
        if self.time is not None and entry.serial <= self.time.serial:
            return self._append_everywhere((), done)
        if self._any_full():
            return int(Status.NAMESPACE_NOT_READY)
        self._issued_durable_ms = entry.time_ms
        return self._put(entry, done)

    def note_issued(self, issued_ms: int) -> None:
        """Remember sled time; durable, in steps of a minute, some time later."""
        if not self.issued_ms < issued_ms <= EPOCH_MAX:
            return
        self._wide.apply(IssuedEntry(issued_ms))
        if issued_ms >= self._issued_durable_ms + ISSUED_STEP_MS and not self._any_full():
            self._issued_durable_ms = issued_ms
            self._append_everywhere((IssuedEntry(issued_ms),), _ignore)

    # -- namespaces -----------------------------------------------------------------------------------------------

    def namespace_of(self, volume: UUID, column: int) -> Namespace | None:
        """The namespace of a volume's column, None when there's none (or its device was never seen by this start)."""
        for namespace in self.namespaces.values():
            if namespace.column == column and namespace.volume == volume:
                return namespace
        return None

    def has_namespace_of(self, volume: UUID) -> bool:
        """Whether a namespace of the volume exists, on a device that is offline too, or is being made."""
        return any(namespace.volume == volume for namespace in self.namespaces.values()) or any(
            of_volume == volume for of_volume, _ in self._creating
        )

    def has_column(self, volume: UUID, column: int) -> bool:
        """Whether `create_namespace` would find that column: one that is being deleted is made again."""
        return (volume, column) in self._creating or self.namespace_of(volume, column) is not None

    def columns_of(self, volume: UUID) -> list[tuple[int, int]]:
        """(column, blocks) of each namespace of a volume, on a device that is offline too, being made or being deleted.
        A column may be there twice: one whose device was missing has been made again."""
        made = [(entry.column, entry.blocks) for entry in self.namespaces.values() if entry.volume == volume]
        making = [(key[1], blocks) for key, (blocks, _) in self._creating.items() if key[0] == volume]
        going = [(entry.column, entry.blocks) for entry in self._deleting.values() if entry.volume == volume]
        return made + making + going

    def create_namespace(self, volume: UUID, column: int, blocks: int, done: Done) -> int:
        """Make a namespace of `blocks` blocks for a volume's column, all zero, on the device with the most room.

        On success find it with `namespace_of`. Idempotent: one that exists with the same size is success, a concurrent
        second call waits for the first. Statuses: INVALID_FIELD (size 0, or it exists with another size),
        NOT_ATTACHED (the volume has no fence here), NAMESPACE_INSUFFICIENT_CAPACITY (no room for its blocks, or
        for its record beside a fence record for every volume), NAMESPACE_ID_UNAVAILABLE, or what the device
        said.
        """
        if not 0 <= column <= COLUMN_MAX or not 0 < blocks <= EPOCH_MAX:
            return int(Status.INVALID_FIELD)
        key = (volume, column)
        under_way = self._creating.get(key)
        if under_way is not None:
            if under_way[0] != blocks:
                return int(Status.INVALID_FIELD)
            under_way[1].append(done)
            return PENDING
        existing = self.namespace_of(volume, column)
        if existing is not None:
            return _SUCCESS if existing.blocks == blocks else int(Status.INVALID_FIELD)
        if volume not in self._wide.fences:
            return int(Status.NOT_ATTACHED)
        candidates = [
            store
            for store in self._roster.online()
            if store.has_room(volume, 1) and not store.log.full and store.find_extent(blocks) is not None
        ]
        if not candidates:
            self.counters["refused_for_room"] += 1
            log.warning("event=namespace_refused volume=%s column=%d blocks=%d cause=no_room", volume, column, blocks)
            return int(Status.NAMESPACE_INSUFFICIENT_CAPACITY)
        store = max(candidates, key=lambda store: (store.free_blocks(), -store.index))
        first_lba = store.find_extent(blocks)
        assert first_lba is not None
        nsid = store.take_extent(first_lba, blocks)
        if nsid is None:
            return int(Status.NAMESPACE_ID_UNAVAILABLE)
        entry = NamespaceEntry(nsid, volume, column, first_lba, blocks, self._env.new_uuid())
        gather = Gather(1, done)
        self._creating[key] = (blocks, [gather.one])
        NamespaceCreation(store, entry, partial(self._created, store, entry)).advance()
        return gather.result()

    def delete_namespace(self, nsid: int, done: Done) -> int:
        """Delete a namespace; its blocks are given back when that is durable.

        The caller has seen to it that no command to it is outstanding (F3); from this call on it isn't in
        `namespaces`. INVALID_NAMESPACE when there is none, INTERNAL_PATH_ERROR when its device is offline.
        """
        namespace = self.namespaces.get(nsid)
        if namespace is None:
            return int(Status.INVALID_NAMESPACE)
        if not namespace.online:
            return int(Status.INTERNAL_PATH_ERROR)
        store = self._roster.stores[namespace.device_index]
        self._deleting[nsid] = self.namespaces.pop(nsid)
        gather = Gather(1, done)

        def deallocated(_: int) -> None:
            store.give_extent(nsid)
            del self._deleting[nsid]
            self.counters["namespaces_deleted"] += 1
            gather.one(_SUCCESS)

        def deleted(status: int) -> None:
            if status:
                del self._deleting[nsid]
                gather.one(status)
            elif store.device.deallocate(namespace.first_lba, namespace.blocks, deallocated) != PENDING:
                deallocated(_SUCCESS)

        store.log.append((NamespaceDeletedEntry(nsid),), deleted)
        return gather.result()

    # -- devices --------------------------------------------------------------------------------------------------

    def device_states(self) -> tuple[tuple[int, DeviceState], ...]:
        """(device index, state) of every device this sled ever had, ascending; one that isn't here is MISSING."""
        return self._roster.states()

    def online_devices(self) -> list[tuple[int, Device]]:
        """(index, device) of those being served: what a drain flushes (F3)."""
        return [(store.index, store.device) for store in self._roster.online()]

    def reports(self) -> list[DeviceReport]:
        """Every device given to `open` or `join`, and those that are missing."""
        return self._roster.reports()

    def take_offline(self, index: int, reason: str) -> None:
        """Stop serving a device for good (until a restart or `join`): nothing submitted from here on reaches it.

        Its outstanding commands are reset. Does nothing when it's offline already.
        """
        store = self._roster.stores.get(index)
        if store is None or store.state is DeviceState.OFFLINE:
            return
        self._roster.retire(store, reason)
        self.counters["devices_failed"] += 1
        for namespace in self.namespaces.values():
            if namespace.device_index == index:
                namespace.device = OFFLINE
        if self.on_device_offline is not None:
            self.on_device_offline(index, reason)
        store.log.abandon()
        store.device.reset(_ignore)

    def unresponsive(self, device: Device, reason: str) -> None:
        """A device does not answer, not even to a reset: stop serving it."""
        for index in [store.index for store in self._roster.present() if store.device is device]:
            self.take_offline(index, reason)

    def release(self, index: int) -> None:
        """Close a device that is offline, so that it (the same file, say) can be opened again and `join`."""
        store = self._roster.stores.get(index)
        if store is not None and store.state is DeviceState.OFFLINE:
            store.device.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _any_full(self) -> bool:
        return any(store.log.full for store in self._roster.present())

    def _put(self, entry: Entry, done: Done) -> int:
        """Take a sled-wide entry: in memory now, complete when it is durable."""
        self._wide.apply(entry)
        return self._append_everywhere((entry,), done)

    def _append_everywhere(self, entries: Sequence[Entry], done: Done) -> int:
        stores = self._roster.present()
        if not stores:
            return int(Status.INTERNAL_ERROR)
        if self._any_full():
            return int(Status.NAMESPACE_NOT_READY)
        if self.journal is None:
            return self._append_on(stores, entries, done)
        both = Both(done)
        self.journal.append(entries, both.second)
        status = self._append_on(stores, entries, both.first)
        return both.result(status)

    @staticmethod
    def _append_on(stores: Sequence[DeviceStore], entries: Sequence[Entry], done: Done) -> int:
        gather = Gather(len(stores), done)
        for store in stores:
            store.log.append(entries, gather.one)
        return gather.result()

    def _distrust(self, device: Device, error: DeviceUntrusted) -> None:
        self.counters["devices_untrusted"] += 1
        self._roster.distrust(device, error)

    def _table_failed(self, store: DeviceStore, reason: str) -> None:
        if self._roster.stores.get(store.index) is store:
            self.take_offline(store.index, reason)

    async def _load(self, device: Device) -> DeviceStore | Superblock | None:
        """The store of a formatted device; its superblock when formatting was cut off; None when it is blank."""
        superblock = await read_superblock(device)
        if superblock is None:
            return None
        if superblock.sled != self.sled_id.bytes:
            raise DeviceUntrusted(f"it belongs to sled {UUID(bytes=superblock.sled)}")
        if superblock.state is FormatState.FORMATTING:
            return superblock
        try:
            recovered = await read_table(device, superblock)
        except DeviceUntrusted as error:
            raise DeviceUntrusted(error.reason, superblock.device_index) from error
        if recovered.damaged:
            self.counters["records_damaged"] += recovered.damaged
            log.warning("event=table_damaged serial=%s records=%d", device.serial, recovered.damaged)
        return DeviceStore(device, superblock, recovered, self._table_failed)

    async def _format(self, device: Device, unfinished: Superblock | None, table_records: int | None) -> DeviceStore:
        index = self._roster.free_index()
        try:
            superblock = plan(device.block_count, index, self.sled_id.bytes, self._env.new_uuid().bytes, table_records)
        except ValueError as error:
            raise DeviceUntrusted(str(error)) from error
        if unfinished is None:
            await require_blank(device, superblock.data_lba)
        log.info("event=device_formatted serial=%s index=%d blocks=%d", device.serial, index, device.block_count)
        return await format_device(device, superblock, self._table_failed)

    def _adopt(self, store: DeviceStore) -> list[Entry]:
        """Merge a device into the sled's state; return what it raised there. DeviceUntrusted changes nothing."""
        content, index = store.content, store.index
        self._roster.check_place(store)
        for volume, fence in content.fences.items():
            known = self._wide.fences.get(volume)
            if known is not None and known.epoch == fence.epoch and known.holder != fence.holder:
                raise DeviceUntrusted(f"it has epoch {fence.epoch} of volume {volume} for another holder", index)
        missing = TableContent(fences=dict(self._wide.fences))
        for volume, fence in content.fences.items():
            missing.apply(FenceEntry(volume, fence))
        missing.namespaces = content.namespaces
        if missing.records_reserved() > store.superblock.table_records:
            raise DeviceUntrusted("its table is too small for this sled's fences", index)
        for other in self._roster.present():
            if not other.has_room_for(content.fences):
                raise DeviceUntrusted(f"the table of {other.device.serial} is too small for its fences", index)
        raised = self._wide.lacks(content)
        for entry in raised:
            self._wide.apply(entry)
            if isinstance(entry, FenceEntry) and self.on_fence_raised is not None:
                self.on_fence_raised(entry.volume, entry.fence)
        self._roster.admit(store)
        raised.append(self._roster.members_entry())
        if not self._roster.online():
            self._wide.apply(BootEntry(content.boot_counter))
        elif content.boot_counter > self.boot_counter:
            raised.append(BootEntry(content.boot_counter))
        return raised

    async def _spread(self, entries: Sequence[Entry]) -> None:
        """Make what a joining device brought durable on the others."""
        for first in range(0, len(entries), GROUP_RECORDS_MAX):
            part = tuple(entries[first : first + GROUP_RECORDS_MAX])
            await completed(partial(self._append_everywhere, part))

    async def _bring_online(self, store: DeviceStore) -> None:
        """Give a device all that it lacks, then serve it; it goes offline instead when its table can't be written."""
        content = store.content
        lacking = [*content.lacks(self._wide), BootEntry(self.boot_counter)]
        if content.members != self._roster.members:
            lacking.append(self._roster.members_entry())
        for first in range(0, len(lacking), GROUP_RECORDS_MAX):
            store.log.append(lacking[first : first + GROUP_RECORDS_MAX], _ignore)
        status = await completed(partial(durable, store.log))
        if status or store.state is not DeviceState.JOINING:
            self.take_offline(store.index, f"its table can't be written: {status_name(status)}")
            return
        if store.needs_healing:
            self.counters["tables_healed"] += 1
        self._issued_durable_ms = max(self._issued_durable_ms, self.issued_ms)
        if store.index in self._served and self.on_rejoin is not None:
            self.on_rejoin(store.index)
        self._served.add(store.index)
        store.state = DeviceState.ONLINE
        for nsid in [nsid for nsid, namespace in self.namespaces.items() if namespace.device_index == store.index]:
            del self.namespaces[nsid]
        for entry in content.namespaces.values():
            self._publish(store, entry)

    def _created(self, store: DeviceStore, entry: NamespaceEntry, status: int) -> None:
        if not status and store.state is not DeviceState.ONLINE:
            status = int(Status.INTERNAL_PATH_ERROR)
        if status:
            store.give_extent(entry.nsid)
        else:
            self._publish(store, entry)
            self.counters["namespaces_created"] += 1
        _, waiting = self._creating.pop((entry.volume, entry.column))
        for done in waiting:
            done(status)

    def _publish(self, store: DeviceStore, entry: NamespaceEntry) -> None:
        self.namespaces[entry.nsid] = Namespace(
            entry.nsid, entry.volume, entry.column, store.device, store.index, entry.first_lba, entry.blocks, entry.uuid
        )


def _ignore(_: int) -> None:
    """For commands whose outcome shows elsewhere: a table that fails takes its device offline by itself."""
