"""The standard side of a controller: properties, identify, log pages, features, keep-alive, reservation report.

What is here needs no credential: the allow-list of F1. It reads nothing of a volume and changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct
from typing import TYPE_CHECKING, Final

from sled_controller.association import Association
from sled_controller.fabric import pdu
from sled_controller.fabric.vendor_io import IN_CAPSULE_BYTES_MAX, QUEUE_ENTRIES_MAX, TRANSFER_BYTES_MAX
from spdk_bindings import identify, log_pages, nvme
from spdk_bindings.nvme import AdminOpcode, Feature, IdentifyCns, IoOpcode, LogPage, Property, Status, VendorIo

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

FIRMWARE: Final = "0.1"
MODEL: Final = "Palisade sled"
ASYNC_EVENTS_MAX: Final = 4
LOG_BYTES_MAX: Final = 1024 * 1024
KEEP_ALIVE_GRACE_MS: Final = 1000
NSID_MAX: Final = (32 << 16) - 1  # device index, then a number on that device
_DWORDS: Final = Struct("<6I")  # CDW10 to CDW15
_EFFECTS: Final = 1  # command supported


@dataclass(frozen=True, slots=True)
class Command:
    """A standard command; `dwords` are CDW10 to CDW15, `length` what its SGL has room for."""

    opcode: int
    cid: int
    nsid: int
    length: int
    dwords: tuple[int, ...]

    @classmethod
    def parse(cls, sqe: bytes) -> "Command":
        """Read a standard SQE."""
        opcode, _, cid, nsid = Struct("<BBHI").unpack_from(sqe)
        length = int.from_bytes(sqe[32:36], "little")
        return cls(opcode, cid, nsid, length, _DWORDS.unpack_from(sqe, 40))


class Controller:
    """One controller, made by Connect on the admin queue. `discovery` ones know only how to name the subsystem."""

    def __init__(self, association: Association, discovery: bool, kato_ms: int) -> None:
        self.association = association
        self.discovery = discovery
        self.kato_ms = kato_ms
        self.configuration = 0
        self._shut_down = False
        self._async_config = 0
        self._held_events: list[int] = []

    # --- fabrics

    def property_get(self, queue: "TargetQueue", sqe: bytes) -> None:
        """Property Get (Base 2.0, 6.6)."""
        _, _, cid, _, attrib, offset, _ = pdu.PROPERTY_SQE.unpack(sqe)
        size = nvme.PROPERTY_BYTES.get(Property(offset)) if offset in set(Property) else None
        if size is None or size != (8 if attrib & 7 else 4):
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        value = 0
        if offset == Property.CAP:
            value = nvme.capabilities(QUEUE_ENTRIES_MAX)
        elif offset == Property.VS:
            value = nvme.NVME_VERSION
        elif offset == Property.CC:
            value = self.configuration
        elif offset == Property.CSTS:
            ready = self.configuration & nvme.CC_ENABLE
            value = (nvme.CSTS_READY if ready else 0) | (nvme.CSTS_SHUTDOWN_COMPLETE if self._shut_down else 0)
        queue.complete(cid, Status.SUCCESS, value & 0xFFFFFFFF, value >> 32)

    def property_set(self, queue: "TargetQueue", sqe: bytes) -> None:
        """Property Set: only CC can be written; disabling it ends the association after the reply."""
        _, _, cid, _, attrib, offset, value = pdu.PROPERTY_SQE.unpack(sqe)
        if offset != Property.CC or attrib & 7:
            queue.complete(cid, Status.INVALID_FIELD, dnr=True)
            return
        was_enabled = self.configuration & nvme.CC_ENABLE
        self.configuration = value & 0xFFFFFFFF
        if self.configuration & nvme.CC_SHUTDOWN_MASK:
            self._shut_down = True
        queue.complete(cid, Status.SUCCESS)
        if was_enabled and not self.configuration & nvme.CC_ENABLE:
            self.association.end("the host disabled the controller")

    # --- admin commands

    def admin(self, queue: "TargetQueue", sqe: bytes) -> None:
        """A standard admin command."""
        command = Command.parse(sqe)
        handler = _DISCOVERY_ADMIN.get(command.opcode) if self.discovery else _ADMIN.get(command.opcode)
        if handler is None:
            queue.complete(command.cid, Status.INVALID_OPCODE, dnr=True)
        else:
            handler(self, queue, command)

    def identify(self, queue: "TargetQueue", command: Command) -> None:
        """Identify (Base 2.0, 5.17)."""
        cns = command.dwords[0] & 0xFF
        served = self.association.subsystem.served
        data: bytes | None = None
        if cns == IdentifyCns.CONTROLLER:
            data = self._identify_controller()
        elif self.discovery:
            data = None
        elif cns == IdentifyCns.ACTIVE_NAMESPACES:
            data = identify.active_namespaces(sorted(served), command.nsid)
        elif cns == IdentifyCns.IO_CONTROLLER:
            data = bytes(4096)
        elif cns in (IdentifyCns.NAMESPACE, IdentifyCns.NAMESPACE_DESCRIPTORS):
            entry = served.get(command.nsid)
            if entry is None and cns == IdentifyCns.NAMESPACE and 0 < command.nsid <= NSID_MAX:
                data = identify.inactive_namespace()
            elif entry is None:
                queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True)
                return
            elif cns == IdentifyCns.NAMESPACE:
                data = identify.identify_namespace(entry.blocks, entry.namespace.uuid)
            else:
                data = identify.namespace_descriptors(entry.namespace.uuid)
        if data is None:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
        else:
            queue.complete(command.cid, Status.SUCCESS, data=data[: command.length])

    def _identify_controller(self) -> bytes:
        subsystem = self.association.subsystem
        return identify.identify_controller(
            identify.ControllerIdentity(
                serial=subsystem.identity.sled_id.hex[:20].upper(),
                model=MODEL,
                firmware=FIRMWARE,
                subsystem_nqn=nvme.DISCOVERY_NQN if self.discovery else subsystem.identity.nqn,
                controller_id=self.association.controller_id,
                max_transfer_bytes=TRANSFER_BYTES_MAX,
                in_capsule_data_bytes=IN_CAPSULE_BYTES_MAX,
                max_commands=QUEUE_ENTRIES_MAX,
                namespaces_max=NSID_MAX,
                discovery=self.discovery,
            )
        )

    def get_log_page(self, queue: "TargetQueue", command: Command) -> None:
        """Get Log Page (Base 2.0, 5.16); the LSI is the slot for the fence page."""
        page_id = command.dwords[0] & 0xFF
        length = ((command.dwords[0] >> 16 | (command.dwords[1] & 0xFFFF) << 16) + 1) * 4
        offset = command.dwords[2] | command.dwords[3] << 32
        if length > LOG_BYTES_MAX or length > command.length or offset % 4:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
            return
        page = self._log_page(queue, page_id, command.dwords[1] >> 16)
        if page is None:
            queue.complete(command.cid, Status.INVALID_LOG_PAGE, dnr=True)
        else:
            queue.complete(command.cid, Status.SUCCESS, data=page[offset : offset + length].ljust(length, b"\0"))

    def _log_page(self, queue: "TargetQueue", page_id: int, specific: int) -> bytes | None:
        subsystem = self.association.subsystem
        if page_id == LogPage.DISCOVERY and self.discovery:
            host, port = queue.local_address
            entry = log_pages.DiscoveryEntry(subsystem.identity.nqn, host, port, ip_address(host).version == 6)
            return log_pages.discovery_log(1, [entry])
        if self.discovery:
            return None
        pages: dict[int, Callable[[], bytes | None]] = {
            LogPage.ERROR: lambda: log_pages.error_log([]),
            LogPage.SMART: lambda: log_pages.smart_log(self._smart()),
            LogPage.FIRMWARE_SLOT: lambda: log_pages.firmware_log(1, {1: FIRMWARE}),
            LogPage.COMMANDS_SUPPORTED: _effects,
            LogPage.FENCE: lambda: self.association.fence_page(specific),
            LogPage.NAMESPACE_TABLE: subsystem.namespace_page,
            LogPage.SLED_STATUS: subsystem.status_page,
        }
        make = pages.get(page_id)
        return None if make is None else make()

    def _smart(self) -> list[Mapping[str, int]]:
        subsystem = self.association.subsystem
        devices = (subsystem.device(index) for index in subsystem.indices())
        return [device.smart() for device in devices if device is not None]

    def set_features(self, queue: "TargetQueue", command: Command) -> None:
        """Set Features: one I/O queue is all there is; the keep-alive timer moves."""
        feature = command.dwords[0] & 0xFF
        if feature == Feature.NUMBER_OF_QUEUES:
            queue.complete(command.cid, Status.SUCCESS, 0)
        elif feature == Feature.KEEP_ALIVE_TIMER:
            self.kato_ms = command.dwords[1]
            queue.complete(command.cid, Status.SUCCESS)
        elif feature == Feature.ASYNC_EVENT_CONFIGURATION:
            self._async_config = command.dwords[1]
            queue.complete(command.cid, Status.SUCCESS)
        else:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)

    def get_features(self, queue: "TargetQueue", command: Command) -> None:
        """Get Features of what Set Features knows, and the volatile write cache (there is one)."""
        values = {
            Feature.NUMBER_OF_QUEUES: 0,
            Feature.KEEP_ALIVE_TIMER: self.kato_ms,
            Feature.ASYNC_EVENT_CONFIGURATION: self._async_config,
            Feature.VOLATILE_WRITE_CACHE: 1,
        }
        feature = command.dwords[0] & 0xFF
        known = [value for name, value in values.items() if name == feature]
        if known:
            queue.complete(command.cid, Status.SUCCESS, known[0])
        else:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)

    def keep_alive(self, queue: "TargetQueue", command: Command) -> None:
        """Keep Alive; that it came is what counts."""
        queue.complete(command.cid, Status.SUCCESS)

    def async_event(self, queue: "TargetQueue", command: Command) -> None:
        """Asynchronous Event Request: held, since there are no events yet; it may be aborted."""
        if len(self._held_events) >= ASYNC_EVENTS_MAX:
            queue.complete(command.cid, Status.ASYNC_EVENT_LIMIT, dnr=True)
            return
        self._held_events.append(command.cid)
        queue.busy.add(command.cid)

    def abort(self, queue: "TargetQueue", command: Command) -> None:
        """Abort: a held event request ends; whatever a device or the host's own data holds up is not aborted."""
        queue_id, cid = command.dwords[0] & 0xFFFF, command.dwords[0] >> 16
        if queue_id == 0 and cid in self._held_events:
            self._held_events.remove(cid)
            queue.complete(cid, Status.ABORT_REQUESTED)
            queue.complete(command.cid, Status.SUCCESS, 0)
        else:
            queue.complete(command.cid, Status.SUCCESS, 1)

    # --- I/O queue

    def io(self, queue: "TargetQueue", sqe: bytes) -> None:
        """A standard I/O command: only Reservation Report is answered, the rest needs a credential."""
        command = Command.parse(sqe)
        if command.opcode != IoOpcode.RESERVATION_REPORT:
            known = command.opcode in set(IoOpcode)
            queue.complete(command.cid, Status.ACCESS_DENIED if known else Status.INVALID_OPCODE, dnr=True)
            return
        served = self.association.subsystem.served.get(command.nsid)
        if served is None:
            queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True)
            return
        length = (command.dwords[0] + 1) * 4
        if length > command.length or length > LOG_BYTES_MAX:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
            return
        fence = served.fence
        holder = fence.holder[:16] if fence.epoch else None
        report = log_pages.reservation_report(
            fence.epoch & 0xFFFFFFFF, holder, 0xFFFF, extended=bool(command.dwords[1] & 1)
        )
        queue.complete(command.cid, Status.SUCCESS, data=report[:length].ljust(length, b"\0"))


def _effects() -> bytes:
    admin = {int(opcode): _EFFECTS for opcode in _ADMIN}
    return log_pages.effects_log(admin, {int(opcode): _EFFECTS for opcode in (*VendorIo, IoOpcode.RESERVATION_REPORT)})


_Handler = Callable[[Controller, "TargetQueue", Command], None]
_DISCOVERY_ADMIN: Final[dict[int, _Handler]] = {
    AdminOpcode.IDENTIFY: Controller.identify,
    AdminOpcode.GET_LOG_PAGE: Controller.get_log_page,
    AdminOpcode.KEEP_ALIVE: Controller.keep_alive,
    AdminOpcode.SET_FEATURES: Controller.set_features,
    AdminOpcode.GET_FEATURES: Controller.get_features,
    AdminOpcode.ASYNC_EVENT_REQUEST: Controller.async_event,
}
_ADMIN: Final[dict[int, _Handler]] = {**_DISCOVERY_ADMIN, AdminOpcode.ABORT: Controller.abort}
