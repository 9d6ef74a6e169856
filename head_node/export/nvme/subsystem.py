"""The subsystem of one volume on one head: who may connect, what the path is worth, and what of it is told to hosts."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from head_node.export.nvme.counters import NvmeCounters
from head_node.export.nvme.guard import UNGUARDED, Guard
from head_node.volume.interface import BLOCK_BYTES, ServedVolume
from head_node.volume.reservations import Notice
from sled_controller.environment import Entropy
from sled_controller.fabric.associations import Associations, HostAssociation
from sled_controller.fabric.authentication import InBandAuthentication
from sled_controller.fabric.dhchap.handshake import SequenceNumbers
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.port import ConnectRefused, ConnectRequest
from sled_controller.fabric.standard_controller import Event
from spdk_bindings.log_pages import AnaState
from spdk_bindings.nvme import Status, uuid_nqn

if TYPE_CHECKING:
    from head_node.export.nvme.controller import ExportController
    from sled_controller.fabric.target import TargetQueue

log = logging.getLogger(__name__)

HOSTS_MAX: Final = 64
"""Associations of one volume on one head: a cluster of as many hosts, or fewer with several paths each."""
CONTROLLER_IDS_PER_HEAD: Final = 1000
"""Head numbers go up to 64, controller ids to 65519: each head has a thousand of its own, far more than HOSTS_MAX, so
that an id comes again late."""
ANY_HOST: Final = "*"
NSID: Final = 1


class Access(Enum):
    """What this head's path to the volume is worth (NVM Express Base 2.0, 8.1.1)."""

    OPTIMIZED = AnaState.OPTIMIZED
    INACCESSIBLE = AnaState.INACCESSIBLE
    CHANGE = AnaState.CHANGE


