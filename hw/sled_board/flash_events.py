"""What a flash reports as it goes: values for a progress bar, a log or a program."""

from dataclasses import dataclass

from sled_board.slots import Slot, Slots


@dataclass(frozen=True, slots=True)
class AtPrompt:
    """The board's U-Boot waits for commands; `release` as `2023.01`, `baud` is what is spoken from now on."""

    release: str
    baud: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """The image goes to `slot`; `before` is what the board had."""

    slot: Slot
    before: Slots


@dataclass(frozen=True, slots=True)
class Sent:
    """`done_bytes` of `total_bytes` are on the board, of which `skipped_bytes` were there before."""

    done_bytes: int
    total_bytes: int
    skipped_bytes: int


@dataclass(frozen=True, slots=True)
class Verified:
    """The whole image was read back from the slot, and U-Boot has checked its hashes."""

    slot: Slot
    crc32: int


@dataclass(frozen=True, slots=True)
class Activated:
    """The board starts `slot` next, and goes back by itself if that is not found healthy."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class NothingToDo:
    """`slot` has this very image already, confirmed."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board was reset."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What the board's stage said: `event` and its fields."""

    event: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The firmware has found itself healthy, and the board keeps it."""

    slot: Slot


Event = AtPrompt | Chosen | Sent | Verified | Activated | NothingToDo | Restarted | Reported | Confirmed
