"""Faults as wrappers around a device, each one thing that goes wrong; stack them as needed, the outermost acts first.

    device = Latency(BitRot(MemoryDevice(4096)), lambda operation: 0.002)

They are the same over a file, memory or a real drive, and open to change while they run.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final, TypeAlias

from spdk_bindings.device import BLOCK_BYTES, PENDING, Buffer, Device, Done
from spdk_bindings.nvme import Status

_SUCCESS: Final = int(Status.SUCCESS)
_ABORTED: Final = int(Status.ABORT_REQUESTED)
_DEAD: Final = int(Status.INTERNAL_PATH_ERROR)


class Operation(StrEnum):
    """What a command does."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    WRITE_ZEROES = "write_zeroes"
    DEALLOCATE = "deallocate"


Start: TypeAlias = Callable[[Done], int]


class Wrapper:
    """Passes every command on through `_run`; what a fault changes is overridden."""

    def __init__(self, device: Device) -> None:
        """Wrap `device`, which `close` closes."""
        self.device = device
        self.block_count = device.block_count
        self.serial = device.serial
        self.model = device.model

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Read through the fault."""
        return self._run(Operation.READ, lba, len(into) // BLOCK_BYTES, partial(self.device.read, lba, into), done)

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write through the fault."""
        start = partial(self.device.write, lba, data, fua)
        return self._run(Operation.WRITE, lba, len(data) // BLOCK_BYTES, start, done)

    def flush(self, done: Done) -> int:
        """Flush through the fault."""
        return self._run(Operation.FLUSH, 0, 0, self.device.flush, done)

    def write_zeroes(self, lba: int, count: int, fua: bool, done: Done) -> int:
        """Zero through the fault."""
        return self._run(Operation.WRITE_ZEROES, lba, count, partial(self.device.write_zeroes, lba, count, fua), done)

    def deallocate(self, lba: int, count: int, done: Done) -> int:
        """Deallocate through the fault."""
        return self._run(Operation.DEALLOCATE, lba, count, partial(self.device.deallocate, lba, count), done)

    def reset(self, done: Done) -> int:
        """Reset what is below."""
        return self.device.reset(done)

    def allocate(self, size_bytes: int) -> memoryview:
        """What the device below gives."""
        return self.device.allocate(size_bytes)

    def smart(self) -> dict[str, int]:
        """What the device below says."""
        return self.device.smart()

    def close(self) -> None:
        """Close what is below."""
        self.device.close()

    def _run(self, operation: Operation, lba: int, count: int, start: Start, done: Done) -> int:
        return start(done)


@dataclass(slots=True)
class Rule:
    """Fail commands of `operations` that touch blocks `first`..`first + count - 1` with `status`, `times` times.

    A flush touches every range. `times` None means for ever. With `applied` the command is carried out all the same.
    """

    status: int
    first: int = 0
    count: int = 2**64
    operations: Collection[Operation] = tuple(Operation)
    times: int | None = None
    applied: bool = False

    def matches(self, operation: Operation, lba: int, count: int) -> bool:
        """Whether the rule applies to this command now."""
        touches = operation is Operation.FLUSH or (lba < self.first + self.count and self.first < lba + count)
        return touches and operation in self.operations and self.times != 0


class StatusFault(Wrapper):
    """Answers with an NVMe status where a rule says so; the first rule that matches counts."""

    def __init__(self, device: Device, *rules: Rule) -> None:
        """`rules` may be changed at any time."""
        super().__init__(device)
        self.rules: list[Rule] = list(rules)

    def smart(self) -> dict[str, int]:
        """A drive that fails commands says so in its health log."""
        return self.device.smart() | ({"critical_warning": 0x04} if self.rules else {})

    def _run(self, operation: Operation, lba: int, count: int, start: Start, done: Done) -> int:
        for rule in self.rules:
            if rule.matches(operation, lba, count):
                if rule.times is not None:
                    rule.times -= 1
                if rule.applied:
                    start(_ignore)
                return rule.status
        return start(done)


class Latency(Wrapper):
    """Submits each command late, by the loop's timers: until then it can still be reset, and takes effect only then.

    `hold` keeps everything back (a device that hangs) until `release`.
    """

    def __init__(self, device: Device, seconds: Callable[[Operation], float]) -> None:
        """`seconds(operation)` is asked per command; 0 still takes one loop turn."""
        super().__init__(device)
        self.seconds = seconds
        self._held: list[int] | None = None
        self._waiting: dict[int, tuple[asyncio.TimerHandle | None, Start, Done]] = {}
        self._next = 0

    @property
    def outstanding(self) -> int:
        """Commands not yet submitted to the device below."""
        return len(self._waiting)

    def hold(self) -> None:
        """Submit nothing from here on."""
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """Submit what is held, in order, and go on as before."""
        held, self._held = self._held or [], None
        for number in held:
            self._submit(number)

    def reset(self, done: Done) -> int:
        """Abort what was not submitted; then reset what is below."""
        waiting, self._waiting = self._waiting, {}
        if self._held is not None:
            self._held = []
        loop = asyncio.get_running_loop()
        for handle, _, waiter in waiting.values():
            if handle is not None:
                handle.cancel()
            loop.call_soon(waiter, _ABORTED)
        status = self.device.reset(done)
        if status == _SUCCESS and waiting:
            loop.call_soon(done, _SUCCESS)
            return PENDING
        return status

    def _run(self, operation: Operation, lba: int, count: int, start: Start, done: Done) -> int:
        number = self._next
        self._next += 1
        handle = None
        if self._held is not None:
            self._held.append(number)
        else:
            handle = asyncio.get_running_loop().call_later(self.seconds(operation), self._due, number)
        self._waiting[number] = (handle, start, done)
        return PENDING

    def _due(self, number: int) -> None:
        if self._held is not None:
            self._held.append(number)
        else:
            self._submit(number)

    def _submit(self, number: int) -> None:
        command = self._waiting.pop(number, None)
        if command is None:
            return
        _, start, done = command
        status = start(done)
        if status != PENDING:
            done(status)


class BitRot(Wrapper):
    """Blocks that read back with flipped bits, and success, until they are written again."""

    def __init__(self, device: Device) -> None:
        """Nothing is rotten until `rot` says so."""
        super().__init__(device)
        self._flips: dict[int, dict[int, int]] = {}

    def rot(self, lba: int, byte: int = 0, mask: int = 0x01) -> None:
        """From now on byte `byte` (0..4095) of block `lba` reads XORed with `mask`."""
        self._flips.setdefault(lba, {})[byte] = mask

    def read(self, lba: int, into: memoryview | bytearray, done: Done) -> int:
        """Read, then rot; a pending read rots as it completes."""
        if not self._flips:
            return self.device.read(lba, into, done)

        def rotten(status: int) -> None:
            self._flip(lba, into)
            done(status)

        status = self.device.read(lba, into, rotten)
        if status != PENDING:
            self._flip(lba, into)
        return status

    def _flip(self, lba: int, into: memoryview | bytearray) -> None:
        for offset in range(len(into) // BLOCK_BYTES):
            for byte, mask in self._flips.get(lba + offset, {}).items():
                into[offset * BLOCK_BYTES + byte] ^= mask

    def _run(self, operation: Operation, lba: int, count: int, start: Start, done: Done) -> int:
        if operation is not Operation.READ and self._flips:
            for block in [block for block in self._flips if lba <= block < lba + count]:
                del self._flips[block]
        return start(done)


class Misdirected(Wrapper):
    """A write that lands somewhere else, with success: the block it was meant for keeps its old content."""

    def __init__(self, device: Device) -> None:
        """Writes go where they should until `misdirect` says otherwise."""
        super().__init__(device)
        self._targets: dict[int, int] = {}

    def misdirect(self, lba: int, to: int) -> None:
        """The next write that begins at block `lba` goes to block `to` instead."""
        self._targets[lba] = to

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write, perhaps elsewhere."""
        return self.device.write(self._targets.pop(lba, lba), data, fua, done)


@dataclass(slots=True)
class Tear:
    """The next write of at least two blocks keeps only the blocks at `kept` (offsets from its first), says `status`."""

    kept: frozenset[int]
    status: int = field(default=_SUCCESS)


class TornWrite(Wrapper):
    """Writes of several blocks that reach the medium in part; each block itself is whole (D3)."""

    def __init__(self, device: Device) -> None:
        """Writes are whole until `tear` says otherwise."""
        super().__init__(device)
        self._tears: list[Tear] = []

    def tear(self, kept: Collection[int], status: int = _SUCCESS) -> None:
        """Tear the next write of two blocks or more."""
        self._tears.append(Tear(frozenset(kept), status))

    def write(self, lba: int, data: Buffer, fua: bool, done: Done) -> int:
        """Write, perhaps in part; the parts go one by one, so the device below must not leave them pending."""
        count = len(data) // BLOCK_BYTES
        if count < 2 or not self._tears:
            return self.device.write(lba, data, fua, done)
        tear = self._tears.pop(0)
        view = memoryview(data)
        for offset in sorted(tear.kept):
            if offset < count:
                part = view[offset * BLOCK_BYTES : (offset + 1) * BLOCK_BYTES]
                self.device.write(lba + offset, part, False, _ignore)
        return tear.status


class DeadDevice(Wrapper):
    """A drive that stops answering: with errors, or (silent) not at all, not even to a reset."""

    def __init__(self, device: Device) -> None:
        """It lives until `die`."""
        super().__init__(device)
        self.dead = False
        self.silent = False

    def die(self, *, silent: bool = False) -> None:
        """From now on no command reaches the device below."""
        self.dead = True
        self.silent = silent

    def revive(self) -> None:
        """It answers again; what it swallowed stays unanswered."""
        self.dead = False

    def reset(self, done: Done) -> int:
        """A silent drive doesn't complete a reset either."""
        return (PENDING if self.silent else _DEAD) if self.dead else self.device.reset(done)

    def smart(self) -> dict[str, int]:
        """The last that is known, with the warning that the device is unreliable."""
        return self.device.smart() | ({"critical_warning": 0x04} if self.dead else {})

    def _run(self, operation: Operation, lba: int, count: int, start: Start, done: Done) -> int:
        if self.dead:
            return PENDING if self.silent else _DEAD
        return start(done)


def _ignore(_: int) -> None:
    """Whoever wrapped the device answers for this command."""
