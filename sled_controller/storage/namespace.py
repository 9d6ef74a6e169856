"""A namespace as the target serves it, and the device that stands in when its own is offline."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from spdk_bindings.device import Buffer, Device, Done
from spdk_bindings.nvme import Status

_OFFLINE: Final = int(Status.INTERNAL_PATH_ERROR)


class OfflineDevice:
    """Answers every command with INTERNAL_PATH_ERROR, inline, so that the hot path needs no check of its own."""

    block_count = 0
    serial = "OFFLINE"
    model = "offline"

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Refuse."""
        return _OFFLINE

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Refuse."""
        return _OFFLINE

    def flush(self, done: Done) -> int:
        """Refuse."""
        return _OFFLINE

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Refuse."""
        return _OFFLINE

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """Refuse."""
        return _OFFLINE

    def reset(self, done: Done) -> int:
        """Nothing is outstanding here; what the real device has was reset when it went offline."""
        return int(Status.SUCCESS)

    def allocate(self, size_bytes: int) -> memoryview:
        """Plain memory."""
        return memoryview(bytearray(size_bytes))

    def smart(self) -> dict[str, int]:
        """Nothing to tell."""
        return {}

    def close(self) -> None:
        """Nothing to release."""


OFFLINE: Final[Device] = OfflineDevice()


@dataclass(slots=True, eq=False)
class Namespace:
    """A column of a volume: block `lba` of the namespace is block `first_lba + lba` of `device`, `lba < blocks`.

    `device` is looked up per command, never kept: when the device goes offline it's replaced by `OFFLINE`.
    """

    nsid: int
    volume: UUID
    column: int
    device: Device
    device_index: int
    first_lba: int
    blocks: int
    uuid: UUID

    @property
    def online(self) -> bool:
        """Whether its device is served."""
        return self.device is not OFFLINE
