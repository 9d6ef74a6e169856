"""The mass storage devices of a sled as its settings name them: files of blocks, and NVMe drives by SPDK."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sled_controller.config import SledSettings, SpdkSettings
from sled_controller.durable import make_directory
from sled_controller.errors import SledError
from spdk_bindings.device import BLOCK_BYTES, Device
from spdk_bindings.emulator import FileDevice
from spdk_bindings.spdk.device import SpdkDevice
from spdk_bindings.spdk.environment import EnvironmentSettings, SpdkEnvironment
from spdk_bindings.spdk.errors import SpdkError

log = logging.getLogger(__name__)

_PCIE: Final = re.compile(r"[0-9a-fA-F]{4}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
_TRANSPORT: Final = "trtype:"


class CannotStart(SledError):
    """No usable device, or no address to listen on; the text names it and the remedy."""


def is_drive(name: str) -> bool:
    """Whether a device is an NVMe drive, by a PCIe address or SPDK's form of a transport id; else it is a file."""
    return name.startswith(_TRANSPORT) or _PCIE.fullmatch(name) is not None


def start_spdk(settings: SpdkSettings) -> SpdkEnvironment:
    """SPDK in this process. Raises CannotStart, which says what to install or to set."""
    try:
        return SpdkEnvironment.start(
            EnvironmentSettings(
                core_mask=settings.spdk_core_mask,
                memory_mib=settings.spdk_memory_mib,
                buffers_mib=settings.spdk_buffers_mib,
                no_huge=settings.spdk_no_huge,
                no_pci=settings.spdk_no_pci,
                shm_id=settings.spdk_shm_id,
            )
        )
    except (SpdkError, ValueError) as error:
        raise CannotStart(str(error)) from None


async def open_devices(settings: SledSettings, has_served: bool) -> tuple[list[Device], bool]:
    """The devices that can be opened, and whether one of them was made just now; raises CannotStart.

    One that cannot be opened is left out with an error in the log: the others are still worth serving. Of a sled that
    `has_served` at least one is there, or nobody knows the fences that it has promised to keep (F2).
    """
    files = [Path(name) for name in settings.devices if not is_drive(name)]
    devices: list[Device] = await _drives([name for name in settings.devices if is_drive(name)], settings)
    try:
        if has_served and not devices and not any(path.exists() for path in files):
            raise CannotStart(
                f"none of the devices {', '.join(settings.devices)} is there any more; bring them back, or enrol this "
                "sled as a new one with an empty state_dir"
            )
        created = _files(files, settings.device_bytes, devices)
        if not devices:
            remedy = "; make them, or set device_bytes" if files else ""
            raise CannotStart(f"none of the devices {', '.join(settings.devices)} can be opened{remedy}: see above why")
    except BaseException:
        for device in devices:
            device.close()
        raise
    return devices, created


async def _drives(names: Sequence[str], settings: SpdkSettings) -> list[Device]:
    environment = start_spdk(settings) if names else None
    devices: list[Device] = []
    for name in names:
        assert environment is not None
        try:
            device = await SpdkDevice.open(environment, name)
        except SpdkError as error:
            log.error("event=device_unusable address=%r reason=%r", name, str(error))
            continue
        log.info("event=device_opened address=%r serial=%s model=%r", name, device.serial, device.model)
        devices.append(device)
    return devices


def _files(paths: Sequence[Path], device_bytes: int | None, devices: list[Device]) -> bool:
    """Add the files to `devices`; whether one was made."""
    created = False
    for path in paths:
        try:
            if device_bytes is not None and not path.exists():
                make_directory(path.parent)
                devices.append(FileDevice.create(path, device_bytes // BLOCK_BYTES))
                created = True
            else:
                devices.append(FileDevice(path))
            log.info("event=device_opened path=%s serial=%s", path, devices[-1].serial)
        except BlockingIOError:
            raise CannotStart(f"device {path}: another process has it open; stop that one first") from None
        except (OSError, ValueError) as error:
            log.error("event=device_unusable path=%s reason=%r", path, str(error))
    return created
