"""Attaching a volume: the fence raised in memory, the former commands drained, flush, durable fence, receipt (F2, F3).

No task: every step is a callback of a device, the storage or a timer on the loop.
"""

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Protocol

from sled_controller.credential import Credential
from sled_controller.fencing import Claim, Fence
from sled_controller.receipt import DeviceState
from spdk_bindings.device import PENDING, Device
from spdk_bindings.nvme import Status

if TYPE_CHECKING:
    from sled_controller.association import Association

log = logging.getLogger(__name__)

DRAIN_SECONDS_MAX: Final = 5.0  # a drive that takes longer for one command is reset, then taken offline
ON_TABLE: Final = -1  # "device" of commands that change the namespace table rather than one device's data


class Timer(Protocol):
    """What `loop.call_later` returns."""

    def cancel(self) -> None:
        """Do not call back any more."""


CallLater = Callable[[float, Callable[[], None]], Timer]


class Devices(Protocol):
    """What the drain needs to know of the sled's devices."""

    def device(self, index: int) -> Device | None:
        """The device, None when it is offline."""

    def of_volume(self, fence: Fence) -> list[int]:
        """Indices of the present devices that hold a namespace of the fence's volume."""

    def indices(self) -> list[int]:
        """Indices of all devices, offline ones included."""

    def take_offline(self, index: int, reason: str) -> None:
        """From now on the device takes no commands."""


class Slot(Claim):
    """A claim in an association's table, with the commands that were admitted in it and have not completed.

    A slot's number is never given to another one in the same association: a command that waits in a socket would
    otherwise be admitted under a pair that it was not sent under (F3).
    """

    __slots__ = (
        "blocks", "device_states", "in_flight", "issued_ms", "key_id", "key_public", "namespaces", "number", "owner",
        "serial", "state", "waiting",
    )  # fmt: skip

    def __init__(
        self, state: "VolumeState", owner: "Association", number: int, credential: Credential, attach_number: int
    ) -> None:
        super().__init__(state.fence, credential.epoch, attach_number, int(credential.rights), credential.expires_ms)
        self.state = state
        self.owner = owner
        self.number = number
        self.key_id = credential.key_id
        self.serial = credential.serial
        self.issued_ms = credential.issued_ms
        self.key_public: bytes | None = None
        self.blocks = credential.blocks
        self.namespaces = credential.namespaces
        self.device_states: tuple[tuple[int, DeviceState], ...] = ()
        self.in_flight: dict[int, int] = {}
        self.waiting: list[Callable[[], None]] = []

    def renew(self, credential: Credential) -> None:
        """Take a newer credential of the same pair (verified by the caller against the current key set)."""
        self.rights = int(credential.rights)
        self.expires_ms = credential.expires_ms
        self.issued_ms = credential.issued_ms
        self.key_id = credential.key_id
        self.serial = credential.serial
        self.blocks = credential.blocks
        self.namespaces = credential.namespaces
        self.key_current = True

    def holds(self, now_ms: int) -> bool:
        """Whether it has its volume's pair, under a credential that is good at `now_ms` (sled time)."""
        return self.state.holder is self and self.key_current and now_ms <= self.expires_ms

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call it when nothing is in flight: now, or later."""
        if self.in_flight:
            self.waiting.append(call)
        else:
            call()

    def enter(self, device: int) -> None:
        """Count a command that `device` has not completed."""
        self.in_flight[device] = self.in_flight.get(device, 0) + 1

    def leave(self, device: int) -> None:
        """Uncount it; a device that was reset meanwhile has nothing left to uncount."""
        count = self.in_flight.get(device, 0)
        if count > 1:
            self.in_flight[device] = count - 1
            return
        self.in_flight.pop(device, None)
        if not self.in_flight:
            self.settle()

    def settle(self) -> None:
        """Tell whoever waits for the last command."""
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()
        self.state.settled(self)


class VolumeState:
    """One volume on this sled: its fence, who holds the standing pair, and former slots that have not settled."""

    __slots__ = ("attach", "durable_epoch", "fence", "former", "holder", "newest")

    def __init__(self, fence: Fence, durable_epoch: int) -> None:
        self.fence = fence
        self.durable_epoch = durable_epoch
        self.newest = (0, 0)
        """Issue time and serial number of the newest credential of the fence's epoch that was presented here."""
        self.holder: Slot | None = None
        self.former: list[Slot] = []
        self.attach: Attach | None = None

    def retire_holder(self) -> None:
        """The holder's pair stands no longer, or its association is gone; what it has in flight is drained."""
        holder, self.holder = self.holder, None
        if holder is None:
            return
        holder.attached = False
        if holder.in_flight:
            self.former.append(holder)

    @property
    def busy(self) -> bool:
        """Whether an attach is under way, or a former one's commands are not over."""
        return self.attach is not None or bool(self.former) or (self.holder is not None and bool(self.holder.in_flight))

    def settled(self, slot: Slot) -> None:
        """A slot has nothing in flight any more."""
        if slot in self.former:
            self.former.remove(slot)
            if self.attach is not None:
                self.attach.check_drained()


