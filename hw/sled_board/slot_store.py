"""Where the slot state is kept: two copies with a checksum each, of which one is always whole.

A copy has U-Boot's environment format, so that U-Boot's `env import -c` and `env export -c -s 0x1000`, the flasher and
Python read and write the same thing: the CRC-32 of all that follows it (little-endian), then `key=value` lines, each
ended by a zero byte and sorted by key, an empty one, and zero bytes up to `COPY_BYTES`. The valid copy with the higher
`sequence` counts; a change overwrites the other one (docs/firmware-slots.md).
"""

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from sled_board.errors import SlotStateLost
from sled_board.slots import ATTEMPTS, EMPTY, Slot, SlotRecord, Slots, SlotState

COPY_BYTES: Final = 4096
FORMAT: Final = 1
_CRC: Final = struct.Struct("<I")
_NOBODY: Final = "none"
_U32_MAX: Final = 0xFFFF_FFFF
SEQUENCE_MAX: Final = (1 << 63) - 1
_IMAGE_ID: Final = re.compile(r"(?:[0-9a-f]{64})?")
_VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{0,64}")
_KEY_SET: Final = re.compile(r"(?:[0-9a-f]{2})*")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_ERASED: Final = (0x00, 0xFF)


class Storage(Protocol):
    """A stretch of a board's storage. Offsets and lengths are in bytes; every method raises OSError."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; nothing of it, a part or all survives a power loss before `sync`."""

    def sync(self) -> None:
        """Return when everything written survives a power loss."""


class Stored(NamedTuple):
    """A copy that was read: the higher `sequence` is the newer one."""

    sequence: int
    slots: Slots


def encode(slots: Slots, sequence: int) -> bytes:
    """One copy, `COPY_BYTES` long; raises ValueError where the state does not fit in: one key set does."""
    values = {
        "version": FORMAT,
        "sequence": sequence,
        "active": _NOBODY if slots.active is None else slots.active.value,
        "counter_min": slots.counter_min,
        "key_set": slots.key_set.hex(),
    }
    for slot in Slot:
        record = slots[slot]
        values |= {
            f"{slot.value}_state": record.state.value,
            f"{slot.value}_attempts": record.attempts_left,
            f"{slot.value}_counter": record.counter,
            f"{slot.value}_image": record.image_id,
            f"{slot.value}_version": record.version,
        }
    lines = "".join(f"{key}={value}\0" for key, value in sorted(values.items())) + "\0"
    data = lines.encode("ascii").ljust(COPY_BYTES - _CRC.size, b"\0")
    if len(data) + _CRC.size != COPY_BYTES:
        raise ValueError(f"a slot state of {len(data)} bytes, a copy has {COPY_BYTES}")
    return _CRC.pack(zlib.crc32(data)) + data


def decode(copy: bytes) -> Stored | None:
    """What a copy says; None where it is torn, blank, of another format or holds what `encode` never makes.

    Variables that are not known here are passed over: U-Boot may have added its own.
    """
    if len(copy) != COPY_BYTES or _CRC.unpack_from(copy)[0] != zlib.crc32(copy[_CRC.size :]):
        return None
    lines, end, _ = copy[_CRC.size :].partition(b"\0\0")
    try:
        fields = _Fields(dict(line.split("=", 1) for line in lines.decode("ascii").split("\0") if "=" in line))
        if not end or fields.number("version", _U32_MAX) != FORMAT:
            return None
        active = fields.text("active")
        slots = Slots(
            _record(fields, Slot.A),
            _record(fields, Slot.B),
            None if active == _NOBODY else Slot(active),
            fields.number("counter_min", _U32_MAX),
            bytes.fromhex(fields.text("key_set", _KEY_SET)),
        )
        return Stored(fields.number("sequence", SEQUENCE_MAX), slots)
    except (ValueError, KeyError):
        return None


def newest(copies: Sequence[bytes]) -> tuple[int, Stored] | None:
    """Which of the copies counts, and what it says; None when none is valid."""
    found = [(index, stored) for index, copy in enumerate(copies) if (stored := decode(copy)) is not None]
    return max(found, key=lambda each: each[1].sequence, default=None)


class _Fields:
    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def text(self, key: str, shape: re.Pattern[str] | None = None) -> str:
        value = self._values[key]
        if shape is not None and not shape.fullmatch(value):
            raise ValueError(key)
        return value

    def number(self, key: str, largest: int) -> int:
        value = int(self.text(key, _NUMBER))
        if value > largest:
            raise ValueError(key)
        return value


def _record(fields: _Fields, slot: Slot) -> SlotRecord:
    prefix = slot.value
    record = SlotRecord(
        SlotState(fields.text(f"{prefix}_state")),
        fields.number(f"{prefix}_attempts", ATTEMPTS),
        fields.number(f"{prefix}_counter", _U32_MAX),
        fields.text(f"{prefix}_image", _IMAGE_ID),
        fields.text(f"{prefix}_version", _VERSION),
    )
    if record.state is SlotState.EMPTY and record != EMPTY:
        raise ValueError(prefix)
    return record


class SlotStore:
    """The two copies at `offsets` of a storage, each in an erase block of its own.

    One process at a time writes; whoever only looks calls `load`.
    """

    def __init__(self, storage: Storage, offsets: tuple[int, int] = (0, COPY_BYTES)) -> None:
        if abs(offsets[0] - offsets[1]) < COPY_BYTES:
            raise ValueError(f"copies at {offsets} overlap")
        self._storage = storage
        self._offsets = offsets
        self._unsure: int | None = None
        """The copy whose last write failed: it may be read well and yet be gone after a power loss."""

    def load(self) -> Slots:
        """The state that counts; that of a new board where nothing was ever kept.

        Raises SlotStateLost when there was a state and neither copy can be trusted, and OSError.
        """
        found = self._newest()
        return Slots() if found is None else found[1].slots

    def keep(self, slots: Slots) -> None:
        """Make it durable. Raises OSError, after which the state is the former one or this one, and SlotStateLost."""
        found = self._newest()
        if found is None:
            self.renew(slots)
        elif found[1].slots != slots:
            self._write(1 - found[0], encode(slots, found[1].sequence + 1))

    def change(self, change: Callable[[Slots], Slots]) -> Slots:
        """Keep what `change` makes of the state, and return it. Raises what `load`, `change` and `keep` raise."""
        slots = change(self.load())
        self.keep(slots)
        return slots

    def renew(self, slots: Slots) -> None:
        """Begin anew, on a new board or where the state is lost: both copies are written. Raises OSError."""
        for index in range(len(self._offsets)):
            self._write(index, encode(slots, index + 1))

    def _write(self, index: int, copy: bytes) -> None:
        self._unsure = index
        self._storage.write(self._offsets[index], copy)
        self._storage.sync()
        self._unsure = None

    def _newest(self) -> tuple[int, Stored] | None:
        copies = [self._storage.read(offset, COPY_BYTES) for offset in self._offsets]
        trusted = [b"" if index == self._unsure else copy for index, copy in enumerate(copies)]
        found = newest(trusted)
        # The first state ever is written to both copies in turn: with one still blank there was none before.
        if found is None and not any(map(is_blank, copies)):
            raise SlotStateLost("both copies of the slot state are damaged; look at the slots and set them anew")
        return found


def is_blank(copy: bytes) -> bool:
    """Whether nothing was ever written there: it reads as 00h or FFh throughout."""
    return copy[0] in _ERASED and copy.count(copy[:1]) == len(copy)
