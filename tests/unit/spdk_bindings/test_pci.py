"""NVMe drives on the PCI bus, from a sysfs that tests make."""

from pathlib import Path

import pytest

from spdk_bindings.pci import PciDrive, nvme_drives, obstacle


def put(sysfs: Path, address: str, driver: str = "", pci_class: str = "0x010802") -> Path:
    """A device on the bus; where its driver is the kernel's it has a controller and a namespace."""
    device = sysfs / "bus" / "pci" / "devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{pci_class}\n")
    (device / "numa_node").write_text("1\n")
    (device / "iommu_group").symlink_to("../../../../kernel/iommu_groups/17")
    if driver:
        (device / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    if driver == "nvme":
        namespace = device / "nvme" / "nvme0" / "nvme0n1"
        namespace.mkdir(parents=True)
        (namespace / "size").write_text("2048\n")
        (device / "nvme" / "nvme0" / "model").write_text("A drive   \n")
        (device / "nvme" / "nvme0" / "serial").write_text("S1\n")
    return device


def test_what_the_kernel_has_is_told_apart_from_what_is_free(tmp_path: Path) -> None:
    put(tmp_path, "0000:02:00.0", "vfio-pci")
    put(tmp_path, "0000:01:00.0", "nvme")
    put(tmp_path, "0000:03:00.0")
    put(tmp_path, "0000:04:00.0", "e1000", pci_class="0x020000")
    kernels, free, nobodys = nvme_drives(tmp_path)
    assert kernels == PciDrive("0000:01:00.0", "nvme", 1, "17", "A drive", "S1", 1 << 20)
    assert [drive.is_free for drive in (kernels, free, nobodys)] == [False, True, False]
    assert nobodys.driver == ""


def test_a_machine_without_such_a_bus_has_none(tmp_path: Path) -> None:
    assert nvme_drives(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("0000:0A:00.0", "the kernel has it (nvme): give it to vfio-pci"),
        ("0000:0b:00.0", "no driver has it: give it to vfio-pci"),
        ("0000:0c:00.0", ""),
        ("0000:0d:00.0", "no NVMe drive is at that address of the PCI bus: sled-controller probe lists those that are"),
    ],
)
def test_what_is_in_the_way_of_a_drive_is_named_with_the_remedy(tmp_path: Path, address: str, said: str) -> None:
    put(tmp_path, "0000:0a:00.0", "nvme")
    put(tmp_path, "0000:0b:00.0")
    put(tmp_path, "0000:0c:00.0", "vfio-pci")
    assert obstacle(address, tmp_path) == said
