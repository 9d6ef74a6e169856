"""What a head takes follows from its machine, or from settings; what it does not take it refuses by name."""

import pytest

from head_node.capacity import NBD_CLIENTS, NVME_QUEUES, VOLUME_DESCRIPTORS, Capacity
from head_node.config import HeadSettings
from head_node.export.nvme.controller import IO_QUEUES_MAX
from head_node.volume.errors import NoDescriptors
from sled_controller.descriptors import RESERVE, Descriptors


def descriptors(limit: int, used: int = 0) -> Descriptors:
    return Descriptors(limit, lambda: 0.0, lambda: used)


def test_the_defaults_grow_with_memory_and_descriptors() -> None:
    small = Capacity.of_machine(descriptors(1024), 512 << 20, None, None)
    assert (small.nbd_clients_max, small.nvme_queues_max) == (NBD_CLIENTS, NVME_QUEUES)
    large = Capacity.of_machine(descriptors(1 << 20), 64 << 30, None, None)
    assert large.nbd_clients_max > 1000
    assert large.nvme_queues_max // (IO_QUEUES_MAX + 1) > 200  # volumes of a host with sixteen cores
    few = Capacity.of_machine(descriptors(4096), 64 << 30, None, None)
    assert (few.nbd_clients_max, few.nvme_queues_max) == (1024, 1024)


def test_settings_come_before_the_machine() -> None:
    given = HeadSettings.model_validate(
        {"state_dir": "x", "name": "h", "authority_url": "http://x:1", "nbd_clients_max": 7, "nvme_queues_max": 9000}
    )
    capacity = Capacity.of_machine(descriptors(1 << 20), 1 << 30, given.nbd_clients_max, given.nvme_queues_max)
    assert (capacity.nbd_clients_max, capacity.nvme_queues_max) == (7, 9000)


def test_a_volume_is_refused_by_name_before_descriptors_run_out() -> None:
    capacity = Capacity(descriptors=descriptors(1000, used=1000 - RESERVE - 2 * VOLUME_DESCRIPTORS))
    assert capacity.status()["volumes_left"] == 2
    capacity.take_volume()
    capacity.take_volume()
    with pytest.raises(NoDescriptors, match=r"936 of 1000 are open.*LimitNOFILE"):
        capacity.take_volume()
