"""NVMe reservations of a volume as one pure function: (state, host, command) -> status, next state, who is to be told.

The rules are those of NVM Express Base 2.0, 8.19 and of its table of the commands that conflict with a reservation.
Knows nothing of logs, controllers and wires; docs/reservations.md says what those make of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, TypeAlias

from spdk_bindings.nvme import Status

HOST_ID_BYTES: Final = 16
NO_HOST: Final = b""
"""Stands for a client that has no host identifier (NBD), and for the holder where there is none."""
REGISTRANTS_MAX: Final = 256
"""Bounds a log record to about 6 KiB; a cluster has a tenth of that."""
GENERATION_MASK: Final = 0xFFFF_FFFF


class ReservationType(IntEnum):
    """What a reservation keeps others from, and who the others are."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6

    @property
    def excludes_reads(self) -> bool:
        """Others may not even read."""
        return not self & 1

    @property
    def admits_registrants(self) -> bool:
        """Registrants may do what the holder may."""
        return self >= ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY

    @property
    def held_by_all(self) -> bool:
        """Every registrant holds it."""
        return self >= ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS


class RegisterAction(IntEnum):
    """RREGA of Reservation Register."""

    REGISTER = 0
    UNREGISTER = 1
    REPLACE = 2


class AcquireAction(IntEnum):
    """RACQA of Reservation Acquire."""

    ACQUIRE = 0
    PREEMPT = 1
    PREEMPT_AND_ABORT = 2


class ReleaseAction(IntEnum):
    """RRELA of Reservation Release."""

    RELEASE = 0
    CLEAR = 1


class NoticeKind(IntEnum):
    """What a host is told; numbered as in the Reservation Notification log page."""

    REGISTRATION_PREEMPTED = 1
    RESERVATION_RELEASED = 2
    RESERVATION_PREEMPTED = 3


@dataclass(frozen=True, slots=True)
class Register:
    """Reservation Register; keys are 64 bits. `persist` None leaves PTPL as it is (CPTPL 00b)."""

    action: RegisterAction
    current_key: int = 0
    new_key: int = 0
    ignore_key: bool = False
    persist: bool | None = None


@dataclass(frozen=True, slots=True)
class Acquire:
    """Reservation Acquire; keys are 64 bits."""

    action: AcquireAction
    type: ReservationType
    current_key: int
    preempt_key: int = 0


@dataclass(frozen=True, slots=True)
class Release:
    """Reservation Release; `type` is compared with the type held, whatever number it is, and not looked at by CLEAR."""

    action: ReleaseAction
    type: int
    current_key: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Set Features, Reservation Persistence."""

    persist: bool


Command: TypeAlias = Register | Acquire | Release | Persist


@dataclass(frozen=True, slots=True)
class Reservations:
    """Who is registered with a volume and what is reserved. Never changed in place: `decide` makes the next one."""

    generation: int = 0
    """32 bits; counts successful Register, Preempt and Clear."""
    type: ReservationType | None = None
    holder: bytes = NO_HOST
    """NO_HOST also where all registrants hold it."""
    registrants: Mapping[bytes, int] = field(default_factory=dict)
    """Key by host identifier (16 bytes), in the order of registration."""
    persist: bool = True
    """PTPL as hosts set it; reservations outlive a loss of power either way (docs/reservations.md)."""

    def holds(self, host: bytes) -> bool:
        """Does `host` hold the reservation, alone or with all registrants?"""
        if self.type is None:
            return False
        return host in self.registrants if self.type.held_by_all else host == self.holder

    def may_write(self, host: bytes) -> bool:
        """May `host` carry out a command that changes the volume, or a flush?"""
        if self.type is None:
            return True
        return host in self.registrants if self.type.admits_registrants else host == self.holder

    def may_read(self, host: bytes) -> bool:
        """May `host` carry out a command that reads the volume?"""
        return self.type is None or not self.type.excludes_reads or self.may_write(host)


@dataclass(frozen=True, slots=True)
class Notice:
    """`host` is to be told `kind`."""

    host: bytes
    kind: NoticeKind


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a command. `state` is the very object that was given where nothing changes."""

    status: Status
    state: Reservations
    notices: tuple[Notice, ...] = ()


def decide(state: Reservations, host: bytes, command: Command) -> Outcome:
    """Judge `command` of `host`, a host identifier of 16 bytes that are not all zero."""
    if len(host) != HOST_ID_BYTES or not any(host):
        raise ValueError(f"no host identifier: {host!r}")
    match command:
        case Register():
            return _register(state, host, command)
        case Acquire():
            return _acquire(state, host, command)
        case Release():
            return _release(state, host, command)
        case Persist(persist):
            return Outcome(Status.SUCCESS, state if state.persist == persist else replace(state, persist=persist))


def _refuse(state: Reservations, status: Status = Status.RESERVATION_CONFLICT) -> Outcome:
    return Outcome(status, state)


