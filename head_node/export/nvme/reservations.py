"""Reservations on the wire: commands in, reports and notices out (NVM Express Base 2.0, 7.2 to 7.5 and 5.16.1.20).

What a command does is `head_node/volume/reservations.py`; docs/reservations.md says what hosts may rely on.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from head_node.volume.interface import Gone, ServedVolume
from head_node.volume.reservations import (
    Acquire,
    AcquireAction,
    Command,
    NoticeKind,
    Register,
    RegisterAction,
    Release,
    ReleaseAction,
    Reservations,
    ReservationType,
)
from spdk_bindings import log_pages
from spdk_bindings.device import Buffer
from spdk_bindings.log_pages import RegisteredController
from spdk_bindings.nvme import CONTROLLER_ID_DYNAMIC, IoOpcode, Status

NOTICES_MAX: Final = 64
"""Notices that a controller keeps for its host; the oldest go, and the host sees it by the gap in their numbers."""
NOTICE_MASK_BITS: Final = sum(1 << kind for kind in NoticeKind)
"""What feature 82h may set: bit k keeps notices of kind k away."""
KEYS_BYTES: Final = 16
"""What comes with a command at most; Linux sends as much with Release too, which has one key."""

_IGNORE_KEY: Final = 1 << 3
_EXTENDED: Final = 1 << 0  # EDS
_PERSIST: Final = {0: None, 2: False, 3: True}
_KEY: Final = struct.Struct("<Q")
_KEYS: Final = struct.Struct("<QQ")

Complete: TypeAlias = Callable[[Status, bytes], None]
"""Called once with the status, and with what Report brings."""


def data_bytes(opcode: int) -> int:
    """How many bytes the host sends at least with a command that changes reservations."""
    return _KEY.size if opcode == IoOpcode.RESERVATION_RELEASE else _KEYS.size


def parse(opcode: int, cdw10: int, data: Buffer) -> Command | None:
    """A Reservation Register, Acquire or Release with its data; None where a field is invalid."""
    if len(data) < data_bytes(opcode):
        return None
    data = memoryview(data)[: data_bytes(opcode)]
    action, ignore_key, kind = cdw10 & 7, bool(cdw10 & _IGNORE_KEY), cdw10 >> 8 & 0xFF
    try:
        if opcode == IoOpcode.RESERVATION_REGISTER:
            current, new = _KEYS.unpack(data)
            return Register(RegisterAction(action), current, new, ignore_key, _PERSIST[cdw10 >> 30])
        if ignore_key:
            return None
        if opcode == IoOpcode.RESERVATION_ACQUIRE:
            current, preempted = _KEYS.unpack(data)
            return Acquire(AcquireAction(action), ReservationType(kind), current, preempted)
        return Release(ReleaseAction(action), kind, *_KEY.unpack(data))
    except (ValueError, KeyError):
        return None


def change(
    volume: ServedVolume, host: bytes, opcode: int, cdw10: int, data: Buffer, complete: Complete, gone: Gone
) -> None:
    """Carry out Register, Acquire or Release of `host`."""
    command = parse(opcode, cdw10, data)
    if command is None or not any(host):
        # A host identifier of 0 names nobody (Base 2.0, 5.27.1.25).
        complete(Status.INVALID_FIELD, b"")
    else:
        volume.change_reservation(host, command, lambda status: complete(status, b""), gone)


def report(
    volume: ServedVolume,
    length: int,
    cdw11: int,
    present: Iterable[tuple[int, bytes]],
    complete: Complete,
    gone: Gone,
) -> None:
    """Carry out Report, cut or filled up to `length` bytes; `present` are (controller, host) of this head.

    A registrant without a controller here is listed with FFFFh, as hosts behind another head are.
    """
    if not cdw11 & _EXTENDED:
        # The short form has no room for identifiers of 128 bits, and a host over fabrics has no other.
        complete(Status.HOST_IDENTIFIER_INCONSISTENT, b"")
        return
    controllers = list(present)

    def done(state: Reservations) -> None:
        page = log_pages.reservation_report(
            state.generation, state.type or 0, state.persist, _entries(state, controllers), extended=True
        )
        complete(Status.SUCCESS, page[:length].ljust(length, b"\0"))

    volume.reservations(done, gone)


def _entries(state: Reservations, controllers: Sequence[tuple[int, bytes]]) -> list[RegisteredController]:
    entries = []
    for host, key in state.registrants.items():
        ids = [controller for controller, theirs in controllers if theirs == host] or [CONTROLLER_ID_DYNAMIC]
        entries += [RegisteredController(controller, host, key, state.holds(host)) for controller in ids]
    return entries


class NoticeLog:
    """The notices that one controller keeps for its host: log page 80h."""

    def __init__(self, nsid: int) -> None:
        self._nsid = nsid
        self._count = 0
        self._kept: deque[tuple[int, NoticeKind]] = deque(maxlen=NOTICES_MAX)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kind: NoticeKind) -> None:
        """Keep a notice for the host."""
        # 64 bits; the specification has the count wrap round to 1, which nobody lives to see.
        self._count += 1
        self._kept.append((self._count, kind))

    def page(self) -> bytes:
        """The oldest notice, for Get Log Page."""
        if not self._kept:
            return log_pages.reservation_notice(0, 0, 0, 0)
        count, kind = self._kept[0]
        return log_pages.reservation_notice(count, kind, len(self._kept) - 1, self._nsid)

    def taken(self) -> None:
        """The host has read `page`, and does not ask for it to be retained."""
        if self._kept:
            self._kept.popleft()
