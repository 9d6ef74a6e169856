"""The devices of a sled: which are here, which are missing, what state each is in and why."""

import logging
from dataclasses import dataclass

from sled_controller.storage.device_store import DeviceState, DeviceStore
from sled_controller.storage.errors import DeviceUntrusted
from sled_controller.storage.records import MembersEntry
from sled_controller.storage.superblock import DEVICE_INDEX_MAX
from spdk_bindings.device import Device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What an operator needs to know of a device: `index` is None when its superblock couldn't be read."""

    index: int | None
    serial: str
    state: DeviceState
    reason: str
    free_blocks: int
    damaged_records: int


class DeviceRoster:
    """Every device that was handed over, and every index that the sled has ever given."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.stores: dict[int, DeviceStore] = {}
        self.members: dict[int, bytes] = {}
        self._offline: dict[int, DeviceReport] = {}

    def add(self, device: Device) -> None:
        """Take over the ownership of a device."""
        self.devices.append(device)

    def online(self) -> list[DeviceStore]:
        """Those being served."""
        return [store for store in self.stores.values() if store.state is DeviceState.ONLINE]

    def present(self) -> list[DeviceStore]:
        """Those whose tables take records: online or joining."""
        return [store for store in self.stores.values() if store.state is not DeviceState.OFFLINE]

    def free_index(self) -> int:
        """The lowest index that no device has ever had here; DeviceUntrusted when there's none."""
        taken = set(self.members) | set(self.stores) | {report.index for report in self._offline.values()}
        for index in range(DEVICE_INDEX_MAX + 1):
            if index not in taken:
                return index
        raise DeviceUntrusted(f"a sled has at most {DEVICE_INDEX_MAX + 1} devices, ever")

    def check_place(self, store: DeviceStore) -> None:
        """Raise DeviceUntrusted when the device's index is another device's."""
        index = store.index
        here = self.stores.get(index)
        if here is not None and here.state is not DeviceState.OFFLINE:
            raise DeviceUntrusted(f"device index {index} is taken by {here.device.serial}", index)
        if self.members.get(index, store.superblock.device) != store.superblock.device:
            raise DeviceUntrusted(f"device index {index} belongs to another device", index)

    def admit(self, store: DeviceStore) -> None:
        """Give a checked device its place, and learn from its table of others."""
        self.members.update(store.content.members)
        self.members[store.index] = store.superblock.device
        self.stores[store.index] = store
        self._offline = {at: report for at, report in self._offline.items() if report.index != store.index}

    def members_entry(self) -> MembersEntry:
        """The record that names all devices."""
        return MembersEntry(tuple(sorted(self.members.items())))

    def distrust(self, device: Device, error: DeviceUntrusted) -> None:
        """Remember why a device was never served."""
        log.error("event=device_untrusted serial=%s index=%s reason=%r", device.serial, error.index, error.reason)
        self._note_offline(device, DeviceReport(error.index, device.serial, DeviceState.OFFLINE, error.reason, 0, 0))

    def retire(self, store: DeviceStore, reason: str) -> None:
        """Remember why a device is no longer served."""
        store.state = DeviceState.OFFLINE
        log.error("event=device_offline serial=%s index=%d reason=%r", store.device.serial, store.index, reason)
        report = DeviceReport(store.index, store.device.serial, DeviceState.OFFLINE, reason, 0, store.damaged_records)
        self._note_offline(store.device, report)

    def reason(self, device: Device) -> str:
        """Why a device is offline; empty when it isn't."""
        report = self._offline.get(self._position(device))
        return report.reason if report is not None else ""

    def states(self) -> tuple[tuple[int, DeviceState], ...]:
        """(device index, state) of every device this sled ever had, ascending."""
        states = dict.fromkeys(self.members, DeviceState.MISSING)
        states.update((report.index, report.state) for report in self._offline.values() if report.index is not None)
        states.update((index, store.state) for index, store in self.stores.items())
        return tuple(sorted(states.items()))

    def reports(self) -> list[DeviceReport]:
        """Every device that was handed over, and those that are missing."""
        reports = [
            DeviceReport(store.index, store.device.serial, store.state, "", store.free_blocks(), store.damaged_records)
            for store in self.present()
        ]
        reports += self._offline.values()
        seen = {report.index for report in reports}
        reports += [
            DeviceReport(index, "", DeviceState.MISSING, "it is a device of this sled and not here", 0, 0)
            for index in self.members
            if index not in seen
        ]
        return reports

    def _note_offline(self, device: Device, report: DeviceReport) -> None:
        self._offline[self._position(device)] = report

    def _position(self, device: Device) -> int:
        return next(at for at, known in enumerate(self.devices) if known is device)
