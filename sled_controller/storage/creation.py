"""Making a namespace: its blocks are zeroed durably before the record that gives them to a volume."""

from collections.abc import Callable
from typing import Final

from sled_controller.storage.device_store import DeviceStore
from sled_controller.storage.records import NamespaceEntry
from spdk_bindings.device import PENDING, Done
from spdk_bindings.nvme import Status

_STEPS: Final = 3


class NamespaceCreation:
    """One creation under way: deallocate, flush, record; `finish(status)` at the end of it, perhaps inline.

    The order is why a volume never reads what another one left there, whenever the power goes.
    """

    __slots__ = ("_entry", "_finish", "_next", "_store")

    def __init__(self, store: DeviceStore, entry: NamespaceEntry, finish: Callable[[int], None]) -> None:
        self._store = store
        self._entry = entry
        self._finish = finish
        self._next = 0

    def advance(self, status: int = int(Status.SUCCESS)) -> None:
        """Go on as far as commands complete inline; called again by the one that was pending."""
        while not status and self._next < _STEPS:
            self._next += 1
            status = self._step(self._next, self.advance)
            if status == PENDING:
                return
        self._finish(status)

    def _step(self, step: int, done: Done) -> int:
        store, entry = self._store, self._entry
        if step == 1:
            return store.device.deallocate(entry.first_lba, entry.blocks, done)
        if step == 2:
            return store.device.flush(done)
        store.log.append((entry,), done)
        return PENDING
