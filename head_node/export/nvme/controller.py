"""The controller of a volume on one head: one namespace, one ANA group, identity and log pages that hosts expect.

Sources: NVM Express Base 2.0, 5.16, 5.17, 8.1; NVM Command Set 1.0, 4.1.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from head_node.export.nvme.commands import KINDS, LIMITS, VERIFY_BYTES_MAX
from head_node.export.nvme.io_path import ExportIoPath
from head_node.export.nvme.persistence import PersistenceFeature
from head_node.export.nvme.reservations import NOTICE_MASK_BITS, NoticeLog
from head_node.export.nvme.subsystem import NSID, Access, VolumeAssociation, VolumeSubsystem
from head_node.volume.interface import BLOCK_BYTES
from head_node.volume.reservations import NoticeKind
from sled_controller.fabric.io_path import IoPath
from sled_controller.fabric.standard_controller import (
    NO_CHOICE_FEATURES,
    SAVE,
    STANDARD_COMMANDS,
    Command,
    Event,
    FeatureRule,
    Handler,
    LogRequest,
    StandardController,
    events_mask,
    supported_pages,
)
from spdk_bindings import identify, log_pages
from spdk_bindings.nvme import NSID_ALL, NVM_COMMAND_SET, AdminOpcode, Feature, IdentifyCns, IoOpcode, LogPage, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

MODEL: Final = "Palisade volume"
FIRMWARE: Final = "0.1"
IO_QUEUES_MAX: Final = 16
"""Per host; a head is one thread, so more than its clients' cores buy nothing."""
ANATT_SECONDS: Final = 10
"""How long a path may be in change, as hosts are told; a takeover takes one lease and a bit. Linux resets a controller
that is in change for twice as long, which does no harm."""
_HOST_ID_128_BITS: Final = 1
_GROUPS_ONLY: Final = 1  # LSP of the ANA log

_NVM_OPTIONAL: Final = (
    identify.ONCS_COMPARE | identify.ONCS_DATASET_MANAGEMENT | identify.ONCS_WRITE_ZEROES
    | identify.ONCS_FEATURE_SELECT | identify.ONCS_RESERVATIONS | identify.ONCS_VERIFY
)  # fmt: skip
_CHANGES: Final = log_pages.EFFECTS_SUPPORTED | log_pages.EFFECTS_CHANGES_CONTENT
_EFFECTS: Final[dict[int, int]] = {
    opcode: _CHANGES
    if opcode in (IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT)
    else log_pages.EFFECTS_SUPPORTED
    for opcode in KINDS
}


