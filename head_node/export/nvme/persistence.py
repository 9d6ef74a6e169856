"""Feature 83h, Reservation Persistence: the one admin command that the volume carries out, and so may have to give up.

Source: NVM Express Base 2.0, 5.27.1.27. What persistence means here is said in docs/reservations.md.
"""

from functools import partial
from typing import TYPE_CHECKING

from head_node.export.nvme.subsystem import NSID, TURNED_AWAY, VolumeAssociation, VolumeSubsystem
from head_node.volume.reservations import Persist, Reservations
from sled_controller.fabric.standard_controller import Command
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from sled_controller.fabric.target import TargetQueue


class PersistenceFeature:
    """The feature of one controller's namespace."""

    def __init__(self, subsystem: VolumeSubsystem, association: VolumeAssociation) -> None:
        self._subsystem = subsystem
        self._association = association
        self._asked: dict[int, TargetQueue] = {}  # by command identifier
        self._turn = 0  # one more with each `give_up`

    def get(self, queue: "TargetQueue", command: Command) -> None:
        """Answer with PTPL as it is committed."""
        if self._admitted(queue, command):
            assert self._subsystem.volume is not None
            self._subsystem.volume.reservations(partial(self._have, self._turn, command.cid), self._gone)

    def set(self, queue: "TargetQueue", command: Command) -> None:
        """Change PTPL, as Reservation Register can too."""
        host = self._association.host_id
        if not any(host):
            queue.complete(command.cid, Status.INVALID_FIELD, dnr=True)
        elif self._admitted(queue, command):
            assert self._subsystem.volume is not None
            persist = Persist(bool(command.dwords[1] & 1))
            done = partial(self._done, self._turn, command.cid)
            self._subsystem.volume.change_reservation(host, persist, done, self._gone)

    def give_up(self) -> int:
        """Answer what the volume will not answer any more; how many commands that were."""
        asked, self._asked = self._asked, {}
        self._turn += 1
        for cid, queue in asked.items():
            queue.complete(cid, Status.ANA_INACCESSIBLE)
            queue.poke()
        return len(asked)

    def _admitted(self, queue: "TargetQueue", command: Command) -> bool:
        if command.nsid != NSID:
            queue.complete(command.cid, Status.INVALID_NAMESPACE, dnr=True)
            return False
        if self._subsystem.volume is None:
            queue.complete(command.cid, TURNED_AWAY[self._subsystem.access])
            return False
        queue.busy.add(command.cid)
        self._asked[command.cid] = queue
        return True

    def _gone(self) -> bool:
        return self._association.ended

    def _have(self, turn: int, cid: int, state: Reservations) -> None:
        self._done(turn, cid, Status.SUCCESS, int(state.persist))

    def _done(self, turn: int, cid: int, status: Status, value: int = 0) -> None:
        if turn == self._turn:
            queue = self._asked.pop(cid)
            queue.complete(cid, status, value)
            queue.poke()