def _register(state: Reservations, host: bytes, command: Register) -> Outcome:
    key = state.registrants.get(host)
    matches = key is not None and (command.ignore_key or command.current_key == key)
    match command.action:
        case RegisterAction.REGISTER:
            # IEKEY and CRKEY are not looked at; the same key again is no error.
            allowed = key is None or key == command.new_key
        case RegisterAction.UNREGISTER:
            allowed = matches
        case RegisterAction.REPLACE:
            # IEKEY replaces "without regard to its registration status", so it registers too.
            allowed = matches or command.ignore_key
    if not allowed:
        return _refuse(state)
    if key is None and len(state.registrants) >= REGISTRANTS_MAX:
        return _refuse(state, Status.INTERNAL_ERROR)
    persist = state.persist if command.persist is None else command.persist
    changed = replace(state, generation=state.generation + 1 & GENERATION_MASK, persist=persist)
    if command.action is RegisterAction.UNREGISTER:
        return _unregister(changed, host)
    return Outcome(Status.SUCCESS, replace(changed, registrants={**state.registrants, host: command.new_key}))


def _unregister(state: Reservations, host: bytes) -> Outcome:
    left = _without(state.registrants, {host})
    was = state.type
    if was is None or (left if was.held_by_all else state.holder != host):
        return Outcome(Status.SUCCESS, replace(state, registrants=left))
    notices = _notices(left, NoticeKind.RESERVATION_RELEASED) if was.admits_registrants else ()
    return Outcome(Status.SUCCESS, replace(state, type=None, holder=NO_HOST, registrants=left), notices)


def _acquire(state: Reservations, host: bytes, command: Acquire) -> Outcome:
    if state.registrants.get(host) != command.current_key:
        return _refuse(state)
    if command.action is not AcquireAction.ACQUIRE:
        return _preempt(state, host, command)
    if state.type is None:
        return Outcome(Status.SUCCESS, _reserve(state, host, command.type))
    return Outcome(Status.SUCCESS, state) if state.holds(host) and state.type is command.type else _refuse(state)


def _reserve(state: Reservations, host: bytes, kind: ReservationType) -> Reservations:
    return replace(state, type=kind, holder=NO_HOST if kind.held_by_all else host)


def _preempt(state: Reservations, host: bytes, command: Acquire) -> Outcome:
    """With and without abort: nothing of a preempted host is carried out after the change without being asked again, so
    there is nothing more to abort."""
    key, was = command.preempt_key, state.type
    if was is not None and (key == 0 if was.held_by_all else key == state.registrants[state.holder]):
        # The reservation changes hands; whoever takes it stays registered, also where the key is its own.
        gone = {other for other, theirs in state.registrants.items() if was.held_by_all or theirs == key} - {host}
        changed = _reserve(state, host, command.type)
    elif was is not None and key == 0:
        return _refuse(state, Status.INVALID_FIELD)
    else:
        gone = {other for other, theirs in state.registrants.items() if theirs == key}
        if not gone:
            return _refuse(state)
        changed = state
    left = _without(state.registrants, gone)
    if was is not None and was.held_by_all and not left:
        changed = replace(changed, type=None)
    changed = replace(changed, generation=state.generation + 1 & GENERATION_MASK, registrants=left)
    notices = _notices(_without(dict.fromkeys(gone, 0), {host}), NoticeKind.REGISTRATION_PREEMPTED)
    if was is not None and changed.type is not was:
        notices += _notices(_without(left, {host}), NoticeKind.RESERVATION_RELEASED)
    return Outcome(Status.SUCCESS, changed, notices)


def _release(state: Reservations, host: bytes, command: Release) -> Outcome:
    if state.registrants.get(host) != command.current_key:
        return _refuse(state)
    others = _without(state.registrants, {host})
    if command.action is ReleaseAction.CLEAR:
        generation = state.generation + 1 & GENERATION_MASK
        cleared = Reservations(generation, persist=state.persist)
        return Outcome(Status.SUCCESS, cleared, _notices(others, NoticeKind.RESERVATION_PREEMPTED))
    was = state.type
    if was is None or not state.holds(host):
        return Outcome(Status.SUCCESS, state)
    if was != command.type:
        return _refuse(state, Status.INVALID_FIELD)
    notices = _notices(others, NoticeKind.RESERVATION_RELEASED) if was.admits_registrants else ()
    return Outcome(Status.SUCCESS, replace(state, type=None, holder=NO_HOST), notices)


def _without(registrants: Mapping[bytes, int], gone: set[bytes]) -> dict[bytes, int]:
    return {host: key for host, key in registrants.items() if host not in gone}


def _notices(hosts: Iterable[bytes], kind: NoticeKind) -> tuple[Notice, ...]:
    return tuple(Notice(host, kind) for host in hosts)
