"""`sled-controller probe`: which NVMe drives there are, how they are, and how a sled's configuration names them."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from sled_controller.config import PROG, ProbeSettings
from sled_controller.drives import CannotStart, is_drive, start_spdk
from sled_controller.printable import complain, escaped, line_handler
from sled_controller.settings import load
from spdk_bindings.device import BLOCK_BYTES
from spdk_bindings.pci import SYSFS, PciDrive, nvme_drives
from spdk_bindings.spdk.controller import SpdkController
from spdk_bindings.spdk.environment import SpdkEnvironment
from spdk_bindings.spdk.errors import SpdkError

GIB: Final = 1 << 30
KELVIN: Final = 273
WARNINGS: Final = (
    "spare capacity is low", "temperature", "reliability is degraded", "read-only", "volatile memory backup failed",
    "persistent memory region is read-only",
)  # fmt: skip
"""Bits of Critical Warning (NVM Express Base 2.0, figure 207)."""


@dataclass(frozen=True, slots=True)
class Found:
    """A drive. `usable`: a sled can have it now; `note` says why not, or what to know."""

    address: str
    driver: str
    numa_node: int
    model: str
    serial: str
    size_bytes: int
    usable: bool
    note: str
    smart: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def main(argv: Sequence[str]) -> None:
    """Print them; exit status 1 when SPDK is needed and does not start, 2 for wrong settings."""
    settings = load(ProbeSettings, PROG, argv, command="probe")
    logging.basicConfig(level=logging.ERROR, handlers=(line_handler(),))
    try:
        found = asyncio.run(look(settings))
    except CannotStart as error:
        complain(PROG, error)
        raise SystemExit(1) from None
    print(json.dumps([drive.as_json() for drive in found], indent=1) if settings.json_output else as_text(found))


async def look(settings: ProbeSettings, sysfs: Path = SYSFS) -> list[Found]:
    """What there is: on the PCI bus, and of the drives that were named. Raises CannotStart."""
    on_bus = nvme_drives(sysfs)
    known = {drive.address for drive in on_bus}
    named = [PciDrive(name, "", -1, "") for name in settings.devices if is_drive(name) and name not in known]
    attachable = [drive for drive in on_bus if drive.is_free] + named
    environment = start_spdk(settings) if attachable else None
    found = [_of_kernel(drive) for drive in on_bus if not drive.is_free]
    for drive in attachable:
        assert environment is not None
        found.append(await _of_spdk(environment, drive))
    return sorted(found, key=lambda drive: drive.address)


def _of_kernel(drive: PciDrive) -> Found:
    return Found(
        drive.address, drive.driver, drive.numa_node, drive.model, drive.serial, drive.size_bytes, False,
        drive.obstacle, {},
    )  # fmt: skip


async def _of_spdk(environment: SpdkEnvironment, drive: PciDrive) -> Found:
    try:
        controller = await SpdkController.open(environment, drive.address)
    except SpdkError as error:
        return Found(drive.address, drive.driver, drive.numa_node, "", "", 0, False, str(error), {})
    try:
        identity, smart = controller.identity, await controller.smart()
    finally:
        controller.close()
    found = identity.format
    fits = found.block_bytes == BLOCK_BYTES and not found.metadata_bytes
    note = health(smart) if fits else f"its blocks have {found.block_bytes} bytes: format it with {BLOCK_BYTES}"
    size_bytes = identity.block_count * found.block_bytes
    return Found(
        drive.address, drive.driver, drive.numa_node, identity.model, identity.serial, size_bytes, fits, note, smart
    )


def health(smart: dict[str, int]) -> str:
    """In a few words; begins with `ok` unless the drive warns."""
    raised = [text for bit, text in enumerate(WARNINGS) if smart["critical_warning"] >> bit & 1]
    parts = [
        f"used {smart['percentage_used']} %", f"spare {smart['available_spare_percent']} %",
        f"{smart['media_errors']} media errors",
    ]  # fmt: skip
    if smart["composite_temperature_kelvin"]:
        parts.append(f"{smart['composite_temperature_kelvin'] - KELVIN} C")
    return f"{'warning: ' + ', '.join(raised) if raised else 'ok'}; {', '.join(parts)}"


def as_text(found: Sequence[Found]) -> str:
    """A table, and the lines for a sled's file."""
    if not found:
        return "no NVMe drive is on the PCI bus; --devices names drives elsewhere"
    header = ("ADDRESS", "DRIVER", "NUMA", "SIZE", "MODEL", "SERIAL", "STATE")
    rows = [
        tuple(map(escaped, (
            drive.address, drive.driver or "-", str(drive.numa_node) if drive.numa_node >= 0 else "-",
            f"{drive.size_bytes / GIB:.1f} GiB" if drive.size_bytes else "-", drive.model or "-", drive.serial or "-",
            drive.note,
        )))
        for drive in found
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    usable = [drive.address for drive in found if drive.usable]
    if usable:
        lines += ["", "# in a sled's configuration", f"devices = {json.dumps(usable)}"]
        lines.append("format_blank = true   # at the first start, drives that are all zero")
    return "\n".join(lines)
