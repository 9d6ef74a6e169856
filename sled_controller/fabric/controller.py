"""The sled's controller: its identity, log pages and features, and the reservation report.

What is here needs no credential: the allow-list of F1. It reads nothing of a volume and changes nothing.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from sled_controller.association import Association
from sled_controller.fabric import pdu
from sled_controller.fabric.io_path import IoPath
from sled_controller.fabric.standard_controller import (
    LOG_BYTES_MAX,
    NO_CHOICE_FEATURES,
    STANDARD_COMMANDS,
    Command,
    FeatureRule,
    Handler,
    LogRequest,
    StandardController,
    supported_pages,
)
from sled_controller.fabric.vendor_admin import VendorAdmin
from sled_controller.fabric.vendor_io import LIMITS, VendorIoPath
from sled_controller.firmware.admin_path import FirmwareAdminPath
from spdk_bindings import identify, log_pages
from spdk_bindings.device import Buffer
from spdk_bindings.nvme import (
    CAP_SUBSYSTEM_RESET,
    NSID_ALL,
    NSSR_RESET,
    NVM_COMMAND_SET,
    AdminOpcode,
    Feature,
    IdentifyCns,
    IoOpcode,
    LogPage,
    Property,
    Status,
    VendorIo,
)

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

log = logging.getLogger(__name__)

FIRMWARE: Final = "0.1"
MODEL: Final = "Palisade sled"
NSID_MAX: Final = (32 << 16) - 1  # device index, then a number on that device
IO_QUEUES_MAX: Final = 1  # the nonces of a session are counted per queue
_VENDOR_ADMIN: Final = 0xC0
_FIRMWARE_COMMANDS: Final = (AdminOpcode.FIRMWARE_DOWNLOAD, AdminOpcode.FIRMWARE_COMMIT)
_EXCLUSIVE_ACCESS: Final = 2  # reservation type: nobody but the holder reads or writes

_QUIET: Final = log_pages.EFFECTS_SUPPORTED
_WRITES: Final = _QUIET | log_pages.EFFECTS_CHANGES_CONTENT
_MANAGES: Final = _QUIET | log_pages.EFFECTS_CHANGES_INVENTORY
VENDOR_ADMIN_EFFECTS: Final[dict[int, int]] = {
    AdminOpcode.FABRICS: _QUIET,
    AdminOpcode.SESSION_RECEIVE: _QUIET,
    AdminOpcode.SESSION_SEND: _QUIET,
    AdminOpcode.ATTACH: _QUIET,
    AdminOpcode.RECEIPT: _QUIET,
    AdminOpcode.KEYSET_UPDATE: _QUIET,
    AdminOpcode.NAMESPACE_CREATE: _MANAGES,
    AdminOpcode.NAMESPACE_DELETE: _MANAGES | _WRITES,
    AdminOpcode.DETACH: _QUIET,
    AdminOpcode.RETIRE: _QUIET,
    AdminOpcode.TIME_STATEMENT: _QUIET,
}
IO_EFFECTS: Final[dict[int, int]] = {
    IoOpcode.RESERVATION_REPORT: _QUIET,
    VendorIo.WRITE: _WRITES,
    VendorIo.READ: _QUIET,
    VendorIo.FLUSH: _QUIET,
    VendorIo.WRITE_ZEROES: _WRITES,
    VendorIo.DEALLOCATE: _WRITES,
}


class SledController(StandardController):
    """One controller of a sled."""

    COMMANDS: ClassVar[Mapping[int, Handler]] = {
        **STANDARD_COMMANDS,
        AdminOpcode.ABORT: StandardController.abort,
    }
    FEATURES: ClassVar[Mapping[int, FeatureRule]] = {
        **NO_CHOICE_FEATURES,
        Feature.NUMBER_OF_QUEUES: FeatureRule(),
        Feature.KEEP_ALIVE_TIMER: FeatureRule(),
        Feature.ASYNC_EVENT_CONFIGURATION: FeatureRule(),
        Feature.VOLATILE_WRITE_CACHE: FeatureRule(default=1, changeable=False),
    }

    def __init__(self, association: Association, kato_ms: int) -> None:
        super().__init__(association, kato_ms, io_queues_max=IO_QUEUES_MAX, entries_max=LIMITS.entries_max)
        self._sled = association
        self._vendor = VendorAdmin(association)
        self._denied: set[int] = set()

    def command(self, queue: "TargetQueue", sqe: bytes, data: Buffer, digest_bad: bool) -> None:
        if sqe[0] >= _VENDOR_ADMIN:
            self._vendor.command(queue, sqe, data, digest_bad)
        elif sqe[0] in _FIRMWARE_COMMANDS and self._sled.subsystem.firmware is not None and not digest_bad:
            self._deny_firmware(queue, Command.parse(sqe))
        else:
            super().command(queue, sqe, data, digest_bad)

    def admin_path(self, queue: "TargetQueue") -> IoPath | None:
        firmware = self._sled.subsystem.firmware
        return FirmwareAdminPath(queue, self, firmware) if firmware is not None and self._may_restart else None

    @property
    def capabilities(self) -> int:
        """CAP; whoever may activate firmware may reset the subsystem, which is what activates it."""
        return super().capabilities | (CAP_SUBSYSTEM_RESET if self._may_restart else 0)

    @property
    def _may_restart(self) -> bool:
        return self._sled.subsystem.firmware is not None and self._sled.manages

    def property_set(self, queue: "TargetQueue", sqe: bytes) -> None:
        """CC, and NSSR (Base 2.0, 3.1.3.8) for a host that may restart the sled."""
        _, _, cid, _, attrib, offset, value = pdu.PROPERTY_SQE.unpack(sqe)
        firmware = self._sled.subsystem.firmware
        if offset != Property.NSSR or attrib & 7 or firmware is None or not self._sled.manages:
            super().property_set(queue, sqe)
            return
        if value & 0xFFFF_FFFF != NSSR_RESET:
            queue.complete(cid, Status.SUCCESS)
            return

        def answer(status: Status) -> None:
            queue.complete(cid, status)
            queue.poke()

        queue.busy.add(cid)
        firmware.reset(answer)

    def identify_page(self, cns: int, command: Command) -> bytes | Status:
        served = self._sled.subsystem.served
        if cns == IdentifyCns.CONTROLLER:
            return self._identify_controller()
        if cns == IdentifyCns.ACTIVE_NAMESPACES:
            if command.nsid >= NSID_ALL - 1:
                return Status.INVALID_NAMESPACE
            return identify.active_namespaces(served, command.nsid)
        if cns == IdentifyCns.IO_CONTROLLER and command.dwords[1] >> 24 == NVM_COMMAND_SET:
            return bytes(identify.IDENTIFY_BYTES)
        if cns not in (IdentifyCns.NAMESPACE, IdentifyCns.NAMESPACE_DESCRIPTORS):
            return Status.INVALID_FIELD
        entry = served.get(command.nsid)
        if entry is None:
            known = cns == IdentifyCns.NAMESPACE and 0 < command.nsid <= NSID_MAX
            return identify.inactive_namespace() if known else Status.INVALID_NAMESPACE
        if cns == IdentifyCns.NAMESPACE:
            shown = identify.NamespaceIdentity(
                entry.blocks,
                entry.namespace.uuid,
                used_blocks=entry.blocks,
                # Taken by nobody: the capability is shown because Report, which names the fence's holder, needs one.
                reservations=identify.RESERVED_FOR_EXCLUSIVE_ACCESS,
            )
            return identify.identify_namespace(shown)
        return identify.namespace_descriptors(entry.namespace.uuid)

    def _identify_controller(self) -> bytes:
        subsystem = self._sled.subsystem
        return identify.identify_controller(
            identify.ControllerIdentity(
                serial=subsystem.serial,
                model=MODEL,
                firmware=self._revision,
                subsystem_nqn=subsystem.identity.nqn,
                controller_id=self.association.controller_id,
                max_transfer_bytes=LIMITS.transfer_bytes_max,
                in_capsule_data_bytes=LIMITS.in_capsule_bytes_max,
                max_commands=LIMITS.entries_max,
                namespaces_max=NSID_MAX,
                takes_firmware=subsystem.firmware is not None,
                # Of the standard's I/O commands only Reservation Report is carried out.
                nvm_optional=identify.ONCS_RESERVATIONS,
            )
        )

    @property
    def _revision(self) -> str:
        firmware = self._sled.subsystem.firmware
        return (firmware.revision if firmware is not None else "") or FIRMWARE

    def _firmware_slots(self) -> bytes:
        firmware = self._sled.subsystem.firmware
        if firmware is None:
            return log_pages.firmware_log(1, {1: FIRMWARE})
        return log_pages.firmware_log(firmware.active_slots, firmware.revisions)

    def log_page(self, queue: "TargetQueue", request: LogRequest) -> bytes | None:
        """The LSI is the slot for the fence page."""
        subsystem = self._sled.subsystem
        pages: dict[int, Callable[[], bytes | None]] = {
            LogPage.ERROR: self.errors.page,
            LogPage.SMART: self._smart,
            LogPage.FIRMWARE_SLOT: self._firmware_slots,
            LogPage.COMMANDS_SUPPORTED: self._effects,
            LogPage.FENCE: lambda: self._sled.fence_page(request.specific),
            LogPage.NAMESPACE_TABLE: subsystem.namespace_page,
            LogPage.SLED_STATUS: subsystem.status_page,
        }
        firmware = subsystem.firmware
        if firmware is not None:
            pages[LogPage.FIRMWARE] = lambda: firmware.page
        if request.page == LogPage.SUPPORTED:
            return supported_pages(pages)
        make = pages.get(request.page)
        return None if make is None else make()

    def _smart(self) -> bytes:
        subsystem = self._sled.subsystem
        devices = [subsystem.device(index) for index in subsystem.indices()]
        present = [device.smart() for device in devices if device is not None]
        return log_pages.smart_log(present, lost=len(devices) - len(present), error_log_entries=self.errors.count)

    def _effects(self) -> bytes:
        firmware = _FIRMWARE_COMMANDS if self._may_restart else ()
        admin = {int(opcode): log_pages.EFFECTS_SUPPORTED for opcode in (*self.COMMANDS, *firmware)}
        return log_pages.effects_log(admin | VENDOR_ADMIN_EFFECTS, IO_EFFECTS)

    def _deny_firmware(self, queue: "TargetQueue", command: Command) -> None:
        self._sled.subsystem.counters.denied += 1
        log.warning(
            "event=firmware_denied controller=%d host=%a opcode=%#04x reason=it_has_not_proved_to_manage_this_sled",
            self.association.controller_id, self.association.host_name, command.opcode,
        )  # fmt: skip
        queue.complete(command.cid, Status.ACCESS_DENIED, dnr=True)

    # --- I/O queue

    def io_path(self, queue: "TargetQueue", entries: int) -> IoPath:
        return VendorIoPath(queue, self._sled, entries, self.io)

    def io(self, queue: "TargetQueue", sqe: bytes) -> None:
        """A standard I/O command: only Reservation Report is answered, the rest needs a credential."""
        command = Command.parse(sqe)
        if command.opcode != IoOpcode.RESERVATION_REPORT:
            self._deny(queue, command)
            return
        served = self._sled.subsystem.served.get(command.nsid)
        if served is None:
            queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True, nsid=command.nsid)
            return
        length = (command.dwords[0] + 1) * 4
        if length > command.length or length > LOG_BYTES_MAX:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
            return
        fence = served.fence
        holder = [log_pages.RegisteredController(0xFFFF, fence.holder[:16], 0, True)] if fence.epoch else []
        kind = _EXCLUSIVE_ACCESS if holder else 0
        report = log_pages.reservation_report(
            fence.epoch & 0xFFFFFFFF, kind, True, holder, extended=bool(command.dwords[1] & 1)
        )
        queue.complete(command.cid, Status.SUCCESS, data=report[:length].ljust(length, b"\0"))

    def _deny(self, queue: "TargetQueue", command: Command) -> None:
        """Refuse and count it: Access Denied, with DNR, as nothing changes when the host asks again. The first of its
        kind is worth a log line; a kernel that looks for partitions asks often.
        """
        known = command.opcode in set(IoOpcode)
        status = Status.ACCESS_DENIED if known else Status.INVALID_OPCODE
        self._sled.subsystem.counters.denied += 1
        if command.opcode not in self._denied:
            self._denied.add(command.opcode)
            log.warning(
                "event=standard_io_denied controller=%d host=%a opcode=%#04x nsid=%d status=%s",
                self.association.controller_id, self.association.host_name, command.opcode, command.nsid, status.name,
            )  # fmt: skip
        lba = command.dwords[0] | command.dwords[1] << 32
        queue.complete(command.cid, status, dnr=True, nsid=command.nsid, lba=lba)