class AttachState(Enum):
    """The life of an attach; from every state but the last two it may be CANCELLED by a higher pair."""

    DRAINING = auto()
    RESETTING = auto()  # devices that did not complete their commands in time
    FLUSHING = auto()
    SETTLED = auto()  # only the durable fence is missing
    DONE = auto()
    CANCELLED = auto()


AttachDone = Callable[[int, tuple[tuple[int, DeviceState], ...]], None]


class Attach:
    """One drain. The fence was raised in memory before; `done(status, device states)` is called once."""

    def __init__(
        self, slot: Slot, devices: Devices, call_later: CallLater, done: AttachDone, superseded: Callable[[], None]
    ) -> None:
        self.slot = slot
        self.superseded = superseded  # called by whoever cancels it for a higher pair
        self.state = AttachState.DRAINING
        self._volume = slot.state
        self._devices = devices
        self._call_later = call_later
        self._done = done
        self._outcome: dict[int, DeviceState] = {}
        self._pending: set[int] = set()
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to drain; everything admitted before in this volume's former slots is waited for."""
        self._volume.attach = self
        if self._volume.former:
            self._timer = self._call_later(DRAIN_SECONDS_MAX, self._reset_stuck)
        self.check_drained()

    def cancel(self) -> None:
        """Forget it; the caller answers whoever waits."""
        self._stop_timer()
        self.state = AttachState.CANCELLED
        if self._volume.attach is self:
            self._volume.attach = None

    def check_drained(self) -> None:
        """Go on to the flush when the last former command is over, and no device is in the middle of a reset."""
        if self.state is AttachState.RESETTING and self._pending:
            return
        if self.state in (AttachState.DRAINING, AttachState.RESETTING) and not self._volume.former:
            self._stop_timer()
            self.state = AttachState.FLUSHING
            self._each(self._devices.of_volume(self._volume.fence), self._flush, self._settle)

    def fence_durable(self) -> None:
        """The two records of a fence are on every present device; perhaps of one below this attach's, which is not
        what its receipt vouches for (F2)."""
        if self.state is AttachState.SETTLED and self._volume.durable_epoch >= self.slot.epoch:
            self._finish(Status.SUCCESS)

    def fail(self, status: int) -> None:
        """The fence could not be made durable: no receipt."""
        if self.state not in (AttachState.DONE, AttachState.CANCELLED):
            self._finish(status)

    def _each(self, indices: list[int], command: Callable[[int], None], then: Callable[[], None]) -> None:
        self._pending = set(indices)
        for index in indices:
            command(index)
        if not indices:
            then()

    def _flush(self, index: int) -> None:
        device = self._devices.device(index)

        def done(status: int) -> None:
            if status:
                self._lose(index, f"flush before a receipt failed with status {status:#05x}")
            self._one_done(index, AttachState.FLUSHING, self._settle)

        status = Status.INTERNAL_ERROR if device is None else device.flush(done)
        if status != PENDING:
            done(status)

    def _one_done(self, index: int, state: AttachState, then: Callable[[], None]) -> None:
        if self.state is not state or index not in self._pending:
            return
        self._pending.discard(index)
        if not self._pending:
            then()

    def _settle(self) -> None:
        self.state = AttachState.SETTLED
        if self._volume.durable_epoch >= self.slot.epoch:
            self._finish(Status.SUCCESS)

    def _reset_stuck(self) -> None:
        stuck = {index for slot in self._volume.former for index in slot.in_flight}
        if ON_TABLE in stuck:
            stuck = {ON_TABLE, *self._devices.indices()}
        log.warning("event=drain_timeout volume=%s devices=%s", self.slot.volume, sorted(stuck))
        self.state = AttachState.RESETTING
        self._timer = self._call_later(DRAIN_SECONDS_MAX, self._give_up)
        self._each(sorted(stuck - {ON_TABLE}), self._reset, self._release_table)

    def _reset(self, index: int) -> None:
        device = self._devices.device(index)

        def done(status: int) -> None:
            if self.state is not AttachState.RESETTING or index not in self._pending:
                return
            if status:
                self._lose(index, f"reset failed with status {status:#05x}")
            else:
                self._outcome[index] = DeviceState.RESET
            self._release(index)
            self._one_done(index, AttachState.RESETTING, self._release_table)

        status = Status.SUCCESS if device is None else device.reset(done)
        if status != PENDING:
            done(status)

    def _give_up(self) -> None:
        for index in sorted(self._pending):
            self._lose(index, "reset did not end")
            self._release(index)
        self._pending.clear()
        self._release_table()

    def _release(self, index: int) -> None:
        for slot in list(self._volume.former):
            if slot.in_flight.pop(index, 0) and not slot.in_flight:
                slot.settle()

    def _release_table(self) -> None:
        self._release(ON_TABLE)
        self.check_drained()

    def _lose(self, index: int, reason: str) -> None:
        self._devices.take_offline(index, reason)
        self._outcome[index] = DeviceState.OFFLINE

    def _finish(self, status: int) -> None:
        self._stop_timer()
        self.state = AttachState.DONE
        if self._volume.attach is self:
            self._volume.attach = None
        states = []
        for index in self._devices.indices():
            state = self._outcome.get(index, DeviceState.DRAINED)
            states.append((index, DeviceState.OFFLINE if self._devices.device(index) is None else state))
        self._done(status, tuple(states))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
