"""SPDK in this process: cores, memory, and the buffers that the network path shares with the drives."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar, Final

from spdk_bindings.spdk.build import output
from spdk_bindings.spdk.dma import DmaArena
from spdk_bindings.spdk.errors import EnvironmentStartError
from spdk_bindings.spdk.native import Native, load

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """How SPDK is started.

    `core_mask` is a hexadecimal number, a bit for each core on which reactors may run. `memory_mib` is what SPDK takes
    at the start, of hugepages unless `no_huge`; `buffers_mib` of it are for `Device.allocate`, and each drive takes
    its own bounce buffers from the rest. Without hugepages there are no PCIe drives: `no_pci` belongs to `no_huge`.
    Processes that share a `shm_id` share drives; -1 shares with nobody. `quiet` leaves errors only in SPDK's log.
    """

    core_mask: str = "0x1"
    memory_mib: int = 256
    buffers_mib: int = 32
    no_huge: bool = False
    no_pci: bool = False
    shm_id: int = -1
    quiet: bool = True

    def cores(self) -> list[int]:
        """The cores of the mask. Raises ValueError."""
        mask = int(self.core_mask, 16)
        if mask <= 0:
            raise ValueError(f"core_mask {self.core_mask!r} names no core")
        return [core for core in range(mask.bit_length()) if mask >> core & 1]


class SpdkEnvironment:
    """SPDK, started. A process can do that once only, so `start` gives the same one again for the same settings."""

    _started: ClassVar[dict[Path, "SpdkEnvironment"]] = {}

    def __init__(self, settings: EnvironmentSettings, native: Native) -> None:
        """Start SPDK; use `start`. Raises EnvironmentStartError."""
        cores = settings.cores()
        if missing := set(cores) - set(range(os.cpu_count() or 1)):
            raise EnvironmentStartError(f"core_mask {settings.core_mask} names cores that are not here: {missing}")
        ffi = native.ffi
        options = ffi.new("struct environment_options *")
        name, mask = ffi.new("char[]", b"palisade"), ffi.new("char[]", settings.core_mask.encode())
        options.name, options.core_mask = name, mask
        options.memory_mib, options.shm_id = settings.memory_mib, settings.shm_id
        options.no_huge, options.no_pci, options.quiet = settings.no_huge, settings.no_pci, settings.quiet
        error = native.lib.environment_start(options)
        if error:
            raise EnvironmentStartError(
                f"SPDK does not start ({os.strerror(-error)}): reserve hugepages and give the drives to vfio-pci "
                "(SPDK's scripts/setup.sh), or set no_huge and no_pci for drives over the network"
            )
        self.settings = settings
        self.native = native
        self.version: str = ffi.string(native.lib.environment_version()).decode()
        self.buffers = DmaArena(native, settings.buffers_mib * _MIB)
        self.next_core: Callable[[], int] = cycle(cores).__next__

    @classmethod
    def start(cls, settings: EnvironmentSettings, shim: Path | None = None) -> "SpdkEnvironment":
        """Start SPDK, by the shim at the path if it is not where it is built; the one that runs if it is the same.

        Raises NotBuiltError, EnvironmentStartError, ValueError.
        """
        shim = shim or output()
        if shim not in cls._started:
            cls._started[shim] = cls(settings, load(shim))
        started = cls._started[shim]
        if started.settings != settings:
            raise EnvironmentStartError("SPDK runs in this process with other settings; they cannot be changed")
        return started