TURNED_AWAY: Final[dict[Access, int]] = {
    Access.INACCESSIBLE: Status.ANA_INACCESSIBLE,
    Access.CHANGE: Status.ANA_TRANSITION,
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What the record says of a volume. `hosts` are the NQNs of those that may connect, `*` is anybody."""

    volume: UUID
    name: str
    size_bytes: int
    hosts: frozenset[str] = field(default_factory=frozenset)

    def admits(self, host_nqn: str) -> bool:
        """May that host connect?"""
        return host_nqn in self.hosts or ANY_HOST in self.hosts


class VolumeAssociation(HostAssociation):
    """One host on this head's controller of the volume."""

    controller: "ExportController"

    def queue_gone(self, queue_id: int, reason: str) -> None:
        super().queue_gone(queue_id, reason)
        self.controller.forget_path(queue_id)

    def disabled(self) -> None:
        super().disabled()
        self.controller.forget_path(None)


MakeController = Callable[["VolumeSubsystem", VolumeAssociation, int], "ExportController"]


class VolumeSubsystem:
    """`volume` is what commands go to, None unless the path is optimized."""

    def __init__(
        self, exported: Exported, head_number: int, counters: NvmeCounters, make_controller: "MakeController",
        entropy: Entropy, numbers: SequenceNumbers, guard: Guard = UNGUARDED,
    ) -> None:  # fmt: skip
        self.exported = exported
        self.guard = guard
        self.guard_changes = 0
        self._make_controller = make_controller
        self.nqn = uuid_nqn(exported.volume)
        self.authentication = InBandAuthentication(self.nqn, self, entropy, numbers)
        self.blocks = exported.size_bytes // BLOCK_BYTES
        self.counters = counters
        self.access = Access.INACCESSIBLE
        self.changes = 1
        self.volume: ServedVolume | None = None
        self._stop_watching: Callable[[], None] = lambda: None
        first = (head_number - 1) * CONTROLLER_IDS_PER_HEAD + 1
        self._associations: Associations[VolumeAssociation] = Associations(
            HOSTS_MAX, entropy, first, first + CONTROLLER_IDS_PER_HEAD - 1
        )

    @property
    def hosts(self) -> Mapping[int, VolumeAssociation]:
        """Who is connected, by controller id."""
        return self._associations.live

    @property
    def serial(self) -> str:
        """The same on every head, as it is the subsystem's."""
        return self.exported.volume.hex[:20].upper()

    def open(self, queue: "TargetQueue", request: ConnectRequest) -> VolumeAssociation | ConnectRefused:
        """A new association for a host on the allow list."""
        host_nqn = request.host_nqn.rstrip(b"\0").decode("utf-8", "replace")
        if not self.exported.admits(host_nqn):
            self.counters.hosts_refused += 1
            log.warning("event=nvme_host_refused volume=%s host=%r", self.exported.volume, host_nqn)
            return ConnectRefused(Status.CONNECT_INVALID_HOST)
        if self.guard.locked:
            self.counters.hosts_refused += 1
            log.error("event=nvme_secrets_unreadable volume=%s host=%r", self.exported.volume, host_nqn)
            return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
        association = self._associations.open(
            lambda number: VolumeAssociation(number, request.host_nqn, request.host_id)
        )
        if association is None:
            return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
        association.authentication = self.authentication
        association.controller = self._make_controller(self, association, request.kato_ms)
        self.counters.hosts_admitted += 1
        log.info(
            "event=nvme_host volume=%s host=%r controller=%d",
            self.exported.volume, host_nqn, association.controller_id,
        )  # fmt: skip
        return association

    # --- called by the head

    def update(self, exported: Exported) -> None:
        """The record has changed; hosts that it admits no more are put out."""
        self.exported = exported
        for association in list(self.hosts.values()):
            if not exported.admits(association.host_name):
                self.counters.hosts_refused += 1
                association.end("the host is not on the volume's list any more")

    def terms(self, host_nqn: str) -> Terms | None:
        """On which terms a host has to prove itself, None if it need not."""
        return self.guard.terms.get(host_nqn)

    def set_guard(self, guard: Guard) -> None:
        """Secrets have changed. A host that authenticated by a former one may do so again, within a minute
        (authentication.py); one that never had to, and now has to, is disconnected."""
        self.guard = guard
        self.guard_changes += 1
        for association in list(self.hosts.values()):
            proving = association.proven or association.queues[0].authenticating
            if association.host_name in guard.terms and not proving:
                self.counters.hosts_refused += 1
                association.end("the host has to prove itself from now on")

    def set_access(self, access: Access, volume: ServedVolume | None) -> None:
        """What the path is worth from now on; `volume` is there when it is optimized.

        Commands that the volume has already stay with it: it answers them if it goes on serving, else `step_down`.
        """
        assert (volume is not None) == (access is Access.OPTIMIZED)
        self._take(volume)
        if access is self.access:
            return
        log.info(
            "event=nvme_access volume=%s from=%s to=%s hosts=%d",
            self.exported.volume, self.access.name, access.name, len(self.hosts),
        )  # fmt: skip
        self.access = access
        self.changes += 1
        self.counters.access_changes += 1
        for association in list(self.hosts.values()):
            association.controller.notify(Event.ANA_CHANGED)

    def step_down(self) -> int:
        """This head serves the volume no more (F6): what it has not answered is answered by the state of the path,
        which says nothing about whether it was done; hosts repeat it elsewhere. Returns how many commands that were."""
        if self.access is Access.OPTIMIZED:
            self.set_access(Access.INACCESSIBLE, None)
        self._take(None)
        unfinished = sum(association.controller.give_up() for association in list(self.hosts.values()))
        self.counters.commands_unfinished += unfinished
        return unfinished

    def _take(self, volume: ServedVolume | None) -> None:
        if volume is not self.volume:
            self._stop_watching()
            self._stop_watching = lambda: None
            self.volume = volume
            if volume is not None:
                self._stop_watching = volume.watch_reservations(self._tell)

    def _tell(self, notice: Notice) -> None:
        for association in list(self.hosts.values()):
            if association.host_id == notice.host:
                association.controller.tell(notice.kind)

    def close(self, reason: str) -> None:
        """The volume is not exported here any more."""
        self._take(None)
        for association in list(self.hosts.values()):
            association.end(reason)