class ExportController(StandardController):
    """One host's controller; its paths are the host's I/O queues."""

    FEATURES: ClassVar[Mapping[int, FeatureRule]] = {
        **NO_CHOICE_FEATURES,
        Feature.NUMBER_OF_QUEUES: FeatureRule(),
        Feature.KEEP_ALIVE_TIMER: FeatureRule(),
        Feature.ASYNC_EVENT_CONFIGURATION: FeatureRule(),
        Feature.ERROR_RECOVERY: FeatureRule(),
        # What is acknowledged is durable (F5): there is no cache to turn on.
        Feature.VOLATILE_WRITE_CACHE: FeatureRule(default=0, changeable=False),
        Feature.RESERVATION_NOTIFICATION_MASK: FeatureRule(),
        Feature.RESERVATION_PERSISTENCE: FeatureRule(default=1),
    }
    EVENTS: ClassVar[frozenset[Event]] = frozenset({Event.ANA_CHANGED, Event.RESERVATION})

    def __init__(self, subsystem: VolumeSubsystem, association: VolumeAssociation, kato_ms: int) -> None:
        super().__init__(association, kato_ms, io_queues_max=IO_QUEUES_MAX, entries_max=LIMITS.entries_max)
        self._subsystem = subsystem
        self._paths: dict[int, ExportIoPath] = {}
        self._notices = NoticeLog(NSID)
        self._persistence = PersistenceFeature(subsystem, association)

    # --- paths

    def io_path(self, queue: "TargetQueue", entries: int) -> IoPath:
        path = ExportIoPath(queue, self._subsystem, self.association.host_id)
        self._paths[queue.queue_id] = path
        return path

    def forget_path(self, queue_id: int | None) -> None:
        """An I/O queue is gone, or all are; what it had under way is not answered, what had to wait never begins."""
        if queue_id is None:
            self._paths.clear()
        else:
            self._paths.pop(queue_id, None)

    def give_up(self) -> int:
        """Answer everything that the volume has and will not answer any more."""
        return self._persistence.give_up() + sum(path.give_up() for path in self._paths.values())

    # --- identify

    def identify_page(self, cns: int, command: Command) -> bytes | Status:
        if cns == IdentifyCns.CONTROLLER:
            return self._identify_controller()
        if cns in (IdentifyCns.IO_NAMESPACE, IdentifyCns.IO_CONTROLLER, IdentifyCns.IO_ACTIVE_NAMESPACES):
            return self._identify_nvm(cns, command)
        if cns == IdentifyCns.ACTIVE_NAMESPACES:
            return self._active_namespaces(command)
        if cns in (IdentifyCns.CONTROLLERS, IdentifyCns.NAMESPACE_CONTROLLERS):
            return identify.controller_list(self._subsystem.hosts, command.dwords[0] >> 16)
        if cns not in (IdentifyCns.NAMESPACE, IdentifyCns.NAMESPACE_DESCRIPTORS, IdentifyCns.INDEPENDENT_NAMESPACE):
            return Status.INVALID_FIELD
        if command.nsid != NSID:
            return Status.INVALID_NAMESPACE
        if cns == IdentifyCns.NAMESPACE:
            return self._identify_namespace()
        if cns == IdentifyCns.INDEPENDENT_NAMESPACE:
            return identify.independent_namespace(identify.ALL_RESERVATIONS, identify.ANA_GROUP)
        return identify.namespace_descriptors(self._subsystem.exported.volume)

    def _identify_controller(self) -> bytes:
        subsystem = self._subsystem
        return identify.identify_controller(
            identify.ControllerIdentity(
                serial=subsystem.serial,
                model=MODEL,
                firmware=FIRMWARE,
                subsystem_nqn=subsystem.nqn,
                controller_id=self.association.controller_id,
                max_transfer_bytes=LIMITS.transfer_bytes_max,
                in_capsule_data_bytes=LIMITS.in_capsule_bytes_max,
                max_commands=LIMITS.entries_max,
                namespaces_max=NSID,
                namespaces_allowed=NSID,
                total_capacity_bytes=subsystem.exported.size_bytes,
                volatile_write_cache=False,
                async_events=events_mask(self.EVENTS),
                ana_transition_s=ANATT_SECONDS,
                log_attributes=identify.LPA_EFFECTS | identify.LPA_EXTENDED | identify.LPA_SUPPORTED_PAGES,
                nvm_optional=_NVM_OPTIONAL,
            )
        )

    def _identify_namespace(self) -> bytes:
        subsystem = self._subsystem
        return identify.identify_namespace(
            identify.NamespaceIdentity(
                subsystem.blocks,
                subsystem.exported.volume,
                # Which blocks hold data is known to the primary only; a path that is inaccessible says 0 (8.1.1.6).
                used_blocks=0 if subsystem.access is Access.INACCESSIBLE else subsystem.blocks,
                reservations=identify.ALL_RESERVATIONS,
                deallocate=identify.DEALLOCATED_READS_ZERO | identify.WRITE_ZEROES_DEALLOCATES,
                ana_group=identify.ANA_GROUP,
            )
        )

    def _identify_nvm(self, cns: int, command: Command) -> bytes | Status:
        if command.dwords[1] >> 24 != NVM_COMMAND_SET:
            return Status.INVALID_FIELD
        if cns == IdentifyCns.IO_CONTROLLER:
            return identify.nvm_identify_controller(VERIFY_BYTES_MAX, ranges_max=0)
        if cns == IdentifyCns.IO_ACTIVE_NAMESPACES:
            return self._active_namespaces(command)
        return bytes(identify.IDENTIFY_BYTES) if command.nsid == NSID else Status.INVALID_NAMESPACE

    def _active_namespaces(self, command: Command) -> bytes | Status:
        if command.nsid >= NSID_ALL - 1:
            return Status.INVALID_NAMESPACE
        return identify.active_namespaces([NSID], command.nsid)

    # --- log pages

    def log_page(self, queue: "TargetQueue", request: LogRequest) -> bytes | None:
        subsystem = self._subsystem
        nsids = () if request.parameter & _GROUPS_ONLY else (NSID,)
        pages: dict[int, Callable[[], bytes]] = {
            LogPage.ERROR: self.errors.page,
            LogPage.SMART: self._smart,
            LogPage.FIRMWARE_SLOT: lambda: log_pages.firmware_log(1, {1: FIRMWARE}),
            LogPage.CHANGED_NAMESPACES: lambda: bytes(4096),  # a volume's namespace never changes
            LogPage.COMMANDS_SUPPORTED: self._effects,
            LogPage.ANA: lambda: log_pages.ana_log(
                subsystem.changes, identify.ANA_GROUP, subsystem.access.value, nsids
            ),
            LogPage.RESERVATION: self._notices.page,
        }
        if request.page == LogPage.SUPPORTED:
            return supported_pages(pages)
        make = pages.get(request.page)
        return None if make is None else make()

    def _smart(self) -> bytes:
        paths = list(self._paths.values())
        return log_pages.smart_log(
            [
                {
                    "critical_warning": 0,
                    "composite_temperature_kelvin": 0,  # not reported
                    "available_spare_percent": 100,
                    "available_spare_threshold_percent": 0,
                    "percentage_used": 0,
                    "data_units_read": log_pages.data_units(sum(path.blocks_read for path in paths) * BLOCK_BYTES),
                    "data_units_written": log_pages.data_units(
                        sum(path.blocks_written for path in paths) * BLOCK_BYTES
                    ),
                    "host_read_commands": sum(path.reads for path in paths),
                    "host_write_commands": sum(path.writes for path in paths),
                    "media_errors": 0,
                    "controller_busy_minutes": 0,
                    "power_cycles": 0,
                    "power_on_hours": 0,
                    "unsafe_shutdowns": 0,
                }
            ],
            error_log_entries=self.errors.count,
        )

    def _effects(self) -> bytes:
        return log_pages.effects_log({int(opcode): log_pages.EFFECTS_SUPPORTED for opcode in self.COMMANDS}, _EFFECTS)

    # --- features

    def get_features(self, queue: "TargetQueue", command: Command) -> None:
        """Also the host identifier, which Connect has set for good (Base 2.0, 5.27.1.25)."""
        feature, selected = command.dwords[0] & 0xFF, command.dwords[0] >> 8 & 7
        if feature == Feature.HOST_IDENTIFIER and command.dwords[1] & _HOST_ID_128_BITS:
            queue.complete(command.cid, Status.SUCCESS, data=self.association.host_id[: command.length])
        elif feature == Feature.HOST_IDENTIFIER:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
        elif feature == Feature.RESERVATION_PERSISTENCE and not selected:
            self._persistence.get(queue, command)
        elif feature == Feature.RESERVATION_NOTIFICATION_MASK and command.nsid != NSID:
            queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True)
        else:
            super().get_features(queue, command)

    def set_features(self, queue: "TargetQueue", command: Command) -> None:
        """Anything but the host identifier."""
        feature = command.dwords[0] & 0xFF
        if feature == Feature.HOST_IDENTIFIER:
            queue.complete(command.cid, Status.COMMAND_SEQUENCE_ERROR, dnr=True)
        elif feature == Feature.RESERVATION_PERSISTENCE and not command.dwords[0] & SAVE:
            self._persistence.set(queue, command)
        elif feature == Feature.RESERVATION_NOTIFICATION_MASK and command.nsid not in (NSID, NSID_ALL):
            queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True)
        elif feature == Feature.RESERVATION_NOTIFICATION_MASK and command.dwords[1] & ~NOTICE_MASK_BITS:
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
        else:
            super().set_features(queue, command)

    def _grant_queues(self, asked: int) -> tuple[Status, int]:
        """A host without a secret asks for as many as there are cores; where connections are short it gets fewer."""
        if not self.association.proven:
            self.io_queues_max = max(1, min(IO_QUEUES_MAX, self._subsystem.shares.left(self._subsystem)))
        return super()._grant_queues(asked)

    # --- notices

    def tell(self, kind: NoticeKind) -> None:
        """Another host has done something to this one's registration or reservation."""
        if not self.value(Feature.RESERVATION_NOTIFICATION_MASK) >> kind & 1:
            self._notices.add(kind)
            self.notify(Event.RESERVATION)

    def taken_note(self, page: int) -> None:
        """Of notices each is a page of its own, and an event again."""
        super().taken_note(page)
        if page == LogPage.RESERVATION:
            self._notices.taken()
            if self._notices:
                self.notify(Event.RESERVATION)

    COMMANDS: ClassVar[Mapping[int, Handler]] = {
        **STANDARD_COMMANDS,
        AdminOpcode.ABORT: StandardController.abort,
        AdminOpcode.GET_FEATURES: get_features,
        AdminOpcode.SET_FEATURES: set_features,
    }
