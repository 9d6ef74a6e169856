"""An association: one host's queues on one controller, which end together. And a subsystem's bounded table of them."""

import enum
import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from sled_controller.environment import Entropy

if TYPE_CHECKING:
    from sled_controller.fabric.authentication import InBandAuthentication
    from sled_controller.fabric.standard_controller import StandardController

log = logging.getLogger(__name__)

CONTROLLER_ID_FIRST: Final = 1
CONTROLLER_ID_LAST: Final = 0xFFEF  # FFF0h and above are reserved (Base 2.0, 3.1.1)
ID_BYTES: Final = 8  # more than an id has, so that all of them are as likely
FORMER_IDS_MAX: Final = 256


class Standing(enum.IntEnum):
    """What a host has shown so far. Where there are too many, one of the lowest standing makes room: of the address
    that has most of them the oldest, so that a flood makes room for itself."""

    STRANGER = 0  # nothing
    CONNECTED = 1  # that it speaks NVMe/TCP, as anybody can
    SESSION = 2  # that it holds some key, as anybody may
    NAMED = 3  # a name that may use something here and needs no proof: it keeps its share
    TRUSTED = 4  # that it may use something here: it gives its place to no one


class Queue(Protocol):
    """What an association needs of a queue."""

    queue_id: int
    peer_host: str
    """The address that it comes from."""

    @property
    def heard_ns(self) -> int:
        """When its host last sent something, in time since boot."""

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
        self.proving: dict[Queue, None] = {}
        """I/O queues that still have to authenticate: several may ask for one queue id, the first that proves itself
        has it."""
        self.authentication: InBandAuthentication | None = None
        self.proven = False  # the host of its admin queue has proved itself
        self.ended = False
        self.forget: Callable[[], None] = lambda: None

    @property
    def standing(self) -> Standing:
        """A host that has proved itself is trusted, one that need not is believed by its name."""
        if self.proven:
            return Standing.TRUSTED
        admin = self.queues.get(0)
        return Standing.STRANGER if admin is not None and admin.authenticating else Standing.NAMED

    @property
    def authenticates(self) -> bool:
        """Whether its host has to prove itself on each queue."""
        return self.authentication is not None and self.authentication.required_of(self.host_name)

    @property
    def host_name(self) -> str:
        """The host's NQN as text."""
        return self.host_nqn.rstrip(b"\0").decode("utf-8", "replace")

    @property
    def source(self) -> str:
        """The address that its admin queue comes from."""
        admin = self.queues.get(0)
        return "" if admin is None else admin.peer_host

    def add(self, queue: Queue) -> None:
        """A connection is a queue of it now. An I/O queue that has to authenticate gets its id when it has done so."""
        if queue.queue_id and queue.authenticating:
            self.proving[queue] = None
        else:
            self.queues[queue.queue_id] = queue

    def refuses_queue(self) -> bool:
        """Whether there is no room for another I/O queue of its host, which need not authenticate."""
        return False

    def heard_ns(self) -> int:
        """When its host last sent something."""
        return max((queue.heard_ns for queue in self.queues.values()), default=0)

    def end(self, reason: str) -> None:
        """End it: all queues close, nothing more is admitted; what is in flight is `closing`'s to deal with."""
        if self.ended:
            return
        self.ended = True
        log.info("event=association_ended controller=%d reason=%s", self.controller_id, reason)
        self.forget()
        self.closing()
        queues, self.queues = self.queues, {}
        for queue in (*queues.values(), *self.proving):
            queue.end(reason)
        self.proving.clear()

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
        for queue in [*(queue for queue_id, queue in self.queues.items() if queue_id), *self.proving]:
            queue.end("the host disabled the controller")
        self.queues = {queue_id: queue for queue_id, queue in self.queues.items() if not queue_id}
        self.proving.clear()

    def prove(self) -> None:
        """The host of its admin queue has proved itself."""
        self.proven = True

    def proved(self, queue: Queue) -> bool:
        """A queue has authenticated: whether it has its queue id now, or another one was first."""
        self.proving.pop(queue, None)
        if self.queues.setdefault(queue.queue_id, queue) is not queue:
            return False
        for other in [other for other in self.proving if other.queue_id == queue.queue_id]:
            del self.proving[other]
            other.end("another connection of this host has the queue")
        return True


A = TypeVar("A", bound=HostAssociation)


class Associations(Generic[A]):
    """The associations of a subsystem by controller id, at most `bound`, with ids from `first` to `last`.

    An id is drawn, so that seeing one says nothing of the others, and does not come again soon: a host may still hold
    one that has ended here.
    """

    def __init__(
        self, bound: int, entropy: Entropy, first: int = CONTROLLER_ID_FIRST, last: int = CONTROLLER_ID_LAST
    ) -> None:
        span = last - first + 1
        assert 2 * bound <= span
        self.live: dict[int, A] = {}
        self._bound = bound
        self._entropy = entropy
        self._first = first
        self._span = span
        self._former: deque[int] = deque(maxlen=min(span // 4, FORMER_IDS_MAX))

    def open(self, make: Callable[[int], A]) -> A | None:
        """A new association with an id of its own, None when there are too many and none has to make room."""
        if len(self.live) >= self._bound:
            standings = [(each.standing, each) for each in self.live.values()]
            lowest = min(standing for standing, _ in standings)
            if lowest >= Standing.NAMED:
                return None
            count = Counter(each.source for standing, each in standings if standing is lowest)
            first = max(
                (each for standing, each in standings if standing is lowest), key=lambda each: count[each.source]
            )
            first.end("it makes room for another one")
        association = make(self._draw())
        self.live[association.controller_id] = association
        association.forget = lambda: self._forget(association.controller_id)
        return association

    def _draw(self) -> int:
        while True:  # a quarter of the ids at least is neither live nor remembered
            number = self._first + int.from_bytes(self._entropy.bytes(ID_BYTES), "little") % self._span
            if number not in self.live and number not in self._former:
                return number

    def _forget(self, controller_id: int) -> None:
        if self.live.pop(controller_id, None) is not None:
            self._former.append(controller_id)
