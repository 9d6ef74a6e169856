"""An association: one host's queues on one controller, which end together. And a subsystem's bounded table of them."""

import enum
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from sled_controller.fabric.authentication import InBandAuthentication
    from sled_controller.fabric.standard_controller import StandardController

log = logging.getLogger(__name__)

CONTROLLER_ID_FIRST: Final = 1
CONTROLLER_ID_LAST: Final = 0xFFEF  # FFF0h and above are reserved (Base 2.0, 3.1.1)


class Standing(enum.IntEnum):
    """What a host has shown so far. Where there are too many, the oldest of the lowest standing makes room."""

    STRANGER = 0  # nothing
    CONNECTED = 1  # that it speaks NVMe/TCP, as anybody can
    SESSION = 2  # that it holds some key, as anybody may
    TRUSTED = 3  # that it may use something here: it makes room for nobody


class Queue(Protocol):
    """What an association needs of a queue."""

    @property
    def authenticating(self) -> bool:
        """Whether its host still has to prove that it is the one that it says."""

    def end(self, reason: str) -> None:
        """Send what is queued and close; the association has ended."""


class HostAssociation:
    """One host's admin queue and its I/O queues. Ends as a whole, unless the host takes it down piece by piece: Linux
    closes its I/O queues, then writes CC and reads CSTS on the admin queue, and waits a minute for each answer.

    `authentication` is there if the subsystem knows secrets of hosts; it says whether this one has to prove itself.
    """

    controller: "StandardController"

    def __init__(self, controller_id: int, host_nqn: bytes, host_id: bytes) -> None:
        self.controller_id = controller_id
        self.host_nqn = host_nqn
        self.host_id = host_id
        self.queues: dict[int, Queue] = {}
        self.authentication: InBandAuthentication | None = None
        self.proven = False  # the host of its admin queue has proved itself
        self.ended = False
        self.forget: Callable[[], None] = lambda: None

    @property
    def standing(self) -> Standing:
        """A host that has nothing to prove is trusted, one that has to is when it has done so."""
        admin = self.queues.get(0)
        return Standing.STRANGER if admin is not None and admin.authenticating else Standing.TRUSTED

    @property
    def host_name(self) -> str:
        """The host's NQN as text."""
        return self.host_nqn.rstrip(b"\0").decode("utf-8", "replace")

    def end(self, reason: str) -> None:
        """End it: all queues close, nothing more is admitted; what is in flight is `closing`'s to deal with."""
        if self.ended:
            return
        self.ended = True
        log.info("event=association_ended controller=%d reason=%s", self.controller_id, reason)
        self.forget()
        self.closing()
        queues, self.queues = self.queues, {}
        for queue in queues.values():
            queue.end(reason)

    def closing(self) -> None:
        """It has just ended; its queues have not yet."""

    def queue_gone(self, queue_id: int, reason: str) -> None:
        """A connection is gone. That of an I/O queue leaves the others as they are."""
        if queue_id:
            self.queues.pop(queue_id, None)
        else:
            self.end(reason)

    def disabled(self) -> None:
        """The host has cleared CC.EN: its I/O queues are gone, its admin queue stays (Base 2.0, 3.7.2)."""
        for queue_id in [queue_id for queue_id in self.queues if queue_id]:
            self.queues.pop(queue_id).end("the host disabled the controller")


A = TypeVar("A", bound=HostAssociation)


class Associations(Generic[A]):
    """The associations of a subsystem by controller id, at most `bound`, with ids from `first` to `last` in turn."""

    def __init__(self, bound: int, first: int = CONTROLLER_ID_FIRST, last: int = CONTROLLER_ID_LAST) -> None:
        assert bound <= last - first + 1
        self.live: dict[int, A] = {}
        self._bound = bound
        self._first = first
        self._last = last
        self._next = first

    def open(self, make: Callable[[int], A]) -> A | None:
        """A new association with an id of its own, None when there are too many and none has to make room."""
        if len(self.live) >= self._bound:
            lowest = min(self.live.values(), key=lambda association: association.standing)
            if lowest.standing is Standing.TRUSTED:
                return None
            lowest.end("it makes room for another one")
        while self._next in self.live:
            self._step()
        association = make(self._next)
        self._step()
        self.live[association.controller_id] = association
        association.forget = lambda: self._forget(association.controller_id)
        return association

    def _step(self) -> None:
        self._next = self._next + 1 if self._next < self._last else self._first

    def _forget(self, controller_id: int) -> None:
        self.live.pop(controller_id, None)
