"""NVMe drives on this machine's PCI bus as sysfs shows them, without touching any."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSFS: Final = Path("/sys")
_NVME_CLASS: Final = "0x0108"  # mass storage, non-volatile memory; whatever its programming interface
USER_DRIVERS: Final = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
"""Kernel drivers that leave a drive to a process, such as SPDK's."""


@dataclass(frozen=True, slots=True)
class PciDrive:
    """`driver` is empty where none has it; `numa_node` is -1 and `iommu_group` empty where there is none. `model`,
    `serial` and `size_bytes` are known only of drives that the kernel's nvme driver has."""

    address: str
    driver: str
    numa_node: int
    iommu_group: str
    model: str = ""
    serial: str = ""
    size_bytes: int = 0

    @property
    def is_free(self) -> bool:
        """Whether SPDK may have it."""
        return self.driver in USER_DRIVERS

    @property
    def obstacle(self) -> str:
        """What keeps SPDK from having it, and the remedy; empty where it is free."""
        if self.is_free:
            return ""
        return f"{f'the kernel has it ({self.driver})' if self.driver else 'no driver has it'}: give it to vfio-pci"


def nvme_drives(sysfs: Path = SYSFS) -> list[PciDrive]:
    """All, by address; none where there is no PCI bus."""
    bus = sysfs / "bus" / "pci" / "devices"
    found = sorted(bus.iterdir()) if bus.is_dir() else []
    return [_drive(device) for device in found if _text(device / "class").startswith(_NVME_CLASS)]


def obstacle(address: str, sysfs: Path = SYSFS) -> str:
    """What keeps SPDK from having the drive at an address, and the remedy; empty where the bus shows nothing."""
    for drive in nvme_drives(sysfs):
        if drive.address == address.lower():
            return drive.obstacle
    return "no NVMe drive is at that address of the PCI bus: sled-controller probe lists those that are"


def _drive(device: Path) -> PciDrive:
    controllers = sorted((device / "nvme").glob("nvme*")) if (device / "nvme").is_dir() else []
    controller = controllers[0] if controllers else None
    return PciDrive(
        address=device.name,
        driver=_target(device / "driver"),
        numa_node=int(_text(device / "numa_node") or -1),
        iommu_group=_target(device / "iommu_group"),
        model=_text(controller / "model") if controller else "",
        serial=_text(controller / "serial") if controller else "",
        size_bytes=sum(int(_text(size)) * 512 for size in controller.glob("nvme*n*/size")) if controller else 0,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _target(link: Path) -> str:
    try:
        return link.readlink().name
    except OSError:
        return ""
