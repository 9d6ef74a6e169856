"""The subsystem of one volume on one head: who may connect, what the path is worth, and what of it is told to hosts."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from head_node.export.nvme.counters import NvmeCounters
from head_node.export.nvme.guard import UNGUARDED, Guard
from head_node.export.nvme.shares import Shares
from head_node.volume.interface import BLOCK_BYTES, ServedVolume
from head_node.volume.reservations import Notice
from sled_controller.environment import Entropy
from sled_controller.fabric.associations import Associations, HostAssociation, Queue, Standing
from sled_controller.fabric.authentication import InBandAuthentication
from sled_controller.fabric.dhchap.handshake import SequenceNumbers
from sled_controller.fabric.dhchap.terms import Terms
from sled_controller.fabric.exchanges import Exchanges
from sled_controller.fabric.port import KATO_SECONDS_MAX, ConnectRefused, ConnectRequest
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
ON_THE_WAY_MAX: Final = 16
"""Hosts more that have still to authenticate: the oldest of them makes room."""
MS: Final = 1_000_000
SILENT_NS_MIN: Final = 2_000_000_000
"""Linux speaks every half of its keep-alive timer, which is 5 s unless it is told otherwise."""
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

    def __init__(self, subsystem: "VolumeSubsystem", controller_id: int, request: ConnectRequest) -> None:
        super().__init__(controller_id, request.host_nqn, request.host_id)
        self._subsystem = subsystem
        self._counted = 0
        self._counted_named = 0

    def add(self, queue: Queue) -> None:
        super().add(queue)
        self._count()

    def prove(self) -> None:
        first = not self.proven
        super().prove()
        if first and not self._subsystem.settle(self):
            self.end("there is no room for another host")
        self._count()

    def proved(self, queue: Queue) -> bool:
        if queue.queue_id and not self._subsystem.shares.admit_proven(self._subsystem):
            return False
        has_it = super().proved(queue)
        self._count()
        return has_it

    def refuses_queue(self) -> bool:
        return not self._subsystem.shares.admit_named(self._subsystem)

    def queue_gone(self, queue_id: int, reason: str) -> None:
        super().queue_gone(queue_id, reason)
        self.controller.forget_path(queue_id)
        self._count()

    def disabled(self) -> None:
        super().disabled()
        self.controller.forget_path(None)
        self._count()

    def closing(self) -> None:
        self._count()

    def _count(self) -> None:
        """Its connections count from when it needs to prove nothing any more."""
        standing = Standing.STRANGER if self.ended else self.standing
        count, named = len(self.queues) if standing >= Standing.NAMED else 0, int(standing is Standing.NAMED)
        self._subsystem.named += named - self._counted_named
        self._subsystem.shares.occupy(self._subsystem, count - self._counted)
        self._counted, self._counted_named = count, named


MakeController = Callable[["VolumeSubsystem", VolumeAssociation, int], "ExportController"]


class VolumeSubsystem:
    """`volume` is what commands go to, None unless the path is optimized."""

    def __init__(
        self, exported: Exported, head_number: int, counters: NvmeCounters, make_controller: "MakeController",
        entropy: Entropy, numbers: SequenceNumbers, shares: Shares, exchanges: Exchanges,
        guard: Guard = UNGUARDED,
    ) -> None:  # fmt: skip
        self.shares = shares
        self.occupied = self.named = 0
        self.exported = exported
        self.guard = guard
        self.guard_changes = 0
        self._make_controller = make_controller
        self.nqn = uuid_nqn(exported.volume)
        self.authentication = InBandAuthentication(self.nqn, self, entropy, numbers, exchanges)
        self.blocks = exported.size_bytes // BLOCK_BYTES
        self.counters = counters
        self.access = Access.INACCESSIBLE
        self.changes = 1
        self.volume: ServedVolume | None = None
        self._stop_watching: Callable[[], None] = lambda: None
        first = (head_number - 1) * CONTROLLER_IDS_PER_HEAD + 1
        self._associations: Associations[VolumeAssociation] = Associations(
            HOSTS_MAX + ON_THE_WAY_MAX, entropy, first, first + CONTROLLER_IDS_PER_HEAD - 1
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
        strangers = [each for each in self.hosts.values() if each.standing < Standing.NAMED]
        if len(self.hosts) >= HOSTS_MAX and len(strangers) >= ON_THE_WAY_MAX:
            strangers[0].end("it makes room for another one")
        named = self.terms(host_nqn) is None
        association = None
        if not named or self._room_for_named(request, queue.heard_ns):
            association = self._associations.open(lambda number: VolumeAssociation(self, number, request))
        if association is None:
            self.counters.hosts_turned_away += 1
            return ConnectRefused(Status.CONNECT_CONTROLLER_BUSY, do_not_retry=False)
        association.authentication = self.authentication
        association.controller = self._make_controller(self, association, request.kato_ms)
        self.counters.hosts_admitted += 1
        log.info(
            "event=nvme_host volume=%s host=%r controller=%d",
            self.exported.volume, host_nqn, association.controller_id,
        )  # fmt: skip
        return association

    # --- places

    def put_out_named(self) -> None:
        """End an association of a host that is believed by its name: of the one that has most, that which is silent."""
        self._put_out(Standing.NAMED)

    def put_out_proven(self) -> None:
        """End an association of a host that has authenticated."""
        self._put_out(Standing.TRUSTED)

    def settle(self, association: VolumeAssociation) -> bool:
        """A host has proved itself: whether there is room for it. Hosts that are believed by their names give way, then
        one's own former associations, then those of the host that has most."""
        others = [each for each in self._settled() if each is not association]
        if len(others) >= HOSTS_MAX:
            named = [each for each in others if each.standing is Standing.NAMED]
            own = [each for each in others if each.host_nqn == association.host_nqn]
            if not named and not own and Counter(each.host_nqn for each in others).most_common(1)[0][1] < 2:
                return False
            _of_greediest(named or own or others).end("it makes room for a host that has authenticated")
        return self.shares.admit_proven(self)

    def _room_for_named(self, request: ConnectRequest, now_ns: int) -> bool:
        """Whether there is room for a host that is believed by its name. What stands stays, unless its host has many
        more, or it has been silent and comes back."""
        if not self._has_room_for_named(request):
            hanging = [each for each in self._settled() if _is_left(each, request, now_ns)]
            if not hanging:
                return False
            min(hanging, key=VolumeAssociation.heard_ns).end("its host has connected again")
            return self._has_room_for_named(request)
        return True

    def _has_room_for_named(self, request: ConnectRequest) -> bool:
        settled = self._settled()
        if len(settled) >= HOSTS_MAX:
            named = [each for each in settled if each.standing is Standing.NAMED]
            count = Counter(each.host_nqn for each in named)
            if not named or max(count.values()) <= count[request.host_nqn] + 1:
                return False
            _of_greediest(named).end("it makes room for another host")
        return self.shares.admit_named(self)

    def _settled(self) -> list[VolumeAssociation]:
        return [each for each in self.hosts.values() if each.standing >= Standing.NAMED]

    def _put_out(self, standing: Standing) -> None:
        _of_greediest([each for each in self.hosts.values() if each.standing is standing]).end(
            "it makes room for a host of another volume"
        )

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


def _of_greediest(associations: Sequence[VolumeAssociation]) -> VolumeAssociation:
    """Of the host with the most associations, the one that has been silent for longest."""
    count = Counter(each.host_nqn for each in associations)
    return min(associations, key=lambda each: (-count[each.host_nqn], each.heard_ns()))


def _is_left(association: VolumeAssociation, request: ConnectRequest, now_ns: int) -> bool:
    """Whether it is the same host's by name, and has been silent for so long that a live host would have spoken."""
    same = (association.host_nqn, association.host_id) == (request.host_nqn, request.host_id)
    kato_ms = association.controller.kato_ms or KATO_SECONDS_MAX * 1000
    return same and now_ns - association.heard_ns() > max(kato_ms * MS * 3 // 4, SILENT_NS_MIN)
