"""A U-Boot that is played: a console, memory, a block device, and faults of board and line at chosen moments."""

import asyncio
import binascii
import re
import struct
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, TypeVar

from rackctl.simulation.loop import SimulationLoop
from sled_board.board import Board, load_board
from sled_board.errors import PortLost

PROMPT: Final = "=> "
COUNTDOWN: Final = "\r\n\r\nU-Boot 2023.01 (fake)\r\n\r\nHit any key to stop autoboot:  2 "
MEMORY_BYTES: Final = 4 << 20
T = TypeVar("T")
SOH, STX, EOT, ACK, NAK, CAN = 1, 2, 4, 6, 21, 24


@dataclass
class FakeUBoot:
    """What the board does with each byte; `storage` outlives its power. `echoes` false: nobody is at the prompt.

    `refused` are beginnings of commands that fail, `after_write` is called with the number of each write.
    """

    board: Board = field(default_factory=lambda: load_board("qemu-virt-arm64"))
    storage: dict[int, bytes] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    compatible: str = "linux,dummy-virt"
    says_after_reset: str = ""
    at_prompt: bool = True
    rates: tuple[int, ...] = ()
    after_write: Callable[[int], None] = lambda number: None
    commands: list[str] = field(default_factory=list)
    writes: int = 0
    baud: int = 115200

    def __post_init__(self) -> None:
        self.memory = bytearray(MEMORY_BYTES)
        self._typed = ""
        self._receiver: _Receiver | None = None
        self._rest = ""
        self._counting = False
        self._awaits_enter: str | None = None

    def power_on(self) -> bytes:
        """The countdown begins."""
        self.memory = bytearray(MEMORY_BYTES)
        self._typed, self._receiver, self._awaits_enter = "", None, None
        self.at_prompt, self._counting = False, True
        return COUNTDOWN.encode()

    def receive(self, data: bytes) -> bytes:
        """What the board answers to bytes that reach it."""
        return b"".join(self._byte(byte) for byte in data)

    def _byte(self, byte: int) -> bytes:
        if self._receiver is not None:
            return self._transfer(byte)
        if self._awaits_enter is not None:
            if byte != 13:
                return b""
            rest, self._awaits_enter = self._awaits_enter, None
            return self._run(rest)
        if self._counting:
            self._counting, self.at_prompt = False, True
            return f"\r\n{PROMPT}".encode()
        if not self.at_prompt:
            return b""
        if byte == 3:
            self._typed = ""
            return f"<INTERRUPT>\r\n{PROMPT}".encode()
        if byte == CAN:
            self._typed = ""
            return b""
        if byte == 13:
            typed, self._typed = self._typed, ""
            return b"\r\n" + self._run(typed)
        self._typed += chr(byte)
        return bytes([byte])

    def _run(self, line: str) -> bytes:
        out = ""
        status = 0
        parts = [part.strip() for part in line.split(";")]
        for index, text in enumerate(parts):
            if text.startswith("echo "):
                out += text[5:].replace("$?", str(status)) + "\r\n"
                continue
            for each in filter(None, text.split(" && ")):
                self.commands.append(each)
                said, status = self._command(each)
                out += said
                if self._receiver is not None or self._awaits_enter is not None or not self.at_prompt:
                    rest = "; ".join(parts[index + 1 :])
                    self._rest = rest
                    if self._awaits_enter is not None:
                        self._awaits_enter = rest
                    return out.encode()
                if status:
                    break
        return (out + PROMPT).encode()

    def _command(self, text: str) -> tuple[str, int]:
        if text.startswith(self.refused) and self.refused:
            return f"{text}: refused\r\n", 1
        word, *rest = text.split()
        match word:
            case "true" | "fdt" if word == "true" or rest[0] == "addr":
                return "", 0
            case "fdt":
                return f'compatible = "{self.compatible}"\r\n', 0
            case "version":
                return "U-Boot 2023.01 (fake)\r\n\r\ngcc\r\n", 0
            case "reset":
                said = self.power_on().decode() + self.says_after_reset
                self._counting = not self.says_after_reset
                return said, 0
            case "crc32":
                address, size = (int(each, 16) for each in rest)
                crc = zlib.crc32(self._at(address, size))
                return f"crc32 for {address:08x} ... {address + size - 1:08x} ==> {crc:08x}\r\n", 0
            case "md.b":
                return self._dump(*(int(each, 16) for each in rest)), 0
            case "iminfo":
                good = self._at(int(rest[0], 16), 4) == b"\xd0\x0d\xfe\xed"
                return ("Hash(es) ... OK\r\n", 0) if good else ("Unknown image format!\r\n", 1)
            case "loady":
                self._receiver = _Receiver(int(rest[0], 16))
                return f"## Ready for binary (ymodem) download to 0x{rest[0]} at 115200 bps...\r\nC", 0
            case "setenv" if int(rest[1]) in self.rates:
                self._awaits_enter = ""
                self.baud = int(rest[1])
                return f"## Switch baudrate to {rest[1]} bps and press ENTER ...\r\n", 0
            case self.board.storage.interface:
                return self._storage(rest)
        return f"Unknown command '{word}' - try 'help'\r\n", 1

    def _storage(self, rest: list[str]) -> tuple[str, int]:
        if rest[0] in ("scan", "dev"):
            return "", 0
        address, first, count = (int(each, 16) for each in rest[1:])
        offset = address - self.board.uboot.load_address
        for index in range(count):
            here = slice(offset + 512 * index, offset + 512 * (index + 1))
            if rest[0] == "read":
                self.memory[here] = self.storage.get(first + index, bytes(512))
            else:
                self.storage[first + index] = bytes(self.memory[here])
        if rest[0] == "write":
            self.writes += 1
            self.after_write(self.writes)
        return f"\r\n{count} blocks {rest[0]}: OK\r\n", 0

    def _dump(self, address: int, size: int) -> str:
        rows = ""
        data = self._at(address, size)
        for at in range(0, size, 16):
            row = data[at : at + 16]
            rows += f"{address + at:08x}: " + "".join(f"{byte:02x} " for byte in row) + " " + "." * len(row) + "\r\n"
        return rows

    def _at(self, address: int, size: int) -> bytes:
        offset = address - self.board.uboot.load_address
        return bytes(self.memory[offset : offset + size])

    def _transfer(self, byte: int) -> bytes:
        assert self._receiver is not None
        out = self._receiver.byte(byte)
        if not self._receiver.done:
            return out
        offset = self._receiver.address - self.board.uboot.load_address
        self.memory[offset : offset + len(self._receiver.data)] = self._receiver.data
        size = len(self._receiver.data)
        self._receiver = None
        return out + f"## Total Size      = {size:#x} = {size} Bytes\r\n".encode() + self._run(self._rest)

    def slot_bytes(self, offset: int, size: int) -> bytes:
        """A stretch of the storage."""
        first = offset // 512
        whole = b"".join(self.storage.get(block, bytes(512)) for block in range(first, first - (-size // 512)))
        return whole[:size]


class _Receiver:
    """U-Boot's side of YMODEM."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.data = b""
        self.done = False
        self._block = b""
        self._next: int | None = None
        self._size = 0
        self._ended = False
        self._cancels = 0

    def byte(self, byte: int) -> bytes:
        if not self._block:
            self._cancels = self._cancels + 1 if byte == CAN else 0
            if self._cancels == 3:
                self.done = True
                return b""
            if byte == EOT:
                self._ended = True
                self.data = self.data[: self._size]
                return bytes([ACK, ord("C")])
            if byte not in (SOH, STX):
                return b""
        self._block += bytes([byte])
        if len(self._block) < (133 if self._block[0] == SOH else 1029):
            return b""
        block, self._block = self._block, b""
        return self._whole(block)

    def _whole(self, block: bytes) -> bytes:
        body, crc = block[3:-2], struct.unpack(">H", block[-2:])[0]
        if binascii.crc_hqx(body, 0) != crc or block[1] ^ block[2] != 0xFF:
            return b"C"
        if self._ended:
            self.done = True
        elif self._next is None:
            self._size = int(re.split(rb"\0+", body)[1])
            self._next = 1
        elif block[1] == self._next:
            self.data += body
            self._next = (self._next + 1) % 256
        elif block[1] != (self._next - 1) % 256:
            return b"C"
        return bytes([ACK])


@dataclass
class FakeLine:
    """A line to it. `damage_in` and `damage_out` may change what passes towards the board and from it."""

    uboot: FakeUBoot
    damage_in: Callable[[bytes], bytes] = lambda data: data
    damage_out: Callable[[bytes], bytes] = lambda data: data
    baud: int = 115200
    sent_bytes: int = 0
    cut_at: int | None = None

    def __post_init__(self) -> None:
        self.waiting = bytearray()

    async def read(self, timeout_s: float) -> bytes:
        """What waits; time passes at once where nothing does."""
        self._check()
        if not self.waiting:
            await asyncio.sleep(timeout_s)
        data = bytes(self.waiting)
        self.waiting.clear()
        return data

    async def write(self, data: bytes) -> None:
        """To the board, and its answer back."""
        self.sent_bytes += len(data)
        self._check()
        if self.baud == self.uboot.baud:
            self.waiting += self.damage_out(self.uboot.receive(self.damage_in(data)))
        else:
            self.waiting += b"\xff\x80"

    async def set_baud(self, baud: int) -> None:
        """Speak at another rate."""
        self.baud = baud

    def _check(self) -> None:
        if self.cut_at is not None and self.sent_bytes >= self.cut_at:
            raise PortLost("the cable was cut")


def played(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on virtual time: patience costs nothing."""
    loop = SimulationLoop(Random(0))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
