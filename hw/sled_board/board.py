"""Board descriptions: what the flasher, the stage and the emulated board must know of a board, out of one TOML file.

Those that come with the package lie in `boards/`; docs/porting.md says how to write one.
"""

import tomllib
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sled_board.errors import BoardInvalid, BoardUnknown
from sled_board.slot_store import COPY_BYTES
from sled_board.slots import Slot

BAUD_RATES: Final = (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600, 1_000_000, 1_500_000, 3_000_000)
BOARD_FILE_BYTES_MAX: Final = 1 << 16

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,31}$")]
Address = Annotated[int, Field(ge=0, lt=1 << 64)]
Offset = Annotated[int, Field(ge=0, lt=1 << 48)]
Size = Annotated[int, Field(gt=0, lt=1 << 48)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[ -~]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Console(_Part):
    """The serial console: 8 data bits, no parity, 1 stop bit.

    `baud` is the rate after power-on; `baud_faster` are rates that the board's U-Boot takes by `setenv baudrate` too;
    `linux` is what Linux calls it.
    """

    baud: int
    flow_control: Literal["none", "rtscts", "xonxoff"] = "none"
    baud_faster: tuple[int, ...] = Field(default=(), strict=False)
    linux: Line = "/dev/console"

    @model_validator(mode="after")
    def _rates_exist(self) -> Self:
        for rate in (self.baud, *self.baud_faster):
            if rate not in BAUD_RATES:
                raise ValueError(f"{rate} is no baud rate; take one of {', '.join(map(str, BAUD_RATES))}")
        return self


class UBoot(_Part):
    """How its U-Boot is spoken to, and the memory that is free while it waits at its prompt.

    `compatible` is in the device tree that U-Boot itself runs on, and in no other board's (none: that is not checked);
    `autoboot` is what it prints before the countdown, `autoboot_key` what stops that, `boot_s` how many seconds from
    power-on to there; `load_address` and `load_bytes` are RAM that holds a whole slot and `SCRATCH_BYTES` more.
    """

    compatible: Line | None = None
    prompt: str = Field(min_length=2, max_length=40, pattern=r"^[ -~]+$")
    autoboot: Line
    autoboot_key: str = Field(min_length=1, max_length=16, pattern=r"^[\x01-\x7f]+$")
    boot_s: float = Field(default=30.0, gt=0, le=600, strict=False)
    load_address: Address
    load_bytes: Size

    @model_validator(mode="after")
    def _memory_ends(self) -> Self:
        if self.load_address + self.load_bytes > 1 << 64:
            raise ValueError(f"load_address {self.load_address:#x} and load_bytes {self.load_bytes:#x} go beyond 2^64")
        return self


class Place(_Part):
    """A stretch of the board's storage, in bytes."""

    offset: Offset
    size: Size

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return self.offset + self.size


class State(_Part):
    """Where the two copies of the slot state begin, in bytes: each in an erase block of its own."""

    offsets: tuple[Offset, Offset] = Field(strict=False)


class Storage(_Part):
    """The storage that holds the firmware, as U-Boot names it: never a data drive.

    `prepare` are commands that make it known to U-Boot and `linux` is what Linux calls it; `block_bytes` is the unit of
    U-Boot's read and write commands, `erase_bytes` what a write may destroy around itself when power is lost.
    """

    interface: Literal["virtio", "nvme", "mmc", "scsi", "usb"]
    device: int = Field(ge=0, le=99)
    linux: Line
    prepare: tuple[Line, ...] = Field(default=(), strict=False)
    block_bytes: int = 512
    erase_bytes: Size
    size: Size
    state: State
    slot_a: Place
    slot_b: Place
    base: Place

    @model_validator(mode="after")
    def _layout_fits(self) -> Self:
        if self.block_bytes not in (512, 4096):
            raise ValueError(f"block_bytes is {self.block_bytes}, not 512 or 4096")
        if self.erase_bytes % COPY_BYTES or self.erase_bytes % self.block_bytes:
            raise ValueError(f"erase_bytes {self.erase_bytes} is no multiple of {COPY_BYTES} and of block_bytes")
        places = sorted(self._places(), key=lambda each: each[1].offset)
        for name, place in places:
            if place.offset % self.erase_bytes or place.size % self.erase_bytes:
                raise ValueError(f"{name} does not begin and end at a multiple of erase_bytes {self.erase_bytes}")
            if place.end > self.size:
                raise ValueError(f"{name} ends at {place.end}, the storage at {self.size}")
        for (name, place), (following, then) in pairwise(places):
            if place.end > then.offset:
                raise ValueError(f"{name} ends at {place.end}, where {following} has begun at {then.offset}")
        return self

    def _places(self) -> Iterator[tuple[str, Place]]:
        for index, offset in enumerate(self.state.offsets):
            yield f"copy {index} of the state", Place(offset=offset, size=self.erase_bytes)
        yield from (("slot_a", self.slot_a), ("slot_b", self.slot_b), ("base", self.base))


class Environment(_Part):
    """Where U-Boot keeps its own environment, in bytes: nothing of ours may lie there. `none`: it is not kept."""

    location: Literal["none", "mmc", "spi", "nvme"]
    offset: Offset = 0
    size: int = Field(default=0, ge=0)
    device: int = Field(default=0, ge=0)


class NvmeSlot(_Part):
    """Where a data drive goes: `pcie` is the port as the board's manual has it, `lanes` what is wired to it."""

    name: Name
    pcie: Line
    lanes: int = Field(ge=1, le=16)


class Board(_Part):
    """A whole description. `name` is what an image's hardware compatibility names; `tested` is false where nobody has
    run this on the real hardware; `sources` are the public documents that it comes from."""

    name: Name
    title: Line
    architecture: Literal["arm64", "arm", "riscv", "x86_64"]
    tested: bool
    sources: tuple[Line, ...] = Field(default=(), strict=False)
    network: tuple[Line, ...] = Field(default=(), strict=False)
    console: Console
    uboot: UBoot
    storage: Storage
    environment: Environment
    nvme: tuple[NvmeSlot, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _whole_image_fits_in_memory(self) -> Self:
        if (largest := max(self.place(slot).size for slot in Slot) + SCRATCH_BYTES) > self.uboot.load_bytes:
            raise ValueError(f"uboot.load_bytes {self.uboot.load_bytes} is less than a slot and its scratch: {largest}")
        kept = self.environment
        if (kept.location, kept.device) == (self.storage.interface, self.storage.device):
            for name, place in self.storage._places():
                if place.offset < kept.offset + kept.size and kept.offset < place.end:
                    raise ValueError(f"{name} lies where U-Boot keeps its environment, at {kept.offset}")
        return self

    def place(self, slot: Slot) -> Place:
        """Where a slot lies."""
        return self.storage.slot_a if slot is Slot.A else self.storage.slot_b


SCRATCH_BYTES: Final = 1 << 20
"""RAM that the flasher uses before the image's own: a piece, and what it reads back."""


def board_names() -> list[str]:
    """The boards that come with the package."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def load_board(name: str) -> Board:
    """A board that comes with the package, or the file `name` where that has a `/` or ends in `.toml`.

    Raises BoardUnknown and BoardInvalid.
    """
    if "/" in name or name.endswith(".toml"):
        return read_board(Path(name))
    if name not in board_names():
        raise BoardUnknown(f"no board is named {name!r}; there are {', '.join(board_names())}, or give a .toml file")
    return parse_board(_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8"), name)


def read_board(path: Path) -> Board:
    """The description in a file. Raises BoardUnknown where there is none and BoardInvalid."""
    try:
        with path.open("rb") as file:
            data = file.read(BOARD_FILE_BYTES_MAX + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise BoardUnknown(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BoardInvalid(f"{path}: is not UTF-8 text") from None
    if len(data) > BOARD_FILE_BYTES_MAX:
        raise BoardInvalid(f"{path}: is larger than {BOARD_FILE_BYTES_MAX} bytes: no board description")
    return parse_board(text, str(path))


def parse_board(text: str, source: str) -> Board:
    """The board that `text` describes; raises BoardInvalid, which names `source`, the key and what is wrong."""
    try:
        values: dict[str, Any] = tomllib.loads(text)
        return Board.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "board"
        more = "" if error.error_count() == 1 else f" (and {error.error_count() - 1} more)"
        raise BoardInvalid(f"{source}: {where}: {first['msg'].removeprefix('Value error, ')}{more}") from None
    except (ValueError, RecursionError) as error:
        raise BoardInvalid(f"{source}: is not TOML: {error}") from None


def _folder() -> resources.abc.Traversable:
    return resources.files("sled_board").joinpath("boards")
