"""What a sled keeps beside its namespaces, the same on all of its devices: fences, boot counter, key set and time."""

import logging
from collections.abc import Sequence
from uuid import UUID

from sled_controller.storage.content import TableContent
from sled_controller.storage.device_store import DeviceStore
from sled_controller.storage.records import RetiredEntry, StoredFence, TimeEntry

log = logging.getLogger(__name__)


class SledWide:
    """Reads it; `_wide` is ahead of what is durable."""

    def __init__(self, wide: TableContent) -> None:
        self._wide = wide

    @property
    def boot_counter(self) -> int:
        """This start's number."""
        return self._wide.boot_counter

    @property
    def key_set(self) -> tuple[int, bytes] | None:
        """(version, signed bytes) of the highest key set stored."""
        kept = self._wide.key_set
        return None if kept is None else (kept.version, kept.raw)

    @property
    def issued_ms(self) -> int:
        """Sled time as it was noted last, Unix milliseconds."""
        return self._wide.issued_ms

    @property
    def time(self) -> TimeEntry | None:
        """The last statement of time."""
        return self._wide.time

    @property
    def retired(self) -> RetiredEntry | None:
        """What stands in for the fences that were forgotten."""
        return self._wide.retired

    def fence_of(self, volume: UUID) -> StoredFence | None:
        """The fence of a volume as raised here, durable or about to be; None if it never had one."""
        return self._wide.fences.get(volume)

    def fences(self) -> dict[UUID, StoredFence]:
        """A copy of all fences."""
        return dict(self._wide.fences)


def behind(loaded: Sequence[DeviceStore], wide: TableContent) -> bool:
    """Whether no device here has seen the last start, which is logged: one was put back from an image, or was away."""
    newest = max((store.content.boot_counter for store in loaded), default=0)
    if not loaded or newest >= wide.boot_counter:
        return False
    log.error(
        "event=devices_behind boot=%d kept_boot=%d serials=%s records_raised=%d",
        newest, wide.boot_counter, ",".join(store.device.serial for store in loaded),
        sum(len(store.content.lacks(wide)) for store in loaded),
    )  # fmt: skip
    return True
