"""Firmware onto a board over its serial console: into the slot that is not in use, verified there, then tried.

At no instant is what the board has confirmed touched: the state says that a slot is empty before its first byte is
overwritten, and that it is to be tried after its last one was read back (docs/flashing.md).
"""

import contextlib
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sled_board.board import Board
from sled_board.board_console import PIECE_BYTES, BoardConsole
from sled_board.errors import (
    CommandRefused,
    ConsoleError,
    ContentDiffers,
    DamagedImage,
    FlashRefused,
    ImageError,
    SlotStateLost,
)
from sled_board.flash_events import (
    Activated,
    AtPrompt,
    Chosen,
    Confirmed,
    Event,
    NothingToDo,
    Restarted,
    Sent,
    Verified,
)
from sled_board.health_watch import HealthWatch
from sled_board.image import IMAGE_START_BYTES, Image, Trust, image_bytes, read_image
from sled_board.slot_store import COPY_BYTES, SlotStore
from sled_board.slots import EMPTY, Slot, Slots, SlotState
from sled_board.uboot.dialogue import Line, steps

HEALTH_S: Final = 600.0
PATIENCE_S: Final = 60.0


class Before(StrEnum):
    """How the prompt is reached."""

    PROMPT = "prompt"  # ask for it: at the prompt, in a countdown, or in a transfer that was cut off
    WAIT = "wait"  # say nothing until a countdown comes: somebody powers the board on
    RESET = "reset"  # as PROMPT, and then start U-Boot anew


class After(StrEnum):
    """What becomes of the board at the end."""

    RESET = "reset"  # start it
    WAIT = "wait"  # start it and wait until the firmware has found itself healthy
    STAY = "stay"  # leave it at the prompt


@dataclass(frozen=True, slots=True)
class Choices:
    """What the caller may choose. `rate`: the rate to transfer at, None for the fastest that the board names.

    `patience_s` is for the prompt, None for `PATIENCE_S` more than the board takes to start; `health_s` is for the
    report of health. `force` begins anew where the slot state is lost and no slot holds a whole image; nothing else
    that is refused can be forced.
    """

    before: Before = Before.PROMPT
    after: After = After.RESET
    rate: int | None = None
    skip_flashed: bool = False
    force: bool = False
    dry_run: bool = False
    patience_s: float | None = None
    health_s: float = HEALTH_S


def checked_image(data: bytes, board: Board, trust: Trust, counter_min: int = 0) -> Image:
    """The image in `data`, if `board` could take it; raises ImageError and FlashRefused. Speaks to no board."""
    image = read_image(data)
    trust.check(image, hardware=board.name, counter_min=counter_min)
    image.check_startable(architecture=board.architecture)
    smallest = min(board.place(slot).size for slot in Slot)
    if len(data) > smallest:
        raise FlashRefused(f"the image has {len(data)} bytes, a slot of {board.name} has {smallest}")
    return image


async def flash(line: Line, board: Board, data: bytes, trust: Trust, choices: Choices) -> AsyncIterator[Event]:
    """Flash the image `data`. What has been written stays when this ends early, and is not sent again the next time.

    A board that is refused, or whose storage fails, is started all the same unless it was to stay at its prompt.
    Raises ImageError, FlashRefused, SlotStateLost, ConsoleError, ContentDiffers and FirmwareUnhealthy.
    """
    image = checked_image(data, board, trust)
    console = BoardConsole(line, board)
    try:
        async for event in _connect(console, line, board, image, choices):
            yield event
        async for event in _at_prompt(console, board, data, image, trust, choices):
            yield event
    except (ImageError, FlashRefused, SlotStateLost, ContentDiffers):
        with contextlib.suppress(ConsoleError):
            await _leave(console, board, choices)
        raise
    await _leave(console, board, choices)
    if choices.after is After.STAY:
        return
    yield Restarted()
    if choices.after is After.WAIT and not choices.dry_run:
        watch = HealthWatch(image.id, patience_s=choices.health_s)
        async for _ in steps(line, watch):
            for report in watch.take():
                yield report
        yield Confirmed(watch.slot)


async def _leave(console: BoardConsole, board: Board, choices: Choices) -> None:
    """Start the board, or leave it as it was found."""
    if choices.after is After.STAY:
        await console.set_rate(board.console.baud)
    else:
        await console.restart()


async def _at_prompt(
    console: BoardConsole, board: Board, data: bytes, image: Image, trust: Trust, choices: Choices
) -> AsyncIterator[Event]:
    store = _ConsoleState(console, board)
    slots = await store.load(image, force=choices.force)
    kept = Trust(trust.root_public, slots.key_set or trust.key_set, trust.locked)
    kept.check(image, hardware=board.name, counter_min=slots.counter_min)
    there = next((slot for slot in Slot if _is_confirmed(slots, slot, image)), None)
    if there is not None and choices.skip_flashed:
        yield NothingToDo(there)
    else:
        slot = slots.spare
        if slots[slot].state is SlotState.CONFIRMED:
            raise FlashRefused("both slots are confirmed, which cannot be: set the slot state anew on the board itself")
        yield Chosen(slot, slots)
        if not choices.dry_run:
            async for event in _write(console, store, board, slots, slot, data, image):
                yield event


