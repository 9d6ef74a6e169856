"""What can go wrong with a sled's storage, and what the caller can do about each."""


class StorageError(Exception):
    """Base of all errors of this package."""


class StorageUnusable(StorageError):
    """No device of the sled can be served; the message names each device and the way out. Nothing was changed."""


class DeviceUntrusted(StorageError):
    """This device is offline: `reason` says what was found on it. It is never reformatted; replace or erase it.

    `index` is the device's place in the sled when its superblock could be read.
    """

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.index = index


class RecordMalformed(StorageError):
    """A table record whose checksum holds says something that cannot be; its device is not to be trusted."""
