"""The discovery subsystem: which subsystems can be connected to, and where. It has a well-known name and no I/O.

Source: NVM Express Base 2.0, 3.1.2.3 and 5.16.1.23.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from sled_controller.environment import Entropy
from sled_controller.fabric.associations import Associations, HostAssociation, Standing
from sled_controller.fabric.port import ConnectRefused, ConnectRequest
from sled_controller.fabric.standard_controller import (
    LOG_BYTES_MAX,
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
from spdk_bindings import identify, log_pages, nvme
from spdk_bindings.nvme import Feature, IdentifyCns, LogPage, Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue

DISCOVERY_HOSTS_MAX: Final = 1024

Entries = Callable[["TargetQueue", bytes], Sequence[bytes]]
"""(admin queue, host NQN) -> the `discovery_row`s that this host is shown on this connection. Any stranger may ask, as
often as it likes: rows are made beforehand."""


class DiscoveryAssociation(HostAssociation):
    """One host that asks, and may stay to be told of changes."""

    @property
    def standing(self) -> Standing:
        """Anybody may ask."""
        return Standing.CONNECTED


class DiscoverySubsystem:
    """`changed` is called whenever `entries` would return something else."""

    def __init__(self, entries: Entries, entropy: Entropy, *, serial: str, model: str, firmware: str) -> None:
        self.entries = entries
        self.serial = serial
        self.model = model
        self.firmware = firmware
        self.generation = 1
        self._associations: Associations[DiscoveryAssociation] = Associations(DISCOVERY_HOSTS_MAX, entropy)

    @property
    def hosts(self) -> Mapping[int, DiscoveryAssociation]:
        """Who is connected."""
        return self._associations.live

    def open(self, queue: "TargetQueue", request: ConnectRequest) -> DiscoveryAssociation | ConnectRefused:
        """Anybody may ask."""
        association = self._associations.open(
            lambda number: DiscoveryAssociation(number, request.host_nqn, request.host_id)
        )
        if association is None:
            return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
        association.controller = DiscoveryController(
            self, association, request.kato_ms, entries_max=queue.port.limits.entries_max
        )
        return association

    def changed(self) -> None:
        """Another generation: whoever asked to be told is."""
        self.generation += 1
        for association in self._associations.live.values():
            association.controller.notify(Event.DISCOVERY_CHANGED)


class DiscoveryController(StandardController):
    """Knows only how to name subsystems."""

    COMMANDS: ClassVar[Mapping[int, Handler]] = STANDARD_COMMANDS
    FEATURES: ClassVar[Mapping[int, FeatureRule]] = {
        Feature.ASYNC_EVENT_CONFIGURATION: FeatureRule(),
        Feature.KEEP_ALIVE_TIMER: FeatureRule(),
    }
    EVENTS: ClassVar[frozenset[Event]] = frozenset({Event.DISCOVERY_CHANGED})

    def __init__(
        self, subsystem: DiscoverySubsystem, association: HostAssociation, kato_ms: int, *, entries_max: int
    ) -> None:
        super().__init__(association, kato_ms, io_queues_max=0, entries_max=entries_max)
        self._subsystem = subsystem

    def identify_page(self, cns: int, command: Command) -> bytes | Status:
        if cns != IdentifyCns.CONTROLLER:
            return Status.INVALID_FIELD
        return identify.identify_controller(
            identify.ControllerIdentity(
                serial=self._subsystem.serial,
                model=self._subsystem.model,
                firmware=self._subsystem.firmware,
                subsystem_nqn=nvme.DISCOVERY_NQN,
                controller_id=self.association.controller_id,
                max_transfer_bytes=LOG_BYTES_MAX,
                in_capsule_data_bytes=0,
                max_commands=self._entries_max,
                namespaces_max=0,
                async_events=events_mask(self.EVENTS),
                discovery=True,
            )
        )

    def log_page(self, queue: "TargetQueue", request: LogRequest) -> bytes | None:
        if request.page == LogPage.DISCOVERY:
            rows = self._subsystem.entries(queue, self.association.host_nqn)
            return log_pages.discovery_log(self._subsystem.generation, rows)
        if request.page == LogPage.SUPPORTED:
            return supported_pages({LogPage.DISCOVERY: None})
        return None