async def _connect(
    console: BoardConsole, line: Line, board: Board, image: Image, choices: Choices
) -> AsyncIterator[Event]:
    patience_s = choices.patience_s or board.uboot.boot_s + PATIENCE_S
    await console.reach_prompt(probing=choices.before is not Before.WAIT, patience_s=patience_s)
    if choices.before is Before.RESET:
        await console.restart()
        await console.reach_prompt(probing=False, patience_s=patience_s)
    if not await console.is_compatible():
        raise FlashRefused(f"this is no {board.title}: its device tree does not name {board.uboot.compatible!r}")
    release = await console.release()
    if image.bootloader_min is not None and release < image.bootloader_min:
        raise FlashRefused(f"the board has U-Boot {release}, the image needs {image.bootloader_min} or newer")
    for rate in board.console.baud_faster if choices.rate is None else (choices.rate,):
        try:
            await console.set_rate(rate)
            break
        except CommandRefused as error:
            if choices.rate is not None:
                raise FlashRefused(f"the board does not speak {rate} baud: {error}") from None
    await console.prepare()
    yield AtPrompt(release, line.baud)


async def _write(
    console: BoardConsole, store: "_ConsoleState", board: Board, slots: Slots, slot: Slot, data: bytes, image: Image
) -> AsyncIterator[Event]:
    place = board.place(slot)
    if slots[slot] != EMPTY:
        slots = slots.erase(slot)
        await store.keep(slots)
    skipped = 0
    for at in range(0, len(data), PIECE_BYTES):
        piece = data[at : at + PIECE_BYTES]
        if await console.crc(place.offset + at, len(piece)) == zlib.crc32(piece):
            skipped += len(piece)
        else:
            async for count in console.write(place.offset + at, piece):
                yield Sent(at + count, len(data), skipped)
        yield Sent(at + len(piece), len(data), skipped)
    crc = zlib.crc32(data)
    if (found := await console.verify_fit(place.offset, len(data))) != crc:
        raise ContentDiffers(f"slot {slot.value} has CRC-32 {found:08x}, the image {crc:08x}: the storage fails")
    yield Verified(slot, crc)
    stored = slots.store(slot, image_id=image.id, version=image.version, counter=image.counter)
    await store.keep(stored.activate(slot))
    yield Activated(slot)


def _is_confirmed(slots: Slots, slot: Slot, image: Image) -> bool:
    return slots[slot].state is SlotState.CONFIRMED and slots[slot].image_id == image.id


class _ConsoleState:
    """The slot state on the board's storage. SlotStore decides on a copy in memory what is to be written there."""

    def __init__(self, console: BoardConsole, board: Board) -> None:
        self._console = console
        self._offsets = board.storage.state.offsets
        self._board = board
        self._copies = _Copies()
        self._store = SlotStore(self._copies)
        self._lost = False

    async def load(self, image: Image, *, force: bool) -> Slots:
        """The state that counts. With `force` a new one, of the image's generation, where it is lost, and with it all
        that it was about: nothing is written before it is kept. Raises SlotStateLost and FlashRefused."""
        for index, offset in enumerate(self._offsets):
            self._copies.write(index * COPY_BYTES, await self._console.read(offset, COPY_BYTES))
        self._copies.written.clear()
        try:
            return self._store.load()
        except SlotStateLost as error:
            if not force:
                raise SlotStateLost(
                    f"{error}: the board makes it anew out of its images when it is started; or, where no slot holds"
                    " one, --force begins with this one"
                ) from None
            for slot in Slot:
                if await self._holds_an_image(slot):
                    raise FlashRefused(
                        f"slot {slot.value} holds a whole image: start the board, which makes its slot state anew out"
                        " of what is there; --force would forget it, and what is too old"
                    ) from None
            self._lost = True
            return Slots(counter_min=image.counter)

    async def keep(self, slots: Slots) -> None:
        """Make it durable on the board."""
        if self._lost:
            self._store.renew(slots)
            self._lost = False
        else:
            self._store.keep(slots)
        await self._flush()

    async def _holds_an_image(self, slot: Slot) -> bool:
        """Whether U-Boot finds one there that is whole, whoever has signed it."""
        place = self._board.place(slot)
        try:
            size = image_bytes(await self._console.read(place.offset, IMAGE_START_BYTES))
            if size > place.size:
                return False
            await self._console.verify_fit(place.offset, size)
        except (DamagedImage, CommandRefused):
            return False
        return True

    async def _flush(self) -> None:
        for offset in self._copies.written:
            copy = self._copies.read(offset, COPY_BYTES)
            async for _ in self._console.write(self._offsets[offset // COPY_BYTES], copy):
                pass
        self._copies.written.clear()


class _Copies:
    """Both copies in memory, and which were written."""

    def __init__(self) -> None:
        self._data = bytearray(2 * COPY_BYTES)
        self.written: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self._data[offset : offset + len(data)] = data
        self.written.append(offset)

    def sync(self) -> None:
        """What is on the board is durable once U-Boot has read it back."""
