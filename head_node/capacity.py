"""How many clients and volumes a head takes, from what its machine has: defaults of the settings, refusals by name."""

from dataclasses import dataclass, field
from typing import Any, Final

from head_node.export.nvme.server import CONNECTION_BYTES_MAX as NVME_BYTES
from head_node.export.nvme.server import CONNECTIONS_MAX as NVME_QUEUES
from head_node.export.server import CONNECTION_BYTES_MAX as NBD_BYTES
from head_node.export.server import CONNECTIONS_MAX as NBD_CLIENTS
from head_node.volume.errors import NoDescriptors
from sled_controller.descriptors import UNLIMITED, Descriptors

MEMORY_SHARE: Final = 8
"""Clients of each kind may take this part of the machine's memory at the very most; they rarely take any."""
DESCRIPTORS_SHARE: Final = 4
NBD_CLIENTS_MAX: Final = 4096
NVME_QUEUES_MAX: Final = 8192
VOLUME_DESCRIPTORS: Final = 8
"""What a volume takes on a member: lock and directory, the segments of its log, a checkpoint in the making, links."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one head. The numbers of clients are the smallest defaults, for where nothing is known of the machine."""

    nbd_clients_max: int = NBD_CLIENTS
    nvme_queues_max: int = NVME_QUEUES
    descriptors: Descriptors = field(default=UNLIMITED)

    @classmethod
    def of_machine(
        cls, descriptors: Descriptors, memory_bytes: int, nbd_clients_max: int | None, nvme_queues_max: int | None
    ) -> "Capacity":
        """As the settings say, else by the machine's memory and the process's descriptors."""
        memory, places = memory_bytes // MEMORY_SHARE, descriptors.limit // DESCRIPTORS_SHARE
        nbd = max(NBD_CLIENTS, min(NBD_CLIENTS_MAX, memory // NBD_BYTES, places))
        nvme = max(NVME_QUEUES, min(NVME_QUEUES_MAX, memory // NVME_BYTES, places))
        return cls(nbd_clients_max or nbd, nvme_queues_max or nvme, descriptors)

    def take_volume(self) -> None:
        """Before a volume's log is opened; raises NoDescriptors."""
        if not self.descriptors.take(VOLUME_DESCRIPTORS):
            raise NoDescriptors(self.descriptors.limit, self.descriptors.open, VOLUME_DESCRIPTORS)

    def status(self) -> dict[str, Any]:
        """For the status page."""
        return {
            "nbd_clients_max": self.nbd_clients_max,
            "nvme_queues_max": self.nvme_queues_max,
            "descriptors_max": self.descriptors.limit,
            "descriptors_open": self.descriptors.open,
            "descriptors_per_volume": VOLUME_DESCRIPTORS,
            "volumes_left": self.descriptors.left // VOLUME_DESCRIPTORS,
        }
