"""Memory that goes between the network and a drive without a copy, as far as there is some."""

from sled_controller.fabric.receive_buffer import Allocate, Memory
from spdk_bindings.device import Device


def allocator(device: Device | None) -> Allocate:
    """Gives buffers of the device's own, and plain memory when it has none left, which the device copies."""
    if device is None:
        return bytearray
    own = device.allocate

    def allocate(size_bytes: int) -> Memory:
        try:
            return own(size_bytes)
        except MemoryError:
            return bytearray(size_bytes)

    return allocate
