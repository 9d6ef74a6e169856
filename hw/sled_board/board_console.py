"""A board at its U-Boot prompt: its memory and its storage, read and written over the console.

Every operation can be done twice without harm, and is, up to `TRIES_MAX` times, when the line damages what is said.
"""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from sled_board.board import SCRATCH_BYTES, Board
from sled_board.errors import BoardReset, BoardSilent, CommandRefused, ConsoleError, ContentDiffers, PortLost
from sled_board.uboot import answers
from sled_board.uboot.command import Command, checked
from sled_board.uboot.dialogue import Line, hold, line_seconds, steps
from sled_board.uboot.load import Load
from sled_board.uboot.prompt import ReachPrompt
from sled_board.uboot.rate import Rate

PIECE_BYTES: Final = 1 << 16
"""What is sent, checked and written at once: at most this is sent again after a cut cable."""
TRIES_MAX: Final = 3
RECOVER_S: Final = 60.0
"""U-Boot needs up to 40 s to give up a transfer."""
RATE_PROBE_S: Final = 6.0
STORAGE_BYTES_A_SECOND: Final = 1 << 20  # slower than any storage or emulator that is right

T = TypeVar("T")


class BoardConsole:
    """`line` leads to `board`. Every method raises ConsoleError and what it says."""

    def __init__(self, line: Line, board: Board) -> None:
        self._line = line
        self._board = board
        self._uboot = board.uboot
        self._scratch = board.uboot.load_address
        self._read_back = self._scratch + SCRATCH_BYTES // 2
        self._whole = self._scratch + SCRATCH_BYTES

    # --- the prompt

    async def reach_prompt(self, *, probing: bool, patience_s: float) -> None:
        """Until U-Boot waits for a command; also one that speaks a faster rate since a flash that was cut off."""
        if probing:
            for baud in (self._line.baud, *self._board.console.baud_faster):
                if baud != self._line.baud:
                    await self._line.set_baud(baud)
                try:
                    await self._prompt(probing=True, patience_s=min(RATE_PROBE_S, patience_s))
                except BoardSilent:
                    continue
                return
            if self._board.console.baud_faster:
                await self._line.set_baud(self._board.console.baud)
        await self._prompt(probing=probing, patience_s=patience_s)

    async def restart(self) -> None:
        """Reset the board; it is on its way up afterwards."""
        reset = Command(self._uboot, "reset", baud=self._line.baud)
        async for _ in steps(self._line, reset):
            if reset.running:
                break
        await self._line.set_baud(self._board.console.baud)

    async def set_rate(self, baud: int) -> None:
        """Speak at another rate, both ends; raises CommandRefused where U-Boot does not take it."""
        if baud == self._line.baud:
            return
        rate = Rate(self._uboot, baud, baud=self._line.baud)
        switched = False
        async for _ in steps(self._line, rate):
            if rate.due and not switched:
                switched = True
                await self._line.set_baud(baud)
        checked(rate)

    async def run(self, text: str, patience_s: float = 5.0) -> str:
        """Run a command; what it printed. Raises CommandRefused."""
        command = Command(self._uboot, text, baud=self._line.baud, patience_s=patience_s)
        await hold(self._line, command)
        return checked(command)

    async def release(self) -> str:
        """U-Boot's release, as `2023.01`."""
        return await self._retried(lambda: self._parsed("version", answers.release_of))

    async def is_compatible(self) -> bool:
        """Whether this is the board of the description, as far as U-Boot's own device tree tells."""
        if self._uboot.compatible is None:
            return True
        text = "fdt addr ${fdtcontroladdr} && fdt print / compatible"
        return f'"{self._uboot.compatible}"' in await self._retried(lambda: self.run(text))

    # --- its storage, in bytes from the beginning

    async def prepare(self) -> None:
        """Make the storage known to U-Boot and choose it."""
        storage = self._board.storage
        for text in (*storage.prepare, f"{storage.interface} dev {storage.device}"):
            await self._retried(partial(self.run, text, 30.0))

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of the storage; for small pieces: a byte takes five on the line."""
        address = self._read_back

        async def once() -> bytes:
            crc = await self._crc_of_storage(address, offset, size)
            patience_s = 5.0 + line_seconds(80, self._line.baud)
            text = await self.run(f"md.b 0x{address:x} 0x{size:x}", patience_s)
            data = answers.memory_of(text, address, size)
            if zlib.crc32(data) != crc:
                raise ConsoleError(f"md.b showed {size} bytes that are not those in memory: the line is noisy")
            return data

        return await self._retried(once)

    async def crc(self, offset: int, size: int) -> int:
        """CRC-32 of a piece of the storage."""
        return await self._retried(lambda: self._crc_of_storage(self._read_back, offset, size))

    async def write(self, offset: int, data: bytes) -> AsyncIterator[int]:
        """Send at most PIECE_BYTES, check them in memory, write them and read them back; gives how many were sent.

        Raises ContentDiffers when the storage gives back something else.
        """
        crc = zlib.crc32(data)
        for tries in range(TRIES_MAX):
            try:
                load = Load(self._uboot, self._scratch, data, baud=self._line.baud)
                async for _ in steps(self._line, load):
                    yield load.sent_bytes
                checked(load)
                if await self._crc_of_memory(self._scratch, len(data)) == crc:
                    break
                raise ConsoleError(f"CRC-32 in the board's memory is not {crc:08x}: the line is noisy")
            except ConsoleError as error:
                await self._recover(error, tries)
        await self._retried(lambda: self._write_blocks(self._scratch, offset, len(data)))
        if (found := await self.crc(offset, len(data))) != crc:
            raise ContentDiffers(
                f"{len(data)} bytes at {offset} of {self._board.storage.interface} {self._board.storage.device} have"
                f" CRC-32 {found:08x} after they were written, not {crc:08x}: the storage fails"
            )

    async def verify_fit(self, offset: int, size: int) -> int:
        """Read a whole image into memory and have U-Boot check its hashes; its CRC-32. Raises CommandRefused."""
        patience_s = 30.0 + size / STORAGE_BYTES_A_SECOND

        async def once() -> int:
            await self._read_blocks(self._whole, offset, size, patience_s)
            await self.run(f"iminfo 0x{self._whole:x}", patience_s)
            return await self._crc_of_memory(self._whole, size)

        return await self._retried(once)

    # --- in one try

    async def _prompt(self, *, probing: bool, patience_s: float) -> None:
        await hold(self._line, ReachPrompt(self._uboot, probing=probing, patience_s=patience_s))
        await self.run("true")

    async def _parsed(self, text: str, parse: Callable[[str], T]) -> T:
        return parse(await self.run(text))

    async def _crc_of_memory(self, address: int, size: int) -> int:
        patience_s = 10.0 + size / STORAGE_BYTES_A_SECOND
        return answers.crc_of(await self.run(f"crc32 0x{address:x} 0x{size:x}", patience_s), address, size)

    async def _crc_of_storage(self, address: int, offset: int, size: int) -> int:
        await self._read_blocks(address, offset, size, 10.0 + size / STORAGE_BYTES_A_SECOND)
        return await self._crc_of_memory(address, size)

    async def _read_blocks(self, address: int, offset: int, size: int, patience_s: float) -> None:
        await self.run(f"{self._board.storage.interface} read 0x{address:x} {self._blocks(offset, size)}", patience_s)

    async def _write_blocks(self, address: int, offset: int, size: int) -> None:
        await self.run(f"{self._board.storage.interface} write 0x{address:x} {self._blocks(offset, size)}", 30.0)

    def _blocks(self, offset: int, size: int) -> str:
        unit = self._board.storage.block_bytes
        return f"0x{offset // unit:x} 0x{-(-size // unit):x}"

    # --- over and over

    async def _retried(self, once: Callable[[], Awaitable[T]]) -> T:
        for tries in range(TRIES_MAX):
            try:
                return await once()
            except ConsoleError as error:
                await self._recover(error, tries)
        raise AssertionError  # the last _recover raises

    async def _recover(self, error: ConsoleError, tries: int) -> None:
        """Back to the prompt after `error`, or raise it: what another try does not mend, or the last one did not."""
        if isinstance(error, PortLost | BoardReset | CommandRefused) or tries + 1 == TRIES_MAX:
            raise error
        await self._prompt(probing=True, patience_s=RECOVER_S)
