"""What a sled keeps on its devices: superblock, table of fences and namespaces (docs/on-disk-sled.md)."""

from sled_controller.storage.device_store import DeviceState
from sled_controller.storage.errors import DeviceUntrusted, StorageError, StorageUnusable
from sled_controller.storage.namespace import Namespace
from sled_controller.storage.records import StoredFence
from sled_controller.storage.roster import DeviceReport
from sled_controller.storage.sled_storage import SledStorage

__all__ = [
    "DeviceReport",
    "DeviceState",
    "DeviceUntrusted",
    "Namespace",
    "SledStorage",
    "StorageError",
    "StorageUnusable",
    "StoredFence",
]
