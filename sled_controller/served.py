"""A namespace as the data path sees it."""

from collections.abc import Callable

from sled_controller.dma import allocator
from sled_controller.fencing import Fence
from sled_controller.storage.namespace import Namespace
from spdk_bindings.device import PENDING, Device


class Served:
    """A namespace as the data path sees it; its `volume` is the fence's very object, so that identity is enough.

    `device`, `write` and `allocate` follow the storage's namespace when its device goes offline. `in_flight` commands
    are owned by the device; a namespace that is being deleted waits for them.
    """

    __slots__ = (
        "allocate", "blocks", "device", "device_index", "fence", "first_lba", "idle", "in_flight", "namespace",
        "volume", "write",
    )  # fmt: skip

    def __init__(self, namespace: Namespace, fence: Fence) -> None:
        self.namespace = namespace
        self.volume = fence.volume
        self.fence = fence
        self.device_index = namespace.device_index
        self.first_lba = namespace.first_lba
        self.blocks = namespace.blocks
        self.in_flight = 0
        self.idle: Callable[[], None] | None = None
        self.follow()

    def follow(self) -> None:
        """Take over the device that the storage gives it now."""
        self.device: Device = self.namespace.device
        self.write = self.device.write
        self.allocate = allocator(self.device)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call it, once, when no device owns a command to this namespace."""
        if self.in_flight:
            self.idle = call
        else:
            call()

    def leave(self) -> None:
        """A command has completed."""
        self.in_flight -= 1
        if not self.in_flight and self.idle is not None:
            call, self.idle = self.idle, None
            call()


def then(start: Callable[[Callable[[int], None]], int], done: Callable[[int], None]) -> None:
    """Start something that completes like a device command, and call `done` with its status in either case."""
    status = start(done)
    if status != PENDING:
        done(status)
